"""A worker that is told to stop ends, in time and in order, whatever its children and its servers are at."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import psutil
import pytest
from sqlalchemy import select

from batching.dialects import now
from batching.models import workers
from batching.queue_manager import QueueManager
from batching.settings import get_settings
from tests.acceptance.stage import HANDLERS
from tests.support import eventually

if TYPE_CHECKING:
    from tests.acceptance.stage import Stage
    from tests.nodes import LocalProcess
    from tests.servers import PostgresServer

ONE = ("--pool=prefork", "--concurrency=1")
WITH_QUICK = f"{HANDLERS},tests.acceptance.bundled"
GATED = {"gate": "gate"}
#: Seconds beyond BATCHING_DRAIN_TIMEOUT within which a worker of the prefork pool ends; `docs/guide/reliability.md`.
BOUND = 30.0


def the_only_child(stage: Stage, worker: LocalProcess) -> psutil.Process:
    """The child that runs everything in a worker of one slot, known by what it has run."""
    stage.finished(stage.submit("work", 3))
    (pid,) = {entry.pid for entry in stage.entries()} & set(worker.children)
    return psutil.Process(pid)


def has_beaten(stage: Stage) -> None:
    """Wait until the worker's loop has gone round: whatever it was at when this was called is done."""
    with stage.database.read() as reading:
        moment = reading.scalar(select(now()))

    def beat() -> bool:
        with stage.database.read() as reading:
            return bool(reading.scalar(select(workers.c.heartbeat_at > moment)))

    for _ in range(2):
        eventually(beat)


def test_what_a_child_has_got_and_not_begun_is_neither_lost_nor_waited_for(stage: Stage) -> None:
    # Given a child that has a profile in its pipe, and does not come to read it
    worker = stage.worker(*ONE, BATCHING_DRAIN_TIMEOUT="60")
    child = the_only_child(stage, worker)
    child.suspend()
    batch = stage.submit("work", 1)
    eventually(lambda: batch.progress().running == 1)
    has_beaten(stage)
    # When the worker is told to stop: Celery's consumer lets the pool forget whatever has not begun
    worker.kill("SIGTERM")
    eventually(lambda: "Draining" in worker.logs())
    child.resume()
    # Then its outcome is settled, and the worker does not wait for it for the rest of its time
    assert worker.wait(20) == 0, worker.logs()
    assert stage.finished(batch).succeeded == 1
    assert stage.endings(batch) == {}
    stage.judge(batch)


def test_a_worker_that_stops_at_once_ends_a_child_that_it_has_not_heard_of(stage: Stage) -> None:
    # Given a profile that hangs in a child, of which the worker has not read yet that it has begun
    worker = stage.worker(*ONE, BATCHING_HANDLERS=WITH_QUICK)
    child, parent = the_only_child(stage, worker), psutil.Process(worker.pid)
    child.suspend()
    batch = stage.submit("quick", {"hangs": GATED})
    eventually(lambda: batch.progress().running == 1)
    has_beaten(stage)
    parent.suspend()
    child.resume()
    stage.began("hangs")
    # When the worker is told to stop at once, before it reads on
    worker.kill("SIGQUIT")
    parent.resume()
    # Then it ends, the profile waits again, uncharged, and whoever hung could clean up
    worker.wait(20)
    eventually(stage.nothing_runs)
    row = stage.rows(batch)["hangs"]
    assert (row.state in {"pending", "dispatched"}, row.attempts, row.losses) == (True, 0, 0)
    assert (stage.folder / "gate.left").exists()
    # And another worker does it
    stage.open()
    stage.worker(BATCHING_HANDLERS=WITH_QUICK)
    assert stage.finished(batch).succeeded == 1
    stage.judge(batch, again={"given back"})


LONG = pytest.mark.exhaustive


@pytest.mark.parametrize("how", ["SIGTERM", pytest.param("SIGINT", marks=LONG), pytest.param("SIGQUIT", marks=LONG)])
def test_a_stop_is_bounded_when_nothing_answers(
    stage_with_own_sql: Stage, own_postgres: PostgresServer, how: str
) -> None:
    # Given a worker that runs two profiles, one of which does not listen, and holds others
    stage = stage_with_own_sql
    worker = stage.worker(BATCHING_DRAIN_TIMEOUT="3")
    batch = stage.submit("work", {"deaf": {**GATED, "stubborn": True}, "b": GATED} | {f"n{n}": None for n in range(20)})
    stage.began("deaf", "b")
    # When neither PostgreSQL nor Redis answers any more, and it is told to stop
    own_postgres.freeze()
    stage.valkey.freeze()
    try:
        started = time.monotonic()
        worker.kill(how)
        worker.wait(3 + BOUND)
        print(f"{how}: ended after {time.monotonic() - started:.1f} s")  # noqa: T201 - the figure of the guide
        # Then it ends in time, with its children and its manager
        eventually(stage.nothing_runs)
    finally:
        own_postgres.thaw()
        stage.valkey.thaw()
    # And whatever it held is done by another one
    stage.open()
    stage.worker()
    assert stage.finished(batch).succeeded == 22
    stage.judge(batch, again={"lost", "given back"})


def test_a_stop_is_bounded_when_a_child_is_frozen(stage: Stage) -> None:
    # Given a child that has but a part of what it was sent, since it does not read and the pipe is full
    worker = stage.worker(*ONE, BATCHING_DRAIN_TIMEOUT="1")
    child = the_only_child(stage, worker)
    child.suspend()
    stage.queue = QueueManager(stage.database, settings=get_settings().model_copy(update={"payload_limit": 10**6}))
    large = {"large": {"ballast": "x" * 300_000, **GATED}}
    batch = stage.submit("work", large | {f"n{number}": None for number in range(9)})
    eventually(lambda: batch.progress().running >= 1)
    has_beaten(stage)
    # When the worker is told to stop
    os.kill(worker.pid, signal.SIGTERM)
    # Then it kills the child in the end, and gives everything back
    worker.wait(1 + BOUND)
    eventually(stage.nothing_runs)
    assert {row.state for row in stage.rows(batch).values()} <= {"pending", "dispatched"}
    stage.open()
    stage.worker()
    assert stage.finished(batch).succeeded == 10
    stage.judge(batch, again={"given back"})
