"""What a hand can spoil in Redis: the doctor names it, repairs it, is content; and no word about what is sound."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import literal

from batching import doctor
from batching.database import Database
from batching.dialects import later
from batching.execution_manager import BatchExecutionManager
from batching.interfaces import Lane
from tests.accounting import HANDLER, Desk, plant
from workers.keys import RedisKeys
from workers.publisher import RedisPublisher, lane_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LANE = Lane("default", HANDLER)


class Broker:
    """A lane with three messages in it, and nobody who pops them."""

    def __init__(self, url: str, prefix: str, database: Database) -> None:
        self.prefix = prefix
        self.publisher = RedisPublisher(url, prefix)
        self.keys = RedisKeys(url, prefix)
        self.client: Any = self.publisher.client
        self.lane = lane_key(prefix, LANE)
        self.desk = Desk(database)
        self.desk.register()
        self.batch_id = self.desk.start(5)
        BatchExecutionManager(self.desk.states, self.publisher).dispatch_batch(self.batch_id, 3, self.desk.term)
        self.publisher.incarnation()
        self.publisher.hint()
        self.examine = partial(doctor.examine, database, self.publisher, keys=self.keys, patience=0.01)


@pytest.fixture
def broker(broker_url: str, key_prefix: str, sqlite_url: str) -> Iterator[Broker]:
    database = Database(sqlite_url)
    broker = Broker(broker_url, key_prefix, database)
    yield broker
    broker.publisher.close()
    broker.keys.close()
    database.close()


def another_type(name: str) -> Callable[[Broker], object]:
    def harm(broker: Broker) -> None:
        broker.client.delete(broker.prefix + name)
        broker.client.hset(broker.prefix + name, "a", "b")

    return harm


def junk(*messages: bytes) -> Callable[[Broker], object]:
    return lambda broker: broker.client.lpush(broker.lane, *messages)


HARMS = {
    "a lane of another type": (another_type(f"lane:default:{HANDLER}"), "it is a hash where a list belongs"),
    "a bell of another type": (another_type("hint"), "it is a hash where a list belongs"),
    "a canary of another type": (another_type("canary"), "it is a hash where a string belongs"),
    "copies of another type": (another_type("popped"), "it is a hash where a zset belongs"),
    "copies that nobody looks after": (
        lambda broker: broker.client.zadd(broker.prefix + "popped", {"a": 1, "b": 2}),
        "2 copies of popped messages lie there for over 120 s",
    ),
    "a lane that expires": (lambda broker: broker.client.expire(broker.lane, 100), "it expires"),
    "junk in a lane": (
        junk(b"no json", b"[" * 3000, b"\x80\x04K\x01.", b"x" * 20_000),
        "4 messages in it are no offers",
    ),
    "the same junk twice": (junk(b"{}", b"{}"), "2 messages in it are no offers"),
    "another's task in a lane": (junk(b'{"headers":{"task":"os.system","id":"1"}}'), "1 messages in it are no offers"),
    "a lane that nobody needs": (
        lambda broker: broker.client.lpush(broker.prefix + "lane:default:gone", "a", "b"),
        "2 messages lie in a lane that no batch needs and no worker serves",
    ),
}


@pytest.mark.parametrize("name", HARMS)
def test_a_key_that_is_not_as_we_write_it(broker: Broker, name: str) -> None:
    # Given keys that are sound
    assert broker.examine() == (True, [], [])
    # When a hand spoils one, then the doctor says which, and changes nothing
    harm, says = HARMS[name]
    harm(broker)
    report = broker.examine()
    assert [says in problem for problem in report.problems] == [True], report
    assert broker.examine() == report
    # And repairs it, and has nothing left to repair
    assert broker.examine(fix=True) == (True, [], report.problems)
    assert broker.examine(fix=True) == (True, [], [])


def test_only_the_junk_goes(broker: Broker) -> None:
    sound = broker.client.lrange(broker.lane, 0, -1)
    broker.client.lpush(broker.lane, b"junk")
    broker.client.rpush(broker.lane, b"other junk")
    assert broker.examine(fix=True).ok
    assert broker.client.lrange(broker.lane, 0, -1) == sound
    assert len(sound) == 3


def test_a_lane_that_is_served_is_left_to_its_workers(broker: Broker) -> None:
    """Copies of messages lie there until a worker has room to pop them; that is no problem of anybody's."""
    broker.desk.register("00000000-0000-0000-0000-000000000009", handlers=("served",))
    broker.client.lpush(broker.prefix + "lane:default:served", "a copy")
    broker.client.delete(broker.lane)
    assert "2 messages" not in str(broker.examine().problems)
    assert broker.client.exists(broker.prefix + "lane:default:served")


def test_what_others_keep_there_is_theirs(broker: Broker) -> None:
    broker.client.hset("lane:default:gone", "a", "b")
    broker.client.set(broker.prefix + "_kombu.binding.batching", "x")
    assert broker.examine(fix=True) == (True, [], [])
    broker.client.delete("lane:default:gone")


def test_copies_of_what_workers_hold_are_left_to_them(broker: Broker) -> None:
    held = {"held": broker.client.time()[0]}
    broker.client.zadd(broker.prefix + "popped", held | {"forgotten": 1})
    assert broker.examine(fix=True).ok
    assert broker.client.zrange(broker.prefix + "popped", 0, -1) == [b"held"]


def test_a_canary_that_is_gone_comes_back(broker: Broker) -> None:
    """No problem, and nothing to repair: it is made when somebody asks, and the leader then publishes again."""
    before = broker.publisher.incarnation()
    broker.client.delete(broker.prefix + "canary")
    assert broker.examine().ok
    assert broker.publisher.incarnation() != before


def test_messages_that_are_gone_are_published_again(broker: Broker) -> None:
    messages = set(broker.client.lrange(broker.lane, 0, -1))
    broker.client.delete(broker.lane)
    assert broker.examine().ok  # they may be in a worker's hands
    plant(broker.desk.database, broker.batch_id, {"dispatched_at": later(literal(-61.0))}, 1, 2, 3)
    report = broker.examine()
    assert [problem[:58] for problem in report.problems] == [
        f"lane default/{HANDLER}: 3 profiles were dispatched over 60 s ago"[:58]
    ]
    assert broker.examine(fix=True) == (True, [], report.problems)
    assert set(broker.client.lrange(broker.lane, 0, -1)) == messages
    assert broker.examine(fix=True) == (True, [], [])


def test_a_broker_that_is_away_is_named_once(sqlite_url: str) -> None:
    nowhere = "redis+socket:///nowhere/valkey.sock?virtual_host=0"
    database = Database(sqlite_url)
    (problem,) = doctor.examine(
        database, RedisPublisher(nowhere), keys=RedisKeys(nowhere, "x:"), patience=0.01
    ).problems
    assert "cannot reach the broker" in problem
    database.close()
