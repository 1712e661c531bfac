"""What a hand can spoil in SQL: the doctor names it, repairs it, is content, and has nothing left to repair."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Text, delete, literal, null, update
from sqlalchemy.exc import IntegrityError

from batching.dialects import later, now
from batching.doctor import examine
from batching.models import NOBODY, batches, bulk_moves, counters, leases, profiles, workers
from batching.moves.profile import running_of
from batching.moves.sweep import LostEvidence
from batching.options import BatchSpec, ProfileInput
from batching.states import TERMINAL_BATCH_STATES, BatchState, ProfileState, StopTarget
from tests.accounting import (
    FAILED,
    GIVEN_BACK,
    Desk,
    assert_accounted,
    effective_states,
    plant,
    plant_batch,
    read_batch,
)
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.database import Database

#: Long enough for what passes to have passed, had anybody been there to do it.
BRIEFLY = 0.01
ELSEWHERE = str(uuid.UUID(int=7))


@pytest.fixture
def desk(database: Database) -> Desk:
    desk = Desk(database)
    desk.register()
    assert desk.term  # somebody leads, or that alone would be a problem
    return desk


def spoil(desk: Desk, statement: Any) -> None:
    with desk.database.begin() as connection:
        assert connection.execute(statement).rowcount != 0


def plant_counter(desk: Desk, batch_id: str, **values: object) -> None:
    ours = (counters.c.batch_id == batch_id) & (counters.c.worker_id == NOBODY)
    spoil(desk, update(counters).where(ours).values(**values))


@dataclass(frozen=True)
class Corruption:
    """Prepares a batch, spoils something of it, and says what the doctor must say."""

    prepare: Callable[[Desk], str]
    harm: Callable[[Desk, str], object]
    says: str
    then: BatchState | None = None
    """The state that the batch has after the repair; None: the one that it had."""


def queued(desk: Desk) -> str:
    return desk.submit(4)


def running(desk: Desk) -> str:
    """One profile of each state in flight, one settled, one that waits."""
    batch_id = desk.start(4, failure_budget=3)
    desk.settle(desk.claim(batch_id, 1))
    desk.claim(batch_id, 1)
    desk.dispatch(batch_id, 1)
    return batch_id


def stopping(desk: Desk) -> str:
    batch_id = running(desk)
    desk.states.stop(batch_id, StopTarget.PAUSED, "p")
    desk.rewrite(batch_id)
    return batch_id


def next_pass(desk: Desk) -> str:
    """A batch in its second pass: its bulk move is written."""
    batch_id = desk.start(4)
    desk.work(batch_id, lambda number: FAILED if number == 1 else GIVEN_BACK)
    desk.rewrite(batch_id)
    assert read_batch(desk.database, batch_id).pass_number == 2
    return batch_id


def given_back(desk: Desk) -> str:
    """A batch that runs, with runs in `attempts`: profile 1 waits, 2 runs, 3 succeeded."""
    batch_id = desk.start(3)
    for _ in range(2):
        desk.settle(desk.claim(batch_id), GIVEN_BACK)
    claimed = desk.claim(batch_id)
    desk.settle(claimed[:1], GIVEN_BACK)
    desk.settle(claimed[2:])
    return batch_id


def in_state(state: BatchState) -> Callable[[Desk], str]:
    return lambda desk: desk.finish(state, 3)


def unsettle(desk: Desk, batch_id: str, state: ProfileState = ProfileState.PENDING) -> None:
    """Bring a settled profile back to life, and its counters with it, as a hand would that knows of them."""
    was = effective_states(desk.database, batch_id)[2]
    flight = {"dispatched_at": now(), "worker_id": desk.worker} if state is not ProfileState.PENDING else {}
    plant(
        desk.database, batch_id, {"state": state, "finished_at": None, "fingerprint": None, "error": None} | flight, 2
    )
    with desk.database.begin() as connection:
        ours = (counters.c.batch_id == batch_id) & (counters.c.worker_id == NOBODY)
        moved = {was.value: counters.c[was.value] - 1, state.value: counters.c[state.value] + 1}
        connection.execute(update(counters).where(ours).values(**moved))


def drop_counters(desk: Desk, batch_id: str) -> None:
    spoil(desk, delete(counters).where(counters.c.batch_id == batch_id))


def forget_moves(desk: Desk, batch_id: str) -> None:
    spoil(desk, delete(bulk_moves).where(bulk_moves.c.batch_id == batch_id))


def unwrite(desk: Desk, batch_id: str) -> None:
    """A failed profile as it was before the next pass, although that counts as written."""
    plant(desk.database, batch_id, {"state": "failed", "generation": 0, "finished_at": now(), "fingerprint": "f"}, 1)


def set_state(state: str, **values: object) -> Callable[[Desk, str], None]:
    return lambda desk, batch_id: plant_batch(desk.database, batch_id, state=state, **values)


def set_rows(*numbers: int, **values: object) -> Callable[[Desk, str], None]:
    return lambda desk, batch_id: plant(desk.database, batch_id, values, *numbers)


def raw_options(document: str) -> Callable[[Desk, str], None]:
    def harm(desk: Desk, batch_id: str) -> None:
        spoil(desk, update(batches).where(batches.c.id == batch_id).values(options=literal(document, Text())))

    return harm


CORRUPTIONS = {
    "counters that are wrong": Corruption(
        running, lambda desk, batch: plant_counter(desk, batch, pending=7, succeeded=-2), "its counters disagree"
    ),
    "counters that are gone": Corruption(running, drop_counters, "its counters disagree"),
    "counters that are negative": Corruption(
        queued, lambda desk, batch: plant_counter(desk, batch, pending=-4), "pending: counted -4, rows 4"
    ),
    "an abort that nobody raised": Corruption(
        running, lambda desk, batch: plant_counter(desk, batch, aborts=1), "aborts: counted 1, failed rows 0"
    ),
    "negative tallies": Corruption(
        queued, lambda desk, batch: plant_counter(desk, batch, late=-1, duplicates=-3), "late: counted -1"
    ),
    "a wrong total": Corruption(queued, set_state("queued", total=9), "it was sealed with 9 profiles and has 4 rows"),
    "profiles that are gone": Corruption(
        queued,
        lambda desk, batch: spoil(desk, delete(profiles).where(profiles.c.batch_id == batch, profiles.c.number == 2)),
        "it was sealed with 4 profiles and has 3 rows",
    ),
    "a run of a queued batch": Corruption(
        running, set_state("queued"), "it is queued and has 2 profiles in flight", BatchState.QUEUED
    ),
    "a run of a paused batch": Corruption(
        running, set_state("paused"), "it is paused and has 2 profiles in flight", BatchState.PAUSED
    ),
    "a run of a batch that succeeded": Corruption(
        running,
        set_state("succeeded", finished_at=now()),
        "it is succeeded and has 2 profiles in flight",
        BatchState.QUEUED,
    ),
    "a run of a batch that failed": Corruption(
        in_state(BatchState.FAILED),
        lambda desk, batch: unsettle(desk, batch, ProfileState.RUNNING),
        "it is failed and has 1 profiles in flight",
    ),
    "a dispatch of a cancelled batch": Corruption(
        in_state(BatchState.CANCELLED),
        lambda desk, batch: unsettle(desk, batch, ProfileState.DISPATCHED),
        "it is cancelled and has 1 profiles in flight",
    ),
    "a dispatch of a stopping batch": Corruption(
        stopping,
        lambda desk, batch: plant(
            desk.database, batch, {"state": "dispatched", "dispatched_at": now(), "generation": 1}, 3
        ),
        "it is stopping and has 1 dispatched profiles",
    ),
    "what waits in a batch that succeeded": Corruption(
        in_state(BatchState.SUCCEEDED), unsettle, "it is succeeded and 1 of its profiles still wait", BatchState.QUEUED
    ),
    "what waits in a batch that failed": Corruption(
        in_state(BatchState.FAILED), unsettle, "it is failed and 1 of its profiles still wait"
    ),
    "what waits in a cancelled batch": Corruption(
        in_state(BatchState.CANCELLED), unsettle, "it is cancelled and 1 of its profiles still wait"
    ),
    "what waits in an expired batch": Corruption(
        in_state(BatchState.EXPIRED), unsettle, "it is expired and 1 of its profiles still wait"
    ),
    "a stop that has nothing to wait for": Corruption(
        stopping,
        lambda desk, batch: plant(
            desk.database, batch, {"state": "succeeded", "dispatched_at": None, "finished_at": now()}, 2
        ),
        "its counters disagree with its rows",
        BatchState.PAUSED,
    ),
    "a batch that runs although all of it is settled": Corruption(
        in_state(BatchState.SUCCEEDED),
        set_state("running", finished_at=None),
        "it is running although nothing of it is left to wait for",
        BatchState.SUCCEEDED,
    ),
    "rows that a bulk move left out": Corruption(next_pass, unwrite, "1 profiles were left out when generation 1"),
    "bulk moves that nobody knows": Corruption(
        next_pass, forget_moves, "nobody knows what moved its profiles in generation 1"
    ),
    "a bulk move that nobody knows and nobody has written": Corruption(
        next_pass,
        lambda desk, batch: plant_batch(desk.database, batch, generation=2),
        "nobody knows what moved its profiles in generation 2",
    ),
    "rows of a generation that is yet to come": Corruption(
        queued, set_rows(1, 2, generation=5), "2 of its profiles are of a generation that it has not reached"
    ),
    "a run that goes back": Corruption(
        given_back, set_rows(run=1), "3 of its profiles are at a run that has ended before"
    ),
    "options that are no JSON": Corruption(queued, raw_options("{"), "its options cannot be read"),
    "options of another type": Corruption(queued, raw_options("[1]"), "its options cannot be read"),
    "options out of range": Corruption(queued, raw_options('{"max_passes":0}'), "its options cannot be read"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupt_batch_is_named_and_repaired(desk: Desk, name: str) -> None:
    # Given a batch that is sound, beside another
    corruption = CORRUPTIONS[name]
    batch_id, neighbour = corruption.prepare(desk), desk.submit(2, queue="neighbours")
    was = desk.state(batch_id)
    assert examine(desk.database, patience=BRIEFLY).problems == []
    # When a hand spoils it, then the doctor says so, of this batch alone, and changes nothing
    corruption.harm(desk, batch_id)
    report = examine(desk.database, patience=BRIEFLY)
    assert any(corruption.says in problem for problem in report.problems), report
    assert all(batch_id in problem for problem in report.problems)
    assert examine(desk.database, patience=BRIEFLY) == report
    # And repairs it, so that the equation holds and nothing is left to repair
    repaired = examine(desk.database, fix=True, patience=BRIEFLY)
    assert repaired.ok, repaired
    assert any(corruption.says in text for text in repaired.repaired)
    assert_accounted(desk.database, batch_id)
    assert desk.state(batch_id) is (corruption.then or was)
    assert examine(desk.database, fix=True, patience=BRIEFLY) == (True, [], [])
    assert assert_accounted(desk.database, neighbour).pending == 2
    # And it comes to its end as if nothing had been
    finish(desk, batch_id)


def finish(desk: Desk, batch_id: str) -> None:
    """Play the leader and the worker until the batch has ended."""

    def ended() -> None:
        with desk.database.read() as connection:
            held = [run for run, *_ in running_of(connection, desk.worker)]
        desk.states.give_back(desk.worker, held)
        desk.rewrite(batch_id)
        if desk.state(batch_id) is BatchState.PAUSED:
            desk.states.resume(batch_id)
        if desk.state(batch_id) is BatchState.QUEUED:
            desk.states.promote("default", desk.term)
        lost = desk.states.suspects(desk.term, LostEvidence(0, everything=True))
        runs = [*(each.run for each in lost), *desk.dispatch(batch_id)]
        desk.settle(desk.states.claim(desk.worker, runs).claimed)
        desk.states.conclude([batch_id])
        assert desk.state(batch_id) in TERMINAL_BATCH_STATES

    eventually(ended)
    assert assert_accounted(desk.database, batch_id).unsettled == 0


@pytest.mark.parametrize("harm", ["dispatched_at", "finished_at", "worker_id", "fingerprint", "state", "run"])
def test_what_the_schema_rules_out_in_a_profile(desk: Desk, harm: str) -> None:
    batch_id = running(desk)
    values: dict[str, dict[str, Any]] = {
        "dispatched_at": {"dispatched_at": null()},
        "finished_at": {"finished_at": now()},
        "worker_id": {"state": "running", "worker_id": null()},
        "fingerprint": {"fingerprint": "f"},
        "state": {"state": "lost"},
        "run": {"run": -1},
    }
    with pytest.raises(IntegrityError):
        plant(desk.database, batch_id, values[harm], 3)
    assert examine(desk.database).ok


@pytest.mark.parametrize(
    "values",
    [
        {"state": "stopping"},
        {"target": "paused"},
        {"finished_at": now()},
        {"state": "succeeded"},
        {"state": "lost"},
        {"rewritten": 1},
        {"pass_number": 0},
        {"queue": "nowhere"},
    ],
    ids=str,
)
def test_what_the_schema_rules_out_in_a_batch(desk: Desk, values: dict[str, Any]) -> None:
    batch_id = running(desk)
    with pytest.raises(IntegrityError):
        plant_batch(desk.database, batch_id, **values)
    assert examine(desk.database).ok


def test_equal_positions_are_sound(desk: Desk) -> None:
    """Two batches that are sealed at once may get one position; their ids decide."""
    first, second = desk.submit(1), desk.submit(1)
    for batch_id in (first, second):
        plant_batch(desk.database, batch_id, position=5)
    assert examine(desk.database).ok
    assert desk.states.promote("default", desk.term) == first


# --- beside the batches


def row_of_a_worker(**values: object) -> Callable[[Desk], object]:
    return lambda desk: spoil(desk, update(workers).values(**values))


def strand(desk: Desk) -> None:
    """Runs of a worker that nobody knows."""
    batch_id = desk.start(2)
    desk.claim(batch_id, 1, worker=ELSEWHERE)


def lose_the_batch(desk: Desk) -> None:
    spoil(desk, delete(batches).where(batches.c.id == desk.submit(3)))


def load(seconds: float) -> Callable[[Desk], object]:
    def harm(desk: Desk) -> None:
        batch_id = desk.states.create_batch(BatchSpec("tests.handler", "b")).id
        desk.states.add_profiles(batch_id, [ProfileInput("k", "1")])
        plant_batch(desk.database, batch_id, loading_until=later(literal(seconds)))

    return harm


BESIDE = {
    "a worker that nobody registered": (strand, f"worker {ELSEWHERE}: it is not registered and holds 1 running"),
    "a worker that left": (row_of_a_worker(heartbeat_at=later(literal(-61.0))), "no sign of life for over 60 s"),
    "a worker from the future": (row_of_a_worker(heartbeat_at=later(literal(600.0))), "is yet to come"),
    "a worker that serves nothing that can be read": (
        row_of_a_worker(handlers=literal({"a": 1}, workers.c.handlers.type)),
        "what it serves cannot be read",
    ),
    "a lease that runs for ever": (
        lambda desk: spoil(desk, update(leases).values(expires_at=later(literal(1e8)))),
        "the leader's lease runs for another 27,777.8 hours",
    ),
    "a producer that left": (load(-61.0), "its producer left while it loaded"),
    "a batch that loads for ever": (load(1e6), "it may load longer than any producer asks for"),
    "profiles of a batch that is gone": (lose_the_batch, "it is gone, and some of its profiles are still there"),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_corrupt_beside_the_batches_is_named_and_repaired(desk: Desk, name: str) -> None:
    # Given a worker that runs something, and a batch that waits
    sound = desk.start(2, queue="sound")
    desk.claim(sound, 1)
    assert examine(desk.database, patience=BRIEFLY).ok
    # When a hand spoils something
    harm, says = BESIDE[name]
    harm(desk)
    (problem,) = examine(desk.database, patience=BRIEFLY).problems
    assert says in problem
    # Then the doctor repairs it, and nothing is left to repair
    report = examine(desk.database, fix=True, patience=BRIEFLY)
    assert report.repaired == [problem]
    assert [each for each in report.problems if "no manager leads" not in each] == []
    assert examine(desk.database, fix=True, patience=BRIEFLY).repaired == []
    assert assert_accounted(desk.database, sound).unsettled == 2


def test_a_heartbeat_that_comes_in_time_is_left_alone(desk: Desk) -> None:
    row_of_a_worker(heartbeat_at=later(literal(-61.0)))(desk)
    batch_id = desk.start(1)
    desk.claim(batch_id)
    beat = desk.database.begin

    class Beating:
        """The store, in which the worker shows a sign of life before anything is written."""

        read = desk.database.read

        def begin(self) -> Any:
            spoil(desk, update(workers).values(heartbeat_at=now()))
            return beat()

    report = examine(Beating(), fix=True, patience=BRIEFLY)  # type: ignore[arg-type]  # all that a repair needs of it
    assert report.repaired == []
    assert assert_accounted(desk.database, batch_id).running == 1


def test_no_lease_at_all_is_left_to_the_managers(desk: Desk) -> None:
    spoil(desk, delete(leases))
    assert examine(desk.database).ok
    desk.submit(1)
    (problem,) = examine(desk.database, fix=True, patience=BRIEFLY).problems
    assert "no manager leads although 1 batches wait" in problem
    assert desk.states.lead(ELSEWHERE, 60) is not None
    assert examine(desk.database).ok
