"""Groups take turns: the line of 10,000 batches of three tenants against a model that was written without its code."""

from __future__ import annotations

import random
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import insert, literal, select

from batching.dialects import later
from batching.models import NOBODY, batches, counters, queues
from batching.moves.turns import places
from batching.options import BatchOptions
from batching.states import BatchState, StopTarget
from batching.statistics import Statistics
from tests.accounting import DONE, FAILED, HANDLER, Desk, plant_batch, read_batch
from tests.test_dispatcher import Leader

if TYPE_CHECKING:
    from batching.database import Database


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


# --- the model: lists and a clock of turns; no SQL, and nothing of the code under test


@dataclass
class Waiting:
    name: str
    tenant: str
    priority: int
    positions: list[int]


@dataclass
class Model:
    """A line as a person would keep it on paper: one list for each priority and tenant."""

    lists: dict[tuple[int, str], deque[Waiting]] = field(default_factory=dict)
    last_turn: dict[tuple[int, str], int] = field(default_factory=dict)
    clock: int = 0
    tail: int = 0

    def join(self, batch: Waiting) -> None:
        """At the end; it remembers each position that it ever had."""
        self.tail += 1
        batch.positions.append(self.tail)
        self.lists.setdefault((batch.priority, batch.tenant), deque()).append(batch)

    def next(self) -> Waiting:
        highest = max(priority for priority, _ in self.lists)
        mine = {each: waiting[0] for each, waiting in self.lists.items() if each[0] == highest}
        if never := [each for each in mine if each not in self.last_turn]:
            chosen = min(never, key=lambda each: mine[each].positions[-1])
        else:
            chosen = min(mine, key=lambda each: self.last_turn[each])
        self.clock += 1
        self.last_turn[chosen] = self.clock
        batch = self.lists[chosen].popleft()
        if not self.lists[chosen]:
            del self.lists[chosen]
        return batch

    def foreseen(self) -> list[str]:
        """Everybody's order, if nobody fails and nobody comes."""
        lists = {each: deque(waiting) for each, waiting in self.lists.items()}
        paper = Model(lists, dict(self.last_turn), self.clock, self.tail)
        return [paper.next().name for _ in range(sum(map(len, lists.values())))]


PASSES = 3
TENANTS = ("large",) * 94 + ("medium",) * 5 + ("small",)


def fill(desk: Desk, count: int, seed: int) -> tuple[Model, dict[str, Waiting]]:
    """A long line: rows as submission writes them, without profiles to keep it quick."""
    dice, model, by_id, rows = random.Random(seed), Model(), {}, []
    for number in range(count):
        batch = Waiting(str(uuid.UUID(int=number + 1)), dice.choice(TENANTS), dice.choice((0, 0, 0, 5)), [])
        model.join(batch)
        by_id[batch.name] = batch
        rows.append(
            {
                "id": batch.name,
                "queue": "default",
                "name": "b",
                "handler": HANDLER,
                "state": "queued",
                "sealed": True,
                "priority": batch.priority,
                "group": batch.tenant,
                "position": batch.positions[0],
                "last_pass": PASSES,
                "options": BatchOptions(max_attempts=1, pass_backoff=0).as_dict(),
            }
        )
    with desk.database.begin() as connection:
        connection.execute(insert(queues).values(name="default"))
        connection.execute(insert(batches), rows)
        connection.execute(insert(counters), [{"batch_id": row["id"], "worker_id": NOBODY} for row in rows])
    return model, by_id


def line(desk: Desk) -> list[str]:
    """The whole line by the places that people are shown."""
    shown = places(batches.c.queue == "default")
    with desk.database.read() as connection:
        return list(connection.scalars(select(shown.c.id).order_by(shown.c.place)))


def fail_pass(desk: Desk, batch_id: str) -> None:
    """Its pass fails, as it does when a handler raised `FailBatch`."""
    with desk.database.begin() as connection:
        row = counters.c.batch_id == batch_id
        connection.execute(counters.update().where(row, counters.c.worker_id == NOBODY).values(aborts=1))
    assert desk.states.conclude([batch_id]) == [batch_id]
    with desk.database.begin() as connection:
        connection.execute(counters.update().where(row).values(aborts=0))


def test_order_fairness_and_positions_of_10_000_batches_of_three_tenants_are_the_models(database: Database) -> None:
    desk = Desk(database)
    promotions = 400 if database.dialect == "postgresql" else 150
    model, by_id = fill(desk, 10_000, seed=2026)
    dice = random.Random(7)
    for turn in range(promotions):
        expected = model.next()
        assert desk.states.promote("default", desk.term) == expected.name, f"turn {turn}"
        if dice.random() < 0.3:
            fail_pass(desk, expected.name)
            if len(expected.positions) < PASSES:
                model.join(expected)
        else:
            assert desk.states.conclude([expected.name]) == [expected.name]
        if turn % 100 == 0:
            assert line(desk) == model.foreseen()
    assert line(desk) == model.foreseen()
    failed = [batch for batch in by_id.values() if len(batch.positions) > 1]
    assert failed
    statistics = Statistics(database)
    for batch in failed:
        requeued = [entry.position for entry in statistics.history(batch.name) if entry.to_state is BatchState.QUEUED]
        assert [by_id[batch.name].positions[0], *requeued] == batch.positions
        assert read_batch(database, batch.name).position == batch.positions[-1]


# --- the rule, piece by piece


def submit(desk: Desk, *groups: str, **more: int) -> list[str]:
    found = []
    for group in groups:
        batch_id = desk.submit(1, **more)  # type: ignore[arg-type]
        plant_batch(desk.database, batch_id, group=group)
        found.append(batch_id)
    return found


