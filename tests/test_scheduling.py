"""Scheduled starts, deadlines and the order that they make: the moves, what they leave alone, and the races."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import literal, select
from sqlalchemy.orm import Session

from batching.dialects import later
from batching.errors import InvalidInputError
from batching.models import batches
from batching.moves import profile
from batching.outlook import look
from batching.queue_manager import QueueManager
from batching.states import BatchState, ProfileState
from tests.accounting import DONE, FAILED, HANDLER, Desk, assert_accounted, effective_states, end, plant_batch
from tests.support import eventually
from tests.test_races import waits_for_lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.database import Database
    from batching.interfaces import Outcome


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


@pytest.fixture
def queue(database: Database) -> QueueManager:
    return QueueManager(database)


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def promoted(desk: Desk) -> list[str]:
    """Everything that may run now, in the order of promotion."""
    found = []
    while (batch_id := desk.states.promote("default", desk.term)) is not None:
        found.append(batch_id)
    return found


# --- a scheduled start


@pytest.mark.parametrize("said", [float, soon], ids=["seconds", "moment"])
@pytest.mark.parametrize("profiles", [2, 1_500], ids=["whole", "loaded"])
def test_a_scheduled_batch_is_in_line_and_passed_over(
    queue: QueueManager, desk: Desk, said: Callable[[float], float | datetime], profiles: int
) -> None:
    late = queue.submit(HANDLER, map(str, range(profiles)), start_at=said(3600))
    other = queue.submit(HANDLER, ["a"])
    view = late.progress()
    assert view.place == 1
    assert view.start_at is not None
    assert abs((view.start_at - soon(3600)).total_seconds()) < 60
    assert view.reason.startswith("is scheduled to start at 2")
    assert promoted(desk) == [other.id]
    assert late.progress().state is BatchState.QUEUED


def test_a_scheduled_batch_runs_from_its_moment_on(queue: QueueManager, desk: Desk) -> None:
    batch = queue.submit(HANDLER, ["a"], start_at=soon(-1))
    assert batch.progress().reason.startswith("no live worker")
    assert promoted(desk) == [batch.id]


def test_the_leader_knows_when_the_next_one_starts(queue: QueueManager, database: Database) -> None:
    assert look(database, 10.0).alarm == math.inf
    queue.submit(HANDLER, ["a"], start_at=3600)
    queue.submit(HANDLER, ["a"], start_at=60)
    queue.submit(HANDLER, ["a"], start_at=soon(-60))
    assert 55 < look(database, 10.0).alarm <= 60
    queue.submit(HANDLER, ["a"], deadline=30)
    assert 25 < look(database, 10.0).alarm <= 30


def test_a_pause_does_not_lose_the_start(queue: QueueManager, desk: Desk) -> None:
    batch = queue.submit(HANDLER, ["a"], start_at=3600)
    queue.pause(batch.id)
    queue.resume(batch.id)
    assert promoted(desk) == []
    queue.process(batch.id)  # a person may go ahead of it
    assert batch.progress().reason.startswith("no live worker")
    assert promoted(desk) == [batch.id]


# --- the order that deadlines make


def test_the_earliest_deadline_comes_first_inside_a_priority(queue: QueueManager, desk: Desk) -> None:
    none, late, early, none_too, first = (
        queue.submit(HANDLER, ["a"], deadline=deadline, priority=priority)
        for deadline, priority in ((None, 0), (7200, 0), (3600, 0), (None, 0), (None, 5))
    )
    expected = [each.id for each in (first, early, late, none, none_too)]
    places = {view.id: view.place for view in queue.statistics.batches()}
    assert [view.id for view in queue.statistics.batches()] == expected
    assert [places[each] for each in expected] == [1, 2, 3, 4, 5]
    assert [queue.statistics.place_in_line(each) for each in expected] == [1, 2, 3, 4, 5]
    assert promoted(desk) == expected
    assert [each.row.id for each in look(desk.database, 10.0).active] == expected


def test_who_was_asked_to_run_stands_where_it_will_be_promoted(queue: QueueManager, desk: Desk) -> None:
    first, second = queue.submit(HANDLER, ["a"], deadline=60), queue.submit(HANDLER, ["a"])
    queue.process(second.id)
    assert [queue.statistics.place_in_line(each.id) for each in (second, first)] == [1, 2]
    assert [view.id for view in queue.statistics.batches()] == [second.id, first.id]
    assert promoted(desk) == [second.id, first.id]


# --- the end of a completion window


def overdue(database: Database, batch_id: str) -> None:
    plant_batch(database, batch_id, deadline=later(literal(-1.0)))


def expire(desk: Desk) -> list[str]:
    """What the leader does in every tick."""
    return [each for each in look(desk.database, 10.0).overdue if desk.states.expire(each)]


@pytest.mark.parametrize("reach", ["queued", "paused", "running"])
def test_a_deadline_expires_the_batch_and_what_is_not_done(desk: Desk, reach: str) -> None:
    batch_id = desk.submit(5)
    if reach == "running":
        desk.states.promote("default", desk.term)
        desk.settle(desk.claim(batch_id, 2))
    elif reach == "paused":
        QueueManager(desk.database).pause(batch_id)
    overdue(desk.database, batch_id)
    assert expire(desk) == [batch_id]
    assert desk.state(batch_id) is BatchState.EXPIRED
    counts = assert_accounted(desk.database, batch_id)
    done = 2 if reach == "running" else 0
    assert (counts.succeeded, counts.expired, counts.unsettled) == (done, 5 - done, 0)
    assert "its deadline, " in QueueManager(desk.database).get(batch_id).progress().reason
    assert expire(desk) == []


def test_others_are_left_alone_by_a_deadline(desk: Desk) -> None:
    finished, batch_id, other = desk.finish(BatchState.SUCCEEDED), desk.submit(2), desk.submit(2)
    plant_batch(desk.database, other, deadline=later(literal(60.0)))
    overdue(desk.database, finished)
    overdue(desk.database, batch_id)
    assert expire(desk) == [batch_id]
    assert not desk.states.expire(other)
    assert not desk.states.expire(finished)
    assert desk.state(other) is BatchState.QUEUED
    assert desk.state(finished) is BatchState.SUCCEEDED


def test_what_runs_at_the_deadline_may_settle_and_does_not_wait_again(desk: Desk) -> None:
    batch_id = desk.start(3, max_attempts=3)
    first, second = desk.claim(batch_id, 2)
    overdue(desk.database, batch_id)
    assert expire(desk) == [batch_id]
    assert desk.state(batch_id) is BatchState.STOPPING
    assert expire(desk) == []  # it is on its way
    desk.settle([first], DONE)
    desk.settle([second], FAILED)  # an attempt is left, and no time
    desk.states.conclude([batch_id])
    assert desk.state(batch_id) is BatchState.EXPIRED
    assert list(effective_states(desk.database, batch_id).values()) == [
        ProfileState.SUCCEEDED,
        ProfileState.EXPIRED,
        ProfileState.EXPIRED,
    ]
    assert_accounted(desk.database, batch_id)


def test_what_was_settled_in_time_succeeds_whoever_comes_first(desk: Desk) -> None:
    """The last settlement is committed, its conclusion is not made yet, and the deadline passes."""
    batch_id = desk.start(2)
    desk.settle(desk.claim(batch_id))
    overdue(desk.database, batch_id)
    assert expire(desk) == [batch_id]
    assert desk.state(batch_id) is BatchState.SUCCEEDED
    assert desk.states.conclude([batch_id]) == []


@pytest.mark.parametrize("outcome", [DONE, FAILED], ids=["done", "failed"])
def test_the_last_one_settles_while_the_deadline_comes(desk: Desk, outcome: Outcome) -> None:
    """On PostgreSQL the stop waits for the settlement's ticket, and counts what it moved."""
    batch_id = desk.start(2)
    desk.settle(desk.claim(batch_id, 1))
    [last] = desk.claim(batch_id)
    overdue(desk.database, batch_id)
    with ThreadPoolExecutor(1) as pool:
        with desk.database.begin() as one:
            profile.settle(one, desk.worker, desk.worker, [end(last, outcome)])
            expiring = pool.submit(desk.states.expire, batch_id)
            eventually(lambda: waits_for_lock(desk.database))
        assert expiring.result()
    expire(desk)  # where the settlement came first, its failed pass went to the end of the queue; the next tick ends it
    assert desk.state(batch_id) is (BatchState.SUCCEEDED if outcome is DONE else BatchState.EXPIRED)
    assert desk.states.conclude([batch_id]) == []
    counts = assert_accounted(desk.database, batch_id)
    assert counts.unsettled == 0
    assert outcome is FAILED or counts.expired == 0


