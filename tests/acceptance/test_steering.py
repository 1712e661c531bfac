"""A person cancels, pauses and resumes a batch, or revokes one run through Celery, as Flower does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batching import BatchState, ProfileState
from tests.support import eventually

if TYPE_CHECKING:
    from pytest_celery import CeleryTestSetup  # type: ignore[import-untyped]  # it ships no types

    from tests.acceptance.stage import Stage

BOTH = pytest.mark.parametrize("engine", ["postgresql", "sqlite"])
GATED = {"gate": "gate"}
BUSY = {"a": GATED, "b": GATED} | {f"n{number}": None for number in range(30)}


@BOTH
def test_pause_and_resume(stage: Stage) -> None:
    # Given a batch in mid-run
    stage.worker()
    batch = stage.submit("work", BUSY)
    stage.began("a", "b")
    # When a person pauses it
    assert stage.queue.pause(batch.id) == BatchState.STOPPING
    # Then nothing more is claimed, what runs may settle, and then it is paused
    view = batch.progress()
    assert (view.state, view.dispatched) == (BatchState.STOPPING, 0)
    stage.open()
    eventually(lambda: batch.progress().state is BatchState.PAUSED)
    begun = {entry.key for entry in stage.entries()}
    assert batch.progress().pending == 32 - batch.progress().succeeded > 0
    # And others pass it meanwhile
    other = stage.submit("work", 5)
    assert stage.finished(other).succeeded == 5
    assert {entry.key for entry in stage.entries() if entry.profile.startswith(batch.id)} == begun
    # And it goes on when it is resumed, without doing anything twice
    stage.queue.resume(batch.id)
    assert stage.finished(batch).succeeded == 32
    assert len([entry for entry in stage.entries() if entry.profile.startswith(batch.id)]) == 32
    stage.judge(batch, other)


def test_cancel(stage: Stage) -> None:
    # Given a batch in mid-run
    stage.worker()
    batch = stage.submit("work", BUSY)
    stage.began("a", "b")
    # When a person cancels it
    stage.queue.cancel(batch.id)
    view = batch.progress()
    assert (view.state, view.pending, view.dispatched) == (BatchState.STOPPING, 0, 0)
    stage.open()
    # Then what waits is cancelled at once and never runs, and what ran has settled
    view = stage.finished(batch)
    assert view.state is BatchState.CANCELLED
    assert view.succeeded == len(stage.entries()) >= 2
    assert view.cancelled == 32 - view.succeeded
    stage.judge(batch)


class TestThroughCelery:
    """With pytest-celery's set-up: its app speaks to the worker as Flower and `celery control` do."""

    @pytest.fixture
    def worker_environment(self, stage: Stage) -> dict[str, str]:
        return stage.environment()

    @pytest.fixture
    def worker_options(self) -> list[str]:
        return ["--pool=prefork", "--concurrency=2", "-E"]

    def test_one_run_is_revoked_and_one_terminated(self, stage: Stage, celery_setup: CeleryTestSetup) -> None:
        # Given two runs that go on, and others that wait
        batch = stage.submit("work", BUSY)
        stage.began("a", "b")
        numbers = {key: row.number for key, row in stage.rows(batch).items()}
        control = celery_setup.app.control
        # When one that waits is revoked, and one that runs is terminated, by their Celery task ids
        control.revoke(f"{batch.id}.{numbers['n29']}.1", reply=True, timeout=2)
        control.terminate(f"{batch.id}.{numbers['a']}.1", reply=True, timeout=2)
        eventually(lambda: stage.rows(batch)["a"].state == ProfileState.CANCELLED)
        stage.open()
        # Then both are cancelled, the first without ever running, and every other profile succeeded
        view = stage.finished(batch)
        assert (view.state, view.cancelled, view.succeeded) == (BatchState.SUCCEEDED, 2, 30)
        assert stage.rows(batch)["n29"].state == ProfileState.CANCELLED
        assert "n29" not in {entry.key for entry in stage.entries()}
        stage.judge(batch, again={"given back"})
