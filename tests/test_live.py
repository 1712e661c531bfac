"""Notices through Redis: what is told, how often, and what becomes of it when Redis is away."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from batching.broker import Doorbell, exchange, redis_client
from batching.live import MOST, PAUSE, Listener, News, channel, publication, read_notice
from batching.queue_manager import QueueManager
from batching.settings import Settings
from tests.accounting import HANDLER, Desk
from tests.support import eventually
from workers.manager import Manager
from workers.publisher import RedisPublisher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batching.database import Database
    from tests.servers import ValkeyServer


class Ear:
    """A listener that remembers."""

    def __init__(self, url: str, key_prefix: str) -> None:
        self.notices: list[frozenset[str]] = []
        self.lines: list[bool] = []
        self.listener = Listener(url, key_prefix, self.notices.append, self.lines.append)
        self.listener.start()

    def heard(self, *ids: str) -> bool:
        return frozenset(ids) in self.notices


@pytest.fixture
def ear(broker_url: str, key_prefix: str) -> Iterator[Ear]:
    made = Ear(broker_url, key_prefix)
    eventually(lambda: made.lines == [True])
    made.notices.clear()
    yield made
    made.listener.stop()


def test_a_notice_is_ids_and_nothing_else() -> None:
    name, where, said = publication("p:", ["b", "a", "b"])
    assert (name, where, json.loads(said)) == ("PUBLISH", "p:live", {"batches": ["a", "b"]})
    assert read_notice(said) == frozenset("ab")
    assert json.loads(publication("p:")[2]) == {"batches": []}
    assert read_notice(publication("p:", map(str, range(MOST + 1)))[2]) == frozenset()


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b'{"batches": 1}', b'{"batches": [1]}', b"[" * 90_000, b"\xff"]
)
def test_what_is_no_notice_is_passed_over(raw: bytes) -> None:
    assert read_notice(raw) is None


def test_news_are_gathered_and_told_four_times_a_second_at_most() -> None:
    news = News("p:")
    assert not news.due(100.0)
    news.note(["a"])
    assert news.due(100.0)
    assert read_notice(news.take(100.0)[2]) == frozenset("a")
    news.note(["b", "c"])
    assert not news.due(100.0 + PAUSE - 0.01)
    news.note(["b", "d"])
    assert news.due(100.0 + PAUSE)
    assert read_notice(news.take(100.0 + PAUSE)[2]) == frozenset("bcd")
    assert not news


def test_verbs_tell_what_they_changed(ear: Ear, broker_url: str, database: Database) -> None:
    manager = QueueManager(database, broker_url)
    batch = manager.submit(HANDLER, ["a"], seal=False)
    eventually(ear.heard)
    verbs: list[Any] = [
        lambda: batch.append(["b"]),
        batch.seal,
        lambda: manager.pause(batch.id),
        lambda: manager.resume(batch.id),
        lambda: manager.process(batch.id),
        lambda: manager.move(batch.id, "front"),
        lambda: manager.cancel(batch.id),
        lambda: manager.retry(batch.id),
    ]
    for verb in verbs:
        ear.notices.clear()
        verb()
        eventually(lambda: ear.heard(batch.id))
    ear.notices.clear()
    manager.queues.set("default", max_running=2)
    eventually(ear.heard)
    manager.close()


def test_a_submission_in_somebodys_transaction_tells_nothing(ear: Ear, broker_url: str, database: Database) -> None:
    manager = QueueManager(database, broker_url)
    with database.begin() as connection:
        manager.submit(HANDLER, ["a"], session=connection)
    manager.submit(HANDLER, ["a"])
    eventually(ear.heard)
    assert len(ear.notices) == 1, "the second one's"
    manager.close()


def test_the_leader_tells_what_it_promotes(ear: Ear, broker_url: str, key_prefix: str, database: Database) -> None:
    desk = Desk(database)
    desk.register()
    batch_id = desk.submit(3)
    settings = Settings(database_url=database.url, broker_url=broker_url, key_prefix=key_prefix)
    leader = Manager(settings, database, RedisPublisher(broker_url, key_prefix))
    leader.turn()
    assert desk.state(batch_id) == "running"
    leader._wait(0.01)
    eventually(lambda: ear.heard(batch_id))
    leader.resign()


def test_a_notice_goes_along_with_a_ring_in_one_round_trip(ear: Ear, broker_url: str, key_prefix: str) -> None:
    publisher = RedisPublisher(broker_url, key_prefix)
    before = calls(broker_url)
    publisher.hint(publication(key_prefix, ["a"]))
    assert publisher.wait_hint(1.0, publication(key_prefix, ["b"]))
    publisher.tell(publication(key_prefix, ["c"]))
    after = calls(broker_url)
    publisher.close()
    eventually(lambda: ear.heard("a") and ear.heard("b") and ear.heard("c"))
    assert {name: after[name] - before.get(name, 0) for name in ("publish", "lpush", "blpop")} == {
        "publish": 3,
        "lpush": 1,
        "blpop": 1,
    }


def calls(url: str) -> dict[str, int]:
    with redis_client(url) as client:
        stats: dict[str, Any] = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in stats.items()}


def test_a_server_that_refuses_notices_refuses_nothing_else(broker_url: str, key_prefix: str) -> None:
    """An access list of the version before knows nothing of them."""
    bell = Doorbell(broker_url, key_prefix)
    refused = ("NO-SUCH-COMMAND", "x")
    bell.ring(refused)
    assert bell.wait(1.0, refused)
    bell.tell(refused)
    assert not bell.wait(0.01)
    with redis_client(broker_url) as client:
        assert exchange(client, ("PING",), ("ECHO", "x"), aside=[refused, refused]) == [b"PONG", b"x"]
        assert exchange(client, ("ECHO", "y")) == [b"y"], "no answer is left for the next"
    bell.close()


def test_a_listener_says_when_redis_is_away_and_when_it_is_back(own_valkey: ValkeyServer) -> None:
    ear = Ear(own_valkey.url, "p:")
    eventually(lambda: ear.lines == [True])
    own_valkey.stop()
    eventually(lambda: ear.lines == [True, False])
    ear.notices.clear()
    own_valkey.start()
    eventually(lambda: ear.lines == [True, False, True], timeout=20)
    eventually(ear.heard)  # what was told meanwhile is missed: look once
    with redis_client(own_valkey.url) as client:
        client.publish(channel("p:"), "no notice")
        client.publish(channel("q:"), '{"batches": ["z"]}')
        client.publish(channel("p:"), '{"batches": ["a"]}')
    eventually(lambda: ear.heard("a"))
    assert not ear.heard("z")
    ear.listener.stop()
    assert ear.lines[-1] is False


def test_a_listener_notices_a_frozen_redis(own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batching.live._ASK_AFTER", 0.5)
    monkeypatch.setattr("batching.live.SOCKET_TIMEOUT", 1.0)
    ear = Ear(own_valkey.url, "p:")
    eventually(lambda: ear.lines == [True])
    own_valkey.freeze()
    eventually(lambda: ear.lines == [True, False], timeout=20)
    own_valkey.thaw()
    eventually(lambda: ear.lines == [True, False, True], timeout=30)
    ear.listener.stop()


def test_a_listener_lives_through_a_silent_time(own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers to a question is there, though nothing is told."""
    monkeypatch.setattr("batching.live._ASK_AFTER", 0.1)
    ear = Ear(own_valkey.url, "p:")
    eventually(lambda: ear.lines == [True])
    before = calls(own_valkey.url).get("ping", 0)
    eventually(lambda: calls(own_valkey.url).get("ping", 0) >= before + 3, timeout=20)
    assert ear.lines == [True]
    ear.listener.stop()


def test_a_listener_ends_at_once_and_twice(broker_url: str, key_prefix: str) -> None:
    before = threading.active_count()
    ear = Ear(broker_url, key_prefix)
    ear.listener.stop()
    ear.listener.stop()
    assert threading.active_count() == before
