"""Junk in a lane's list, and messages that are old, doubled or shuffled: counted and dropped, and the worker lives."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from batching.interfaces import Lane
from tests.faults.processes.scene import BOTH_WAYS
from tests.support import eventually
from workers.publisher import lane_key

if TYPE_CHECKING:
    from tests.faults.processes.scene import Scene

LANE = Lane("default", "acceptance.work")
UNKNOWN = json.dumps({"body": "W10=", "headers": {"task": "os.system", "id": "x"}, "properties": {}}).encode()
#: Kinds of junk, and what the worker's log calls them.
JUNK: dict[bytes, str] = {
    b"not json": "not JSON, or nested too deeply",
    b"[" * 10_000: "not JSON, or nested too deeply",
    b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix": "not JSON, or nested too deeply",
    b"": "not JSON, or nested too deeply",
    b"null": "no task message",
    b'{"body":"W10="}': "no task message",
    UNKNOWN: "a task that this lane does not carry",
    b'{"headers":{"task":"acceptance.work","id":"7"}}': "no run's task id",
    b"x" * 50_000_000: "over 16,384 bytes",
}


@pytest.mark.parametrize("engine", ["postgresql", "sqlite"])
def test_junk_in_a_lane(scene: Scene) -> None:
    # Given a worker with work, and junk of every kind in its lane
    worker = scene.worker("--pool=prefork", "--concurrency=2")
    processes = {worker.pid, *worker.children}
    scene.finished(scene.submit("work", 10))
    key = lane_key(scene.prefix, LANE)
    client: Any = scene.publisher.client
    batch = scene.submit("work", {f"p{number}": {"seconds": 0.01} for number in range(100)})
    for raw in JUNK:
        client.rpush(key, raw, raw)
        client.lpush(key, raw)
    # Then all of the work is done, each kind is logged once, and the worker is the one that it was
    assert scene.finished(batch).succeeded == 100
    eventually(lambda: not client.llen(key))
    for kind in set(JUNK.values()):
        eventually(lambda kind=kind: kind in worker.logs())  # type: ignore[misc]  # bound at once
        assert worker.logs().count(f": {kind};") == 1
    assert processes <= {worker.pid, *worker.children}
    assert "Traceback" not in worker.logs()
    scene.verdict(again=(), late=False)


@BOTH_WAYS
def test_messages_that_are_tripled_shuffled_and_old(scene: Scene) -> None:
    # Given runs that are over, whose messages somebody kept
    worker = scene.worker("--pool=prefork", "--concurrency=1", BATCHING_LANE_WINDOW="30")
    key = lane_key(scene.prefix, LANE)
    client: Any = scene.publisher.client
    batch = scene.submit("work", {"busy": {"gate": "gate"}} | {f"n{number}": None for number in range(60)})
    scene.began("busy")
    eventually(lambda: client.llen(key) >= 20)
    kept = client.lrange(key, 0, -1)
    # When those that wait are tripled and shuffled, with runs that do not exist yet among them
    future = [raw.replace(b'.1","', b'.2","', 1) for raw in kept[:5]]
    shuffled = [*kept, *kept, *future]
    random.Random(7).shuffle(shuffled)
    client.lpush(key, *shuffled)
    scene.open()
    assert scene.finished(batch).succeeded == 61
    # And when all of them come once more, behind the end of their batch
    after = scene.submit("work", 20)
    client.lpush(key, *kept, *kept)
    assert scene.finished(after).succeeded == 20
    # Then every profile ran once, and the copies were counted
    eventually(lambda: not client.llen(key))
    found = scene.verdict(again=(), late=False)
    assert found.executed == 81
    assert worker.status == "running"
