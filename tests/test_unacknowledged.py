"""Messages that are acknowledged at the claim: copies in the broker, and what becomes of them under each fault.

Nobody sweeps here, so what a worker took along comes back from its copies alone.
"""

from __future__ import annotations

import logging
import math
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from batching.figures import Figures
from batching.interfaces import RunId
from tests.support import eventually
from tests.test_consumer import HANDLER, LANE, Bench, locked
from workers.offers import Offer
from workers.publisher import RedisPublisher, lane_key
from workers.unacknowledged import Unacknowledged, _member, copies_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batching.database import Database
    from tests.servers import ValkeyServer

#: Seconds after which what is not shown to be held is offered again; twice in it, each worker looks.
SOON = 1.0
#: The loop of a worker that cannot claim waits for SQL, and must be back in time to show what it holds.
CLAIM = {"acknowledge": "claim", "visibility_timeout": SOON, "sql_timeout": 0.1}
#: Messages that nobody may offer again while the test goes on.
LATE = {"acknowledge": "claim", "visibility_timeout": 15.0}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def open_bench(
    stack: ExitStack, database: Database, url: str, prefix: str, more: dict[str, Any], *, leads: bool = True
) -> Bench:
    bench = Bench(database, url, prefix, more=more, leads=leads)
    stack.callback(bench.close)
    return bench


def copies(bench: Bench) -> int:
    client: Any = bench.publisher.client
    return int(client.zcard(copies_key(bench.key_prefix)))


def holding(bench: Bench, lock: ExitStack, *, beside: Bench | None = None) -> str:
    """A batch of five, all of which workers have popped and can claim nothing of until the lock is let go.

    Args:
        bench: Leads, and starts.
        lock: Lets go.
        beside: Another one, which may have popped some of them.
    """
    batch_id = bench.batch(['"go"'] * 5)
    bench.start()
    dispatches = bench.state.dispatch(batch_id, 10_000, bench.term)
    lock.enter_context(locked(bench.database))
    bench.leader.republish(dispatches)
    workers = [bench] if beside is None else [bench, beside]
    eventually(lambda: sum(len(each.consumer.intake.pending) for each in workers) == 5)
    return batch_id


def test_a_copy_is_kept_from_the_pop_to_the_claim(
    database: Database, broker_url: str, key_prefix: str, stack: ExitStack
) -> None:
    bench = open_bench(stack, database, broker_url, key_prefix, LATE)
    with ExitStack() as lock:
        batch_id = holding(bench, lock)
        eventually(lambda: copies(bench) == 5, 30)
    bench.finished(batch_id)
    eventually(lambda: copies(bench) == 0)


def test_by_default_no_copy_is_ever_kept(
    database: Database, own_valkey: ValkeyServer, key_prefix: str, stack: ExitStack
) -> None:
    bench = open_bench(stack, database, own_valkey.url, key_prefix, {})
    batch_id = bench.batch(['"go"'] * 50)
    bench.dispatch(batch_id)
    bench.start()
    bench.finished(batch_id)
    with own_valkey.client() as client:
        asked = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
    assert "blmpop" in asked
    assert not asked & {"zadd", "zrem", "zrange", "time"}


@pytest.mark.parametrize("end", ["killed", "frozen"])
def test_what_a_worker_took_along_is_offered_again(
    database: Database, broker_url: str, key_prefix: str, end: str, stack: ExitStack
) -> None:
    # Given a worker that has popped messages and can claim nothing
    first = open_bench(stack, database, broker_url, key_prefix, CLAIM)
    second = open_bench(stack, database, broker_url, key_prefix, CLAIM, leads=False)
    stands, thaw = threading.Event(), threading.Event()
    stack.callback(thaw.set)

    def stand_still() -> None:
        stands.set()
        thaw.wait(60)

    with ExitStack() as lock:
        batch_id = holding(first, lock)
        eventually(lambda: copies(first) == 5, 30)
        # When it stands still
        first.loop.call_soon(stand_still)
        assert stands.wait(20)
        if end == "killed":
            first.loop.stop()
    # Then another one runs them
    second.start()
    second.finished(batch_id)
    assert set(second.spans) == {"1", "2", "3", "4", "5"}
    if end == "killed":
        thaw.set()
        first.thread.join(10)
        assert not first.thread.is_alive()
    else:
        # And the first comes too late for any
        thaw.set()
        eventually(lambda: first.consumer.intake.refused == 5)
    assert first.spans == {}
    eventually(lambda: copies(first) == 0)
    second.finished(batch_id)


