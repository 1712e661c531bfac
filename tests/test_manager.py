"""The leader's turn: what was just submitted goes out before the leader asks the database for anything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batching.settings import Settings
from batching.states import BatchState
from tests.accounting import Desk, read_counts, statements
from workers.manager import _BREATH, Manager
from workers.publisher import RedisPublisher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batching.database import Database


@pytest.fixture
def desk(database: Database) -> Desk:
    """A worker, and a queue that the leader knows."""
    desk = Desk(database)
    desk.register()
    desk.finish(BatchState.CANCELLED)
    return desk


@pytest.fixture
def leader(desk: Desk, broker_url: str, key_prefix: str) -> Iterator[Manager]:
    settings = Settings(database_url=desk.database.url, broker_url=broker_url, key_prefix=key_prefix)
    manager = Manager(settings, desk.database, RedisPublisher(broker_url, key_prefix))
    manager.turn()  # it leads, and has had its look
    yield manager
    manager.resign()


def hinted(leader: Manager) -> float:
    """A turn after a ring at the door."""
    leader._publisher.hint()
    leader._wait(1.0)
    assert leader._hinted
    return leader.turn()


def test_a_small_batch_goes_out_before_the_look_which_comes_soon(desk: Desk, leader: Manager) -> None:
    batch_id = desk.submit(3)
    with statements(desk.database) as seen:
        assert hinted(leader) == _BREATH
    assert desk.state(batch_id) == "running"
    assert len(seen) <= 12, "the start alone: SQLite's is several statements"
    assert not any("FROM workers" in each for each in seen), "no look"
    with statements(desk.database) as seen:
        assert leader.turn() > _BREATH
    assert any("FROM workers" in each for each in seen)


def test_a_batch_that_is_more_than_the_window_is_looked_at_at_once(desk: Desk, leader: Manager) -> None:
    batch_id = desk.submit(2_000)
    with statements(desk.database) as seen:
        assert hinted(leader) != _BREATH
    assert any("FROM workers" in each for each in seen)
    counts = read_counts(desk.database, batch_id)
    assert counts.dispatched
    assert counts.pending


def test_a_ring_for_nothing_is_followed_by_the_look(desk: Desk, leader: Manager) -> None:
    with statements(desk.database) as seen:
        assert hinted(leader) > _BREATH
    assert any("FROM workers" in each for each in seen)


def test_a_second_ring_within_the_breath_is_answered_at_once(desk: Desk, leader: Manager) -> None:
    desk.submit(1)
    assert hinted(leader) == _BREATH
    second = desk.submit(1)
    hinted(leader)
    assert desk.state(second) == "running"
