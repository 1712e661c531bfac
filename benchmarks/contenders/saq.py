"""saq on Redis.

Guarantee: a job is moved to a list of active ones (`BLMOVE`) and leaves it when it is done; a sweep every 60 s finds
jobs that are active for longer than their timeout, ten seconds by default, and retries or aborts them
(`saq/queue/redis.py`, `dequeue` and `sweep`). One attempt is its default, so a killed worker's job ends as aborted. No
outcome is kept: `ttl` is negative, as nobody reads the results.

Settings: two workers, ten jobs at once in each by default, which is also what saq's benchmark uses;
50 in each for the sleeping handlers. hiredis, as its installation notes say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.contender import LATENCY, NOOP, SLEEP, SUBMIT, Handler, Payloads, Place, Shape, script
from benchmarks.contenders.asynchronous import AsynchronousContender, gather

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NOTE = "leaves the active list after execution; no outcome in SQL"


def _shape(name: str, workers: int, jobs: int, *workloads: Any, items: int | None = 10_000) -> Shape:
    return Shape(
        name,
        processes=workers,
        slots=workers * jobs,
        workloads=frozenset(workloads),
        items=items,
        note=_NOTE,
        options={"jobs": str(jobs)},
    )


class Saq(AsynchronousContender):
    """Asynchronous jobs on Redis."""

    name = "saq"
    requirements = "saq"
    shapes = (
        _shape("x2 concurrency 10", 2, 10, NOOP, LATENCY),
        _shape("x2 concurrency 50", 2, 50, SLEEP),
        _shape("concurrency 100", 1, 100, SLEEP),
        _shape("enqueue", 2, 10, SUBMIT, items=20_000),
    )

    def environment(self, shape: Shape, place: Place) -> Mapping[str, str]:
        """How many jobs at once."""
        return {"BENCH_CONCURRENCY": shape.options["jobs"]}

    async def aenqueue(self, shape: Shape, place: Place, handler: Handler, payloads: Payloads) -> None:
        """`enqueue`, many of them in flight, as its own `map` does; saq itself lets 20 through at once."""
        from benchmarks.contenders import saq_app

        await gather(lambda payload: saq_app.queue.enqueue(handler, payload=payload, ttl=-1), payloads)

    async def aclose(self) -> None:
        """End the queue's connections."""
        from benchmarks.contenders import saq_app

        await saq_app.queue.disconnect()

    def workers(self, shape: Shape, place: Place) -> Sequence[Sequence[str]]:
        """One command per worker: with `--workers`, the others would miss the signal that ends the first."""
        return [script("saq", "benchmarks.contenders.saq_app.settings")] * shape.processes

    def enqueued(self, shape: Shape, place: Place) -> int:
        """The length of its list."""
        from benchmarks.contenders import saq_app

        return int(self.run(saq_app.queue.count("queued")))


CONTENDER = Saq()