def test_what_a_living_worker_holds_is_not_offered_to_others(
    database: Database, broker_url: str, key_prefix: str, stack: ExitStack
) -> None:
    """However long its claim takes: it shows in time that it holds them."""
    bench = open_bench(stack, database, broker_url, key_prefix, CLAIM)
    other = open_bench(stack, database, broker_url, key_prefix, CLAIM, leads=False)
    other.start()
    client: Any = bench.publisher.client

    def shown() -> float:
        return min((score for _, score in client.zrange(copies_key(key_prefix), 0, -1, withscores=True)), default=0.0)

    with ExitStack() as lock:
        batch_id = holding(bench, lock, beside=other)
        first = eventually(shown)
        eventually(lambda: shown() > first + 2 * SOON)
        assert copies(bench) == 5
    bench.finished(batch_id)
    for each in (bench, other):
        assert (each.consumer.intake.duplicates, each.consumer.intake.refused) == (0, 0)


def test_redis_forgets_everything_while_messages_are_held(
    database: Database, broker_url: str, key_prefix: str, stack: ExitStack
) -> None:
    bench = open_bench(stack, database, broker_url, key_prefix, CLAIM)
    client: Any = bench.publisher.client
    with ExitStack() as lock:
        batch_id = holding(bench, lock)
        eventually(lambda: copies(bench) == 5, 30)
        client.delete(*client.scan_iter(f"{key_prefix}*"))
    bench.finished(batch_id)
    assert copies(bench) == 0


def test_connections_are_cut_while_messages_are_held(
    database: Database, own_valkey: ValkeyServer, key_prefix: str, stack: ExitStack
) -> None:
    """Celery's emulation would offer each of them to others, while this worker holds it."""
    bench = open_bench(stack, database, own_valkey.url, key_prefix, LATE)
    other = open_bench(stack, database, own_valkey.url, key_prefix, LATE, leads=False)
    other.start()
    with ExitStack() as lock:
        batch_id = holding(bench, lock, beside=other)
        eventually(lambda: copies(bench) == 5, 30)
        with own_valkey.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    bench.finished(batch_id)
    for each in (bench, other):
        assert (each.consumer.intake.duplicates, each.consumer.intake.refused) == (0, 0)
    eventually(lambda: copies(bench) == 0)


def test_a_broker_that_is_full_keeps_no_copies_and_gives_its_messages_all_the_same(
    database: Database,
    own_valkey: ValkeyServer,
    key_prefix: str,
    caplog: pytest.LogCaptureFixture,
    stack: ExitStack,
) -> None:
    caplog.set_level(logging.WARNING)
    bench = open_bench(stack, database, own_valkey.url, key_prefix, CLAIM)
    batch_id = bench.batch(['"go"'] * 50)
    bench.dispatch(batch_id)
    with own_valkey.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
    bench.start()
    bench.finished(batch_id)
    said = [each.message for each in caplog.records if "Could not keep copies" in each.message]
    assert len(said) == 1
    assert "used memory > 'maxmemory'" in said[0]
    assert copies(bench) == 0


def test_a_message_that_comes_twice_runs_once_and_leaves_no_copy(
    database: Database, broker_url: str, key_prefix: str, stack: ExitStack
) -> None:
    bench = open_bench(stack, database, broker_url, key_prefix, CLAIM)
    batch_id = bench.batch(['"go"'] * 20)
    dispatches = bench.dispatch(batch_id)
    bench.leader.republish(dispatches)
    bench.start()
    bench.finished(batch_id)
    eventually(lambda: bench.consumer.intake.duplicates + bench.consumer.intake.refused == 20)
    eventually(lambda: copies(bench) == 0)
    assert bench.publisher.lengths([LANE]) == {LANE: 0}


