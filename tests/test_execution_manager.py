"""One conformance suite over `IBatchExecutionManager`: with the real publisher on a real Valkey, and a recorder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

from batching.errors import BrokerUnavailableError, IllegalMoveError, UnknownBatchError
from batching.execution_manager import BatchExecutionManager
from batching.interfaces import Ending, IBatchExecutionManager, Lane, Outcome, Publisher
from batching.states import BatchState, StopTarget
from tests.accounting import BROKEN, DONE, HANDLER, Desk, assert_accounted, statements
from tests.recording import RecordingPublisher
from workers.offers import Reader
from workers.publisher import RedisPublisher, lane_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from batching.database import Database
    from batching.interfaces import RunId
    from tests.servers import ValkeyServer

LANE = Lane("default", HANDLER)
MISSING = "01890000-0000-7000-8000-000000000000"


class Broker(Protocol):
    """The far side of a publisher: what the tests need of it."""

    @property
    def publisher(self) -> Publisher: ...
    def take(self) -> list[RunId]: ...
    def go_away(self) -> None: ...
    def forget(self) -> None: ...


class Recorded:
    """The recording publisher, played as a broker."""

    def __init__(self) -> None:
        self.publisher = RecordingPublisher()

    def take(self) -> list[RunId]:
        return [dispatch.run for dispatch in self.publisher.take()]

    def go_away(self) -> None:
        self.publisher.away = True

    def forget(self) -> None:
        self.publisher.lose()


class Real:
    """The real publisher, and what it left in a real Valkey."""

    def __init__(self, server: ValkeyServer) -> None:
        self.server = server
        self.publisher = RedisPublisher(server.url, "conformance:", timeout=1.0)
        self.reader = Reader({HANDLER})

    def take(self) -> list[RunId]:
        key = lane_key("conformance:", LANE)
        raws: list[bytes] = self.publisher.client.rpop(key, 1_000) or []  # type: ignore[assignment]
        return [offer.run for raw in raws if (offer := self.reader.read(key, raw)) is not None]

    def go_away(self) -> None:
        self.server.stop()

    def forget(self) -> None:
        self.server.flush()


@pytest.fixture(params=["recording", "real"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    if request.param == "recording":
        yield Recorded()
        return
    real = Real(request.getfixturevalue("own_valkey"))
    yield real
    real.publisher.close()


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


@pytest.fixture
def manager(desk: Desk, broker: Broker) -> BatchExecutionManager:
    return BatchExecutionManager(desk.states, broker.publisher, jitter=lambda: 0.0)


def test_it_keeps_the_contract(manager: BatchExecutionManager, broker: Broker) -> None:
    assert isinstance(manager, IBatchExecutionManager)
    assert isinstance(broker.publisher, Publisher)


def test_what_is_dispatched_is_committed_then_published_once_each_in_order(
    manager: BatchExecutionManager, desk: Desk, broker: Broker
) -> None:
    batch_id = desk.start(5)

    assert manager.dispatch_batch(batch_id, 3, desk.term) == 3

    assert broker.publisher.lengths([LANE]) == {LANE: 3}
    assert [(run.number, run.run) for run in broker.take()] == [(1, 1), (2, 1), (3, 1)]
    assert assert_accounted(desk.database, batch_id).dispatched == 3


def test_nothing_is_published_of_a_batch_that_does_not_run(
    manager: BatchExecutionManager, desk: Desk, broker: Broker
) -> None:
    batch_id = desk.submit(5)
    assert manager.dispatch_batch(batch_id, 3, desk.term) == 0
    assert broker.take() == []


def test_a_broker_that_is_away_loses_nothing_that_was_committed(
    manager: BatchExecutionManager, desk: Desk, broker: Broker
) -> None:
    batch_id = desk.start(5)
    broker.go_away()

    with pytest.raises(BrokerUnavailableError):
        manager.dispatch_batch(batch_id, 3, desk.term)

    assert assert_accounted(desk.database, batch_id).dispatched == 3


def test_what_is_published_again_offers_the_same_run_and_is_granted_once(
    manager: BatchExecutionManager, desk: Desk, broker: Broker
) -> None:
    batch_id = desk.start(1)
    dispatches = desk.dispatches(batch_id)
    worker = desk.register()

    manager.republish(dispatches)
    manager.republish(dispatches)

    offers = broker.take()
    assert offers == [dispatches[0].run] * 2
    assert len(manager.claim(worker, offers).claimed) == 1
    assert manager.claim(worker, offers).claimed == []


def test_what_is_forgotten_changes_the_incarnation(manager: BatchExecutionManager, broker: Broker) -> None:
    before = broker.publisher.incarnation()
    assert broker.publisher.incarnation() == before
    broker.forget()
    assert broker.publisher.incarnation() != before


def test_a_discarded_lane_is_empty_and_its_profiles_are_not_touched(
    manager: BatchExecutionManager, desk: Desk, broker: Broker
) -> None:
    batch_id = desk.start(2)
    manager.dispatch_batch(batch_id, 2, desk.term)
    broker.publisher.discard(LANE)
    assert broker.take() == []
    assert assert_accounted(desk.database, batch_id).dispatched == 2


def test_the_last_outcome_completes_the_batch(manager: BatchExecutionManager, desk: Desk, broker: Broker) -> None:
    batch_id, worker = desk.start(2), desk.register()
    manager.dispatch_batch(batch_id, 2, desk.term)
    first, last = manager.claim(worker, broker.take()).claimed

    manager.complete(worker, [(first, Outcome(Ending.SUCCEEDED, result="1"))])
    assert desk.state(batch_id) is BatchState.RUNNING
    result = manager.complete(worker, [(last, Outcome(Ending.SUCCEEDED, result="2"))])

    assert (result.applied, result.late) == ([last.run], [])
    assert desk.state(batch_id) is BatchState.SUCCEEDED
    assert manager.complete(worker, [(last, Outcome(Ending.SUCCEEDED, result="2"))]).late == [last.run]


def test_what_a_worker_still_holds_is_reason_enough_not_to_look_whether_the_batch_is_over(
    manager: BatchExecutionManager, desk: Desk, broker: Broker
) -> None:
    batch_id, worker = desk.start(3), desk.register()
    manager.dispatch_batch(batch_id, 3, desk.term)
    first, second, last = manager.claim(worker, broker.take()).claimed

    with statements(desk.database) as looked:
        manager.complete(worker, [(first, DONE)])
    with statements(desk.database) as trusted:
        manager.complete(worker, [(second, DONE)], holding={batch_id})
    assert len(trusted) < len(looked)

    manager.complete(worker, [(last, DONE)])
    assert desk.state(batch_id) is BatchState.SUCCEEDED


def test_a_failure_ends_the_pass_whatever_a_worker_still_holds(
    manager: BatchExecutionManager, desk: Desk, broker: Broker
) -> None:
    batch_id, worker = desk.start(2), desk.register()
    manager.dispatch_batch(batch_id, 2, desk.term)
    failing, _ = manager.claim(worker, broker.take()).claimed

    manager.complete(worker, [(failing, Outcome(Ending.FAILED, error=BROKEN))], holding={batch_id})
    assert desk.state(batch_id) is BatchState.STOPPING


def test_a_failure_beyond_the_budget_moves_the_batch_and_tells_the_worker_what_stops(
    manager: BatchExecutionManager, desk: Desk, broker: Broker
) -> None:
    batch_id, worker = desk.start(3, max_passes=2), desk.register()
    manager.dispatch_batch(batch_id, 3, desk.term)
    failing, running, waiting = manager.claim(worker, broker.take()).claimed

    manager.complete(worker, [(failing, Outcome(Ending.FAILED, error=BROKEN))])
    assert desk.state(batch_id) is BatchState.STOPPING
    assert manager.complete(worker, [(running, Outcome(Ending.SUCCEEDED, result="1"))]).stopping == {batch_id}
    manager.complete(worker, [(waiting, Outcome(Ending.GIVEN_BACK))])

    assert desk.state(batch_id) is BatchState.QUEUED
    assert assert_accounted(desk.database, batch_id).pending == 2


def test_a_batch_is_asked_to_run_ahead_of_its_turn(manager: BatchExecutionManager, desk: Desk) -> None:
    first, second = desk.submit(1), desk.submit(1)
    assert manager.execute_batch(second) is BatchState.QUEUED
    assert desk.states.promote("default", desk.term) == second
    assert manager.execute_batch(second) is BatchState.RUNNING
    assert desk.state(first) is BatchState.QUEUED


def test_a_batch_that_cannot_run_says_why(manager: BatchExecutionManager, desk: Desk) -> None:
    paused = desk.submit(1)
    desk.states.stop(paused, StopTarget.PAUSED, "for later")
    with pytest.raises(IllegalMoveError, match=rf"cannot execute batch {paused}: it is paused.*Resume it first"):
        manager.execute_batch(paused)
    with pytest.raises(UnknownBatchError, match=rf"there is no batch {MISSING}"):
        manager.execute_batch(MISSING)
