"""A long queue and a long history: what lies in the broker, and the pace of what runs, stay as they were.

With `--exhaustive` at full size: a million profiles in line, five million rows of history. Figures are printed.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest
from sqlalchemy import func, select, text

from batching import BatchOptions
from batching.database import Database
from batching.errors import DatabaseUnavailableError
from batching.models import attempts, batches
from tests.support import eventually

if TYPE_CHECKING:
    from tests.faults.processes.scene import Scene
    from tests.servers import PostgresServer

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(1200)]

#: Small batches whose latency is measured.
SAMPLES = 20


class Latency(NamedTuple):
    """Seconds from `submit` to the end of a batch of one profile that is alone in line."""

    middle: float
    worst: float

    @classmethod
    def of(cls, scene: Scene) -> Latency:
        """Measure it, one batch after the other."""
        taken = []
        for _ in range(SAMPLES):
            started = time.monotonic()
            batch = scene.queue.submit("acceptance.work", [("one", None)])
            eventually(lambda batch=batch: batch.progress().terminal, 60, 0.005)  # type: ignore[misc]  # bound at once
            taken.append(time.monotonic() - started)
        return cls(median(taken), sorted(taken)[-2])

    def __str__(self) -> str:
        return f"{self.middle * 1000:.0f} ms, {self.worst * 1000:.0f} ms in the second worst of {SAMPLES}"


def seconds_for(scene: Scene, count: int) -> float:
    """Seconds in which so many profiles run through, by the database's clock."""
    batch = scene.submit("work", count)
    assert scene.finished(batch, 120).succeeded == count
    with scene.database.read() as reading:
        row = reading.execute(select(batches.c.started_at, batches.c.finished_at).where(batches.c.id == batch.id)).one()
    return float((row.finished_at - row.started_at).total_seconds())


@pytest.mark.parametrize("waiting", [100_000, 1_000_000])
def test_a_slow_worker_before_a_long_queue(scene: Scene, waiting: int) -> None:
    # Given a worker that is slow
    scene.worker("--pool=prefork", "--concurrency=2")
    client: Any = scene.publisher.client
    before = client.info("memory")["used_memory"]
    # When the queue is long
    keys = (f"p{number}" for number in range(waiting))
    started = time.monotonic()
    batch = scene.queue.submit(
        "acceptance.work", ({"key": key, "payload": {"seconds": 0.05}} for key in keys), options=BatchOptions()
    )
    submitted = time.monotonic() - started
    longest = 0

    def some_are_done() -> None:
        nonlocal longest
        lanes = list(client.scan_iter(f"{scene.prefix}lane:*"))
        longest = max([longest, *(client.llen(lane) for lane in lanes)])
        assert batch.progress().settled >= 600

    eventually(some_are_done, 120)
    # Then what lies in the broker is some windows, whatever waits in SQL
    grown = client.info("memory")["used_memory"] - before
    assert 0 < longest <= 1_000, longest
    assert grown < 5_000_000
    print(  # noqa: T201 - the figures of the guide
        f"{waiting:,} submitted in {submitted:.1f} s; {longest} messages and {grown / 1000:.0f} kB in Redis"
    )
    # And a verb acts at once all the same
    scene.queue.cancel(batch.id)
    view = scene.finished(batch, 120)
    assert view.cancelled + view.succeeded == waiting
    for lane in client.scan_iter(f"{scene.prefix}lane:*"):
        eventually(lambda lane=lane: not client.llen(lane), 20)  # type: ignore[misc]  # bound at once


@pytest.mark.parametrize("rows", [500_000, 5_000_000])
def test_an_old_transaction_and_a_long_history(scene: Scene, postgres_server: PostgresServer, rows: int) -> None:
    # Given a long history, and somebody who holds a snapshot open
    scene.worker("--pool=prefork", "--concurrency=3")
    first = scene.submit("work", 2000)
    assert scene.finished(first).succeeded == 2000
    pace, alone = seconds_for(scene, 2000), Latency.of(scene)
    with scene.database.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO attempts (batch_id, number, run, pass_number, attempt, outcome) "
            "SELECT CAST(%s AS uuid), 1, n, 1, 1, 'given back' FROM generate_series(2, %s) n",
            (first.id, rows),
        )
    holder: Any = psycopg.connect(host=str(postgres_server.folder), user="postgres", dbname=scene.database_name)
    holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    holder.execute("SELECT count(*) FROM profiles")
    # When work goes on
    for _ in range(3):
        behind = seconds_for(scene, 2000)
    beside = Latency.of(scene)
    holder.close()
    # Then it goes on at its pace; twice as slow would be a busy machine, more would be a plan
    print(  # noqa: T201 - the figures of the guide
        f"{rows:,} rows of history: 2,000 profiles took {pace:.2f} s before and {behind:.2f} s behind it, "
        f"a small batch {alone}, and {beside}"
    )
    assert behind < 3 * pace + 1
    assert beside.middle < 3 * alone.middle + 0.1
    with scene.database.read() as reading:
        assert (reading.scalar(select(func.count()).select_from(attempts)) or 0) >= rows - 1


def test_a_session_of_ours_that_idles_in_a_transaction_is_ended_by_the_server(scene: Scene) -> None:
    database = Database(scene.url, timeout=1.0)
    try:
        with pytest.raises(DatabaseUnavailableError), database.begin() as connection:  # noqa: PT012 - it is one session
            session = connection.scalar(text("SELECT pg_backend_pid()"))
            eventually(lambda: not _is_there(scene, session), 10)
            connection.scalar(text("SELECT 1"))
    finally:
        database.close()
    with scene.database.read() as reading:
        assert reading.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar() == "1min"


def _is_there(scene: Scene, session: Any) -> bool:
    with scene.database.read() as reading:
        return bool(reading.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid"), {"pid": session}))
