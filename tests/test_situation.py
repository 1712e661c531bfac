"""How the whole system is, what runs where, and the lists around the line: as the dashboard reads them."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from batching.errors import InvalidInputError, UnknownBatchError
from batching.states import BatchState, StopTarget
from batching.statistics import Statistics, situation
from tests.accounting import Desk

if TYPE_CHECKING:
    from batching.database import Database


@pytest.fixture
def desk(database: Database) -> Desk:
    desk = Desk(database)
    desk.register()
    return desk


@pytest.fixture
def statistics(database: Database) -> Statistics:
    return Statistics(database)


def test_nobody_and_nothing_is_there(database: Database) -> None:
    now = Statistics(database).situation()
    assert (now.led, now.leader, now.epoch, now.lease_seconds, now.broker_away) == (False, None, 0, None, False)
    assert (now.workers, now.silent, now.slots, now.busy) == (0, 0, 0, 0)
    assert (now.running, now.queued, now.paused, now.callbacks_waiting, now.callbacks_dead) == (0, 0, 0, 0, 0)
    assert Statistics(database).runs() == []


def test_what_is_there_is_counted_and_what_has_ended_is_not(desk: Desk, statistics: Statistics) -> None:
    desk.finish(BatchState.SUCCEEDED)
    running = desk.start(5)
    desk.claim(running, 3)
    desk.submit(2)
    paused = desk.submit(2)
    desk.states.stop(paused, StopTarget.PAUSED, "aside")
    now = statistics.situation()
    assert (now.led, now.leader, now.workers, now.slots, now.busy) == (True, desk.term.holder, 1, 4, 3)
    assert now.lease_seconds is not None
    assert 500 < now.lease_seconds <= 600
    assert (now.running, now.queued, now.paused) == (1, 1, 1)


def test_the_longest_runs_of_each_worker_are_listed(
    desk: Desk, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = desk.start(10)
    other = desk.register(str(uuid.uuid4()))
    desk.claim(batch_id, 4)
    desk.claim(batch_id, 2, other)
    desk.dispatch(batch_id, 1)
    found = statistics.runs()
    assert sorted(each.number for each in found) == [1, 2, 3, 4, 5, 6], "what is dispatched does not run"
    assert {each.number for each in found if each.worker_id == other} == {5, 6}
    assert all(each.batch_id == batch_id and each.batch_name == "b" and each.seconds >= 0 for each in found)
    monkeypatch.setattr(situation, "MOST_RUNS", 1)
    assert sorted(each.number for each in statistics.runs()) == [1, 5]


def test_what_has_ended_comes_page_by_page_the_latest_first(desk: Desk, statistics: Statistics) -> None:
    ended = [desk.finish(state) for state in (BatchState.SUCCEEDED, BatchState.FAILED, BatchState.CANCELLED)]
    ended += [desk.finish(BatchState.SUCCEEDED) for _ in range(3)]
    desk.submit(1)
    seen: list[str] = []
    after = None
    while page := statistics.finished(after=after, limit=2):
        seen += [view.id for view in page]
        after = page[-1].id
    assert seen == ended[::-1]
    assert [view.id for view in statistics.finished(states=[BatchState.FAILED])] == [ended[1]]
    assert statistics.finished("another queue") == []
    desk.states.retry(ended[1])
    with pytest.raises(InvalidInputError, match="runs again"):
        statistics.finished(after=ended[1])


def test_peers_are_those_among_which_move_counts_places(desk: Desk, statistics: Statistics) -> None:
    first, second, third = desk.submit(1), desk.submit(1), desk.submit(1)
    desk.submit(1, priority=1)
    desk.submit(1, queue="side")
    assert statistics.peers(second) == [first, second, third]
    for place in (1, 3, 2):
        desk.states.move(second, place)
        assert statistics.peers(second).index(second) == place - 1
    with pytest.raises(UnknownBatchError):
        statistics.peers(str(uuid.uuid4()))


def test_a_list_of_batches_goes_on_where_it_is_told(desk: Desk, statistics: Statistics) -> None:
    line = [desk.submit(1) for _ in range(5)]
    assert [view.id for view in statistics.batches(states=[BatchState.QUEUED], limit=2, offset=2)] == line[2:4]
    assert [view.place for view in statistics.batches(limit=2, offset=3)] == [4, 5]
    assert statistics.batches(limit=2, offset=5) == []
