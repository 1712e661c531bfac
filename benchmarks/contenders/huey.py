"""huey on Redis.

Guarantee: at most once. A task is popped (`BRPOP`) before it is executed, so what a killed worker had is lost
(`huey/storage.py`, `RedisStorage.dequeue`). No outcome is kept.

Settings: worker processes for work that computes, threads or greenlets for work that waits, as many as are to run at
once (its help on `--worker-type`, `huey/consumer_options.py`); results off, as nobody reads them; blocking pop, its
default. The help prefers greenlets for work that waits: in one run each, two consumers of 50 had 1,200 a second with
the sleeping handler, where threads had 1,700. So threads are measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.contender import LATENCY, NOOP, SLEEP, SUBMIT, Contender, Handler, Payloads, Place, Shape, script

if TYPE_CHECKING:
    from collections.abc import Sequence

_NOTE = "acknowledges by popping: a killed worker's item is lost; no outcome in SQL"


def _shape(
    name: str, kind: str, workers: int, *workloads: Any, consumers: int = 1, items: int | None = 10_000
) -> Shape:
    return Shape(
        name,
        processes=workers if kind == "process" else consumers,
        slots=workers * consumers,
        workloads=frozenset(workloads),
        items=items,
        note=_NOTE,
        options={"kind": kind, "workers": str(workers), "consumers": str(consumers)},
    )


class Huey(Contender):
    """Tasks on a Redis list."""

    name = "huey"
    requirements = "huey"
    shapes = (
        _shape("process -w 2", "process", 2, NOOP, LATENCY),
        _shape("thread -w 100", "thread", 100, SLEEP),
        _shape("thread -w 50 x2", "thread", 50, SLEEP, consumers=2),
        _shape("map", "process", 2, SUBMIT, items=20_000),
    )

    def enqueue(self, shape: Shape, place: Place, handler: Handler, payloads: Payloads) -> None:
        """`map`: the call for many, though each is sent by itself."""
        from benchmarks.contenders import huey_app

        huey_app.tasks[handler].map(payloads)

    def workers(self, shape: Shape, place: Place) -> Sequence[Sequence[str]]:
        """One command per consumer."""
        words = ["--worker-type", shape.options["kind"], "--workers", shape.options["workers"], "--quiet"]
        command = script("huey_consumer", "benchmarks.contenders.huey_app.huey", *words)
        return [command] * int(shape.options["consumers"])

    def enqueued(self, shape: Shape, place: Place) -> int:
        """The length of its list."""
        from benchmarks.contenders import huey_app

        return int(huey_app.huey.pending_count())


CONTENDER = Huey()