def test_what_is_put_back_leaves_no_copy(
    database: Database, broker_url: str, key_prefix: str, stack: ExitStack
) -> None:
    bench = open_bench(stack, database, broker_url, key_prefix, LATE)
    with ExitStack() as lock:
        batch_id = holding(bench, lock)
        eventually(lambda: copies(bench) == 5, 30)
        bench.loop.call_soon(bench.consumer.intake.close)
        eventually(lambda: copies(bench) == 0)
        assert bench.publisher.lengths([LANE]) == {LANE: 5}
    bench.loop.call_soon(bench.consumer.pump)
    bench.finished(batch_id)


# --- the copies themselves


class Copies:
    """Two workers' views of the same copies, and the lanes that messages go back to."""

    def __init__(self, url: str, prefix: str) -> None:
        self.publisher = RedisPublisher(url, prefix)
        self.client: Any = self.publisher.client
        self.key = copies_key(prefix)
        self.lane = lane_key(prefix, LANE)
        self.figures = Figures()
        self.one, self.other = (Unacknowledged(self.publisher, 60.0, self.figures) for _ in range(2))

    def offer(self, number: int, lane: str | None = None) -> Offer:
        run = RunId("00000000-0000-7000-8000-000000000001", number, 1)
        return Offer(run, HANDLER, False, lane or self.lane, b"message %d" % number)

    def forgotten(self, *offers: Offer, seconds: float = 61.0) -> None:
        """Nobody has shown them for so long."""
        now = self.client.time()[0]
        self.client.zadd(self.key, {f"{each.key}\n".encode() + each.raw: now - seconds for each in offers})

    def waiting(self) -> list[bytes]:
        """In the order in which they are popped."""
        return list(reversed(self.client.lrange(self.lane, 0, -1)))


@pytest.fixture
def shelf(broker_url: str, key_prefix: str) -> Iterator[Copies]:
    found = Copies(broker_url, key_prefix)
    yield found
    found.publisher.close()


def test_what_nobody_shows_is_offered_again_in_the_order_of_its_pop(shelf: Copies) -> None:
    for number in (1, 2, 3):
        shelf.forgotten(shelf.offer(number), seconds=100.0 - number)
    # The first of these shows what it holds before it looks
    shelf.one.look([shelf.offer(2)], [shelf.lane])
    assert shelf.waiting() == [b"message 1", b"message 3"]
    shelf.other.look([], [shelf.lane])
    assert shelf.waiting() == [b"message 1", b"message 3"]
    assert shelf.client.zrange(shelf.key, 0, -1) == [shelf.lane.encode() + b"\nmessage 2"]


def test_what_was_claimed_meanwhile_is_not_shown_again(shelf: Copies) -> None:
    shelf.one.keep([shelf.offer(1)])
    shelf.other.acknowledge([shelf.offer(1)])
    shelf.one.look([shelf.offer(1)], [shelf.lane])
    assert shelf.client.exists(shelf.key) == 0


