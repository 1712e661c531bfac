"""The story of a batch, told on the real store: submitted, promoted, run, failed, moved to the end, completed.

Everything here goes through the names that producers and operators use. No worker process runs: the test plays the
leader and the worker itself, so that each step can be looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import uuid_utils

from batching.errors import IllegalMoveError
from batching.execution_manager import BatchExecutionManager
from batching.interfaces import Ending, ErrorInfo, IBatchExecutionManager, IBatchStateManager, Outcome, WorkerInfo
from batching.options import BatchOptions
from batching.queue_manager import QueueManager
from batching.registry import WorkerRegistry
from batching.states import BatchState
from tests.recording import RecordingPublisher

if TYPE_CHECKING:
    from collections.abc import Collection

    from batching.database import Database
    from batching.interfaces import LeaderTerm

WORKER = str(uuid_utils.uuid7())
BROKEN = ErrorInfo("ValueError", "this one is broken", "0123456789abcdef")


@pytest.fixture
def queue(database: Database) -> QueueManager:
    manager = QueueManager(database)
    WorkerRegistry(database).register(WorkerInfo(WORKER, "here", 1, "prefork", 2, ("shop.enrich",), ("*",), "0.1.0"))
    return manager


@pytest.fixture
def publisher() -> RecordingPublisher:
    return RecordingPublisher()


@pytest.fixture
def executor(queue: QueueManager, publisher: RecordingPublisher) -> BatchExecutionManager:
    return BatchExecutionManager(queue.state_manager, publisher, jitter=lambda: 0.0)


@pytest.fixture
def term(queue: QueueManager) -> LeaderTerm:
    term = queue.state_manager.lead(str(uuid_utils.uuid7()), lease=60)
    assert term is not None
    return term


def run_pass(
    executor: BatchExecutionManager,
    publisher: RecordingPublisher,
    batch_id: str,
    term: LeaderTerm,
    broken: Collection[str] = (),
) -> None:
    """Dispatch, claim and settle until nothing of the batch can be dispatched; `broken` keys fail."""
    while executor.dispatch_batch(batch_id, 100, term):
        claimed = executor.claim(WORKER, [each.run for each in publisher.take()]).claimed
        executor.complete(
            WORKER,
            [
                (
                    run,
                    Outcome(Ending.FAILED, error=BROKEN)
                    if run.key in broken
                    else Outcome(Ending.SUCCEEDED, result='"done"'),
                )
                for run in claimed
            ],
        )


def test_the_managers_keep_their_contracts(queue: QueueManager, executor: BatchExecutionManager) -> None:
    assert isinstance(queue.state_manager, IBatchStateManager)
    assert isinstance(executor, IBatchExecutionManager)


def test_a_batch_that_fails_goes_to_the_end_and_never_holds_up_the_others(
    queue: QueueManager, executor: BatchExecutionManager, publisher: RecordingPublisher, term: LeaderTerm
) -> None:
    state = queue.state_manager

    # Two producers hand over their batches. The first has one profile that is broken.
    keys = [f"item-{number}" for number in range(1, 11)]
    faulty = queue.submit(
        "shop.enrich", keys, name="faulty", options=BatchOptions(max_attempts=1, max_passes=2, pass_backoff=0)
    )
    sound = queue.submit("shop.enrich", ({"key": key, "payload": {"of": key}} for key in keys), name="sound")
    assert faulty.created
    assert faulty.total == sound.total == 10
    assert [(view.name, view.place) for view in queue.statistics.batches()] == [("faulty", 1), ("sound", 2)]

    # The first in line is promoted; its profiles are dispatched, one message each, ids only.
    assert state.promote("default", term) == faulty.id
    assert faulty.progress().place == 0
    assert executor.dispatch_batch(faulty.id, 4, term) == 4
    assert faulty.progress().dispatched == 4
    assert [each.key for each in publisher.published] == keys[:4]

    # A worker claims and settles them. One fails, which is one more than the budget allows ...
    claimed = executor.claim(WORKER, [each.run for each in publisher.take()]).claimed
    outcomes = [Outcome(Ending.SUCCEEDED, result="1")] * 3 + [Outcome(Ending.FAILED, error=BROKEN)]
    executor.complete(WORKER, list(zip(claimed, outcomes, strict=True)))

    # ... so the batch is at the end of the queue, for its second pass, and the other is next.
    view = faulty.progress()
    assert (view.state, view.pass_number, view.place) == (BatchState.QUEUED, 2, 2)
    assert (view.succeeded, view.pending, view.failed) == (3, 7, 0)
    assert sound.progress().place == 1
    assert [entry.to_state for entry in queue.statistics.history(faulty.id)] == [
        BatchState.QUEUED,
        BatchState.RUNNING,
        BatchState.STOPPING,
        BatchState.QUEUED,
    ]

    # The sound batch runs through, and completes when its last profile settles.
    assert state.promote("default", term) == sound.id
    run_pass(executor, publisher, sound.id, term)
    assert sound.progress().state is BatchState.SUCCEEDED
    assert sound.progress().percent == 100
    assert [line.result for line in sound.results()] == ["done"] * 10

    # The faulty one has its second turn: only what is not done runs again.
    while state.rewrite(faulty.id):
        pass
    assert state.promote("default", term) == faulty.id
    publisher.published.clear()
    run_pass(executor, publisher, faulty.id, term, broken={"item-4"})
    assert sorted(publisher.history_of(faulty.id)) == sorted(keys[3:])

    # No pass is left: it is failed, keeps its failure, and names the culprit.
    view = faulty.progress()
    assert (view.state, view.pass_number) == (BatchState.FAILED, 2)
    assert (view.succeeded, view.failed, view.unsettled) == (9, 1, 0)
    assert view.reason == "pass 2 failed: 1 profile failed, 0 allowed"
    [group] = queue.statistics.failures(faulty.id)
    assert (group.type, group.message, group.count, group.keys) == ("ValueError", "this one is broken", 1, ("item-4",))


def test_completion_is_asked_for_by_name_and_happens_once(
    queue: QueueManager, executor: BatchExecutionManager, publisher: RecordingPublisher, term: LeaderTerm
) -> None:
    batch = queue.submit("shop.enrich", ["only"])

    with pytest.raises(IllegalMoveError, match="1 of its 1 profiles are unsettled; wait for them, or cancel the batch"):
        queue.state_manager.mark_completed(batch.id)

    queue.state_manager.promote("default", term)
    run_pass(executor, publisher, batch.id, term)

    assert queue.state_manager.mark_completed(batch.id) is BatchState.SUCCEEDED
    assert queue.state_manager.mark_completed(batch.id) is BatchState.SUCCEEDED
    assert [entry.to_state for entry in queue.statistics.history(batch.id)].count(BatchState.SUCCEEDED) == 1


def test_a_batch_can_be_asked_to_run_ahead_of_its_turn(queue: QueueManager, term: LeaderTerm) -> None:
    first = queue.submit("shop.enrich", ["a"], name="first")
    urgent = queue.submit("shop.enrich", ["b"], name="urgent")

    assert queue.execution_manager.execute_batch(urgent.id) is BatchState.QUEUED

    assert queue.state_manager.promote("default", term) == urgent.id
    assert queue.state_manager.promote("default", term) == first.id


def test_the_statistics_add_up_in_every_state(
    queue: QueueManager, executor: BatchExecutionManager, publisher: RecordingPublisher, term: LeaderTerm
) -> None:
    batch = queue.submit("shop.enrich", [f"item-{number}" for number in range(8)])
    queue.state_manager.promote("default", term)
    executor.dispatch_batch(batch.id, 6, term)
    claimed = executor.claim(WORKER, [each.run for each in publisher.take()[:4]]).claimed
    executor.complete(
        WORKER,
        [
            (claimed[0], Outcome(Ending.SUCCEEDED, result="1")),
            (claimed[1], Outcome(Ending.SKIPPED, error=ErrorInfo("SkipProfile", "not today", "skip"))),
        ],
    )

    view = batch.progress()

    assert (view.pending, view.dispatched, view.running) == (2, 2, 2)
    assert (view.succeeded, view.skipped) == (1, 1)
    assert view.total == view.unsettled + view.settled
    assert view.percent == 25


def test_whoever_waits_is_not_told_of_an_end_that_was_taken_back(
    queue: QueueManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person may retry a batch between the two looks."""
    batch = queue.submit("shop.enrich", ["a"])
    monkeypatch.setattr(queue.statistics, "state", lambda batch_id: BatchState.FAILED)
    with pytest.raises(TimeoutError, match="goes on without this caller"):
        batch.wait(0)
    queue.cancel(batch.id)
    assert batch.wait(0).state is BatchState.CANCELLED
