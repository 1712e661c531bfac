"""How a run can end while its worker lives: the handler returns, raises, runs out of time, or dies with its child."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from batching import BatchOptions, BatchState
from tests.acceptance.stage import HANDLERS, ONCE

if TYPE_CHECKING:
    from tests.acceptance.stage import Stage

BOTH = pytest.mark.parametrize("engine", ["postgresql", "sqlite"])


@BOTH
def test_the_handler_returns(stage: Stage) -> None:
    # Given a worker, and profiles of which one returns what JSON cannot express
    stage.worker()
    batch = stage.submit("odd", {f"p{number}": "return" for number in range(50)} | {"set": "no JSON", "skip": "skip"})
    # When they ran
    view = stage.finished(batch)
    # Then each has its own end, and the batch finished with the last of them
    assert (view.state, view.succeeded, view.failed, view.skipped) == (BatchState.SUCCEEDED, 50, 1, 1)
    lines = {line.key: line for line in batch.results()}
    assert lines["p7"].result == "returned"
    error = lines["set"].error
    assert error is not None
    assert error["type"].endswith("ResultNotJSONError")
    assert stage.endings(batch) == {"set": ["failed"], "skip": ["skipped"]}
    stage.judge(batch)


def test_the_handler_raises(stage: Stage) -> None:
    # Given a batch with a profile that fails in both attempts of its first pass, and others behind it: one whose only
    # profile fails it, one that fails in every pass, one that is well
    stage.worker("--pool=prefork", "--concurrency=1")
    twice = BatchOptions(max_attempts=2, max_passes=2, retry_backoff=0.1, pass_backoff=0.1)
    patient = BatchOptions(max_attempts=1, max_passes=2, pass_backoff=0.1, fail_fast=False)
    failing = stage.submit("odd", {"good": "return", "bad": ["raise", "raise", "return"], "late": "return"}, twice)
    aborted = stage.submit("odd", {"abort": "fail batch"}, BatchOptions(max_passes=1))
    hopeless = stage.submit("odd", {"hopeless": "raise", "fine": "return"}, patient)
    behind = stage.submit("odd", {f"b{number}": "return" for number in range(5)})
    # When all have ended
    for batch in (aborted, hopeless, behind, failing):
        stage.finished(batch)
    # Then it was tried twice inside the pass, the batch went to the end, and the next pass ran only what was not done
    view = failing.progress()
    assert (view.state, view.pass_number, view.succeeded) == (BatchState.SUCCEEDED, 2, 3)
    assert stage.endings(failing) == {"bad": ["retried", "failed"]}
    order = [entry.key for entry in stage.entries()]
    assert order.index("b4") < len(order) - 1 - order[::-1].index("bad")
    assert [order.count(key) for key in ("good", "bad", "late")] == [1, 3, 1]
    # And where no pass is left, the batch is failed and keeps its failures
    view = hopeless.progress()
    assert (view.state, view.pass_number, view.failed, view.succeeded) == (BatchState.FAILED, 2, 1, 1)
    assert order.count("fine") == 1
    assert (aborted.progress().state, aborted.progress().failed) == (BatchState.FAILED, 1)
    stage.judge(failing, aborted, hopeless, behind, again={"retried", "failed"})


def test_soft_and_hard_time_limit(stage: Stage) -> None:
    # Given handlers with a limit of one second, and profiles that take longer or not
    stage.worker(BATCHING_HANDLERS=f"{HANDLERS},tests.acceptance.limited")
    soft = stage.submit("soft", {"long": 30, "short": 0})
    hard = stage.submit("hard", {"long": 30, "short": 0})
    # When they ran into it
    for batch, name in ((soft, "SoftTimeLimitExceeded"), (hard, "TimeLimitExceeded")):
        view = stage.finished(batch)
        # Then it is a failure that says so, charged once, and the neighbour succeeded
        assert (view.failed, view.succeeded) == (1, 1)
        failed = next(line for line in batch.results() if line.key == "long")
        assert failed.error is not None
        assert failed.error["type"].rsplit(".", 1)[-1] == name
        assert failed.attempts == 1
    stage.judge(soft, hard)


@BOTH
def test_the_pool_child_is_killed(stage: Stage) -> None:
    # Given a profile that runs, with neighbours that wait
    worker = stage.worker()
    batch = stage.submit("work", {"victim": {"gate": "gate"}} | {f"n{number}": None for number in range(20)})
    victim = stage.began("victim")[0]
    # When its pool child is killed
    os.kill(victim.pid, signal.SIGKILL)
    second = stage.began("victim", times=2)[0]
    stage.open()
    # Then it has one loss and runs again, uncharged; the worker goes on with a new child
    view = stage.finished(batch)
    assert (view.state, view.succeeded) == (BatchState.SUCCEEDED, 21)
    assert second.pid != victim.pid
    assert stage.endings(batch) == {"victim": ["lost"]}
    assert stage.rows(batch)["victim"].attempts == 1
    assert worker.status == "running"
    stage.judge(batch, again={"lost"})


def test_a_handler_ends_its_own_process(stage: Stage) -> None:
    # Given profiles that end their pool child each time, and profiles that raise what would end a process
    worker = stage.worker(BATCHING_MAX_LOSSES="1")
    ways = ["os._exit", "segfault"]
    contained = ["MemoryError", "SystemExit"]
    neighbours = {f"n{number}": "return" for number in range(20)}
    batch = stage.submit("odd", {way: way for way in [*ways, *contained]} | neighbours, ONCE)
    # When the batch is through
    view = stage.finished(batch, 60)
    # Then the first are `failed` by WorkerLost after they ran alone, the others failed by themselves, charged
    lines = {line.key: line for line in batch.results()}
    assert (view.failed, view.succeeded) == (4, 20), stage.report()
    for way in ways:
        assert stage.endings(batch)[way] == ["lost", "failed"]
        assert (lines[way].error or {})["type"] == "WorkerLost"
    for way in contained:
        assert (lines[way].error or {})["type"] == way
        assert stage.endings(batch)[way] == ["failed"]
    assert worker.status == "running"
    stage.judge(batch, again={"lost"})


def test_two_handlers_end_their_processes_at_the_same_time(stage: Stage) -> None:
    # Given two profiles that end their pool children, the second in the moment in which the first is cleared up
    worker = stage.worker(BATCHING_HANDLERS="tests.acceptance.twins")
    batch = stage.submit("twin", {"a": None, "b": None})
    # When both ran again
    view = stage.finished(batch)
    # Then each was lost once, and no run was executed twice, though nobody had heard of the second when its child died
    assert view.succeeded == 2, stage.report()
    assert stage.endings(batch) == {"a": ["lost"], "b": ["lost"]}
    assert worker.status == "running"
    stage.judge(batch, again={"lost"})
