"""Plain Celery: `delay` in a loop, a group, a chord. Defaults plus quiet workers; acknowledgement emulation is on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.contender import (
    EVENTS,
    LATENCY,
    NOOP,
    SLEEP,
    SUBMIT,
    Contender,
    Handler,
    Payloads,
    Place,
    Shape,
    python,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_APP = "benchmarks.contenders.celery_app"
#: Items of one drain: some seven seconds, where 20,000 would take half a minute.
_ITEMS = 5_000


def worker(app: str, pool: str, concurrency: int, number: int = 0, *, events: bool = False) -> list[str]:
    """A worker at Celery's defaults, without the chatter of workers among each other."""
    quiet = ["--without-gossip", "--without-mingle", "--loglevel=WARNING", f"--hostname=w{number}@%h"]
    quiet += ["-E"] if events else []
    return python("-m", "celery", "-A", app, "worker", f"--pool={pool}", f"--concurrency={concurrency}", *quiet)


def _shape(name: str, pool: str, concurrency: int, *workloads: Any, way: str = "delay", **options: str) -> Shape:
    copies = int(options.get("copies", "1"))
    return Shape(
        name,
        processes=concurrency * copies if pool == "prefork" else copies,
        slots=concurrency * copies,
        workloads=frozenset(workloads),
        items=_ITEMS,
        options={"pool": pool, "concurrency": str(concurrency), "way": way, **options},
    )


class PlainCelery(Contender):
    """Tasks that leave nothing in SQL."""

    name = "celery"
    requirements = "celery"
    shapes = (
        _shape("delay, prefork -c 2", "prefork", 2, NOOP, LATENCY, EVENTS),
        _shape("delay, prefork -c 2, Flower", "prefork", 2, EVENTS, flower=_APP),
        _shape("delay, threads -c 8", "threads", 8, NOOP, LATENCY),
        _shape("delay, solo x2", "solo", 1, NOOP, copies="2"),
        _shape("delay, solo", "solo", 1, LATENCY),
        _shape("delay, threads -c 100", "threads", 100, SLEEP),
        _shape("chord, prefork -c 2", "prefork", 2, NOOP, way="chord"),
        _shape("delay loop", "prefork", 2, SUBMIT),
        _shape("group", "prefork", 2, SUBMIT, way="group"),
        _shape("chord", "prefork", 2, SUBMIT, way="chord"),
    )

    def environment(self, shape: Shape, place: Place) -> Mapping[str, str]:
        """A chord needs a result backend; nothing else gets one."""
        return {"BENCH_CHORD": "1"} if shape.options["way"] == "chord" else {}

    def enqueue(self, shape: Shape, place: Place, handler: Handler, payloads: Payloads) -> None:
        """The three ways that Celery documents."""
        from celery import chord, group

        from benchmarks.contenders import celery_app

        task = getattr(celery_app, handler)
        if shape.options["way"] == "delay":
            for payload in payloads:
                task.delay(payload)
        elif shape.options["way"] == "group":
            group(task.s(payload) for payload in payloads).apply_async()
        else:
            chord(task.s(payload) for payload in payloads)(celery_app.done.s())

    def workers(self, shape: Shape, place: Place) -> Sequence[Sequence[str]]:
        """One command per worker process."""
        options = shape.options
        copies = int(options.get("copies", "1"))
        events = "flower" in options
        pool, concurrency = options["pool"], int(options["concurrency"])
        return [worker(_APP, pool, concurrency, number, events=events) for number in range(copies)]

    def enqueued(self, shape: Shape, place: Place) -> int:
        """The length of Celery's list."""
        import redis

        with redis.Redis.from_url(place.redis_url) as client:
            return int(client.llen("celery"))


CONTENDER = PlainCelery()
