"""The doctor: corrupt by hand, have it named, have it repaired; and no word about what is sound."""

from __future__ import annotations

import uuid
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete, literal, select, update

from batching import doctor
from batching.dialects import later, now
from batching.execution_manager import BatchExecutionManager
from batching.models import counters, history, leases, profiles, workers
from batching.states import BatchState, StopTarget
from tests.accounting import DONE, FAILED, Desk, assert_accounted, plant, plant_batch
from tests.recording import RecordingPublisher

if TYPE_CHECKING:
    from batching.database import Database


#: Nobody else works on these stores, so nothing passes by itself.
examine = partial(doctor.examine, patience=0.01)


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


def test_a_store_in_every_state_is_sound(desk: Desk) -> None:
    for state in (BatchState.SUCCEEDED, BatchState.FAILED, BatchState.CANCELLED, BatchState.EXPIRED):
        desk.finish(state, 3)
    desk.submit(2)
    desk.states.stop(desk.submit(2), StopTarget.PAUSED, "p")
    stopping = desk.start(3, queue="other")
    desk.register()
    desk.claim(stopping, 1)
    desk.states.stop(stopping, StopTarget.CANCELLED, "c")  # unwritten: read as moved
    running = desk.start(4, queue="third", failure_budget=2)
    desk.settle(desk.claim(running, 1), FAILED)
    desk.claim(running, 1)
    desk.dispatch(running, 1)
    assert examine(desk.database, RecordingPublisher()) == (True, [], [])


def test_wrong_counters_are_named_and_repaired(desk: Desk) -> None:
    batch_id, sound = desk.start(3), desk.submit(1)
    desk.dispatch(batch_id, 1)
    with desk.database.begin() as connection:
        connection.execute(update(counters).where(counters.c.batch_id == batch_id).values(pending=7, dispatched=0))
    report = examine(desk.database)
    assert not report.ok
    (problem,) = report.problems
    assert problem.startswith(f"batch {batch_id}: its counters disagree with its rows (pending: counted 14, rows 2;")
    report = examine(desk.database, fix=True)
    assert (report.ok, report.problems, report.repaired) == (True, [], [problem])
    assert_accounted(desk.database, batch_id)
    assert_accounted(desk.database, sound)


def test_a_batch_that_only_seemed_unsettled_is_concluded_by_the_repair(desk: Desk) -> None:
    batch_id = desk.start(1)
    desk.settle(desk.claim(batch_id))
    with desk.database.begin() as connection:
        connection.execute(
            update(counters)
            .where(counters.c.batch_id == batch_id, counters.c.worker_id == desk.worker)
            .values(running=1, succeeded=0)
        )
    assert examine(desk.database, fix=True).ok
    assert desk.state(batch_id) is BatchState.SUCCEEDED


def test_a_batch_that_nobody_concluded_is_named_and_concluded(desk: Desk) -> None:
    batch_id = desk.start(1)
    desk.settle(desk.claim(batch_id), DONE)
    problem = f"batch {batch_id}: it is running although nothing of it is left to wait for"
    assert examine(desk.database).problems == [problem]
    assert examine(desk.database, fix=True) == (True, [], [problem])
    assert desk.state(batch_id) is BatchState.SUCCEEDED


def test_missing_rows_are_named_and_written_off(desk: Desk) -> None:
    batch_id = desk.submit(3)
    with desk.database.begin() as connection:
        connection.execute(delete(profiles).where(profiles.c.batch_id == batch_id, profiles.c.number == 2))
    report = examine(desk.database, fix=True)
    assert report.problems == ["no manager leads although 1 batches wait or run; start one with `batching manager`"]
    assert f"batch {batch_id}: it was sealed with 3 profiles and has 2 rows" in report.repaired
    assert assert_accounted(desk.database, batch_id).pending == 2
    with desk.database.read() as connection:
        reasons = connection.scalars(select(history.c.reason).where(history.c.batch_id == batch_id)).all()
    assert reasons[-1] == "doctor: it was sealed with 3 profiles and has 2 rows"


def test_a_finished_batch_with_waiting_profiles_is_named(desk: Desk) -> None:
    batch_id = desk.submit(2)
    plant_batch(desk.database, batch_id, state="succeeded", finished_at=now())
    assert examine(desk.database).problems == [f"batch {batch_id}: it is succeeded and 2 of its profiles still wait"]


def test_profiles_in_flight_of_a_batch_that_does_not_run_are_named(desk: Desk) -> None:
    desk.register()
    batch_id = desk.start(3)
    desk.claim(batch_id, 2)
    plant_batch(desk.database, batch_id, state="queued")
    assert examine(desk.database).problems == [f"batch {batch_id}: it is queued and has 2 profiles in flight"]


def test_an_orphans_runs_are_named_and_given_back(desk: Desk) -> None:
    batch_id = desk.start(3)
    desk.claim(batch_id, 2)
    problem = f"worker {desk.worker}: it is not registered and holds 2 running profiles"
    assert examine(desk.database).problems == [problem]
    assert examine(desk.database, fix=True) == (True, [], [problem])
    counts = assert_accounted(desk.database, batch_id)
    assert (counts.pending, counts.running) == (3, 0)


def test_a_registered_workers_runs_are_not_touched(desk: Desk) -> None:
    desk.register()
    batch_id = desk.start(2)
    desk.claim(batch_id)
    assert examine(desk.database, fix=True) == (True, [], [])
    assert assert_accounted(desk.database, batch_id).running == 2


def test_a_silent_worker_is_named(desk: Desk) -> None:
    desk.register(worker := str(uuid.uuid4()))
    with desk.database.begin() as connection:
        connection.execute(update(workers).values(heartbeat_at=later(literal(-61.0))))
    (problem,) = examine(desk.database).problems
    assert problem == f"worker {worker} on host: no sign of life for over 60 s; a manager takes it back"


def test_nobody_leading_is_a_problem_only_when_something_waits(desk: Desk) -> None:
    assert examine(desk.database).ok
    batch_id = desk.start(1)
    assert examine(desk.database).ok
    with desk.database.begin() as connection:
        connection.execute(update(leases).values(expires_at=later(literal(-1.0))))
    assert examine(desk.database).problems == [
        "no manager leads although 1 batches wait or run; start one with `batching manager`"
    ]
    desk.settle(desk.claim(batch_id))
    desk.states.conclude([batch_id])
    assert examine(desk.database).ok


def test_messages_that_are_missing_in_the_broker_are_named(desk: Desk) -> None:
    publisher = RecordingPublisher()
    batch_id = desk.start(3)
    BatchExecutionManager(desk.states, publisher).dispatch_batch(batch_id, 3, desk.term)
    plant(desk.database, batch_id, {"dispatched_at": later(literal(-61.0))})
    assert examine(desk.database, publisher).ok
    publisher.lose()
    (problem,) = examine(desk.database, publisher).problems
    assert problem.startswith("lane default/tests.handler: 3 profiles were dispatched over 60 s ago, and 0 messages")
    publisher.away = True
    assert examine(desk.database, publisher).problems == ["the recording publisher was told to be away"]
