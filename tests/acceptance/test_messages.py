"""A message is lost, or comes twice: only a claim makes a run somebody's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from batching.interfaces import Lane, LeaderTerm
from tests.support import eventually
from workers.publisher import lane_key

if TYPE_CHECKING:
    from batching.queue_manager import Batch
    from tests.acceptance.stage import Stage

BOTH = pytest.mark.parametrize("engine", ["postgresql", "sqlite"])
#: Some 2 seconds of work for a pool of two.
WORK: dict[str, Any] = {f"p{number}": {"seconds": 0.02} for number in range(200)}
GATED = {"gate": "gate"}


def _settled(stage: Stage, batch: Batch, count: int) -> None:
    def enough() -> None:
        assert batch.progress().settled >= count, stage.report()

    eventually(enough, 30)


@BOTH
def test_everything_in_redis_is_lost(stage: Stage) -> None:
    # Given a batch in mid-run
    stage.worker()
    batch = stage.submit("work", WORK)
    # When Redis forgets everything, again and again
    for settled in (20, 100):
        _settled(stage, batch, settled)
        stage.valkey.flush()
    # Then every profile succeeded in its one and only run
    assert stage.finished(batch).succeeded == 200
    stage.judge(batch)


def test_redis_comes_back_empty(stage: Stage) -> None:
    # Given a batch in mid-run
    worker = stage.worker()
    batch = stage.submit("work", WORK)
    _settled(stage, batch, 50)
    # When Redis is killed, and comes back with nothing
    stage.valkey.kill()
    stage.valkey.restart(empty=True)
    # Then every profile succeeded in its one and only run, in the same worker
    assert stage.finished(batch).succeeded == 200
    assert worker.status == "running"
    stage.judge(batch)


def test_the_leader_crashes_between_commit_and_publication(stage: Stage) -> None:
    # Given a worker with its hands full
    stage.worker("--pool=prefork", "--concurrency=1")
    batch = stage.submit("work", {"busy": GATED} | {f"n{number}": None for number in range(40)})
    stage.began("busy")
    # When profiles are marked as dispatched, by the leader's right, and no message of theirs is ever published
    holder, epoch = stage.leader()
    assert holder is not None
    unpublished = stage.queue.state_manager.dispatch(batch.id, 10, LeaderTerm(holder, epoch))
    assert len(unpublished) == 10
    stage.open()
    # Then the sweep publishes them again, and each ran once
    assert stage.finished(batch).succeeded == 41
    stage.judge(batch)


@BOTH
def test_messages_are_delivered_twice(stage: Stage) -> None:
    # Given messages that wait in a lane while the worker has its hands full
    stage.worker("--pool=prefork", "--concurrency=1", BATCHING_LANE_WINDOW="10")
    batch = stage.submit("work", {"busy": GATED} | {f"n{number}": None for number in range(40)})
    stage.began("busy")
    key = lane_key(stage.prefix, Lane("default", "acceptance.work"))
    client = stage.publisher.client
    eventually(lambda: client.llen(key) >= 5)
    # When each of them is in the list three times
    waiting = client.lrange(key, 0, -1)
    client.lpush(key, *waiting, *waiting)
    stage.open()
    # Then the claims of the copies are refused, and each profile ran once
    assert stage.finished(batch).succeeded == 41
    eventually(lambda: not client.llen(key))
    stage.judge(batch)
