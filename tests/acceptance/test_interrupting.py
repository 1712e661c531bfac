"""A batch is cancelled together with what runs of it; a batch brings time limits of its own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from batching import BatchOptions, BatchState
from batching.errors import InvalidInputError
from tests.support import eventually

if TYPE_CHECKING:
    from tests.acceptance.stage import Stage

LONG = {"seconds": 60}


def test_a_cancel_that_terminates_ends_what_runs_and_nothing_else(stage: Stage) -> None:
    # Given a batch that would run for a minute, and one beside it
    stage.worker("--pool=prefork", "--concurrency=3")
    batch = stage.submit("work", {"a": LONG, "b": LONG} | {f"n{number}": None for number in range(20)})
    stage.began("a", "b")
    other = stage.submit("work", {"o": {"gate": "gate"}})
    stage.began("o")
    # When it is cancelled with what runs
    began = time.monotonic()
    stage.queue.cancel(batch.id, running="terminate")
    # Then it is over within a second or so, its runs are cancelled, and the other batch has lost nothing
    view = stage.finished(batch, timeout=5)
    took = time.monotonic() - began
    assert view.state is BatchState.CANCELLED
    assert (view.running, view.failed, view.succeeded + view.cancelled) == (0, 0, 22)
    assert view.cancelled >= 2
    stage.open()
    assert stage.finished(other).succeeded == 1
    assert stage.endings(other) == {}
    assert took < 3.0, took  # 0.4 s until it is seen, and what a loaded machine needs to reap a child


def test_a_cancel_lets_what_runs_finish_unless_it_is_told_otherwise(stage: Stage) -> None:
    # Given a batch in mid-run
    stage.worker()
    batch = stage.submit("work", {"a": {"gate": "gate"}, "b": {"gate": "gate"}, "c": None})
    stage.began("a", "b")
    # When it is cancelled, and its worker has looked at what it runs again
    stage.queue.cancel(batch.id)
    heard = stage.queue.statistics.workers()[0].heartbeat_at
    eventually(lambda: stage.queue.statistics.workers()[0].heartbeat_at > heard)
    eventually(lambda: batch.progress().running == 2)  # what was claimed and had not begun is given back
    # Then what runs settles
    stage.open()
    view = stage.finished(batch)
    assert (view.state, view.succeeded, view.cancelled) == (BatchState.CANCELLED, 2, 1)
    stage.judge(batch)


def test_time_limits_of_the_batch_override_those_of_the_handler(stage: Stage) -> None:
    # Given a handler without limits, and one with a limit of a second
    stage.worker(BATCHING_HANDLERS="tests.acceptance.handlers,tests.acceptance.limited")
    once = {"max_attempts": 1, "max_passes": 1, "failure_budget": 9}
    payloads = {"slow": LONG, "quick": None}
    hard = stage.submit("work", payloads, BatchOptions(time_limit=0.5, **once))  # type: ignore[arg-type]
    soft = stage.submit("work", payloads, BatchOptions(soft_time_limit=0.5, time_limit=20, **once))  # type: ignore[arg-type]
    longer = stage.submit("hard", {"a": 1.5}, BatchOptions(time_limit=20, **once))  # type: ignore[arg-type]
    unlimited = stage.submit("work", {"u": {"seconds": 1.0}})
    # When they ran, then each kept its own
    for batch, error in ((hard, "TimeLimitExceeded"), (soft, "SoftTimeLimitExceeded")):
        stage.finished(batch)
        lines = {line.key: line for line in batch.results()}
        assert lines["quick"].error is None
        assert lines["slow"].error is not None
        assert lines["slow"].error["type"].endswith(error)
    assert stage.finished(longer).succeeded == 1
    assert stage.finished(unlimited).succeeded == 1


def test_a_pool_that_can_interrupt_nothing_refuses_time_limits(stage: Stage) -> None:
    # Given a batch with a time limit, and then only a worker of threads
    once = BatchOptions(time_limit=5, max_attempts=1, max_passes=1)
    early = stage.submit("work", {"a": None}, once)
    stage.worker("--pool=threads", "--concurrency=2")
    # Then its profiles fail, and say why
    assert stage.finished(early).state is BatchState.FAILED
    [line] = early.results()
    assert line.error is not None
    assert line.error["type"] == "TimeLimitUnsupported"
    assert "--pool=prefork" in line.error["message"]
    assert stage.entries() == []
    # And what comes later is refused at once
    with pytest.raises(InvalidInputError, match="which cannot interrupt what they run"):
        stage.submit("work", {"a": None}, once)
    # And a cancel tells how much runs to its end there
    held = stage.submit("work", {"h": {"gate": "gate"}})
    stage.began("h")
    stage.queue.cancel(held.id, running="terminate")
    assert stage.queue.statistics.uninterruptible(held.id) == {"threads": 1}
    stage.open()
    view = stage.finished(held)
    assert (view.state, view.succeeded) == (BatchState.CANCELLED, 1)