def test_of_two_workers_that_find_a_copy_one_offers_it(shelf: Copies) -> None:
    offers = [shelf.offer(number) for number in range(100)]
    shelf.one.keep(offers)
    members = [f"{each.key}\n".encode() + each.raw for each in offers]
    barrier = threading.Barrier(2)

    def offer_again(copies: Unacknowledged) -> None:
        barrier.wait(10)
        copies._offer_again(members)

    threads = [threading.Thread(target=offer_again, args=(each,)) for each in (shelf.one, shelf.other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(shelf.waiting()) == sorted(each.raw for each in offers)
    assert shelf.client.exists(shelf.key) == 0


def test_copies_of_a_lane_that_this_worker_does_not_serve_are_left_to_others(shelf: Copies) -> None:
    elsewhere = shelf.lane.replace("default", "elsewhere")
    shelf.forgotten(shelf.offer(1, elsewhere), shelf.offer(2))
    # One more, which nobody has served for long
    shelf.forgotten(shelf.offer(3, elsewhere), seconds=60.0 * 31)
    shelf.one.look([], [shelf.lane])
    assert shelf.waiting() == [b"message 2"]
    assert shelf.client.zrange(shelf.key, 0, -1) == [elsewhere.encode() + b"\nmessage 1"]
    assert shelf.client.exists(elsewhere) == 0


def test_many_copies_that_others_serve_do_not_hide_what_is_ours(shelf: Copies) -> None:
    elsewhere = shelf.lane.replace("default", "elsewhere")
    shelf.forgotten(*(shelf.offer(number, elsewhere) for number in range(1_200)), seconds=100.0)
    shelf.forgotten(shelf.offer(5_000))
    for _ in range(3):
        shelf.one.look([], [shelf.lane])
    assert shelf.waiting() == [b"message 5000"]
    assert shelf.client.zcard(shelf.key) == 1_200


@pytest.mark.parametrize("member", [b"", b"no key", b"\xff\xfe", b"\n", b"other:list\nmessage"])
def test_junk_among_the_copies_hurts_nobody(shelf: Copies, member: bytes) -> None:
    shelf.client.zadd(shelf.key, {member: 1})
    shelf.forgotten(shelf.offer(1))
    shelf.one.look([], [shelf.lane])
    assert shelf.waiting() == [b"message 1"]
    assert shelf.client.exists(shelf.key) == 0


def test_a_key_of_another_type_costs_the_copies_and_nothing_else(
    shelf: Copies, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.client.hset(shelf.key, "a", "b")
    shelf.one.keep([shelf.offer(1)])
    shelf.one.look([shelf.offer(1)], [shelf.lane])
    shelf.one.acknowledge([shelf.offer(1)])
    (said,) = [each.message for each in caplog.records if each.name == "workers.unacknowledged"]
    assert "WRONGTYPE" in said
    assert shelf.client.hgetall(shelf.key) == {b"a": b"b"}


def test_what_could_not_be_dropped_is_dropped_later(shelf: Copies) -> None:
    shelf.one.keep([shelf.offer(1), shelf.offer(2)])
    shelf.one._rests_until = math.inf
    shelf.one.acknowledge([shelf.offer(1)])
    shelf.one.acknowledge([shelf.offer(2)])
    assert shelf.client.zcard(shelf.key) == 2
    shelf.one._rests_until = 0.0
    shelf.one.look([], [shelf.lane])
    assert shelf.client.exists(shelf.key) == 0


def test_what_could_not_be_kept_is_kept_later_unless_it_is_claimed_by_then(shelf: Copies) -> None:
    offers = [shelf.offer(number) for number in range(3)]
    shelf.one._rests_until = math.inf
    shelf.one.keep(offers)
    shelf.one.acknowledge(offers[:1])
    shelf.one._rests_until = 0.0
    assert shelf.client.exists(shelf.key) == 0
    shelf.one.look(offers[1:], [shelf.lane])
    assert sorted(shelf.client.zrange(shelf.key, 0, -1)) == sorted(_member(each) for each in offers[1:])
    # And what another worker has offered again does not come back
    shelf.client.delete(shelf.key)
    shelf.one.look(offers[1:], [shelf.lane])
    assert shelf.client.exists(shelf.key) == 0


def test_nothing_is_remembered_of_what_was_claimed_while_no_copy_could_be_kept(shelf: Copies) -> None:
    shelf.one._rests_until = math.inf
    for number in range(100):
        shelf.one.keep([shelf.offer(number)])
        shelf.one.acknowledge([shelf.offer(number)])
    assert shelf.one._unkept == set()


def test_a_broker_that_is_away_raises_nothing_and_is_asked_once(caplog: pytest.LogCaptureFixture) -> None:
    publisher = RedisPublisher("redis+socket:///nowhere/valkey.sock?virtual_host=0", "x:")
    copies = Unacknowledged(publisher, SOON, Figures())
    offer = Offer(RunId("00000000-0000-7000-8000-000000000001", 1, 1), HANDLER, False, "x:lane", b"message")
    copies.keep([offer])
    copies.look([offer], ["x:lane"])
    copies.acknowledge([offer])
    said = [each.message for each in caplog.records if each.name == "workers.unacknowledged"]
    assert len(said) == 1
    assert "Could not keep copies of popped messages; what is lost now, the sweep misses" in said[0]
