"""Bad lines between one worker and one server, while everything else goes on: the oracle finds all in order.

The manager and a second worker have good lines, so that the cut is asymmetric: the worker that loses PostgreSQL still
hears Redis, and the other way round.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.engine import make_url

from tests.acceptance.stage import BRISK, Stage
from tests.faults.oracle import Oracle
from tests.faults.proxy import GOOD, Line, Proxy
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from batching.queue_manager import Batch
    from tests.faults.oracle import Verdict
    from tests.nodes import LocalProcess
    from tests.servers import PostgresServer, ValkeyServer

pytestmark = pytest.mark.timeout(300)

GATED = {"gate": "gate"}
#: For lines on which signs of life take their time: the default lease of a worker.
PATIENT = {**BRISK, "BATCHING_WORKER_LEASE": "10", "BATCHING_LEADER_LEASE": "6"}
#: With copies of popped messages.
COPIES_TOO = {"BATCHING_ACKNOWLEDGE": "claim"}
#: Some 3 seconds of work for the two threads of one worker.
WORK: dict[str, Any] = {f"p{number}": {"seconds": 0.01} for number in range(400)}


class Wired(Stage):
    """A stage with a proxy before each server, which one worker uses."""

    def cut_off(self, sql: Proxy, redis: Proxy, *options: str) -> LocalProcess:
        """Start the worker whose lines can be bad; it has no manager, so that the leader's are always good."""
        given = options or ("--pool=threads", "--concurrency=2")
        database = str(make_url(self.url).database)
        node = self.worker(
            *given,
            ready=False,
            BATCHING_DATABASE_URL=f"postgresql+psycopg://postgres@127.0.0.1:{sql.port}/{database}",
            BATCHING_BROKER_URL=f"redis://127.0.0.1:{redis.port}/0",
            BATCHING_MANAGER="0",
        )
        node.ready()
        return node

    def verdict(self, *batches: Batch, again: Collection[str] = (), late: bool = False) -> Verdict:
        oracle = Oracle(self.database, self.publisher)
        for batch in batches:
            oracle.acknowledge(batch.id, self.rows(batch))
        verdict = oracle.judge(self.entries(), again=again, late=late)
        print(verdict)  # noqa: T201 - what the faults did, when it fails
        return verdict


@pytest.fixture
def wired(
    request: pytest.FixtureRequest, tmp_path: Path, own_valkey: ValkeyServer, postgresql_url: str, key_prefix: str
) -> Iterator[Wired]:
    stage = Wired(tmp_path, postgresql_url, own_valkey, key_prefix, getattr(request, "param", BRISK))
    stage.manager()
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture
def sql(postgres_server: PostgresServer) -> Iterator[Proxy]:
    with Proxy(postgres_server.folder / ".s.PGSQL.5432") as proxy:
        yield proxy


@pytest.fixture
def redis(own_valkey: ValkeyServer) -> Iterator[Proxy]:
    with Proxy(own_valkey.socket) as proxy:
        yield proxy


def test_a_worker_that_loses_sql_alone_is_declared_dead_and_its_results_are_refused(
    wired: Wired, sql: Proxy, redis: Proxy
) -> None:
    # Given a worker that runs two profiles behind a proxy, and another one beside it
    wired.cut_off(sql, redis)
    batch = wired.submit("work", {"a": GATED, "b": GATED})
    wired.began("a", "b")
    wired.worker("--pool=threads", "--concurrency=2", BATCHING_MANAGER="0")
    # When nothing goes through to PostgreSQL, for longer than its lease
    sql.line = Line(silent=True)
    wired.began("a", "b", times=2)
    wired.open()
    assert wired.finished(batch).succeeded == 2
    # Then its results are late when the line is good again, and it works on as another
    sql.line = GOOD
    eventually(lambda: batch.progress().late == 2, 20)
    eventually(lambda: len(wired.registered()) == 2, 20)
    verdict = wired.verdict(batch, again=["lost"], late=True)
    assert verdict.repeated == {"lost": 2}


