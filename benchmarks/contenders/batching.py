"""This project, at its defaults: PostgreSQL or SQLite, every pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.contender import (
    DURABLE,
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

_DRAINS = frozenset({NOOP, DURABLE})
_SQLITE = "batching.db"


def _shape(name: str, pool: str, concurrency: int, *workloads: Any, copies: int = 1, **options: str) -> Shape:
    processes = concurrency * copies if pool == "prefork" else copies
    return Shape(
        name,
        processes=processes,
        slots=concurrency * copies,
        workloads=frozenset(workloads),
        durable=True,
        options={"pool": pool, "concurrency": str(concurrency), "copies": str(copies), **options},
    )


class Batching(Contender):
    """`celery -A workers worker`, and `QueueManager.submit`."""

    name = "batching"
    requirements = None
    shapes = (
        _shape("prefork -c 2", "prefork", 2, *_DRAINS, LATENCY, EVENTS),
        _shape("prefork -c 2, Flower", "prefork", 2, EVENTS, flower="workers"),
        _shape("threads -c 8", "threads", 8, *_DRAINS, LATENCY),
        _shape("solo x2", "solo", 1, *_DRAINS, copies=2),
        _shape("threads -c 4 x2", "threads", 4, *_DRAINS, copies=2),
        _shape("solo", "solo", 1, LATENCY),
        _shape("threads -c 100", "threads", 100, SLEEP),
        _shape("submit", "prefork", 2, SUBMIT),
        _shape("SQLite, prefork -c 2", "prefork", 2, *_DRAINS, sqlite=_SQLITE),
        _shape("SQLite, solo x2", "solo", 1, *_DRAINS, copies=2, sqlite=_SQLITE),
        _shape("SQLite, submit", "prefork", 2, SUBMIT, sqlite=_SQLITE),
    )

    def __init__(self) -> None:
        self._queue: Any = None
        self._submitted: list[str] = []

    def environment(self, shape: Shape, place: Place) -> Mapping[str, str]:
        """Where store and broker are; every other setting stays at its default."""
        return {
            "BATCHING_DATABASE_URL": self._database_url(shape, place),
            "BATCHING_BROKER_URL": place.kombu_url,
            "BATCHING_HANDLERS": "benchmarks.contenders.batching_app",
        }

    def prepare(self, shape: Shape, place: Place) -> None:
        """`batching db upgrade`."""
        from batching import migration
        from batching.database import Database

        database = Database(self._database_url(shape, place))
        migration.upgrade(database)
        database.close()

    def ready(self, shape: Shape, place: Place, payloads: Payloads) -> None:
        """Import and connect: a producer's growth is what it needs for its profiles, not what it is made of."""
        with self._manager(shape, place).database.read():
            return

    def enqueue(self, shape: Shape, place: Place, handler: Handler, payloads: Payloads) -> None:
        """One batch; its profiles come from a generator."""
        profiles = ((payload[:8], payload) for payload in payloads)
        self._submitted.append(self._manager(shape, place).submit(f"bench.{handler}", profiles).id)

    def workers(self, shape: Shape, place: Place) -> Sequence[Sequence[str]]:
        """Plain Celery workers, each with its manager as a subprocess."""
        options = shape.options
        command = ["-m", "celery", "-A", "workers", "worker", "--loglevel=WARNING", f"--pool={options['pool']}"]
        command += [f"--concurrency={options['concurrency']}"]
        command += ["-E"] if "flower" in options else []
        return [python(*command, f"--hostname=w{number}@%h") for number in range(int(options["copies"]))]

    def progress_sql(self, shape: Shape) -> str:
        """The counters, summed as every reader of the library sums them."""
        return "SELECT coalesce(sum(succeeded), 0) FROM counters"

    def exact_sql(self, shape: Shape) -> str:
        """The rows themselves."""
        return "SELECT count(*) FROM profiles WHERE state = 'succeeded'"

    def enqueued(self, shape: Shape, place: Place) -> int:
        """What the statistics say of all batches."""
        statistics = self._manager(shape, place).statistics
        return sum(int(statistics.counts(batch_id).pending) for batch_id in self._submitted)

    def close(self) -> None:
        """Close the store."""
        if self._queue is not None:
            self._queue.database.close()
            self._queue.close()

    def _manager(self, shape: Shape, place: Place) -> Any:
        if self._queue is None:
            from batching.database import Database
            from batching.queue_manager import QueueManager

            self._queue = QueueManager(Database(self._database_url(shape, place)), place.kombu_url)
        return self._queue

    @staticmethod
    def _database_url(shape: Shape, place: Place) -> str:
        return f"sqlite:///{place.folder / _SQLITE}" if "sqlite" in shape.options else place.sqlalchemy_url


CONTENDER = Batching()
