"""Flower, opened beside a contender's workers."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.stage import FailedError
from tests.support import eventually, free_port
from workers.tether import Tether

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.stage import Stage


@contextmanager
def flower(stage: Stage) -> Iterator[str | None]:
    """Open a Flower on a free port of the loopback interface, if the shape asks for one; gives its address."""
    app = stage.shape.options.get("flower")
    if app is None:
        yield None
        return
    port = free_port()
    words = ["-m", "celery", "-A", app, "flower", "--address=127.0.0.1", f"--port={port}"]
    environment = {**stage.environment, "FLOWER_UNAUTHENTICATED_API": "true"}
    tether = Tether(
        ["env", "-C", stage.place.directory, sys.executable, *words],
        log=stage.place.folder / "flower.log",
        environment=environment,
    )
    page = f"http://127.0.0.1:{port}"
    try:
        _wait(page, stage)
        yield page
    finally:
        tether.stop()


def seen(page: str) -> int:
    """How many task events Flower has received.

    Raises:
        FailedError: None: the run says nothing about events.
    """
    lines = _get(f"{page}/metrics").splitlines()
    events = [line for line in lines if line.startswith("flower_events_total{")]
    count = sum(int(float(line.rsplit(" ", 1)[1])) for line in events)
    if not count:
        raise FailedError("Flower received no event")
    return count


def _wait(page: str, stage: Stage) -> None:
    def answers() -> None:
        try:
            _get(f"{page}/healthcheck")
        except (urllib.error.URLError, ConnectionError) as error:
            raise AssertionError(str(error)) from None

    try:
        eventually(answers, 30)
    except AssertionError as error:
        log = (stage.place.folder / "flower.log").read_text(errors="replace")[-1000:]
        raise FailedError(f"Flower does not answer: {error}; {json.dumps(log)}") from None


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own Flower
        return str(answer.read().decode())
