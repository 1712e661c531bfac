"""Verbs on a large batch cost the same as on a small one; the rows follow in steps that any crash may interrupt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from batching.interfaces import Ending, Outcome
from batching.models import profiles
from batching.moves import bulk
from batching.states import BatchState, ProfileState, StopTarget
from tests.accounting import (
    BROKEN,
    DONE,
    FAILED,
    Desk,
    assert_accounted,
    effective_states,
    read_batch,
    statements,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.database import Database

FAILED_BATCH = Outcome(Ending.FAILED_BATCH, error=BROKEN)
SMALL, LARGE = 12, 2_400


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


def half_dispatched(desk: Desk, count: int) -> str:
    batch_id = desk.start(count)
    desk.dispatch(batch_id, count // 2)
    return batch_id


def failed_pass(desk: Desk, count: int) -> str:
    """Half failed, half still waits; nothing is concluded yet."""
    batch_id = desk.start(count, max_passes=2)
    desk.settle(desk.claim(batch_id, count // 2), FAILED)
    return batch_id


def failed(desk: Desk, count: int) -> str:
    batch_id = desk.start(count, max_passes=1)
    desk.work(batch_id, lambda _: FAILED, limit=count // 2)
    desk.rewrite(batch_id)
    return batch_id


def stop(target: StopTarget) -> Callable[[Desk, str], object]:
    return lambda desk, batch_id: desk.states.stop(batch_id, target, "s")


VERBS: dict[str, tuple[Callable[[Desk, int], str], Callable[[Desk, str], object]]] = {
    "cancel what waits": (lambda desk, count: desk.submit(count), stop(StopTarget.CANCELLED)),
    "cancel what runs": (half_dispatched, stop(StopTarget.CANCELLED)),
    "expire": (half_dispatched, stop(StopTarget.EXPIRED)),
    "pause": (half_dispatched, stop(StopTarget.PAUSED)),
    "requeue": (failed_pass, lambda desk, batch_id: desk.states.conclude([batch_id])),
    "retry": (failed, lambda desk, batch_id: desk.states.retry(batch_id)),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_costs_the_same_for_any_size_and_its_rows_follow(desk: Desk, verb: str) -> None:
    prepare, act = VERBS[verb]
    cost = {}
    for count in (SMALL, LARGE):
        batch_id = prepare(desk, count)
        with statements(desk.database) as seen:
            act(desk, batch_id)
        cost[count] = len(seen)
        assert_accounted(desk.database, batch_id)
        assert [statement for statement in seen if "UPDATE profiles" in statement] == []
        before = effective_states(desk.database, batch_id)
        if count == LARGE:
            assert read_batch(desk.database, batch_id).rewritten < read_batch(desk.database, batch_id).generation
        desk.rewrite(batch_id)
        assert_rows_say(desk, batch_id, before)
        desk.states.stop(batch_id, StopTarget.CANCELLED, "make room") if verb in {"requeue", "retry"} else None
    assert cost[SMALL] == cost[LARGE]


def assert_rows_say(desk: Desk, batch_id: str, expected: dict[int, ProfileState]) -> None:
    """The rows themselves, without any reading as moved, are what they were read as."""
    assert_accounted(desk.database, batch_id)
    batch = read_batch(desk.database, batch_id)
    assert batch.rewritten == batch.generation
    with desk.database.read() as connection:
        rows = connection.execute(select(profiles.c.number, profiles.c.state).where(profiles.c.batch_id == batch_id))
        assert {number: ProfileState(state) for number, state in rows} == expected


@pytest.mark.parametrize("verb", VERBS)
def test_rewriting_goes_on_where_a_crash_left_it_and_the_equation_holds_at_every_step(desk: Desk, verb: str) -> None:
    prepare, act = VERBS[verb]
    batch_id = prepare(desk, 200)
    act(desk, batch_id)
    expected = effective_states(desk.database, batch_id)
    more, steps = True, 0
    while more:
        with desk.database.engine.connect() as connection:
            bulk.rewrite(connection, batch_id, 23)
            connection.rollback()  # as a crash before the commit does
        assert effective_states(desk.database, batch_id) == expected
        more = Desk(desk.database).states.rewrite(batch_id, 23)  # another leader, which knows nothing
        steps += 1
        assert effective_states(desk.database, batch_id) == expected
        assert_accounted(desk.database, batch_id)
    assert steps > 3
    assert_rows_say(desk, batch_id, expected)
    assert desk.states.rewrite(batch_id) is False


def test_one_step_writes_no_more_than_it_may(desk: Desk) -> None:
    batch_id = desk.submit(300)
    desk.states.stop(batch_id, StopTarget.CANCELLED, "c")
    desk.states.rewrite(batch_id, 50)
    with desk.database.read() as connection:
        rows = connection.scalars(
            select(profiles.c.number).where(profiles.c.batch_id == batch_id, profiles.c.state == "cancelled")
        )
        assert len(list(rows)) == 50


def test_moves_pile_up_and_are_read_in_their_order(desk: Desk) -> None:
    batch_id = desk.start(60, max_passes=3)
    desk.settle(desk.claim(batch_id, 10))
    desk.settle(desk.claim(batch_id, 1), FAILED)
    running = desk.claim(batch_id, 5)
    desk.dispatch(batch_id, 20)
    expected = effective_states(desk.database, batch_id)
    for act in (
        lambda: desk.states.stop(batch_id, StopTarget.PAUSED, "p"),
        lambda: desk.states.stop(batch_id, StopTarget.CANCELLED, "c"),
        lambda: desk.settle(running[:2], DONE),
        lambda: desk.settle(running[2:], FAILED),
        lambda: desk.states.conclude([batch_id]),
        lambda: desk.states.retry(batch_id),
        lambda: desk.states.stop(batch_id, StopTarget.EXPIRED, "x"),
        lambda: desk.states.rewrite(batch_id, 7),
        lambda: desk.states.retry(batch_id),
    ):
        act()
        assert_accounted(desk.database, batch_id)
    expected = {number: ProfileState.SUCCEEDED if number in {*range(1, 11), 12, 13} else ProfileState.PENDING
                for number in expected}  # fmt: skip
    assert effective_states(desk.database, batch_id) == expected
    desk.rewrite(batch_id, 7)
    assert_rows_say(desk, batch_id, expected)
    assert desk.states.promote("default", desk.term) == batch_id
    desk.work(batch_id)
    assert desk.state(batch_id) is BatchState.SUCCEEDED


def test_a_move_that_concerns_no_row_writes_none(desk: Desk) -> None:
    batch_id = desk.start(3)
    generation = read_batch(desk.database, batch_id).generation
    desk.states.stop(batch_id, StopTarget.PAUSED, "p")
    assert read_batch(desk.database, batch_id).generation == generation
    assert desk.states.rewrite(batch_id) is False


def test_a_new_pass_forgets_the_failure_and_its_delay(desk: Desk) -> None:
    batch_id = desk.start(1, max_passes=2)
    desk.work(batch_id, lambda _: FAILED_BATCH)
    desk.rewrite(batch_id)
    with desk.database.read() as connection:
        row = connection.execute(select(profiles).where(profiles.c.batch_id == batch_id)).one()
    assert (row.state, row.error, row.fingerprint, row.not_before, row.finished_at) == ("pending", *[None] * 4)


def test_an_outcome_is_never_read_as_moved_by_what_came_before_it(desk: Desk) -> None:
    batch_id = desk.submit(3, failure_budget=1)
    desk.states.stop(batch_id, StopTarget.CANCELLED, "c")
    desk.states.retry(batch_id)
    desk.states.promote("default", desk.term)
    desk.rewrite(batch_id)
    first, second, _ = desk.claim(batch_id)
    desk.settle([first], FAILED)  # a retry makes of every failure a profile that waits; of this one it must not
    desk.settle([second], Outcome(Ending.GIVEN_BACK))
    expected = {1: ProfileState.FAILED, 2: ProfileState.PENDING, 3: ProfileState.RUNNING}
    assert effective_states(desk.database, batch_id) == expected
    assert_accounted(desk.database, batch_id)
