"""The local nodes behind pytest-celery, proven with an application that has nothing of ours in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sample_app import touch
from tests.support import eventually, is_running

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_celery import CeleryTestSetup  # type: ignore[import-untyped]  # it ships no types


@pytest.fixture
def worker_app() -> str:
    return "tests.sample_app"


def _run(setup: CeleryTestSetup, folder: Path, name: str) -> None:
    path = folder / name
    setup.app.send_task(touch.name, (str(path),))
    eventually(path.exists)


def test_a_worker_answers_and_works(celery_setup: CeleryTestSetup, tmp_path: Path) -> None:
    assert celery_setup.ready(control=True)
    assert len(celery_setup.app.control.ping(timeout=2)) == 1
    _run(celery_setup, tmp_path, "touched")


def test_kill_takes_the_pool_along_and_restart_brings_a_worker_back(
    celery_setup: CeleryTestSetup, tmp_path: Path
) -> None:
    container = celery_setup.worker.container
    tree = [container.pid, *container.children]
    assert len(tree) >= 3
    celery_setup.worker.kill()
    assert not [pid for pid in tree if is_running(pid)]
    assert container.status == "exited"
    celery_setup.worker.restart()
    assert container.pid not in tree
    _run(celery_setup, tmp_path, "after")


def test_a_worker_survives_a_restart_of_its_broker(celery_setup: CeleryTestSetup, tmp_path: Path) -> None:
    url = celery_setup.broker.config()["url"]
    celery_setup.broker.restart()
    assert celery_setup.broker.config()["url"] == url
    _run(celery_setup, tmp_path, "after")


def test_teardown_ends_the_worker_by_sigterm(celery_setup: CeleryTestSetup) -> None:
    container = celery_setup.worker.container
    tree = [container.pid, *container.children]
    container.teardown()
    assert "Warm shutdown" in container.logs()
    assert not [pid for pid in tree if is_running(pid)]
