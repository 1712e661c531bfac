"""The traps that other batch systems fell into, each a test by name.

What takes whole processes to prove is proved where its docstring says; here is the same at the level of SQL, where the
trap is: a counter that is not idempotent, a message that nobody misses, an ending and its callback apart.
"""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import literal, select

from batching.dialects import later
from batching.errors import IllegalMoveError
from batching.interfaces import Ending, Outcome
from batching.models import batches, callbacks
from batching.moves import batch as batch_moves
from batching.moves.sweep import LostEvidence
from batching.states import BatchState, StopTarget
from batching.statistics import Statistics
from tests.accounting import (
    BROKEN,
    DONE,
    FAILED,
    Desk,
    assert_accounted,
    end,
    plant_batch,
    read_batch,
    read_counts,
    statements,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.database import Database

TOLD: dict[str, Any] = {"on_finish": "app.over"}


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


def told(desk: Desk) -> list[str]:
    with desk.database.read() as connection:
        return list(connection.scalars(select(callbacks.c.batch_id)))


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Call all of them at the same instant, each in a thread; returns what each returned or raised."""
    start = threading.Barrier(len(calls))

    def one(call: Callable[[], Any]) -> Any:
        start.wait(10)
        try:
            return call()
        except IllegalMoveError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return [each.result() for each in [pool.submit(one, call) for call in calls]]


def test_one_message_that_is_delivered_twice_runs_once(desk: Desk) -> None:
    """sidekiq#6852, celery#4400. With real messages: test_messages_are_delivered_twice in acceptance/."""
    batch_id = desk.start(2)
    runs = desk.dispatch(batch_id)
    workers = [str(uuid.uuid4()) for _ in range(4)]
    won = together(*(lambda worker=worker: desk.states.claim(worker, runs).claimed for worker in workers))
    assert sorted(each.run.number for claimed in won for each in claimed) == [1, 2]
    for worker, claimed in zip(workers, won, strict=True):
        desk.settle(claimed, worker=worker)
        # The same outcome once more, and the same message.
        assert desk.states.settle(worker, [end(each) for each in claimed]).applied == []
        assert desk.states.claim(worker, runs).claimed == []
    desk.states.conclude([batch_id])
    assert desk.state(batch_id) is BatchState.SUCCEEDED
    # And after the batch has ended
    assert desk.states.claim(workers[0], runs).claimed == []
    counts = assert_accounted(desk.database, batch_id)
    assert (counts.succeeded, counts.late) == (2, 2)
    assert counts.duplicates == 3 * 2 + 4 * 2 + 2


def test_a_worker_that_dies_after_it_popped_costs_nothing(desk: Desk) -> None:
    """kombu#305, celery#7950, #3541. With kills: acceptance/test_workers.py and acceptance/test_messages.py.

    There is no acknowledgement to die before, and nothing to restore: a message is popped for good, and SQL remembers.
    """
    batch_id = desk.start(3)
    desk.register()
    popped = desk.dispatch(batch_id, 2)
    # Between pop and start: nobody claims it, and its lane is empty
    evidence = LostEvidence(0.0, everything=True)
    assert [each.run for each in desk.states.suspects(desk.term, evidence)] == popped
    # Between start and the end: claimed, and the worker is gone
    gone = str(uuid.uuid4())
    [claimed] = desk.states.claim(gone, popped[:1]).claimed
    assert desk.states.take_back(gone, None, desk.term) == [claimed.run]
    # Between the commit of the outcome and anything after it: the same outcome again is late
    [second] = desk.states.claim(desk.worker, popped[1:]).claimed
    desk.settle([second])
    assert desk.states.settle(desk.worker, [end(second)]).late == [second.run]
    desk.work(batch_id)
    assert desk.state(batch_id) is BatchState.SUCCEEDED
    assert assert_accounted(desk.database, batch_id).succeeded == 3


def test_the_last_two_finish_at_the_same_instant_and_the_batch_once(desk: Desk) -> None:
    """good_job#832, sidekiq#5524. Lock by lock: test_races.py, test_the_last_two_finishers_finish_exactly_once."""
    batch_id = desk.start(2, **TOLD)
    first, second = desk.claim(batch_id)

    def finish(each: Any) -> list[str]:
        desk.states.settle(desk.worker, [end(each)])
        return desk.states.conclude([batch_id])

    moved = together(lambda: finish(first), lambda: finish(second))
    assert sorted(moved) == [[], [batch_id]]
    assert told(desk) == [batch_id]


def test_an_ending_and_its_callback_are_one_transaction(desk: Desk) -> None:
    """oban#954, laravel#37948. With a kill in between: acceptance/test_callbacks.py."""
    batch_id = desk.start(1, **TOLD)
    desk.settle(desk.claim(batch_id))
    connection = desk.database.engine.connect()
    transaction = connection.begin()
    assert batch_moves.conclude(connection, batch_id)
    transaction.rollback()  # as when the process dies here
    connection.close()
    assert (desk.state(batch_id), told(desk)) == (BatchState.RUNNING, [])
    desk.states.conclude([batch_id])  # the sweep's
    assert (desk.state(batch_id), told(desk)) == (BatchState.SUCCEEDED, [batch_id])


def test_cancel_of_the_last_pending_profile_ends_the_batch(desk: Desk) -> None:
    """oban#949, celery#10526."""
    batch_id = desk.start(2, **TOLD)
    desk.work(batch_id, limit=1)
    assert desk.states.stop(batch_id, StopTarget.CANCELLED, "no more") is BatchState.CANCELLED
    assert assert_accounted(desk.database, batch_id).cancelled == 1
    assert told(desk) == [batch_id]


def test_revoke_of_the_last_running_profile_ends_the_batch(desk: Desk) -> None:
    """oban#949, celery#10526. Through Celery's remote control: acceptance/test_steering.py."""
    batch_id = desk.start(2, **TOLD)
    desk.work(batch_id, limit=1)
    desk.work(batch_id, lambda _: Outcome(Ending.REVOKED, error=BROKEN))
    assert desk.state(batch_id) is BatchState.SUCCEEDED
    assert told(desk) == [batch_id]


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_of_none_or_one_ends_and_tells(desk: Desk, count: int) -> None:
    """oban#1022, celery#3597, laravel#58163."""
    batch_id = desk.start(count, **TOLD)
    if count:
        desk.work(batch_id)
    desk.states.conclude([batch_id])
    assert (desk.state(batch_id), told(desk)) == (BatchState.SUCCEEDED, [batch_id])


def test_a_cancelled_batch_that_is_retried_really_runs(desk: Desk) -> None:
    """horizon#1042: jobs of a batch that stayed cancelled returned at once, as successes."""
    batch_id = desk.finish(BatchState.CANCELLED, 3)
    desk.states.retry(batch_id)
    desk.rewrite(batch_id)
    desk.states.promote("default", desk.term)
    assert len(desk.claim(batch_id, 2)) == 2
    assert read_counts(desk.database, batch_id).succeeded == 0


def test_of_two_operators_who_retry_at_once_one_is_told(desk: Desk) -> None:
    """laravel PR #47584: two concurrent retries ran jobs twice."""
    batch_id = desk.finish(BatchState.FAILED, 3)
    answers = together(lambda: desk.states.retry(batch_id), lambda: desk.states.retry(batch_id))
    assert "2" in {str(each) for each in answers}
    assert [isinstance(each, IllegalMoveError) for each in answers].count(True) == 1
    assert read_batch(desk.database, batch_id).pass_number == 2
    assert assert_accounted(desk.database, batch_id).pending == 3


def test_what_may_still_get_profiles_does_not_end_with_the_last_that_it_has(desk: Desk) -> None:
    """sidekiq#2888. An open batch is sealed first, and only then ends."""
    batch_id = desk.start(1, **TOLD)
    plant_batch(desk.database, batch_id, sealed=False)
    desk.work(batch_id)
    assert (desk.state(batch_id), told(desk)) == (BatchState.RUNNING, [])
    plant_batch(desk.database, batch_id, sealed=True)
    desk.states.conclude([batch_id])
    assert (desk.state(batch_id), told(desk)) == (BatchState.SUCCEEDED, [batch_id])


@pytest.mark.parametrize("total", [1_000, 1_000_000])
def test_all_but_one_is_not_100_percent(desk: Desk, total: int) -> None:
    """laravel#36864, horizon#1005."""
    from dataclasses import replace

    batch_id = desk.start(2)
    desk.work(batch_id, limit=1)
    view = replace(Statistics(desk.database).batch(batch_id), total=total, succeeded=total - 1, pending=1)
    assert view.percent == 99
    # Nor when all are settled and nobody has concluded it yet
    assert replace(view, succeeded=total, pending=0).percent == 99
    assert replace(view, succeeded=total, pending=0, state=BatchState.SUCCEEDED).percent == 100


def test_no_row_is_written_by_everybody(desk: Desk) -> None:
    """laravel#39722, #36478: one counter row per batch.

    The other half, memory and commands of large batches: test_submission.py, test_performance_guard.py.
    """
    batch_id = desk.start(50)
    one, other = desk.worker, str(uuid.uuid4())
    with statements(desk.database) as seen:
        for worker in (one, other):
            claimed = desk.states.claim(worker, desk.dispatch(batch_id, 10)).claimed
            desk.settle(claimed, worker=worker)
    written = [" ".join(each.split()) for each in seen]
    assert [each for each in written if "UPDATE batches" in each] == []
    # While one writer's group is open, another's is not held up
    first, second = desk.claim(batch_id, 5), desk.claim(batch_id, 5, worker=other)
    if desk.database.dialect == "postgresql":
        from batching.moves import profile

        with desk.database.begin() as connection:
            profile.settle(connection, one, one, [end(each) for each in first])
            with ThreadPoolExecutor(1) as pool:
                pool.submit(desk.settle, second, DONE, other).result(10)


def test_a_batch_is_kept_while_it_waits_or_has_something_to_tell(desk: Desk) -> None:
    """good_job#1387: pruned before its callback ran. celery#4642: results that expire while the group waits."""
    waits, ended = desk.submit(2), desk.start(1, queue="other", **TOLD)
    desk.work(ended)
    with desk.database.begin() as connection:
        connection.execute(batches.update().values(created_at=later(literal(-90 * 86_400.0))))
    plant_batch(desk.database, ended, finished_at=later(literal(-90 * 86_400.0)))
    assert desk.states.prune(30) == 0
    [taken] = desk.states.take_callbacks(10, 60)
    assert desk.states.prune(30) == 0
    desk.states.callback_delivered(taken)
    assert desk.states.prune(30) == 1
    assert desk.state(waits) is BatchState.QUEUED


def test_a_broker_that_comes_back_empty_is_noticed(desk: Desk) -> None:
    """celery#10205: workers stay up and consume nothing. With a real restart: acceptance/test_messages.py."""
    batch_id = desk.start(4)
    sent = desk.dispatch(batch_id, 3)
    [claimed, *_] = desk.states.claim(desk.worker, sent[:1]).claimed
    assert desk.states.suspects(desk.term, LostEvidence(60.0)) == []  # they merely wait
    again = desk.states.suspects(desk.term, LostEvidence(60.0, everything=True))
    assert [each.run for each in again] == sent[1:]
    desk.settle([claimed])
    desk.settle(desk.states.claim(desk.worker, [each.run for each in again]).claimed, FAILED)
    assert assert_accounted(desk.database, batch_id).failed == 2
