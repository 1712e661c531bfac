"""A worker on an island, cut off from one server or from both: as far as TCP can tell, on another machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from batching import migration
from tests.acceptance.stage import BRISK
from tests.faults.island import Island, IslandRefusedError
from tests.faults.processes.scene import Scene
from tests.nodes import worker_process
from tests.servers import PostgresServer
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.nodes import LocalProcess
    from tests.servers import ValkeyServer

pytestmark = pytest.mark.timeout(300)

GATED = {"gate": "gate"}
#: Some seconds of work for four children.
WORK: dict[str, Any] = {f"p{number}": {"seconds": 0.02} for number in range(600)}
#: The README's word: a killed worker's profiles run again within so many seconds, with the default settings.
BOUND = 20.0
DEFAULTS: Mapping[str, str] = {}
#: An outage of Redis holds up Celery's own part for some seconds; the lease is the default one.
PATIENT = {**BRISK, "BATCHING_WORKER_LEASE": "10"}


@pytest.fixture
def island() -> Iterator[Island]:
    try:
        found = Island("sql", "redis").__enter__()
    except IslandRefusedError as error:
        pytest.skip(str(error))
    try:
        yield found
    finally:
        found.__exit__()


class World(Scene):
    """A scene with an island."""

    island: Island

    def settle_island(self) -> LocalProcess:
        """A worker on the island, without a manager: those are on the mainland."""
        sql, redis = (self.island.cables[end].near for end in ("sql", "redis"))
        node = worker_process(
            self.folder,
            self.environment(
                BATCHING_DATABASE_URL=f"postgresql+psycopg://postgres@{sql}/{self.database_name}",
                BATCHING_BROKER_URL=f"redis://{redis}:6379/0",
                BATCHING_MANAGER="false",
            ),
            options=("--pool=prefork", "--concurrency=2"),
        )
        node.command = self.island.command(node.command)
        return self._started(node, ready=True)

    def takes_part(self, node: LocalProcess) -> None:
        """Work goes on, and this worker does a share of it."""
        before = len(self.entries())
        batch = self.submit("work", WORK)
        assert self.finished(batch, 60).succeeded == len(WORK)
        assert {entry.pid for entry in self.entries()[before:]} & set(node.children), self.report()


@pytest.fixture
def world(
    request: pytest.FixtureRequest, tmp_path: Path, island: Island, own_valkey: ValkeyServer, key_prefix: str
) -> Iterator[World]:
    with own_valkey.client() as client:
        client.config_set("protected-mode", "no")
        client.config_set("bind", island.cables["redis"].near)
        client.config_set("port", 6379)
    with PostgresServer(address=island.cables["sql"].near) as postgres:
        url = postgres.url(postgres.create_database())
        found = World(tmp_path, url, own_valkey, key_prefix, getattr(request, "param", BRISK))
        found.island = island
        migration.upgrade(found.database)
        found.manager()
        try:
            yield found
        finally:
            found.close()


@pytest.mark.parametrize("world", [DEFAULTS], indirect=True)
def test_a_worker_that_is_cut_off_from_everything_is_replaced_within_the_bound(world: World) -> None:
    # Given a worker on the island that runs two profiles, and another one on the mainland
    cut = world.settle_island()
    batch = world.submit("work", {"a": GATED, "b": GATED})
    world.began("a", "b")
    (known,) = world.registered()
    world.worker(BATCHING_MANAGER="false")
    # When both cables are pulled
    started = time.monotonic()
    world.island.pull("sql", "redis")
    # Then its profiles run again on the mainland within the bound, and are settled there
    world.began("a", "b", times=2)
    print(f"ran again after {time.monotonic() - started:.1f} s")  # noqa: T201 - the figure of the guide
    assert time.monotonic() - started < BOUND
    world.open()
    assert world.finished(batch).succeeded == 2
    assert {row.run for row in world.rows(batch).values()} == {2}
    # And when it is back, what it has to say is refused and counted, and it goes on under a new identity
    world.island.plug("sql", "redis")
    eventually(lambda: batch.progress().late == 2, 60)
    eventually(lambda: "was declared dead" in cut.logs(), 30)
    eventually(lambda: len(world.registered()) == 2, 30)
    assert known not in world.registered()
    world.takes_part(cut)
    assert cut.status == "running"
    found = world.verdict(again={"lost"})
    assert (found.executed, found.late, found.repeated) == (len(WORK) + 4, 2, {"lost": 2})


@pytest.mark.exhaustive
def test_a_worker_that_is_cut_off_from_sql_alone_is_fenced(world: World) -> None:
    # Given a worker on the island that runs two profiles, and another one on the mainland
    cut = world.settle_island()
    batch = world.submit("work", {"a": GATED, "b": GATED})
    world.began("a", "b")
    (known,) = world.registered()
    world.worker(BATCHING_MANAGER="false")
    # When it hears Redis, and PostgreSQL does not hear it
    world.island.pull("sql")
    world.began("a", "b", times=2)
    world.open()
    assert world.finished(batch).succeeded == 2
    # Then whatever it pops meanwhile, it claims nothing: all of it is done on the mainland
    meanwhile = world.submit("work", 50)
    assert world.finished(meanwhile, 60).succeeded == 50
    # And its own results are refused when it is back
    world.island.plug("sql")
    eventually(lambda: batch.progress().late == 2, 60)
    eventually(lambda: known not in world.registered() and len(world.registered()) == 2, 30)
    world.takes_part(cut)
    found = world.verdict(again={"lost"})
    assert (found.late, found.repeated) == (2, {"lost": 2})


@pytest.mark.exhaustive
@pytest.mark.parametrize("world", [PATIENT], indirect=True)
def test_a_worker_that_is_cut_off_from_redis_alone_settles_what_it_runs(world: World) -> None:
    # Given a worker on the island that runs two profiles, and another one on the mainland
    cut = world.settle_island()
    batch = world.submit("work", {"a": GATED, "b": GATED})
    world.began("a", "b")
    world.worker(BATCHING_MANAGER="false")
    eventually(lambda: len(world.registered()) == 2, 30)
    known = set(world.registered())
    # When PostgreSQL hears it, and Redis does not, for longer than its lease
    world.island.pull("redis")
    meanwhile = world.submit("work", {f"n{number}": {"seconds": 0.4} for number in range(60)})
    assert world.finished(meanwhile, 60).succeeded == 60
    # Then it is alive, what it ran is settled as its own, and the mainland does the rest
    assert batch.progress().running == 2
    world.open()
    assert world.finished(batch).succeeded == 2
    assert set(world.registered()) == known
    assert world.endings(batch) == {}
    # And when it is back it takes part again, as the one that it was
    world.island.plug("redis")
    world.takes_part(cut)
    assert set(world.registered()) == known
    assert not world.verdict(again={"given back"}).late
