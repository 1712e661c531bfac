"""procrastinate: jobs and their outcomes in PostgreSQL.

Guarantee: a job is claimed by an update, its outcome is an update of its row with an event beside it, in a transaction
each; jobs of workers whose heartbeat is missing stay until a periodic task, which its users write, retries them
(docs/howto/production/retry_stalled_jobs.md). An outcome is a row whose status is `succeeded`.

Settings: asynchronous tasks and more than one at once, then more workers: its ways to more throughput
(docs/howto/concurrency.md); the pool of connections, LISTEN and NOTIFY, and keeping finished jobs are as by default;
submission by `batch_defer`, which is for many jobs in a single call (docs/howto/basics/batch_defer.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.contender import (
    DURABLE,
    LATENCY,
    NOOP,
    SLEEP,
    SUBMIT,
    Contender,
    Handler,
    Payloads,
    Place,
    Shape,
    script,
)
from benchmarks.contenders.asynchronous import chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Jobs of one INSERT.
_TOGETHER = 1_000


def _shape(name: str, workers: int, jobs: int, *workloads: Any, items: int | None = 3_000) -> Shape:
    return Shape(
        name,
        processes=workers,
        slots=workers * jobs,
        workloads=frozenset(workloads),
        durable=True,
        brokered="postgresql",
        items=items,
        note="claim and outcome are a transaction each, per job",
        options={"jobs": str(jobs)},
    )


class Procrastinate(Contender):
    """Jobs in PostgreSQL."""

    name = "procrastinate"
    requirements = "procrastinate"
    shapes = (
        _shape("concurrency 10", 1, 10, NOOP, DURABLE, LATENCY),
        _shape("concurrency 10 x2", 2, 10, NOOP, DURABLE),
        _shape("concurrency 100", 1, 100, SLEEP),
        _shape("concurrency 50 x2", 2, 50, SLEEP),
        _shape("batch_defer", 1, 10, SUBMIT, items=20_000),
    )

    def __init__(self) -> None:
        self._app: Any = None

    def prepare(self, shape: Shape, place: Place) -> None:
        """Its schema."""
        self._open().schema_manager.apply_schema()

    def enqueue(self, shape: Shape, place: Place, handler: Handler, payloads: Payloads) -> None:
        """`batch_defer`."""
        from benchmarks.contenders import procrastinate_app

        self._open()
        task = procrastinate_app.tasks[handler]
        for chunk in chunks(payloads, _TOGETHER):
            task.batch_defer(*[{"payload": payload} for payload in chunk])

    def workers(self, shape: Shape, place: Place) -> Sequence[Sequence[str]]:
        """One command per worker."""
        app = "--app=benchmarks.contenders.procrastinate_app.app"
        words = [app, "--log-level=warning", "worker", "--concurrency", shape.options["jobs"]]
        return [script("procrastinate", *words)] * shape.processes

    def progress_sql(self, shape: Shape) -> str:
        """Its rows; cheap at so few of them."""
        return "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"

    def exact_sql(self, shape: Shape) -> str:
        """Its events: one per job that succeeded."""
        return "SELECT count(DISTINCT job_id) FROM procrastinate_events WHERE type = 'succeeded'"

    def close(self) -> None:
        """End its pool."""
        if self._app is not None:
            self._app.close()

    def _open(self) -> Any:
        if self._app is None:
            from benchmarks.contenders import procrastinate_app

            self._app = procrastinate_app.app.open()
        return self._app


CONTENDER = Procrastinate()
