"""Kills, stops and outages that come again and again while work goes on. Each prints its seed, to be repeated."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from batching.models import profiles, workers
from tests.faults.processes.scene import BOTH_WAYS, MANY, Nemesis
from tests.support import eventually

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

    from tests.faults.processes.scene import Scene
    from tests.nodes import LocalProcess

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(400)]


def short(count: int, seconds: float = 0.02) -> dict[str, Any]:
    return {f"p{number}": {"seconds": seconds} for number in range(count)}


def test_pool_children_are_killed(scene: Scene) -> None:
    worker = scene.worker("--pool=prefork", "--concurrency=3", BATCHING_MAX_LOSSES=MANY)
    batch = scene.submit("work", short(800, 0.03))
    scene.settled(batch, 20)

    def kill(dice: random.Random) -> None:
        if children := scene.handler_processes(worker):
            os.kill(dice.choice(children), signal.SIGKILL)

    with Nemesis(kill, 0.5) as nemesis:
        assert scene.finished(batch, 300).succeeded == 800
    # Each kill costs one run at most, and its own profile alone
    found = scene.verdict(again={"lost"}, late=False)
    assert 0 < found.repeated.get("lost", 0) <= nemesis.strikes
    assert {row.attempts for row in scene.rows(batch).values()} == {1}
    assert worker.status == "running"


def _held_by(scene: Scene, node: LocalProcess) -> set[tuple[str, int]]:
    """What SQL says the workers of this name run: keys and runs. Of those that are dead, until the sweep comes."""
    named = select(workers.c.id).where(workers.c.hostname.startswith(f"{node.name}@"))
    runs = select(profiles.c.key, profiles.c.run).where(profiles.c.state == "running", profiles.c.worker_id.in_(named))
    with scene.database.read() as reading:
        return {(row.key, row.run) for row in reading.execute(runs)}


@pytest.mark.parametrize("ways", [("pop", "pop"), ("claim", "claim"), ("pop", "claim")], ids="-".join)
def test_whole_workers_are_killed(scene: Scene, ways: Sequence[str]) -> None:
    nodes = [scene.worker(BATCHING_MAX_LOSSES=MANY, BATCHING_ACKNOWLEDGE=way) for way in ways]
    batch = scene.submit("work", short(600, 0.05))
    scene.settled(batch, 10)

    held: set[tuple[str, int]] = set()

    def kill(dice: random.Random) -> None:
        node = dice.choice(nodes)
        node.kill()
        held.update(_held_by(scene, node))
        node.restart()

    with Nemesis(kill, 1.0) as nemesis:
        scene.settled(batch, 600, 300)
    assert scene.finished(batch, 60).succeeded == 600
    assert nemesis.strikes >= 2
    found = scene.verdict(again={"lost", "given back"})
    # Nothing is repeated but what a killed worker ran by SQL's word at its death.
    last = {key: row.run for key, row in scene.rows(batch).items()}
    assert {(each.key, each.run) for each in scene.entries() if each.run < last[each.key]} <= held
    # Of each worker two that ran, and two that were over and waited for their group to be settled.
    assert found.repeated.get("lost", 0) <= 4 * nemesis.strikes
    assert {row.attempts for row in scene.rows(batch).values()} == {1}


@BOTH_WAYS
@pytest.mark.parametrize("how", ["SIGTERM", "SIGQUIT"])
def test_workers_are_stopped(scene: Scene, how: str) -> None:
    nodes = [scene.worker() for _ in range(2)]
    batch = scene.submit("work", short(600, 0.05))
    scene.settled(batch, 10)

    def stop(dice: random.Random) -> None:
        node = dice.choice(nodes)
        node.kill(how)
        node.wait(30)
        node.restart()

    with Nemesis(stop, 1.0) as nemesis:
        scene.settled(batch, 600, 300)
    assert scene.finished(batch, 60).succeeded == 600
    assert nemesis.strikes >= 2
    # A stop that was asked for costs nothing: no attempt, no loss
    rows = scene.rows(batch).values()
    assert {(row.attempts, row.losses) for row in rows} == {(1, 0)}
    assert {how for endings in scene.endings(batch).values() for how in endings} <= {"given back"}
    found = scene.verdict(again={"given back"}, late=False)
    if how == "SIGTERM":  # what runs is finished: nothing is begun twice
        assert found.repeated == {}


@BOTH_WAYS
@pytest.mark.parametrize("engine", ["postgresql", "sqlite"])
def test_redis_forgets_everything_every_two_seconds(scene: Scene) -> None:
    scene.worker("--pool=prefork", "--concurrency=3")
    batch = scene.submit("work", short(1500))
    with Nemesis(lambda _: scene.valkey.flush(), 2.0) as nemesis:
        assert scene.finished(batch, 120).succeeded == 1500
    assert nemesis.strikes >= 3
    # Every profile in its one and only run
    found = scene.verdict(again=(), late=False)
    assert found.executed == 1500


@BOTH_WAYS
def test_redis_is_killed_and_comes_back_empty(scene: Scene) -> None:
    worker = scene.worker("--pool=prefork", "--concurrency=3")
    batch = scene.submit("work", short(1000))

    def lose(_: random.Random) -> None:
        scene.valkey.kill()
        scene.valkey.restart(empty=True)

    with Nemesis(lose, 2.0) as nemesis:
        assert scene.finished(batch, 120).succeeded == 1000
    assert nemesis.strikes >= 3
    assert worker.status == "running"
    assert scene.verdict(again=(), late=False).executed == 1000


@BOTH_WAYS
def test_every_client_is_cut_off(scene: Scene) -> None:
    worker = scene.worker("--pool=prefork", "--concurrency=3")
    batch = scene.submit("work", short(1000))

    def cut(_: random.Random) -> None:
        with scene.valkey.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    with Nemesis(cut, 0.3) as nemesis:
        assert scene.finished(batch, 120).succeeded == 1000
    assert nemesis.strikes >= 5
    assert worker.status == "running"
    assert scene.verdict(again=(), late=False).executed == 1000


def test_sessions_of_postgresql_are_ended(scene_with_own_sql: Scene, own_postgres: Any) -> None:
    scene = scene_with_own_sql
    worker = scene.worker("--pool=prefork", "--concurrency=3")
    batch = scene.submit("work", short(800))
    ended = 0

    def end(_: random.Random) -> None:
        nonlocal ended
        ended += own_postgres.disconnect(scene.database_name)

    with Nemesis(end, 0.7) as nemesis:
        eventually(lambda: len({entry.key for entry in scene.entries()}) == 800, 200, 0.2)
    scene.database.close()  # our own sessions were among them
    assert scene.finished(batch, 60).succeeded == 800
    assert nemesis.strikes >= 5
    assert ended > nemesis.strikes
    assert worker.status == "running"
    # A claim whose COMMIT was not answered may be this worker's: given back, before anybody ran it
    scene.verdict(again={"given back"})


@BOTH_WAYS
class TestServersThatAreFull:
    """A server that answers, and refuses to write."""

    def test_redis_is_out_of_memory(self, scene: Scene) -> None:
        worker = scene.worker("--pool=prefork", "--concurrency=2")
        batch = scene.submit("work", short(400))
        scene.settled(batch, 20)
        with scene.valkey.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "1")

        def free() -> None:
            with scene.valkey.client() as client:
                client.config_set("maxmemory", "0")

        self._goes_on_once(scene, worker, batch, free)

    def test_redis_cannot_persist(self, scene: Scene) -> None:
        """MISCONF: a snapshot failed, so every write is refused."""
        worker = scene.worker("--pool=prefork", "--concurrency=2")
        batch = scene.submit("work", short(400))
        scene.settled(batch, 20)
        # A folder in the place of its file: as good as a disk that is full, and needs no disk
        with scene.valkey.client() as client:
            file = Path(str(client.config_get("dir")["dir"])) / str(client.config_get("dbfilename")["dbfilename"])
            file.unlink(missing_ok=True)
            file.mkdir()
            client.config_set("save", "1 1")
            client.config_set("stop-writes-on-bgsave-error", "yes")
            client.execute_command("BGSAVE", "SCHEDULE")
            eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", 30)

        def free() -> None:
            file.rmdir()
            with scene.valkey.client() as client:
                client.config_set("save", "")
                client.bgsave()

        self._goes_on_once(scene, worker, batch, free)

    def _goes_on_once(self, scene: Scene, worker: Any, batch: Any, freed: Any) -> None:
        # Given that nothing can be published any more
        eventually(lambda: "broker is away" in scene.report(), 30)
        pid = worker.pid
        # When it can again, then the same worker does the rest
        freed()
        assert scene.finished(batch, 60).succeeded == 400
        assert (worker.status, worker.pid) == ("running", pid)
        scene.verdict(again=(), late=False)


@BOTH_WAYS
def test_deadlines_of_handlers_while_redis_is_frozen(scene: Scene) -> None:
    """A loop that waits for Redis must not wait with the time limits of what runs."""
    scene.settings = {**scene.settings, "BATCHING_WORKER_LEASE": "20", "BATCHING_LEADER_LEASE": "6"}
    scene.worker("--pool=prefork", "--concurrency=2", BATCHING_HANDLERS="tests.acceptance.limited")
    batch = scene.submit("hard", {"long": 30, "short": 0})
    scene.began("long", "short")
    scene.valkey.freeze()
    # A second's limit, and the time-outs that the worker's own loop may be in
    eventually(lambda: scene.rows(batch)["long"].state == "failed", 12)
    scene.valkey.thaw()
    assert scene.finished(batch).failed == 1
    scene.verdict(again=(), late=False)


class TestBounds:
    """What is promised, with the settings that nobody changed."""

    @pytest.fixture
    def brisk(self) -> Mapping[str, str]:
        return {}

    @pytest.mark.parametrize("how", ["flushed", "restarted empty"])
    def test_dispatching_again_after_redis_lost_everything(self, scene: Scene, how: str) -> None:
        scene.worker("--pool=prefork", "--concurrency=2")
        batch = scene.submit("work", {f"p{number}": {"seconds": 0.2} for number in range(100)})
        scene.settled(batch, 10)
        known = scene.entries()
        if how == "flushed":
            scene.valkey.flush()
        else:
            scene.valkey.kill()
            scene.valkey.restart(empty=True)
        # Beyond what was in the worker's hands
        in_hand = len(known) + 10
        eventually(lambda: len(scene.entries()) > in_hand, 5 + 1)
        assert scene.finished(batch, 60).succeeded == 100
        scene.verdict(again=(), late=False)

    def test_postgresql_is_restarted(self, scene_with_own_sql: Scene, own_postgres: Any) -> None:
        scene = scene_with_own_sql
        scene.worker("--pool=prefork", "--concurrency=2")
        batch = scene.submit("work", {f"p{number}": {"seconds": 0.1} for number in range(300)})
        scene.settled(batch, 10)
        processes = {process.pid for process in scene.processes()}
        own_postgres.kill()
        eventually(lambda: "database is away" in scene.report().lower(), 20)
        own_postgres.start()
        scene.database.close()
        known = scene.entries()
        scene.begun_after(known, 5)
        assert scene.finished(batch, 60).succeeded == 300
        assert processes <= {process.pid for process in scene.processes()}
        scene.verdict(again={"given back"})


def test_managers_and_leaders_are_frozen_in_turn(scene: Scene) -> None:
    for _ in range(2):
        scene.manager()
    scene.worker("--pool=prefork", "--concurrency=3", BATCHING_MANAGER="false")
    batch = scene.submit("work", short(1500))
    eventually(lambda: scene.leader()[0] is not None, 20)

    def freeze(dice: random.Random) -> None:
        victim = dice.choice(sorted(scene.managers().values(), key=lambda each: each.pid))
        victim.suspend()
        threading.Event().wait(3)  # beyond the leader's lease
        victim.resume()

    with Nemesis(freeze, 1.5) as nemesis:
        assert scene.finished(batch, 200).succeeded == 1500
    assert nemesis.strikes >= 2
    assert scene.verdict(again=(), late=False).executed == 1500