def promotions(desk: Desk, count: int) -> list[str | None]:
    return [desk.states.promote("default", desk.term) for _ in range(count)]


def test_groups_take_turns_in_the_order_in_which_they_came(desk: Desk) -> None:
    a1, a2, a3, b1, c1, b2 = submit(desk, "a", "a", "a", "b", "c", "b")
    assert line(desk) == [a1, b1, c1, a2, b2, a3]
    assert promotions(desk, 7) == [a1, b1, c1, a2, b2, a3, None]


def test_who_comes_with_many_does_not_get_more_turns_than_who_comes_late_with_one(desk: Desk) -> None:
    many = submit(desk, *["a"] * 10)
    assert promotions(desk, 3) == many[:3]
    [late] = submit(desk, "b")
    assert line(desk)[:2] == [late, many[3]]
    assert promotions(desk, 2) == [late, many[3]]


def test_batches_without_a_group_are_a_group_of_their_own(desk: Desk) -> None:
    none1, none2, a1, a2 = submit(desk, "", "", "a", "a")
    assert promotions(desk, 4) == [none1, a1, none2, a2]


def test_without_groups_the_line_is_the_order_of_positions_and_no_turn_is_noted(desk: Desk) -> None:
    one, two, three = submit(desk, "", "", "")
    desk.states.move(three, "front")
    assert line(desk) == [three, one, two]
    assert promotions(desk, 4) == [three, one, two, None]
    with desk.database.read() as connection:
        assert connection.execute(select(batches.metadata.tables["turns"])).all() == []


def test_turns_are_taken_inside_a_priority(desk: Desk) -> None:
    low_a, low_b = submit(desk, "a", "b")
    high_a1, high_a2 = submit(desk, "a", "a", priority=9)
    assert line(desk) == [high_a1, high_a2, low_a, low_b]
    assert promotions(desk, 4) == [high_a1, high_a2, low_a, low_b]


def test_who_was_asked_to_run_goes_first_and_that_was_its_groups_turn(desk: Desk) -> None:
    a1, a2, b1 = submit(desk, "a", "a", "b")
    desk.states.request_promotion(a2)
    assert line(desk) == [a2, a1, b1]
    assert promotions(desk, 3) == [a2, b1, a1]


def test_a_group_whose_batches_back_off_is_passed_over_and_keeps_its_turn(desk: Desk) -> None:
    a1, b1, b2 = submit(desk, "a", "b", "b")
    plant_batch(desk.database, a1, not_before=later(literal(600.0)))
    assert promotions(desk, 1) == [b1]
    plant_batch(desk.database, a1, not_before=None)
    assert promotions(desk, 2) == [a1, b2]


def test_a_paused_queue_and_a_batch_that_left_get_no_turn(desk: Desk) -> None:
    a1, a2, b1 = submit(desk, "a", "a", "b")
    desk.states.stop(a1, StopTarget.CANCELLED, "c")
    with desk.database.begin() as connection:
        connection.execute(queues.update().values(paused=True))
    assert promotions(desk, 1) == [None]
    with desk.database.begin() as connection:
        connection.execute(queues.update().values(paused=False))
    assert promotions(desk, 3) == [a2, b1, None]


def test_inside_a_group_the_earliest_deadline_goes_first_and_holds_up_no_other_group(desk: Desk) -> None:
    a1, a2, a3, b1, b2 = submit(desk, "a", "a", "a", "b", "b")
    plant_batch(desk.database, a3, deadline=later(literal(600.0)))
    plant_batch(desk.database, a2, deadline=later(literal(900.0)))
    assert line(desk) == [a3, b1, a2, b2, a1]
    # A position orders what has the same deadline, or none.
    desk.states.move(a1, 1)
    desk.states.move(a2, "front")
    assert line(desk) == [a3, b1, a2, b2, a1] or line(desk) == [b1, a3, b2, a2, a1]
    assert [each for each in promotions(desk, 5) if each in {a1, a2, a3}] == [a3, a2, a1]


def test_a_move_changes_the_order_inside_the_group_alone(desk: Desk) -> None:
    a1, a2, a3, b1, b2 = submit(desk, "a", "a", "a", "b", "b")
    desk.states.move(a3, "front")
    assert line(desk) == [a3, b1, a1, b2, a2]
    desk.states.move(a3, 2)
    assert line(desk) == [b1, a1, b2, a3, a2] or line(desk) == [a1, b1, a3, b2, a2]
    assert [each for each in line(desk) if each in {b1, b2}] == [b1, b2]


def test_the_leader_serves_groups_in_turn_and_dispatches_what_it_starts(database: Database) -> None:
    leader = Leader(database)
    leader.desk.register(slots=1)
    a1, a2, b1 = submit(leader.desk, "a", "a", "b")
    assert leader.tick() == [a1]
    assert leader.sent(a1) == 1
    leader.work(DONE)
    assert leader.ticks(2) == [b1]
    leader.work(FAILED)
    assert leader.ticks(2) == [a2]
    leader.work(DONE)
    assert leader.ticks(2) == [b1]


@pytest.mark.parametrize("handlers", [None, [HANDLER]])
def test_two_leaders_cannot_both_promote_the_batch_whose_turn_it_is(desk: Desk, handlers: list[str] | None) -> None:
    a1, b1 = submit(desk, "a", "b")
    old = desk.term
    desk.states.resign(old)
    desk._term = None
    assert desk.states.promote("default", old, handlers) is None
    assert desk.states.promote("default", desk.term, handlers) == a1
    assert desk.states.promote("default", desk.term, handlers) == b1
