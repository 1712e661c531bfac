"""Passes end to end: where a failed batch goes, how long it waits, and what its history says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import literal, select

from batching.dialects import later
from batching.models import batches
from batching.states import BatchState
from batching.statistics import Statistics
from tests.accounting import DONE, FAILED, Desk, assert_accounted, plant_batch, read_batch

if TYPE_CHECKING:
    from batching.database import Database


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


def history(desk: Desk, batch_id: str) -> list[tuple[str, int, int]]:
    """State, pass and position after each move."""
    entries = Statistics(desk.database).history(batch_id)
    return [(entry.to_state.value, entry.pass_number, entry.position) for entry in entries]


def fail_once(desk: Desk, batch_id: str) -> None:
    desk.rewrite(batch_id)
    assert desk.states.promote("default", desk.term) == batch_id
    desk.work(batch_id, lambda _: FAILED)


@pytest.mark.parametrize(("policy", "positions"), [("tail", [1, 4, 5]), ("front", [1, 0, -1]), ("keep", [1, 1, 1])])
def test_the_history_keeps_every_position_that_a_batch_had(desk: Desk, policy: str, positions: list[int]) -> None:
    batch_id = desk.submit(1, requeue=policy, max_passes=3)
    others = [desk.submit(1), desk.submit(1)]
    for _ in positions:
        # The others are out of the way for a moment, whatever the policy.
        for other in others:
            plant_batch(desk.database, other, not_before=later(literal(3_600.0)))
        fail_once(desk, batch_id)
    waited = [entry for entry in history(desk, batch_id) if entry[0] == "queued"]
    assert [position for _, _, position in waited] == positions
    assert [number for _, number, _ in waited] == [1, 2, 3]
    assert desk.state(batch_id) is BatchState.FAILED
    assert [history(desk, other) for other in others] == [[("queued", 1, 2)], [("queued", 1, 3)]]


def test_a_parked_batch_keeps_its_position_until_a_person_resumes_it(desk: Desk) -> None:
    batch_id = desk.submit(1, requeue="park")
    neighbour = desk.submit(1)
    fail_once(desk, batch_id)
    assert desk.states.promote("default", desk.term) == neighbour
    desk.work(neighbour)
    assert desk.states.promote("default", desk.term) is None
    desk.states.resume(batch_id)
    assert history(desk, batch_id)[-2:] == [("paused", 2, 1), ("queued", 2, 1)]


def test_a_failed_batch_lets_the_others_pass_and_then_runs_only_what_is_not_done(desk: Desk) -> None:
    batch_id = desk.submit(3, fail_fast=False)
    other = desk.submit(1)
    assert desk.states.promote("default", desk.term) == batch_id
    desk.work(batch_id, lambda number: FAILED if number == 2 else DONE)
    assert desk.states.promote("default", desk.term) == other
    desk.rewrite(batch_id)
    assert desk.states.promote("default", desk.term) == batch_id
    assert [each.key for each in desk.claim(batch_id)] == ["k2"]
    assert assert_accounted(desk.database, batch_id).succeeded == 2


def test_each_pass_waits_twice_as_long_as_the_one_before(desk: Desk) -> None:
    batch_id = desk.submit(1, pass_backoff=100.0, pass_backoff_max=150.0, max_passes=3)
    waits = []
    for _ in range(2):
        desk.states.request_promotion(batch_id)  # ahead of its back-off too
        fail_once(desk, batch_id)
        with desk.database.read() as connection:
            due, at = connection.execute(
                select(batches.c.not_before, later(literal(0.0))).where(batches.c.id == batch_id)
            ).one()
        waits.append((due - at).total_seconds())
        assert desk.states.promote("default", desk.term) is None  # alone in the queue, it does not spin
    assert waits == [pytest.approx(100, abs=5), pytest.approx(150, abs=5)]
    assert read_batch(desk.database, batch_id).pass_number == 3