def test_a_cancel_is_stronger_than_a_deadline(desk: Desk) -> None:
    batch_id = desk.start(2)
    claimed = desk.claim(batch_id, 1)
    QueueManager(desk.database).cancel(batch_id)
    overdue(desk.database, batch_id)
    assert expire(desk) == []
    desk.settle(claimed)
    desk.states.conclude([batch_id])
    assert desk.state(batch_id) is BatchState.CANCELLED


def test_a_retry_takes_a_deadline_away_that_has_passed(desk: Desk) -> None:
    batch_id = desk.submit(2)
    overdue(desk.database, batch_id)
    expire(desk)
    desk.states.retry(batch_id)
    assert expire(desk) == []
    assert QueueManager(desk.database).get(batch_id).progress().deadline is None
    assert promoted(desk) == [batch_id]


# --- in a caller's transaction, and at the border


def test_a_session_carries_all_of_it_or_nothing(queue: QueueManager, database: Database) -> None:
    asked: dict[str, Any] = {"start_at": 60, "deadline": 120, "tags": ["a", "b"], "properties": {"customer": 17}}
    with Session(database.engine) as session:
        queue.submit(HANDLER, ["a"], session=session, **asked)
        session.rollback()
    with database.read() as connection:
        assert connection.scalars(select(batches.c.id)).all() == []
    with Session(database.engine) as session:
        kept = queue.submit(HANDLER, ["a"], session=session, **asked)
        session.commit()
    view = kept.progress()
    assert view.start_at is not None
    assert view.deadline is not None
    assert 59 <= (view.deadline - view.start_at).total_seconds() <= 61
    assert (view.tags, view.properties) == (("a", "b"), {"customer": 17})


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"start_at": datetime(2030, 1, 1)}, "cannot take start_at 2030-01-01T00:00:00: it has no time zone"),  # noqa: DTZ001 - that is refused
        ({"start_at": -1}, "cannot take start_at -1"),
        ({"deadline": True}, "cannot take deadline True"),
        ({"deadline": math.nan}, "cannot take deadline nan"),
        ({"deadline": datetime(9500, 1, 1, tzinfo=UTC)}, "expected a year from 2000 to 7999"),
        ({"tags": ["x" * 256]}, "a tag has 1 to 255 printable characters"),
        ({"tags": [17]}, "cannot take the tag 17"),
        ({"tags": [str(each) for each in range(51)]}, "cannot take 51 tags: a batch has at most 50"),
        ({"properties": {"": 1}}, "cannot take the property ''"),
        ({"properties": {"a": "x" * 9_000}}, "the limit is 8,192"),
        ({"properties": {"a": {1, 2}}}, "payload.a is of type set"),
    ],
)
def test_what_cannot_be_asked_is_refused(queue: QueueManager, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        queue.submit(HANDLER, ["a"], **asked)
    assert words in str(refused.value)
    assert queue.statistics.batches() == []


def test_a_word_that_submit_does_not_know_is_refused(queue: QueueManager) -> None:
    submit: Callable[..., object] = queue.submit
    with pytest.raises(TypeError, match="a batch has no 'dead_line'"):
        submit(HANDLER, ["a"], dead_line=5)
