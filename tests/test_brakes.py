"""Caps and rate limits: exact for whoever dispatches, global over all workers, and no burden to other batches."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import literal, select, update

from batching.brakes import LimitKey, burst_of, parse_rate
from batching.dialects import later
from batching.errors import InvalidInputError, UnknownQueueError
from batching.models import rate_limits
from batching.moves import braking
from batching.options import BatchOptions
from batching.policies import brakes_of
from batching.queue_manager import QueueManager
from batching.states import BatchState, LimitKind, StopTarget
from tests.accounting import DONE, GIVEN_BACK, HANDLER, MAX_LOSSES, Desk, assert_accounted, read_counts, statements
from tests.support import eventually
from tests.test_dispatcher import Leader
from tests.test_races import pool, race  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import ThreadPoolExecutor

    from sqlalchemy import Connection

    from batching.database import Database
    from batching.statistics import QueueView

KEY = LimitKey(LimitKind.KEY, "crm-api")


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


@pytest.fixture
def manager(database: Database) -> Iterator[QueueManager]:
    manager = QueueManager(database)
    yield manager
    manager.close()


@pytest.fixture
def leader(database: Database) -> Leader:
    leader = Leader(database)
    leader.desk.register(slots=4)
    return leader


def in_flight(database: Database, *batch_ids: str) -> int:
    counts = [read_counts(database, batch_id) for batch_id in batch_ids]
    return sum(each.dispatched + each.running for each in counts)


def age_buckets(database: Database, seconds: float) -> None:
    """So much time passes for every bucket."""
    with database.begin() as connection:
        connection.execute(update(rate_limits).values(refilled_at=later(literal(-seconds))))


# --- options


@pytest.mark.parametrize(
    ("given", "per_second"), [(5, 5.0), ("10", 10.0), ("600/m", 10.0), ("1800/h", 0.5), ("2.5/s", 2.5)]
)
def test_a_rate_is_a_number_a_second_or_a_text(given: Any, per_second: float) -> None:
    assert parse_rate(given) == per_second
    assert BatchOptions(rate_limit=given).rate_limit == per_second


@pytest.mark.parametrize("given", [0, -1, True, "x", "5/d", "1/h/s", 10**9, "", float("nan")])
def test_what_is_no_rate_is_refused(given: Any) -> None:
    with pytest.raises(InvalidInputError, match="rate_limit"):
        BatchOptions(rate_limit=given)


def test_names_of_limits_are_kept_once_and_come_back_as_they_were_stored() -> None:
    options = BatchOptions(rate_limits=["b", "a", "b"])  # type: ignore[arg-type]
    assert options.rate_limits == ("a", "b")
    assert BatchOptions.from_dict(options.as_dict()) == options
    for wrong in ("a b", [1], ["x" * 300], [f"n{n}" for n in range(11)]):
        with pytest.raises(InvalidInputError, match="rate_limits"):
            BatchOptions(rate_limits=wrong)  # type: ignore[arg-type]


# --- caps


def test_never_more_than_its_cap_is_dispatched_or_running_and_others_are_not_held_up(leader: Leader) -> None:
    capped, other = leader.desk.submit(30, max_concurrency=2), leader.desk.submit(30)
    leader.ticks()
    assert in_flight(leader.desk.database, capped) == 2
    assert leader.sent(other) > 0  # let in, since the capped one cannot fill the workers
    most = 0
    while leader.desk.state(capped) is not BatchState.SUCCEEDED:
        leader.work()
        leader.tick()
        most = max(most, in_flight(leader.desk.database, capped))
    assert most == 2
    assert leader.desk.state(other) is BatchState.SUCCEEDED
    assert_accounted(leader.desk.database, capped)


def test_a_cap_counts_what_runs_whoever_leads(desk: Desk) -> None:
    batch_id = desk.start(10, max_concurrency=3)
    assert len(desk.dispatch(batch_id, 2)) == 2
    claimed = desk.states.claim(desk.worker, desk.dispatch(batch_id)).claimed
    assert len(claimed) == 1
    desk.states.resign(desk.term)
    desk._term = None
    assert desk.dispatch(batch_id) == []
    desk.settle(claimed)
    assert len(desk.dispatch(batch_id)) == 1


def test_what_a_lost_worker_held_makes_room_only_when_it_is_taken_back(desk: Desk) -> None:
    batch_id = desk.start(4, max_concurrency=2)
    lost = desk.claim(batch_id)
    assert desk.dispatch(batch_id) == []
    desk.settle(lost, GIVEN_BACK)
    assert len(desk.dispatch(batch_id)) == 2


@pytest.mark.parametrize("of", ["batch", "queue"])
def test_two_leaders_cannot_both_fill_the_last_place(
    desk: Desk,
    pool: ThreadPoolExecutor,  # noqa: F811 - the fixture
    of: str,
) -> None:
    batch_id = desk.start(10, **({"max_concurrency": 3} if of == "batch" else {}))
    cap = 3 if of == "queue" else None
    brakes = brakes_of(batch_id, BatchOptions(max_concurrency=3 if of == "batch" else None), cap)

    def first(connection: Connection) -> None:
        assert len(braking.dispatch(connection, batch_id, 10, desk.term, MAX_LOSSES, brakes)) == 3

    second = race(desk, pool, first, lambda: desk.states.dispatch(batch_id, 10, desk.term, brakes=brakes))
    assert second.result() == []
    assert assert_accounted(desk.database, batch_id).dispatched == 3


def test_a_queues_cap_is_shared_by_its_batches_and_by_no_other_queue(leader: Leader, manager: QueueManager) -> None:
    manager.queues.set("narrow", max_concurrency=3, max_running=5)
    narrow = [leader.desk.submit(2, queue="narrow") for _ in range(4)]
    wide = leader.desk.submit(20, queue="wide")
    most = 0
    for _ in range(12):
        leader.ticks(3)
        most = max(most, in_flight(leader.desk.database, *narrow))
        leader.work()
    assert most == 3
    assert [leader.desk.state(each) for each in [*narrow, wide]] == [BatchState.SUCCEEDED] * 5
    manager.queues.set("narrow", max_concurrency=0)
    assert manager.queues.get("narrow").max_concurrency is None


def test_batches_without_caps_and_limits_pay_nothing(desk: Desk) -> None:
    batch_id = desk.start(10)
    desk.dispatch(batch_id, 1)
    with statements(desk.database) as seen:
        desk.dispatch(batch_id, 1)
    assert not [each for each in seen if "rate_limits" in each or "max_concurrency" in each]
    assert len(seen) <= 4


# --- rates


def test_a_bucket_gives_its_burst_and_then_its_rate(desk: Desk) -> None:
    batch_id = desk.start(100, rate_limit=10)
    assert len(desk.dispatch(batch_id)) == burst_of(10) == 5
    assert desk.dispatch(batch_id) == []
    age_buckets(desk.database, 0.3)
    assert 3 <= len(desk.dispatch(batch_id)) <= 4
    age_buckets(desk.database, 3600.0)
    assert len(desk.dispatch(batch_id)) == 5  # never more than the burst, however long it was idle
    assert_accounted(desk.database, batch_id)


def test_a_shared_limit_is_shared_and_who_does_not_name_it_is_free(desk: Desk, manager: QueueManager) -> None:
    manager.limits.set("crm-api", "60/m", burst=4)
    first, second = desk.start(10, rate_limits=("crm-api",)), desk.start(10, rate_limits=("crm-api",))
    free = desk.start(10, rate_limits=("other",))

    def dispatch(batch_id: str, limit: int) -> int:
        brakes = brakes_of(batch_id, BatchOptions(), shared=[KEY] if batch_id != free else [])
        return len(desk.states.dispatch(batch_id, limit, desk.term, brakes=brakes))

    assert [dispatch(first, 3), dispatch(second, 3), dispatch(first, 3), dispatch(free, 10)] == [3, 1, 0, 10]


@pytest.mark.parametrize("kind", [LimitKind.HANDLER, LimitKind.QUEUE, LimitKind.KEY])
def test_the_leader_keeps_to_a_limit_and_lets_others_in(leader: Leader, manager: QueueManager, kind: LimitKind) -> None:
    name = {LimitKind.HANDLER: HANDLER, LimitKind.QUEUE: "default", LimitKind.KEY: "crm-api"}[kind]
    manager.limits.set(name, "1/h", burst=2, kind=kind)
    leader.desk.register(str(uuid.uuid4()), ("tests.other",))
    limited = [leader.desk.submit(10, rate_limits=("crm-api",)) for _ in range(50)]
    free = leader.desk.submit(10, handler="tests.other", queue="other")
    leader.ticks(12)
    assert sum(leader.sent(batch_id) for batch_id in limited) == 2
    assert leader.sent(free) > 0
    promoted = [batch_id for batch_id in limited if leader.desk.state(batch_id) is BatchState.RUNNING]
    assert len(promoted) <= 2  # one more would feed nobody
    age_buckets(leader.desk.database, 3600.0)
    leader.work()
    leader.ticks(3)
    assert sum(leader.sent(batch_id) for batch_id in limited) == 3


def test_a_spent_key_does_not_keep_batches_out_that_do_not_name_it(leader: Leader, manager: QueueManager) -> None:
    manager.limits.set("crm-api", "1/h", burst=1)
    limited = [leader.desk.submit(5, rate_limits=("crm-api",)) for _ in range(3)]
    free = leader.desk.submit(5)
    leader.ticks(8)
    assert leader.desk.state(free) is BatchState.RUNNING
    assert [leader.desk.state(each) for each in limited[1:]] == [BatchState.QUEUED] * 2


def test_busy_workers_do_not_let_a_burst_pile_up(leader: Leader, manager: QueueManager) -> None:
    """What waits unclaimed may start at once when they get free: never more than the burst."""
    manager.limits.set("crm-api", 100, burst=3)
    batch_id = leader.desk.submit(100, rate_limits=("crm-api",))
    for _ in range(5):
        leader.tick()
        age_buckets(leader.desk.database, 60.0)
    assert in_flight(leader.desk.database, batch_id) == 3


def test_over_a_span_the_rate_is_not_exceeded(database: Database, manager: QueueManager) -> None:
    leader = Leader(database)
    leader.desk.register(slots=50)
    rate, burst = 100, 10
    manager.limits.set("crm-api", rate, burst=burst)
    batch_id = leader.desk.submit(1_000, rate_limits=("crm-api",))
    began = time.monotonic()

    def a_second_and_a_half_passed() -> bool:
        leader.tick()
        leader.work()
        return time.monotonic() - began >= 1.5

    eventually(a_second_and_a_half_passed, timeout=10.0, interval=0.005)
    span = time.monotonic() - began
    assert burst < leader.sent(batch_id) <= burst + rate * span + 1


def test_over_a_span_the_rate_is_reached(database: Database, manager: QueueManager) -> None:
    """A machine that stands still for longer than a burst lasts would let some of it lapse: time is set by hand."""
    leader = Leader(database)
    leader.desk.register(slots=50)
    rate, burst, step = 100, 10, 0.05
    manager.limits.set("crm-api", rate, burst=burst)
    batch_id = leader.desk.submit(1_000, rate_limits=("crm-api",))
    leader.tick()
    leader.work()
    before, turns = leader.sent(batch_id), 30
    for _ in range(turns):
        age_buckets(leader.desk.database, step)
        leader.tick()
        leader.work()
    assert leader.sent(batch_id) - before >= rate * step * turns


def test_a_limit_survives_its_leader(desk: Desk) -> None:
    batch_id = desk.start(100, rate_limit="10/h")
    assert len(desk.dispatch(batch_id)) == 1
    desk.states.resign(desk.term)
    desk._term = None
    assert desk.dispatch(batch_id) == []


def test_two_leaders_cannot_both_take_the_last_token(
    desk: Desk,
    pool: ThreadPoolExecutor,  # noqa: F811 - the fixture
) -> None:
    batch_id = desk.start(10, rate_limit="10/h")
    brakes = brakes_of(batch_id, BatchOptions(rate_limit="10/h"))  # type: ignore[arg-type]

    def first(connection: Connection) -> None:
        assert len(braking.dispatch(connection, batch_id, 10, desk.term, MAX_LOSSES, brakes)) == 1

    assert race(desk, pool, first, lambda: desk.dispatch(batch_id)).result() == []


def test_a_batchs_bucket_goes_when_it_is_full_and_not_before(desk: Desk) -> None:
    batch_id = desk.start(10, rate_limit="10/h")
    desk.dispatch(batch_id)
    assert desk.states.forget_limits() == 0
    age_buckets(desk.database, 86_400.0)
    assert desk.states.forget_limits() == 1
    with desk.database.read() as connection:
        assert connection.scalars(select(rate_limits.c.name)).all() == []


def test_a_limit_is_changed_and_removed_and_keeps_what_it_had(manager: QueueManager) -> None:
    manager.limits.set("crm-api", 10, burst=5)
    manager.limits.set("crm-api", "1/h", burst=3)
    [limit] = manager.limits.list()
    assert (limit.key, limit.burst, round(limit.available)) == (KEY, 3, 3)
    manager.limits.set("crm-api", "1/h", burst=30)
    assert [round(each.available) for each in manager.limits.list()] == [3]
    assert manager.limits.remove("crm-api") is True
    assert manager.limits.remove("crm-api") is False
    with pytest.raises(InvalidInputError, match="batch"):
        manager.limits.set("x", 1, kind="batch")
    with pytest.raises(InvalidInputError, match="cannot limit"):
        manager.limits.set("a b", 1)


# --- why


@pytest.mark.parametrize("kind", ["own", LimitKind.KEY, LimitKind.HANDLER, LimitKind.QUEUE])
def test_a_batch_that_a_limit_holds_back_says_so(leader: Leader, manager: QueueManager, kind: str) -> None:
    name = {LimitKind.HANDLER: HANDLER, LimitKind.QUEUE: "default", LimitKind.KEY: "crm-api"}.get(kind)  # type: ignore[call-overload]
    if name is not None:
        manager.limits.set(name, 0.001, burst=1, kind=kind)
    batch_id = leader.desk.submit(5, rate_limits=("crm-api",), rate_limit=0.001 if name is None else None)
    leader.ticks(2)
    assert manager.get(batch_id).progress().reason == ""  # one is on its way
    leader.work()
    leader.ticks(2)
    whose = "its own rate limit" if name is None else f"the rate limit of {kind} {name}"
    assert manager.get(batch_id).progress().reason == f"waits for {whose}, 0.001 profiles a second"


def test_a_batch_whose_queue_is_at_its_cap_says_so_and_others_do_not(leader: Leader, manager: QueueManager) -> None:
    manager.queues.set("default", max_concurrency=2, max_running=2)
    first, second = leader.desk.submit(5), leader.desk.submit(5)
    leader.ticks(3)
    assert manager.get(first).progress().reason == ""
    assert manager.get(second).progress().reason == "queue default is at its cap of 2 profiles at once"
    manager.queues.pause("default")
    assert manager.get(second).progress().reason == "queue default is paused"


# --- queues


def test_a_queue_that_drains_promotes_nothing_and_its_running_batches_go_on(
    leader: Leader, manager: QueueManager
) -> None:
    running, waiting = leader.desk.submit(20), leader.desk.submit(20)
    other = leader.desk.submit(1, queue="other")
    leader.tick()
    assert manager.queues.drain("default").draining
    leader.desk.states.request_promotion(waiting)
    for _ in range(10):
        leader.tick()
        leader.work()
    assert leader.desk.state(running) is BatchState.SUCCEEDED
    assert leader.desk.state(waiting) is BatchState.QUEUED
    assert leader.desk.state(other) is BatchState.SUCCEEDED
    assert not manager.queues.resume("default").draining
    assert waiting in leader.ticks(2)


def test_a_drained_queue_is_waited_for_until_what_runs_has_ended(leader: Leader, manager: QueueManager) -> None:
    running = leader.desk.submit(20)
    leader.tick()
    manager.queues.drain("default")
    looks: list[int] = []

    def work(view: QueueView) -> None:
        looks.append(view.running)
        leader.tick()
        leader.work()

    # Nothing is stopped for it, and who waits only so long is told what still runs
    with pytest.raises(TimeoutError, match="queue default is not idle after 0 s: 1 batch runs; nothing was stopped"):
        manager.queues.wait_idle("default", timeout=0, show=lambda view: looks.append(view.running))
    assert manager.queues.wait_idle("default", poll=0, show=work).running == 0
    assert looks
    assert set(looks) == {1}
    assert leader.desk.state(running) is BatchState.SUCCEEDED
    # What another queue runs does not count
    elsewhere = leader.desk.submit(20, queue="other")
    leader.ticks(2)
    assert leader.desk.state(elsewhere) is BatchState.RUNNING
    manager.queues.wait_idle("default", timeout=0)


def test_a_queue_that_is_paused_dispatches_nothing_and_what_was_dispatched_may_finish(
    leader: Leader, manager: QueueManager
) -> None:
    running = leader.desk.submit(50)
    leader.ticks(2)
    sent = leader.sent(running)
    assert manager.queues.pause("default").paused
    leader.work()
    leader.ticks(3)
    assert leader.sent(running) == sent
    assert read_counts(leader.desk.database, running).succeeded == sent
    assert leader.desk.state(running) is BatchState.RUNNING
    manager.queues.resume("default")
    leader.tick()
    assert leader.sent(running) > sent


def test_a_pause_that_came_after_the_outlook_is_seen_by_the_promotion(desk: Desk, manager: QueueManager) -> None:
    desk.submit(1)
    manager.queues.drain("default")
    assert desk.states.promote("default", desk.term) is None
    manager.queues.resume("default")
    assert desk.states.promote("default", desk.term) is not None


def test_a_queue_that_is_not_there_is_made_by_set_alone(manager: QueueManager) -> None:
    for verb in (manager.queues.pause, manager.queues.drain, manager.queues.resume, manager.queues.get):
        with pytest.raises(UnknownQueueError, match="nowhere"):
            verb("nowhere")
    assert manager.queues.set("nowhere", max_running=7).max_running == 7
    assert [each.name for each in manager.queues.list()] == ["nowhere"]
    for wrong in ({"max_running": 0}, {"max_concurrency": -1}, {"max_running": True}):
        with pytest.raises(InvalidInputError, match="whole number"):
            manager.queues.set("nowhere", **wrong)
    with pytest.raises(InvalidInputError, match="queue's name"):
        manager.queues.set("a b")


def test_pausing_a_batch_of_a_capped_queue_gives_its_places_to_others(leader: Leader, manager: QueueManager) -> None:
    manager.queues.set("narrow", max_concurrency=2)
    first, second = leader.desk.submit(5, queue="narrow"), leader.desk.submit(5, queue="narrow")
    leader.ticks(3)
    assert in_flight(leader.desk.database, first) == 2
    leader.desk.states.stop(first, StopTarget.PAUSED, "p")
    leader.publisher.take()
    leader.ticks(3)
    assert in_flight(leader.desk.database, second) == 2
    leader.work(DONE)
