"""Batches that wait for others: who starts when, who is cancelled, and that nobody waits for ever or for itself."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from batching.errors import IllegalMoveError, InvalidInputError
from batching.models import batches, dependencies
from batching.moves import batch as batch_moves
from batching.moves import dependencies as moves
from batching.moves import retention
from batching.options import After, BatchOptions
from batching.outlook import look
from batching.queue_manager import QueueManager
from batching.states import BatchState, DependsOn, StopTarget
from tests.accounting import DONE, FAILED, HANDLER, Desk, plant_batch
from tests.test_races import pool, race  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import ThreadPoolExecutor

    from sqlalchemy import Connection

    from batching.database import Database

OPTIONS = BatchOptions(max_attempts=1, max_passes=1, pass_backoff=0)


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


@pytest.fixture
def manager(database: Database) -> Iterator[QueueManager]:
    manager = QueueManager(database)
    yield manager
    manager.close()


def submit(manager: QueueManager, *after: Any, **more: Any) -> str:
    return manager.submit(HANDLER, ["one"], after=after, options=OPTIONS, **more).id


def release(desk: Desk) -> list[str]:
    """What the leader does in every tick."""
    found = look(desk.database, 10.0).released
    return [batch_id for batch_id in found if desk.states.release(batch_id)]


def run(desk: Desk, batch_id: str, outcome: Any = DONE) -> None:
    assert desk.states.promote("default", desk.term) == batch_id
    desk.work(batch_id, lambda _: outcome)


def ended(desk: Desk, manager: QueueManager, state: BatchState) -> str:
    batch_id = submit(manager)
    if state is BatchState.CANCELLED:
        desk.states.stop(batch_id, StopTarget.CANCELLED, "c")
    elif state is BatchState.EXPIRED:
        desk.states.stop(batch_id, StopTarget.EXPIRED, "e")
    else:
        run(desk, batch_id, DONE if state is BatchState.SUCCEEDED else FAILED)
    assert desk.state(batch_id) is state
    return batch_id


def test_a_batch_waits_for_another_is_passed_over_and_starts_when_that_succeeded(
    desk: Desk, manager: QueueManager
) -> None:
    first = submit(manager)
    second, third = submit(manager, first), submit(manager)
    assert manager.get(second).progress().reason == f"waits for batch {first} to succeed"
    assert manager.get(second).progress().waits_for == (first,)
    assert desk.states.promote("default", desk.term) == first
    assert desk.states.promote("default", desk.term) == third
    assert desk.states.promote("default", desk.term) is None
    assert release(desk) == []
    desk.work(first)
    assert release(desk) == [second]
    assert release(desk) == []
    assert manager.get(second).progress().waits_for == ()
    assert desk.states.promote("default", desk.term) == second
    assert "waits for no other batch" in manager.statistics.history(second)[-2].reason


@pytest.mark.parametrize("state", [BatchState.FAILED, BatchState.CANCELLED, BatchState.EXPIRED])
def test_who_waits_for_success_is_cancelled_when_it_cannot_come_and_who_waits_for_the_end_starts(
    desk: Desk, manager: QueueManager, state: BatchState
) -> None:
    first = submit(manager)
    strict, lenient = submit(manager, first), submit(manager, first, on="any")
    chained, other = submit(manager, strict), submit(manager)
    plant_batch(desk.database, other, priority=-1)
    if state is BatchState.FAILED:
        run(desk, first, FAILED)
    else:
        desk.states.stop(first, StopTarget(state.value), "s")
    assert sorted(release(desk)) == sorted([strict, lenient])
    assert release(desk) == [chained]
    view = manager.get(strict).progress()
    assert (view.state, view.reason) == (BatchState.CANCELLED, f"batch {first}, whose success it waits for, is {state}")
    assert desk.state(chained) is BatchState.CANCELLED
    assert desk.states.promote("default", desk.term) == lenient
    assert desk.state(other) is BatchState.QUEUED


def test_it_waits_for_all_of_them_by_id_by_key_and_by_handle(desk: Desk, manager: QueueManager) -> None:
    by_id, by_key = submit(manager), submit(manager, key="nightly")
    by_handle = manager.submit(HANDLER, ["one"], options=OPTIONS)
    last = submit(manager, by_id, "nightly:any", by_handle)
    for batch_id in (by_id, by_key, by_handle.id):
        assert look(desk.database, 10.0).released == []
        run(desk, batch_id, FAILED if batch_id == by_key else DONE)
        assert release(desk) == [last]
    assert desk.states.promote("default", desk.term) == last


@pytest.mark.parametrize("state", [BatchState.SUCCEEDED, BatchState.FAILED])
def test_what_has_ended_before_is_treated_as_what_ends_later(
    desk: Desk, manager: QueueManager, state: BatchState
) -> None:
    first = ended(desk, manager, state)
    second = submit(manager, first)
    assert desk.states.promote("default", desk.term) is None
    assert release(desk) == [second]
    assert desk.state(second) is (BatchState.QUEUED if state is BatchState.SUCCEEDED else BatchState.CANCELLED)


def test_a_large_batch_and_one_in_a_transaction_of_the_callers_wait_too(desk: Desk, manager: QueueManager) -> None:
    first = submit(manager)
    large = manager.submit(HANDLER, (f"k{n}" for n in range(1_500)), after=[first], options=OPTIONS).id
    with desk.database.begin() as connection:
        theirs = manager.submit(HANDLER, ["one"], after=[first], session=connection).id
    assert [manager.get(each).progress().waits_for for each in (large, theirs)] == [(first,)] * 2
    run(desk, first)
    assert sorted(release(desk)) == sorted([large, theirs])


# --- no cycle


def test_a_batch_can_only_wait_for_what_exists_so_no_cycle_can_be_made(desk: Desk, manager: QueueManager) -> None:
    unknown = str(uuid.uuid4())
    for wrong in (unknown, "b", "b:any", "itself"):
        with pytest.raises(InvalidInputError, match="there is no batch"):
            submit(manager, wrong, key="itself")
    assert manager.statistics.batches() == []
    first = submit(manager, key="itself")
    # The same key again is the same batch: it does not come to wait for itself.
    assert submit(manager, "itself", key="itself") == first
    # And a fresh one waits for the older one, which gives the key up.
    second = submit(manager, "itself", key="itself", new=True)
    assert manager.get(second).progress().waits_for == (first,)
    assert manager.get(first).progress().waits_for == ()
    with pytest.raises(IntegrityError), desk.database.begin() as connection:
        connection.execute(insert(dependencies).values(batch_id=first, on_batch_id=first, wants="any"))


def test_names_are_read_with_what_is_wanted_behind_them() -> None:
    assert After.of("nightly:any", DependsOn.SUCCESS) == ("nightly", DependsOn.ANY)
    assert After.of("night:ly", DependsOn.ANY) == ("night:ly", DependsOn.ANY)
    assert After.of(":any", DependsOn.SUCCESS) == (":any", DependsOn.SUCCESS)
    for wrong in (1, "", None):
        with pytest.raises(InvalidInputError, match="ids or keys"):
            After.of(wrong, DependsOn.ANY)


def test_wishes_that_are_none_are_refused(manager: QueueManager) -> None:
    first = submit(manager)
    with pytest.raises(InvalidInputError, match="success or any"):
        submit(manager, first, on="failure")
    with pytest.raises(InvalidInputError, match="at most 100"):
        submit(manager, *[first] * 101)
    with pytest.raises(InvalidInputError, match="in the queue other"):
        submit(manager, "nightly", queue="other")


# --- verbs


def test_a_batch_that_waits_is_paused_resumed_moved_and_asked_for_and_waits_all_the_same(
    desk: Desk, manager: QueueManager
) -> None:
    first = submit(manager)
    second = submit(manager, first)
    manager.pause(second)
    manager.resume(second)
    manager.move(second, "front")
    manager.process(second)
    assert desk.states.promote("default", desk.term) == first
    assert desk.states.promote("default", desk.term) is None
    manager.pause(second)
    desk.work(first)
    assert release(desk) == [second]
    manager.resume(second)
    assert desk.states.promote("default", desk.term) == second


def test_a_retry_waits_again_for_what_is_retried_and_is_refused_before(desk: Desk, manager: QueueManager) -> None:
    first = submit(manager)
    second = submit(manager, first)
    run(desk, first, FAILED)
    assert release(desk) == [second]
    with pytest.raises(IllegalMoveError, match=f"batch {first}, whose success it waits for, is failed; retry that one"):
        manager.retry(second)
    manager.retry(first)
    manager.retry(second)
    assert manager.get(second).progress().waits_for == (first,)
    desk.rewrite(first)
    desk.rewrite(second)
    run(desk, first)
    assert release(desk) == [second]
    assert desk.states.promote("default", desk.term) == second


def test_what_was_met_stays_met(desk: Desk, manager: QueueManager) -> None:
    first = ended(desk, manager, BatchState.FAILED)
    second = submit(manager, first, on="any")
    assert release(desk) == [second]
    manager.retry(first)
    desk.rewrite(first)
    assert desk.states.promote("default", desk.term) == second


# --- retention


def test_a_batch_is_not_pruned_while_another_waits_for_it(desk: Desk, manager: QueueManager) -> None:
    first, unrelated = ended(desk, manager, BatchState.SUCCEEDED), ended(desk, manager, BatchState.SUCCEEDED)
    second = submit(manager, first)
    assert manager.prune(0) == 1
    assert [each.id for each in manager.statistics.batches()] == [second, first]
    del unrelated
    release(desk)
    assert manager.prune(0) == 1
    assert [each.id for each in manager.statistics.batches()] == [second]
    run(desk, second)


# --- races


def test_a_prune_waits_for_a_submission_and_then_keeps_what_it_waits_for(
    desk: Desk,
    manager: QueueManager,
    pool: ThreadPoolExecutor,  # noqa: F811 - the fixture
) -> None:
    first = ended(desk, manager, BatchState.SUCCEEDED)

    def condemn() -> bool:
        with desk.database.begin() as connection:
            return retention.condemn(connection, first)

    def submitting(connection: Connection) -> None:
        manager.submit(HANDLER, ["one"], after=[first], session=connection)

    assert race(desk, pool, submitting, condemn).result() is False
    assert desk.state(first) is BatchState.SUCCEEDED


def test_a_submission_finds_what_is_condemned_unknown(
    desk: Desk,
    manager: QueueManager,
    pool: ThreadPoolExecutor,  # noqa: F811 - the fixture
) -> None:
    first = ended(desk, manager, BatchState.SUCCEEDED)
    second = race(desk, pool, lambda one: retention.condemn(one, first), lambda: submit(manager, first))
    with pytest.raises(InvalidInputError, match="there is no batch"):
        second.result()


def test_a_batch_that_ends_while_another_is_submitted_after_it_waits_for_nobody_and_is_not_missed(
    desk: Desk, manager: QueueManager
) -> None:
    if desk.database.dialect == "sqlite":
        pytest.skip("SQLite has one writer: the end comes before the submission, or after it")
    first = submit(manager)
    desk.states.promote("default", desk.term)
    with desk.database.engine.connect() as connection:
        second = manager.submit(HANDLER, ["one"], after=[first], session=connection).id
        desk.work(first)  # it does not wait for the open transaction
        assert desk.state(first) is BatchState.SUCCEEDED
        assert release(desk) == []
        connection.commit()
    assert release(desk) == [second]


def test_a_release_and_a_cancel_at_once(
    desk: Desk,
    manager: QueueManager,
    pool: ThreadPoolExecutor,  # noqa: F811 - the fixture
) -> None:
    first = ended(desk, manager, BatchState.FAILED)
    second = submit(manager, first)

    def cancel(connection: Connection) -> None:
        batch_moves.stop(connection, second, StopTarget.CANCELLED, "by a person")

    assert race(desk, pool, cancel, lambda: desk.states.release(second)).result() is False
    assert manager.get(second).progress().reason == "by a person"
    with desk.database.read() as connection:
        assert len(moves.unmet(connection, second)) == 1
        assert connection.scalar(select(batches.c.awaiting).where(batches.c.id == second))
