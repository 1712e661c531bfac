"""The sweep: plant what went quiet, call one pass, see it fed to the ordinary moves; and what it must leave alone."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import literal, select, update

from batching.dialects import later
from batching.errors import DatabaseUnavailableError
from batching.execution_manager import BatchExecutionManager
from batching.interfaces import Lane
from batching.models import batches, profiles, workers
from batching.options import BatchSpec, ProfileInput
from batching.outlook import look
from batching.settings import Settings
from batching.state_manager import BatchStateManager
from batching.states import BatchState, ProfileState, StopTarget
from batching.sweeper import SilenceWatch, Sweeper
from tests.accounting import FAILED, HANDLER, Desk, assert_accounted, effective_states, plant, plant_batch
from tests.recording import RecordingPublisher

if TYPE_CHECKING:
    from batching.database import Database
    from batching.interfaces import LeaderTerm, RunId
    from batching.sweeper import Swept

LEASE = 10.0


class Clock:
    def __init__(self) -> None:
        self.at = 1_000.0

    def __call__(self) -> float:
        return self.at


class Broom:
    """A sweeper with a desk, a broker and a clock to turn by hand."""

    def __init__(self, database: Database) -> None:
        self.desk = Desk(database)
        self.publisher = RecordingPublisher()
        self.settings = Settings(worker_lease=LEASE, suspect_after=3.0)
        self.execution = BatchExecutionManager(self.desk.states, self.publisher)
        self.clock = Clock()
        self.sweeper = Sweeper(self.desk.states, self.execution, self.publisher, self.settings)
        self.sweeper._watch = SilenceWatch(LEASE, self.clock)

    def sweep(self) -> Swept:
        return self.sweeper.sweep(self.desk.term, look(self.desk.database, LEASE))

    def watch(self, seconds: float) -> list[Swept]:
        """Sweep once a second for so long."""
        swept = [self.sweep()]
        for _ in range(int(seconds)):
            self.clock.at += 1
            swept.append(self.sweep())
        return swept

    def dispatch(self, batch_id: str, limit: int = 100) -> None:
        self.execution.dispatch_batch(batch_id, limit, self.desk.term)

    def grow_old(self, batch_id: str, seconds: float, *numbers: int) -> None:
        plant(self.desk.database, batch_id, {"dispatched_at": later(literal(-seconds))}, *numbers)

    def beat(self, worker: str) -> None:
        with self.desk.database.begin() as connection:
            connection.execute(update(workers).where(workers.c.id == worker).values(heartbeat_at=later(literal(0.0))))


@pytest.fixture
def broom(database: Database) -> Broom:
    return Broom(database)


# --- silence


def signs(moment: int) -> dict[str, datetime | None]:
    return {"w": datetime(2026, 1, 1, 0, 0, moment, tzinfo=UTC)}


def test_nobody_is_dead_before_a_full_watched_lease() -> None:
    clock = Clock()
    watch = SilenceWatch(LEASE, clock)
    for _ in range(10):
        assert watch.look(signs(0)) == []
        clock.at += 1
    assert watch.look(signs(0)) == ["w"]


def test_a_sign_of_life_begins_the_watch_anew() -> None:
    clock = Clock()
    watch = SilenceWatch(LEASE, clock)
    for beat in range(30):
        assert watch.look(signs(beat // 5)) == []
        clock.at += 1


def test_a_gap_in_the_watch_proves_nothing() -> None:
    clock = Clock()
    watch = SilenceWatch(LEASE, clock)
    watch.look(signs(0))
    clock.at += 60  # SQL was away: everybody looks silent
    assert watch.look(signs(0)) == []
    clock.at += 4
    assert watch.look(signs(0)) == []
    clock.at += 5
    assert watch.look(signs(0)) == []
    clock.at += 1
    assert watch.look(signs(0)) == ["w"]


def test_a_worker_that_left_is_forgotten() -> None:
    clock = Clock()
    watch = SilenceWatch(LEASE, clock)
    for look_at in (signs(0), {}, signs(0)):
        watch.look(look_at)
        clock.at += 5
    assert watch.look(signs(0)) == []


def test_time_in_which_something_went_wrong_does_not_count() -> None:
    clock = Clock()
    watch = SilenceWatch(LEASE, clock)
    watch.look(signs(0))
    for _ in range(20):
        watch.hinder()
        clock.at += 4
        assert watch.look(signs(0)) == []
    clock.at += 5
    assert watch.look(signs(0)) == []
    clock.at += 5
    assert watch.look(signs(0)) == ["w"]


def test_errors_now_and_then_do_not_let_the_dead_live_for_ever() -> None:
    clock = Clock()
    watch = SilenceWatch(LEASE, clock)
    seconds = 0
    while not watch.look(signs(0)):
        clock.at += 1
        seconds += 1
        if seconds % 2:
            watch.hinder()
        assert seconds <= 2 * LEASE + 1
    assert seconds >= 2 * LEASE


# --- dead workers and orphans


def test_a_dead_workers_runs_wait_again_and_its_neighbours_go_on(broom: Broom) -> None:
    desk = broom.desk
    dead, living = desk.register(), desk.register(str(uuid.uuid4()))
    batch_id = desk.start(4)
    desk.claim(batch_id, 2, dead)
    desk.claim(batch_id, 1, living)
    lost = 0
    for _ in range(12):
        broom.beat(living)
        lost += broom.sweep().lost_runs
        broom.clock.at += 1
    assert lost == 2
    pending, running = ProfileState.PENDING, ProfileState.RUNNING
    assert effective_states(desk.database, batch_id) == {1: pending, 2: pending, 3: running, 4: pending}
    assert_accounted(desk.database, batch_id)
    assert desk.state(batch_id) is BatchState.RUNNING  # it keeps its place
    with desk.database.read() as connection:
        assert list(connection.scalars(select(workers.c.id))) == [living]
        row = connection.execute(select(profiles).where(profiles.c.number == 1)).one()
    assert (row.losses, row.attempts) == (1, 0)


class Refusing(BatchStateManager):
    """The real one; the database is away whenever it takes back what one worker held."""

    refused = ""

    def take_back(self, worker_id: str, last_seen: datetime | None, term: LeaderTerm) -> list[RunId] | None:
        if worker_id == self.refused:
            raise DatabaseUnavailableError("the connection was lost")
        return super().take_back(worker_id, last_seen, term)


def test_a_worker_that_cannot_be_taken_back_keeps_no_other_waiting(broom: Broom) -> None:
    desk = broom.desk
    first, second = sorted((desk.register(), desk.register(str(uuid.uuid4()))))
    batch_id = desk.start(2)
    for worker in (first, second):
        desk.claim(batch_id, 1, worker)
    state = broom.sweeper._state = Refusing(desk.database)
    for name in (first, second):
        state.refused = name
        broom.watch(LEASE - 1)
        broom.clock.at += 1
        for _ in range(2):  # it fails, and fails again after the other was taken back
            with pytest.raises(DatabaseUnavailableError):
                broom.sweep()
        with desk.database.read() as connection:
            assert list(connection.scalars(select(workers.c.id))) == [name]
        state.refused = ""
        assert broom.sweep().lost_runs == 1
        if name == first:
            desk.register(first)
            desk.register(second)
            desk.claim(batch_id, 1, first)
            desk.claim(batch_id, 1, second)
    assert_accounted(desk.database, batch_id)


def test_an_old_heartbeat_alone_kills_nobody(broom: Broom) -> None:
    desk = broom.desk
    desk.register()
    batch_id = desk.start(1)
    desk.claim(batch_id)
    with desk.database.begin() as connection:
        connection.execute(update(workers).values(heartbeat_at=later(literal(-3600.0))))
    assert broom.sweep().lost_runs == 0
    assert assert_accounted(desk.database, batch_id).running == 1


def test_an_orphan_without_a_row_is_taken_back_too(broom: Broom) -> None:
    desk = broom.desk
    batch_id = desk.start(2)
    desk.claim(batch_id, 1)
    assert [swept.lost_runs for swept in broom.watch(10)] == [*[0] * 10, 1]
    assert assert_accounted(desk.database, batch_id).pending == 2


def test_a_batch_that_waits_for_a_dead_worker_reaches_its_target(broom: Broom) -> None:
    desk = broom.desk
    batch_id = desk.start(2)
    desk.claim(batch_id, 1)
    desk.states.stop(batch_id, StopTarget.CANCELLED, "c")
    broom.watch(10)
    broom.sweep()
    assert desk.state(batch_id) is BatchState.CANCELLED
    assert assert_accounted(desk.database, batch_id).cancelled == 2


def test_what_nobody_concluded_is_concluded(broom: Broom) -> None:
    desk = broom.desk
    done, failed = desk.start(1), desk.start(2)
    desk.settle(desk.claim(done))
    desk.settle(desk.claim(failed, 1), FAILED)
    going = desk.start(1)
    assert sorted(broom.sweep().concluded) == sorted([done, failed])
    assert [desk.state(each) for each in (done, failed, going)] == [
        BatchState.SUCCEEDED,
        BatchState.QUEUED,
        BatchState.RUNNING,
    ]


# --- lost messages


def test_a_dispatch_whose_lane_is_empty_is_published_again_with_a_doubling_delay(broom: Broom) -> None:
    batch_id = broom.desk.start(2)
    broom.dispatch(batch_id)
    broom.publisher.take()
    assert broom.sweep().republished == 0  # too young
    broom.grow_old(batch_id, 3.5)
    assert broom.sweep().republished == 2
    offers = broom.publisher.take()
    broom.grow_old(batch_id, 3.5)
    assert broom.sweep().republished == 0  # 6 s by now
    broom.grow_old(batch_id, 6.5)
    assert broom.sweep().republished == 2
    again = broom.publisher.take()
    assert [each.run for each in again] == [each.run for each in offers]
    assert len(broom.desk.states.claim(broom.desk.worker, [each.run for each in again * 2]).claimed) == 2
    assert_accounted(broom.desk.database, batch_id)


def test_a_dispatch_that_merely_waits_is_left_alone(broom: Broom) -> None:
    batch_id = broom.desk.start(2)
    broom.dispatch(batch_id)
    broom.grow_old(batch_id, 600)
    assert broom.sweep().republished == 0


def test_an_overtaken_dispatch_is_published_again_and_the_later_ones_are_not(broom: Broom) -> None:
    desk = broom.desk
    batch_id = desk.start(3)
    broom.dispatch(batch_id)
    _, second, _ = broom.publisher.published
    broom.grow_old(batch_id, 30, 1)
    broom.grow_old(batch_id, 20, 2)
    broom.grow_old(batch_id, 10, 3)
    desk.states.claim(desk.worker, [second.run])
    broom.publisher.published.clear()
    assert broom.sweep().republished == 1
    assert broom.publisher.history_of(batch_id) == ["k1"]


def test_another_lane_that_moves_is_no_evidence(broom: Broom) -> None:
    desk = broom.desk
    quiet, busy = desk.start(1), desk.start(1, handler="tests.other")
    broom.dispatch(quiet)
    broom.dispatch(busy)
    broom.grow_old(quiet, 30)
    desk.states.claim(desk.worker, [each.run for each in broom.publisher.published if each.run.batch_id == busy])
    assert broom.sweep().republished == 0


def test_one_lane_that_waits_does_not_hide_what_another_has_lost(broom: Broom) -> None:
    from batching.moves.sweep import LostEvidence, take_suspects

    desk = broom.desk
    waits, lost = desk.start(5), desk.start(1, handler="tests.other")
    broom.dispatch(waits)
    broom.dispatch(lost)
    broom.grow_old(waits, 30)
    broom.grow_old(lost, 30)
    evidence = LostEvidence(3.0, frozenset({Lane("default", "tests.other")}))
    with desk.database.begin() as connection:
        found = take_suspects(connection, desk.term, evidence, 2, limit=3)
    assert [each.run.batch_id for each in found] == [lost]


def test_everything_unclaimed_is_published_again_when_the_broker_lost_its_memory(broom: Broom) -> None:
    desk = broom.desk
    batch_id = desk.start(3)
    broom.sweep()
    broom.dispatch(batch_id)
    taken = broom.publisher.take()
    desk.states.claim(desk.worker, [taken[0].run])
    broom.publisher.lose()
    assert broom.sweep().republished == 2  # whatever their age
    assert broom.sweep().republished == 0
    assert_accounted(desk.database, batch_id)


def test_a_broker_that_is_away_is_asked_again_later(broom: Broom) -> None:
    batch_id = broom.desk.start(1)
    broom.dispatch(batch_id)
    broom.publisher.lose()
    broom.grow_old(batch_id, 30)
    broom.publisher.away = True
    assert broom.sweep().republished == 0
    broom.publisher.away = False
    assert broom.sweep().republished == 1


def test_a_batch_that_stopped_is_not_published_again(broom: Broom) -> None:
    desk = broom.desk
    batch_id = desk.start(2)
    broom.dispatch(batch_id)
    broom.publisher.take()
    broom.grow_old(batch_id, 30)
    desk.states.stop(batch_id, StopTarget.PAUSED, "p")
    assert broom.sweep().republished == 0
    assert broom.publisher.take() == []


# --- producers


def test_an_abandoned_loading_batch_is_deleted_and_one_that_loads_is_not(broom: Broom) -> None:
    states = broom.desk.states
    gone, loading = (states.create_batch(BatchSpec(HANDLER, "b")).id for _ in range(2))
    for each in (gone, loading):
        states.add_profiles(each, [ProfileInput("a", "1"), ProfileInput("b", "2")])
    plant_batch(broom.desk.database, gone, loading_until=later(literal(-1.0)))
    assert broom.sweep().abandoned == [gone]
    with broom.desk.database.read() as connection:
        assert list(connection.scalars(select(batches.c.id))) == [loading]
        assert len(connection.execute(select(profiles.c.number)).all()) == 2
    assert states.seal(loading) == 2
