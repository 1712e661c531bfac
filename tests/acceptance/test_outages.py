"""SQL or Redis is away for a while: work waits, and nothing is lost or doubled."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.support import eventually

if TYPE_CHECKING:
    from tests.acceptance.stage import Stage
    from tests.servers import PostgresServer

GATED = {"gate": "gate"}


def test_sql_is_away(stage_with_own_sql: Stage, own_postgres: PostgresServer) -> None:
    # Given a worker that runs two profiles, with others behind them
    stage = stage_with_own_sql
    worker = stage.worker()
    batch = stage.submit("work", {"a": GATED, "b": GATED} | {f"n{number}": None for number in range(50)})
    stage.began("a", "b")
    begun = len(stage.entries())
    processes = {process.pid for process in stage.processes()}
    # When PostgreSQL stops, the handlers return, and it stays away beyond a worker's lease
    own_postgres.stop()
    stage.open()
    eventually(lambda: "The database is away" in worker.logs())
    away_since = time.monotonic()
    eventually(lambda: time.monotonic() - away_since > 4, 10)
    assert len(stage.entries()) <= begun + 2
    own_postgres.start()
    stage.database.close()  # our own connections were cut as well
    # Then nobody exited, the outcomes are settled once it is back, and nothing ran unclaimed or twice
    back_at = time.monotonic()
    assert stage.finished(batch).succeeded == 52
    print(f"everything was settled {time.monotonic() - back_at:.1f} s after PostgreSQL was back")  # noqa: T201
    assert processes <= {process.pid for process in stage.processes()}
    stage.judge(batch)


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_redis_is_away(stage: Stage, how: str) -> None:
    # Given a profile that takes 3 seconds; a frozen server answers nobody, so its clients wait for their time-outs, and
    # the default lease is what allows for that
    worker = stage.worker(BATCHING_WORKER_LEASE="10", BATCHING_LEADER_LEASE="6")
    batch = stage.submit("work", {"long": {"seconds": 3}, "short": None})
    stage.began("long")
    # When Redis goes away under it
    (stage.valkey.kill if how == "killed" else stage.valkey.freeze)()
    away_since = time.monotonic()
    # Then its outcome is in SQL while Redis is still away
    assert stage.finished(batch, 15).succeeded == 2
    settled = time.monotonic() - away_since
    assert settled < 12, f"settled {settled:.1f} s after Redis went away"
    # And once it is back, the next batch runs, in the same worker
    (stage.valkey.start if how == "killed" else stage.valkey.thaw)()
    back_at = time.monotonic()
    behind = stage.submit("work", 20)
    assert stage.finished(behind).succeeded == 20
    print(f"{how}: settled after {settled:.1f} s, the next batch done {time.monotonic() - back_at:.1f} s after")  # noqa: T201
    assert worker.status == "running"
    stage.judge(batch, behind)
