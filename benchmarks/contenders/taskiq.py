"""taskiq on Redis, with its list and with its stream.

Guarantee: the list acknowledges by popping (`BRPOP`), so what a killed worker had is lost; taskiq-redis names it for
those who "don't want acknowledges". The stream acknowledges after execution, and messages that stay pending for ten
minutes are claimed by another worker (`taskiq_redis/redis_broker.py`, `idle_timeout`). No outcome is kept.

Settings: two workers and 100 tasks at once in each are its defaults, shared out for the sleeping handlers; uvloop is
installed, which the worker then uses. Parsing of parameters is off (docs, guide/cli, `--no-parse`): nobody's payload
needs casting here. `--max-prefetch` is for "systems with high message rates" with a broker that acknowledges (same
page): the stream gets what it reads at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.contender import LATENCY, NOOP, SLEEP, SUBMIT, Handler, Payloads, Place, Shape, script
from benchmarks.contenders.asynchronous import AsynchronousContender, gather

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NOTES = {
    "list": "acknowledges by popping: a killed worker's items are lost; no outcome in SQL",
    "stream": "acknowledges after execution; no outcome in SQL",
}


def _shape(name: str, kind: str, tasks: int, *workloads: Any, items: int | None = 10_000, workers: int = 2) -> Shape:
    return Shape(
        name,
        processes=workers,
        slots=workers * tasks,
        workloads=frozenset(workloads),
        items=items,
        note=_NOTES[kind],
        options={"broker": kind, "tasks": str(tasks)},
    )


class Taskiq(AsynchronousContender):
    """Asynchronous tasks on Redis."""

    name = "taskiq"
    requirements = "taskiq"
    shapes = (
        _shape("list, 2 workers", "list", 100, NOOP, LATENCY),
        _shape("stream, 2 workers", "stream", 100, NOOP, LATENCY),
        _shape("list, 2 workers x 50", "list", 50, SLEEP),
        _shape("stream, 2 workers x 50", "stream", 50, SLEEP),
        _shape("list, 1 worker x 100", "list", 100, SLEEP, workers=1),
        _shape("kiq, list", "list", 100, SUBMIT, items=20_000),
        _shape("kiq, stream", "stream", 100, SUBMIT, items=20_000),
    )

    def __init__(self) -> None:
        super().__init__()
        self._started = False

    def environment(self, shape: Shape, place: Place) -> Mapping[str, str]:
        """Which broker."""
        return {"BENCH_BROKER": shape.options["broker"]}

    async def aenqueue(self, shape: Shape, place: Place, handler: Handler, payloads: Payloads) -> None:
        """`kiq`, many of them in flight: there is no bulk call."""
        from benchmarks.contenders import taskiq_app

        if not self._started:
            # Makes the stream's consumer group, without which workers would not see what came before them.
            await taskiq_app.broker.startup()
            self._started = True
        await gather(taskiq_app.tasks[handler].kiq, payloads)

    async def aclose(self) -> None:
        """End the broker's connections."""
        from benchmarks.contenders import taskiq_app

        await taskiq_app.broker.shutdown()

    def workers(self, shape: Shape, place: Place) -> Sequence[Sequence[str]]:
        """One command, which starts the worker processes."""
        words = ["--workers", str(shape.processes), "--max-async-tasks", shape.options["tasks"]]
        words += ["--max-prefetch", "100"] if shape.options["broker"] == "stream" else []
        words += ["--no-parse", "--log-level", "WARNING"]
        return [script("taskiq", "worker", "benchmarks.contenders.taskiq_app:broker", *words)]

    def enqueued(self, shape: Shape, place: Place) -> int:
        """The length of its list or stream."""
        import redis

        with redis.Redis.from_url(place.redis_url) as client:
            length: Any = client.llen("taskiq") if shape.options["broker"] == "list" else client.xlen("taskiq")
        return int(length)


CONTENDER = Taskiq()
