"""What the leader lets in and sends out: promotion, windows, several lanes and queues; and when it does nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import literal, update

from batching.dialects import later
from batching.dispatcher import Dispatcher
from batching.errors import BrokerUnavailableError
from batching.execution_manager import BatchExecutionManager
from batching.interfaces import Ending, Lane, Outcome
from batching.models import queues, workers
from batching.outlook import look
from batching.settings import Settings
from batching.states import BatchState, StopTarget
from tests.accounting import BROKEN, DONE, HANDLER, Desk, assert_accounted, plant, read_batch, statements
from tests.recording import RecordingPublisher

if TYPE_CHECKING:
    from batching.database import Database

RETRY_LATER = Outcome(Ending.RETRY, error=BROKEN, delay=600.0)


class Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


class Leader:
    """One tick of the leader at a time, on a clock that is turned by hand."""

    def __init__(self, database: Database, lane_window: int = 0) -> None:
        self.desk = Desk(database)
        self.publisher = RecordingPublisher()
        self.clock = Clock()
        execution = BatchExecutionManager(self.desk.states, self.publisher)
        self.dispatcher = Dispatcher(execution, Settings(lane_window=lane_window), self.clock)

    def tick(self) -> list[str]:
        """Dispatch, then promote, as the manager does; returns what was promoted."""
        outlook = look(self.desk.database, 10.0)
        self.dispatcher.dispatch(self.desk.term, outlook)
        self.clock.at += 0.2
        return [each.batch_id for each in self.dispatcher.promote(self.desk.term, outlook)]

    def ticks(self, count: int = 6) -> list[str]:
        return [batch_id for _ in range(count) for batch_id in self.tick()]

    def sent(self, batch_id: str) -> int:
        return len(self.publisher.history_of(batch_id))

    def work(self, outcome: Outcome | None = None) -> None:
        """A worker takes and ends everything that waits in the broker."""
        states = self.desk.states
        claimed = states.claim(self.desk.worker, [each.run for each in self.publisher.take()]).claimed
        self.desk.settle(claimed, outcome or DONE)
        states.conclude({each.run.batch_id for each in claimed})


@pytest.fixture
def leader(database: Database) -> Leader:
    leader = Leader(database)
    leader.desk.register()
    return leader


# --- promotion


def test_one_batch_runs_at_a_time_while_it_can_fill_the_workers(leader: Leader) -> None:
    first, second = leader.desk.submit(100), leader.desk.submit(100)
    assert leader.ticks() == [first]
    assert leader.desk.state(second) is BatchState.QUEUED
    while leader.desk.state(first) is BatchState.RUNNING:
        leader.work()
        if second in leader.tick():
            break
    assert leader.sent(first) == 100  # the second came in when nothing of the first was left to send


def test_the_next_is_let_in_when_those_that_run_cannot_fill_the_workers(leader: Leader) -> None:
    small = [leader.desk.submit(1) for _ in range(8)]
    assert leader.ticks() == small[:4]  # one for each slot


def test_a_batch_that_backs_off_inside_its_pass_lets_the_next_in(leader: Leader) -> None:
    backing_off, second = leader.desk.submit(20, max_attempts=3), leader.desk.submit(20)
    leader.ticks()
    while leader.sent(backing_off) < 20:
        leader.work(RETRY_LATER)
        leader.tick()
    leader.work(RETRY_LATER)
    leader.ticks()
    assert leader.desk.state(second) is BatchState.RUNNING
    assert leader.sent(second) > 0
    assert_accounted(leader.desk.database, backing_off)


def test_a_batch_that_stops_does_not_hold_up_the_next(leader: Leader) -> None:
    first, second = leader.desk.submit(100), leader.desk.submit(100)
    leader.ticks(2)
    leader.desk.states.claim(leader.desk.worker, [each.run for each in leader.publisher.take()])
    leader.desk.states.stop(first, StopTarget.CANCELLED, "c")
    leader.ticks(3)
    assert leader.desk.state(first) is BatchState.STOPPING
    assert leader.sent(second) > 0


def test_a_queue_runs_as_many_at_once_as_it_is_told(leader: Leader) -> None:
    line = [leader.desk.submit(100, queue="wide") for _ in range(4)]
    with leader.desk.database.begin() as connection:
        connection.execute(update(queues).where(queues.c.name == "wide").values(max_running=2))
    assert leader.ticks() == line[:2]


def test_without_a_live_worker_only_the_turn_itself_is_promoted_and_nothing_is_sent(database: Database) -> None:
    leader = Leader(database)
    first, second = leader.desk.submit(3), leader.desk.submit(3)
    assert leader.ticks() == [first]
    assert leader.publisher.published == []
    assert leader.desk.state(second) is BatchState.QUEUED


@pytest.mark.parametrize("why", ["silent", "draining"])
def test_a_worker_that_is_silent_or_drains_gets_nothing(leader: Leader, why: str) -> None:
    values = {"heartbeat_at": later(literal(-11.0))} if why == "silent" else {"draining": True}
    with leader.desk.database.begin() as connection:
        connection.execute(update(workers).values(**values))
    leader.desk.submit(3)
    leader.ticks()
    assert leader.publisher.published == []


def test_idle_workers_are_no_reason_to_let_in_what_they_do_not_serve(leader: Leader) -> None:
    unserved = [leader.desk.submit(3, handler="tests.unserved") for _ in range(3)]
    served = leader.desk.submit(3)
    assert leader.ticks() == [unserved[0], served]
    assert leader.sent(served) == 3
    assert leader.sent(unserved[0]) == 0


def test_the_order_is_urgency_priority_position(leader: Leader) -> None:
    low, high, asked = leader.desk.submit(1), leader.desk.submit(1, priority=9), leader.desk.submit(1)
    leader.desk.states.request_promotion(asked)
    assert leader.ticks() == [asked, high, low]


def test_every_queue_has_its_own_turn(leader: Leader) -> None:
    both = [leader.desk.submit(100, queue="a"), leader.desk.submit(100, queue="b")]
    assert sorted(leader.tick()) == sorted(both)
    leader.tick()
    assert [leader.sent(batch_id) for batch_id in both] == [8, 8]


def test_a_paused_queue_lets_nothing_in(leader: Leader) -> None:
    batch_id = leader.desk.submit(1)
    with leader.desk.database.begin() as connection:
        connection.execute(update(queues).values(paused=True))
    assert leader.ticks() == []
    assert leader.desk.state(batch_id) is BatchState.QUEUED


def test_a_batch_between_passes_is_passed_over_and_a_lone_one_does_not_spin(leader: Leader) -> None:
    lone = leader.desk.submit(1, pass_backoff=600, pass_backoff_max=600)
    leader.ticks(2)
    leader.work(Outcome(Ending.FAILED, error=BROKEN))
    assert leader.desk.state(lone) is BatchState.QUEUED
    with statements(leader.desk.database) as seen:
        assert leader.ticks(5) == []
    assert [statement for statement in seen if not statement.startswith(("SELECT", "BEGIN"))] == []
    other = leader.desk.submit(1)
    assert leader.ticks(2) == [other]


# --- windows


def test_the_window_is_twice_the_slots_until_a_rate_is_known(leader: Leader) -> None:
    batch_id = leader.desk.submit(100)
    leader.ticks(4)
    assert leader.sent(batch_id) == 8
    assert assert_accounted(leader.desk.database, batch_id).dispatched == 8


def test_the_window_grows_with_the_rate(leader: Leader) -> None:
    batch_id = leader.desk.submit(2_000)
    leader.ticks(2)
    leader.work()
    leader.tick()
    # 8 in 0.3 s are as many as there were: twice the slots.
    assert leader.sent(batch_id) == 8 + 8
    sent = []
    for _ in range(4):
        before = leader.sent(batch_id)
        leader.work()
        leader.tick()
        sent.append(leader.sent(batch_id) - before)
    assert sent == sorted(sent)
    assert sent[-1] > 100


def test_a_fixed_window_is_kept(database: Database) -> None:
    leader = Leader(database, lane_window=5)
    leader.desk.register()
    batch_id = leader.desk.submit(100)
    leader.ticks(3)
    assert leader.sent(batch_id) == 5
    leader.work()
    leader.ticks(3)
    assert leader.sent(batch_id) == 10


# --- where the dispatch of a batch goes on


@pytest.fixture
def narrow(database: Database) -> Leader:
    leader = Leader(database, lane_window=5)
    leader.desk.register()
    return leader


def test_what_waits_again_is_sent_within_a_second_though_much_more_waits(narrow: Leader) -> None:
    batch_id = narrow.desk.submit(200, max_attempts=2)
    narrow.ticks(2)
    narrow.work(Outcome(Ending.RETRY, error=BROKEN, delay=0.0))
    for _ in range(6):
        narrow.tick()
        narrow.work()
    sent = [int(key[1:]) for key in narrow.publisher.history_of(batch_id)]
    assert sent[:10] == list(range(1, 11))  # not at once: the dispatch goes on where it was
    again = sent.index(1, 5)
    assert sent[again : again + 5] == list(range(1, 6))
    assert sent[again + 5 :] == list(range(sent[again - 1] + 1, sent[-1] + 1))


def test_what_waits_again_is_sent_at_once_when_nothing_else_waits(narrow: Leader) -> None:
    batch_id = narrow.desk.submit(7, max_attempts=2)
    narrow.ticks(2)
    narrow.work(Outcome(Ending.RETRY, error=BROKEN, delay=0.0))
    narrow.tick()
    assert narrow.publisher.history_of(batch_id) == ["k1", "k2", "k3", "k4", "k5", "k6", "k7", "k1", "k2", "k3"]


def test_a_pass_begins_with_the_first_profile(narrow: Leader) -> None:
    batch_id = narrow.desk.submit(12, max_attempts=1, fail_fast=False, pass_backoff=0.0)
    narrow.ticks(2)
    while read_batch(narrow.desk.database, batch_id).pass_number == 1:
        narrow.work(Outcome(Ending.FAILED, error=BROKEN))
        narrow.tick()
    narrow.desk.rewrite(batch_id)
    narrow.ticks(2)
    assert narrow.publisher.history_of(batch_id)[12:] == ["k1", "k2", "k3", "k4", "k5"]


def test_a_dispatch_looks_only_behind_its_bookmark(leader: Leader) -> None:
    desk = leader.desk
    batch_id = desk.start(10)
    assert [each.run.number for each in desk.states.dispatch(batch_id, 3, desk.term, 4)] == [5, 6, 7]
    assert [each.run.number for each in desk.states.dispatch(batch_id, 9, desk.term)] == [1, 2, 3, 4, 8, 9, 10]


def test_the_batchs_own_window_is_a_ceiling_and_the_rest_goes_to_the_next(leader: Leader) -> None:
    narrow, wide = leader.desk.submit(100, window=2), leader.desk.submit(100)
    leader.ticks()
    assert (leader.sent(narrow), leader.sent(wide)) == (2, 6)


def test_batches_of_one_lane_share_its_window_in_their_order(leader: Leader) -> None:
    first, second = leader.desk.submit(3), leader.desk.submit(100)
    leader.ticks()
    assert (leader.sent(first), leader.sent(second)) == (3, 5)


def test_lanes_have_windows_of_their_own(leader: Leader) -> None:
    leader.desk.register("00000000-0000-4000-8000-000000000009", ("tests.other",), slots=1)
    first, other = leader.desk.submit(100), leader.desk.submit(100, handler="tests.other", queue="b")
    leader.ticks(3)
    assert (leader.sent(first), leader.sent(other)) == (8, 2)


def test_nothing_due_is_not_asked_for_again_at_once(leader: Leader) -> None:
    batch_id = leader.desk.start(5)
    plant(leader.desk.database, batch_id, {"not_before": later(literal(600.0))})
    outlook = look(leader.desk.database, 10.0)
    assert leader.dispatcher.dispatch(leader.desk.term, outlook) == 0
    with statements(leader.desk.database) as seen:
        leader.dispatcher.dispatch(leader.desk.term, outlook)
    assert seen == []
    leader.clock.at += 0.2
    plant(leader.desk.database, batch_id, {"not_before": None}, 4)
    assert leader.dispatcher.dispatch(leader.desk.term, outlook) == 1


def test_a_broker_that_is_away_leaves_dispatches_for_the_sweep(leader: Leader) -> None:
    batch_id = leader.desk.start(3)
    leader.publisher.away = True
    with pytest.raises(BrokerUnavailableError):
        leader.tick()
    assert assert_accounted(leader.desk.database, batch_id).dispatched == 3


def test_the_outlook_costs_the_same_for_any_number_of_workers(leader: Leader) -> None:
    with statements(leader.desk.database) as few:
        look(leader.desk.database, 10.0)
    for number in range(1, 9):
        leader.desk.register(f"00000000-0000-4000-8000-00000000000{number}")
    with statements(leader.desk.database) as many:
        assert len(look(leader.desk.database, 10.0).workers) == 9
    assert len(few) == len(many)


def test_the_handler_of_the_desk_is_what_its_worker_serves(leader: Leader) -> None:
    assert look(leader.desk.database, 10.0).slots(Lane("default", HANDLER)) > 0