@pytest.mark.parametrize("wired", [PATIENT, PATIENT | COPIES_TOO], indirect=True, ids=["pop", "claim"])
def test_a_worker_that_loses_redis_alone_settles_what_it_runs(wired: Wired, sql: Proxy, redis: Proxy) -> None:
    # Given a worker that runs two profiles behind a proxy
    node = wired.cut_off(sql, redis)
    batch = wired.submit("work", {"a": GATED, "b": GATED})
    wired.began("a", "b")
    (known,) = wired.registered()
    # When nothing goes through to Redis, and they come to their ends
    redis.line = Line(silent=True)
    behind = wired.submit("work", 20)
    wired.open()
    # Then they are settled, as the worker's own; and when the line is good again, it runs what is left
    assert wired.finished(batch, 20).succeeded == 2
    redis.line = GOOD
    assert wired.finished(behind).succeeded == 20
    assert node.status == "running"
    assert wired.registered() == [known]
    wired.verdict(batch, behind)


@pytest.mark.exhaustive
@pytest.mark.parametrize("wired", [PATIENT, PATIENT | COPIES_TOO], indirect=True, ids=["pop", "claim"])
def test_a_worker_without_redis_shows_signs_of_life_for_as_long_as_it_takes(
    wired: Wired, sql: Proxy, redis: Proxy
) -> None:
    wired.cut_off(sql, redis)
    batch = wired.submit("work", {f"p{number}": {"seconds": 1.0} for number in range(40)})
    eventually(lambda: batch.progress().settled >= 4, 30)
    (known,) = wired.registered()
    redis.line = Line(silent=True)
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 30, 40)
    assert wired.registered() == [known]
    redis.line = GOOD
    assert wired.finished(batch, 60).succeeded == 40
    wired.verdict(batch)


@pytest.mark.exhaustive
@pytest.mark.parametrize("wired", [PATIENT, PATIENT | COPIES_TOO], indirect=True, ids=["pop", "claim"])
@pytest.mark.parametrize(
    "line",
    [
        pytest.param(Line(latency=0.2, jitter=0.1), id="slow"),
        pytest.param(Line(sliced=True), id="sliced"),
        pytest.param(Line(bandwidth=200_000), id="narrow"),
    ],
)
def test_a_bad_line_costs_time_and_nothing_else(wired: Wired, sql: Proxy, redis: Proxy, line: Line) -> None:
    wired.cut_off(sql, redis)
    sql.line = redis.line = line
    batch = wired.submit("work", dict(list(WORK.items())[:20]))
    assert wired.finished(batch, 90).succeeded == 20
    wired.verdict(batch)


@pytest.mark.exhaustive
@pytest.mark.parametrize("wired", [BRISK, BRISK | COPIES_TOO], indirect=True, ids=["pop", "claim"])
@pytest.mark.parametrize("what", ["redis", "sql"])
def test_connections_are_reset_again_and_again(wired: Wired, sql: Proxy, redis: Proxy, what: str) -> None:
    node = wired.cut_off(sql, redis)
    sql.line = redis.line = Line(latency=0.002)
    batch = wired.submit("work", WORK)
    torn = {"redis": redis, "sql": sql}[what]
    # A worker whose database is away waits longer and longer before it tries again, as it should.
    resets = _meanwhile(batch, torn.reset, 0.15 if what == "redis" else 0.7)
    assert wired.finished(batch, 60).succeeded == len(WORK)
    assert node.status == "running"
    print(f"{resets} resets, {torn.accepted} connections")  # noqa: T201
    # A settlement whose answer was lost is late when it is repeated. With ever longer pauses between its tries, a
    # worker can be silent for as long as this stage's short lease.
    wired.verdict(batch, again=["lost"] if what == "sql" else [], late=what == "sql")


@pytest.mark.exhaustive
@pytest.mark.parametrize("wired", [BRISK, BRISK | COPIES_TOO], indirect=True, ids=["pop", "claim"])
@pytest.mark.parametrize("what", ["redis", "sql"])
def test_connections_that_are_half_open_are_given_up(wired: Wired, sql: Proxy, redis: Proxy, what: str) -> None:
    node = wired.cut_off(sql, redis)
    batch = wired.submit("work", WORK)
    eventually(lambda: batch.progress().settled > 20, 30)
    {"redis": redis, "sql": sql}[what].half_open()
    assert wired.finished(batch, 60).succeeded == len(WORK)
    assert node.status == "running"
    # Silent for as long as a statement may take, and then for its lease: declared dead, for all that anybody knows.
    wired.verdict(batch, again=["lost"] if what == "sql" else [], late=what == "sql")


def _meanwhile(batch: Batch, act: Callable[[], object], interval: float) -> int:
    """Do it again and again while the batch is under way; returns how often."""
    times = 0

    def most_are_settled() -> bool:
        nonlocal times
        act()
        times += 1
        return batch.progress().settled > len(WORK) // 2

    eventually(most_are_settled, 60, interval)
    return times
