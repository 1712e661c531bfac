"""The shipped Redis users: each may do its part, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import redis

from batching.broker import Doorbell
from batching.figures import Figures
from batching.interfaces import Dispatch, Lane, RunId
from batching.live import Listener, channel, publication
from tests.guarded import LISTS, USERS, GuardedValkey
from tests.support import eventually
from workers.keys import RedisKeys
from workers.offers import Offer
from workers.publisher import RedisPublisher, lane_key
from workers.unacknowledged import Unacknowledged, copies_key

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "guarded:"
LANE = Lane("default", "tests.handler")
KEY = lane_key(PREFIX, LANE)
COPIES = copies_key(PREFIX)
DISPATCH = Dispatch(RunId("00000000-0000-7000-8000-000000000001", 1, 1), "k", LANE, 1, 1, alone=False)
NEWS = publication(PREFIX, ["00000000-0000-7000-8000-000000000001"])
FILES = [path.name for path in sorted(LISTS.glob("*.acl"))]

#: What nobody but an administrator may do.
_NOBODY = [
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "*"),
    ("KEYS", "*"),
    ("EVAL", "return 1", "0"),
    ("FUNCTION", "LIST"),
    ("MODULE", "LIST"),
    ("SHUTDOWN",),
    ("ACL", "LIST"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "ID", "1"),
    ("MONITOR",),
    ("REPLICAOF", "NO", "ONE"),
    ("SAVE",),
    ("RENAME", KEY, f"{PREFIX}elsewhere"),
    ("GET", f"{PREFIX}canary"),
    ("SUBSCRIBE", f"{PREFIX}news"),
    ("SET", "elsewhere", "1"),
    ("LPUSH", "other:hint", "1"),
]
#: What one of them must leave to another.
_OTHERS: dict[str, list[tuple[str, ...]]] = {
    "worker": [("LPUSH", KEY, "x"), ("DEL", KEY), ("BLPOP", f"{PREFIX}hint", "0.01"), ("SCAN", "0"), ("DEL", COPIES)],
    "manager": [
        ("SCAN", "0"),
        ("LRANGE", KEY, "0", "-1"),
        ("BLMPOP", "0.01", "1", KEY, "RIGHT"),
        ("RPOP", KEY),
        ("BRPOP", KEY, "0.01"),
        ("LPOP", KEY),
        ("ZREM", COPIES, "x"),
    ],
    "producer": [
        ("LPUSH", KEY, "x"),
        ("LLEN", KEY),
        ("BLPOP", f"{PREFIX}hint", "0.01"),
        ("INFO",),
        ("ZADD", COPIES, "1", "x"),
    ],
    "operator": [
        ("BLMPOP", "0.01", "1", KEY, "RIGHT"),
        ("RPOP", KEY),
        ("SET", f"{PREFIX}canary", "x"),
        ("ZADD", COPIES, "1", "x"),
    ],
    "viewer": [
        ("PUBLISH", channel(PREFIX), "x"),
        ("LPUSH", KEY, "x"),
        ("LPUSH", f"{PREFIX}hint", "1"),
        ("SET", f"{PREFIX}canary", "x"),
        ("RPOP", KEY),
        ("ZREM", COPIES, "x"),
    ],
}


@pytest.fixture(scope="module", params=FILES)
def valkey(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedValkey]:
    with GuardedValkey(tmp_path_factory.mktemp("valkey")) as server:
        server.guard(request.param, PREFIX)
        yield server


@pytest.fixture(autouse=True)
def fresh_log(valkey: GuardedValkey) -> None:
    with valkey.admin() as client:
        client.acl_log_reset()


def border(valkey: GuardedValkey, user: str) -> RedisPublisher:
    return RedisPublisher(valkey.url_of(user), PREFIX, timeout=2.0)


def test_the_manager_does_its_part(valkey: GuardedValkey) -> None:
    publisher = border(valkey, "manager")
    publisher.check()
    publisher.publish([DISPATCH])
    publisher.incarnation()
    publisher.incarnation()

    assert publisher.lengths([LANE]) == {LANE: 1}
    publisher.discard(LANE)
    assert publisher.lengths([LANE]) == {LANE: 0}
    publisher.hint()
    assert publisher.wait_hint(0.5, NEWS)
    publisher.close()

    assert valkey.denied() == []


def test_the_worker_pops_and_gives_back(valkey: GuardedValkey) -> None:
    manager, worker = border(valkey, "manager"), border(valkey, "worker")
    manager.publish([DISPATCH])
    worker.check()
    client: Any = worker.client
    popped = client.execute_command("BLMPOP", 1, 1, KEY, "RIGHT", "COUNT", 10)
    worker.put_back([(KEY, raw) for raw in popped[1]])
    worker.client.client_id()
    worker.client.client_unblock(0)
    worker.hint(NEWS)
    worker.tell(NEWS)

    assert manager.lengths([LANE]) == {LANE: 1}
    manager.discard(LANE)
    worker.close()
    manager.close()

    assert valkey.denied() == []


def test_the_worker_keeps_copies_and_offers_again_what_others_left(valkey: GuardedValkey) -> None:
    manager, worker = border(valkey, "manager"), border(valkey, "worker")
    copies = Unacknowledged(worker, 0.1, Figures())
    offers = [Offer(DISPATCH.run, LANE.handler, False, KEY, raw) for raw in (b"held", b"left", b"claimed")]
    copies.keep(offers)
    copies.acknowledge(offers[2:])

    def offered_again() -> None:
        copies.look(offers[:1], [KEY])
        assert manager.lengths([LANE]) == {LANE: 1}

    eventually(offered_again)
    copies.acknowledge(offers)
    manager.discard(LANE)
    worker.close()
    manager.close()

    assert valkey.denied() == []


def test_the_doctor_looks_as_a_viewer_and_repairs_as_an_operator(valkey: GuardedValkey) -> None:
    manager, viewer = border(valkey, "manager"), RedisKeys(valkey.url_of("viewer"), PREFIX)
    operator = RedisKeys(valkey.url_of("operator"), PREFIX)
    manager.publish([DISPATCH])
    with valkey.admin() as admin:
        admin.zadd(COPIES, {"forgotten": 1})
        admin.lpush(KEY, "junk")
        admin.expire(KEY, 600)
        admin.lpush(f"{PREFIX}lane:nobody:needs", "x")

    assert len(viewer.odd([LANE])) == 4
    assert [odd.mend() for odd in operator.odd([LANE])] == [True] * 4
    assert viewer.odd([LANE]) == []
    manager.discard(LANE)
    for each in (manager, viewer, operator):
        each.close()

    assert valkey.denied() == []


def test_the_producer_rings_and_the_viewer_looks(valkey: GuardedValkey) -> None:
    bell = Doorbell(valkey.url_of("producer"), PREFIX)
    bell.ring(NEWS)
    bell.ping()
    bell.close()
    viewer = border(valkey, "viewer")
    viewer.check()

    assert viewer.lengths([LANE]) == {LANE: 0}
    viewer.close()

    assert valkey.denied() == []


@pytest.mark.parametrize("user", ["viewer", "operator"])
def test_a_dashboard_hears_notices(valkey: GuardedValkey, user: str) -> None:
    heard: list[frozenset[str]] = []
    lines: list[bool] = []
    listener = Listener(valkey.url_of(user), PREFIX, heard.append, lines.append)
    listener.start()
    eventually(lambda: lines == [True])
    tellers = [Doorbell(valkey.url_of(each), PREFIX) for each in ("worker", "manager", "producer", "operator")]
    for number, bell in enumerate(tellers):
        bell.tell(publication(PREFIX, [f"{number}"]))
    eventually(lambda: {frozenset({f"{number}"}) for number in range(len(tellers))} <= set(heard))
    listener.stop()
    for bell in tellers:
        bell.close()

    assert valkey.denied() == []


@pytest.mark.parametrize("user", list(_OTHERS))
def test_everything_else_is_denied(valkey: GuardedValkey, user: str) -> None:
    with valkey.as_user(user) as client:
        allowed = [command for command in [*_NOBODY, *_OTHERS[user]] if not is_denied(client, command)]

    assert allowed == []


def test_nobody_comes_in_without_a_password(valkey: GuardedValkey) -> None:
    with redis.Redis(port=valkey.port) as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    guess = redis.Redis(port=valkey.port, username="batching-worker", password="guess")
    with guess as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_the_lists_hold_hashes_not_passwords() -> None:
    for name in FILES:
        lines = (LISTS / name).read_text(encoding="utf-8").splitlines()
        users = [line.split()[1] for line in lines]
        assert users[0] == "default"
        assert {user.removeprefix("batching-") for user in users[1:]} <= set(USERS)
        assert not any(word.startswith((">", "nopass")) for line in lines[1:] for word in line.split())


def is_denied(client: Any, command: tuple[str, ...]) -> bool:
    try:
        client.execute_command(*command)
    except redis.exceptions.NoPermissionError:
        return True
    except redis.ResponseError:
        return False
    return False
