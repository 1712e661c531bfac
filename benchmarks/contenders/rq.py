"""RQ.

Guarantee: a job is moved to an intermediate list (`LMOVE`), then to the registry of started jobs; what a killed worker
leaves there is found by a periodic cleaning, retried if it has retries left, else marked as failed (`rq/queue.py`,
`rq/registry.py`, `StartedJobRegistry.cleanup`). No outcome is kept: `result_ttl=0` removes a job when it has succeeded
(docs, "Result TTL").

Settings: `SimpleWorker`, which does not fork, is what RQ's own notes on performance give for jobs of milliseconds
(docs/benchmark.md); its default worker, one fork per job, takes part in latency. One job at once per worker, always.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.contender import LATENCY, NOOP, SUBMIT, Contender, Handler, Payloads, Place, Shape, script
from benchmarks.contenders.asynchronous import chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

_NOTE = "leaves the registry of started jobs after execution; no outcome in SQL"
#: Jobs of one pipeline: `enqueue_many` builds all of its commands in memory before it sends them.
_TOGETHER = 1_000


class Rq(Contender):
    """Redis Queue."""

    name = "rq"
    requirements = "rq"
    shapes = (
        Shape(
            "SimpleWorker x2",
            processes=2,
            slots=2,
            workloads=frozenset({NOOP, LATENCY}),
            items=3_000,
            note=_NOTE,
            options={"class": "rq.worker.SimpleWorker"},
        ),
        Shape(
            "Worker (forks) x2",
            processes=2,
            slots=2,
            workloads=frozenset({LATENCY}),
            note=_NOTE,
            options={"class": "rq.worker.Worker"},
        ),
        Shape(
            "enqueue_many",
            processes=2,
            slots=2,
            workloads=frozenset({SUBMIT}),
            items=20_000,
            note=_NOTE,
            options={"class": "rq.worker.SimpleWorker"},
        ),
    )

    def __init__(self) -> None:
        self._queues: dict[str, Any] = {}

    def enqueue(self, shape: Shape, place: Place, handler: Handler, payloads: Payloads) -> None:
        """`enqueue_many`."""
        from rq import Queue

        queue = self._queue(place)
        name = f"benchmarks.contenders.peer_handlers.{handler}"
        for chunk in chunks(payloads, _TOGETHER):
            queue.enqueue_many([Queue.prepare_data(name, (payload,), result_ttl=0) for payload in chunk])

    def workers(self, shape: Shape, place: Place) -> Sequence[Sequence[str]]:
        """One command per worker."""
        words = ["worker", "--url", place.redis_url, "--worker-class", shape.options["class"], "--quiet"]
        return [script("rq", *words)] * shape.processes

    def enqueued(self, shape: Shape, place: Place) -> int:
        """The length of its list."""
        return len(self._queue(place))

    def _queue(self, place: Place) -> Any:
        from redis import Redis
        from rq import Queue

        if place.redis_url not in self._queues:
            self._queues[place.redis_url] = Queue(connection=Redis.from_url(place.redis_url))
        return self._queues[place.redis_url]


CONTENDER = Rq()
