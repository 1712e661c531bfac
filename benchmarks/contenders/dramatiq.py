"""dramatiq on Redis.

Guarantee: at least once (guide, "Error Handling"). One script moves a message into its worker's own set of
unacknowledged ones and hands it out; it is acknowledged after the actor, and requeued when the worker's heartbeat is
missing for 60 s (`dramatiq/brokers/redis.py`, `dramatiq/brokers/redis/dispatch.lua`). No outcome is kept.

Settings: the defaults of its command, one process per processor and eight threads each (guide, "Workers"); a hundred
threads for the sleeping handlers. Prefetching is left at its default of two messages a thread, but for these. There it
is one and a half: a consumer that has fetched all that it may looks again after pauses that double, up to seconds; at
the closed gate they grow, and would last into the time that is measured, which begins with the item 200. One process
and not two for the same reason: it fetches anew before that item.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.contender import LATENCY, NOOP, SLEEP, SUBMIT, Contender, Handler, Payloads, Place, Shape, script

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NOTE = "acknowledges after execution; no outcome in SQL"


def _shape(name: str, processes: int, threads: int, *workloads: Any, items: int | None = 10_000) -> Shape:
    return Shape(
        name,
        processes=processes,
        slots=processes * threads,
        workloads=frozenset(workloads),
        items=items,
        note=_NOTE,
        options={"threads": str(threads)},
    )


class Dramatiq(Contender):
    """Actors on Redis."""

    name = "dramatiq"
    requirements = "dramatiq"
    shapes = (
        _shape("1 process x 8 threads", 1, 8, NOOP, LATENCY),
        _shape("2 processes x 8 threads", 2, 8, NOOP, LATENCY, items=None),
        _shape("1 process x 100 threads", 1, 100, SLEEP),
        _shape("send loop", 2, 8, SUBMIT, items=20_000),
    )

    def environment(self, shape: Shape, place: Place) -> Mapping[str, str]:
        """How many messages a process of the sleeping shapes fetches ahead; see the module's words."""
        threads = int(shape.options["threads"])
        return {"dramatiq_queue_prefetch": str(threads * 3 // 2)} if SLEEP in shape.workloads else {}

    def enqueue(self, shape: Shape, place: Place, handler: Handler, payloads: Payloads) -> None:
        """`send` in a loop: there is no bulk call, and `group.run` loops too."""
        from benchmarks.contenders import dramatiq_app

        actor = dramatiq_app.actors[handler]
        for payload in payloads:
            actor.send(payload)

    def workers(self, shape: Shape, place: Place) -> Sequence[Sequence[str]]:
        """One command, which starts the processes."""
        app = "benchmarks.contenders.dramatiq_app"
        return [
            script("dramatiq", app, "--processes", str(shape.processes), "--threads", shape.options["threads"]),
        ]

    def enqueued(self, shape: Shape, place: Place) -> int:
        """The length of its list."""
        from benchmarks.contenders import dramatiq_app

        return int(dramatiq_app.broker.client.llen("dramatiq:default"))


CONTENDER = Dramatiq()
