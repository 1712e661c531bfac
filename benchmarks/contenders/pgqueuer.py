"""pgqueuer: jobs and their outcomes in PostgreSQL, claimed and settled in groups.

Guarantee: at least once. A group is claimed with `FOR UPDATE SKIP LOCKED`; outcomes are gathered for up to 0.1 s or
one group, then one statement deletes the jobs and writes a line each into `pgqueuer_log`; a job whose heartbeat is
missing for 30 s is claimed again (`pgqueuer/core/buffers.py`, `pgqueuer/core/qm.py`). An outcome is such a line whose
status is `successful`. Tables are logged (durability `durable`, its default): `balanced` would be faster, and lose the
outcomes in a crash.

Settings are its tuning guide's (docs/guides/performance-tuning.md): a large group for short jobs, in several sizes
because the best one differs with the number of processes and from run to run; for the sleeping ones half of what may
run at once, which is the most that it allows; `autovac` applied; asyncpg, one connection per worker; uvloop, as its
command does. Submission by lists, one INSERT for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.contender import DURABLE, LATENCY, NOOP, SLEEP, SUBMIT, Handler, Payloads, Place, Shape, python
from benchmarks.contenders.asynchronous import AsynchronousContender, chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Jobs of one INSERT.
_TOGETHER = 20_000
#: Jobs that are gone, counted without reading those that wait: all below the oldest that is left, and those that miss
#: among the next few thousand, which is more than workers ever hold. A lower bound, exact when nothing is left.
_PROGRESS = """
SELECT oldest - 1 + near - (SELECT count(*) FROM pgqueuer WHERE id >= oldest AND id < oldest + near)
FROM (
    SELECT oldest, least(8000, last - oldest + 1) AS near
    FROM (
        SELECT last, coalesce((SELECT min(id) FROM pgqueuer), last + 1) AS oldest
        FROM (SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS last FROM pgqueuer_id_seq) AS made
    ) AS ends
) AS range
"""


def _shape(name: str, workers: int, group: int, *workloads: Any, together: int = 0) -> Shape:
    return Shape(
        name,
        processes=workers,
        slots=workers * (together or group),
        workloads=frozenset(workloads),
        durable=True,
        brokered="postgresql",
        note="at least once; outcomes are committed in groups",
        options={"group": str(group), "together": str(together)},
    )


class Pgqueuer(AsynchronousContender):
    """Jobs in PostgreSQL, in groups."""

    name = "pgqueuer"
    requirements = "pgqueuer"
    shapes = (
        *[_shape(f"batch {group}", 1, group, NOOP, DURABLE) for group in (100, 500, 1_000)],
        *[_shape(f"batch {group} x2", 2, group, NOOP, DURABLE) for group in (100, 250, 500)],
        _shape("batch 10", 1, 10, LATENCY),
        _shape("batch 50, concurrency 100", 1, 50, SLEEP, together=100),
        _shape("batch 25, concurrency 50, x2", 2, 25, SLEEP, together=50),
        _shape("enqueue", 1, 500, SUBMIT),
    )

    def __init__(self) -> None:
        super().__init__()
        self._connection: Any = None

    def prepare(self, shape: Shape, place: Place) -> None:
        """`pgq install` and `pgq autovac`."""
        self.run(self._install(place))

    async def _install(self, place: Place) -> None:
        queries = await self._queries(place)
        await queries.install()
        await queries.optimize_autovacuum()

    async def aenqueue(self, shape: Shape, place: Place, handler: Handler, payloads: Payloads) -> None:
        """`enqueue` with lists."""
        queries = await self._queries(place)
        for chunk in chunks(payloads, _TOGETHER):
            encoded = [payload.encode() for payload in chunk]
            await queries.enqueue([handler] * len(chunk), encoded, [0] * len(chunk))

    async def aclose(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            await self._connection.close()

    def workers(self, shape: Shape, place: Place) -> Sequence[Sequence[str]]:
        """One command per worker."""
        words = ["-m", "benchmarks.contenders.pgqueuer_app", shape.options["group"], shape.options["together"]]
        return [python(*words)] * shape.processes

    def progress_sql(self, shape: Shape) -> str:
        """Jobs that are gone."""
        return _PROGRESS

    def exact_sql(self, shape: Shape) -> str:
        """Lines of its log."""
        return "SELECT count(DISTINCT job_id) FROM pgqueuer_log WHERE status = 'successful'"

    def enqueued(self, shape: Shape, place: Place) -> int:
        """Its rows."""
        return int(self.run(self._connection.fetchval("SELECT count(*) FROM pgqueuer")))

    async def _queries(self, place: Place) -> Any:
        import asyncpg
        from pgqueuer import AsyncpgDriver, Queries

        if self._connection is None:
            self._connection = await asyncpg.connect(place.postgres_url)
        return Queries(AsyncpgDriver(self._connection))


CONTENDER = Pgqueuer()
