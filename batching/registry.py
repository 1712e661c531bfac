"""WorkerRegistry: how a worker process announces itself, shows that it lives, and learns what SQL thinks it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from batching.moves import advertising, figures, leadership, profile, rehearsal, rows, sweep
from batching.schemas import advertised
from batching.states import BatchState

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import Connection

    from batching.database import Database
    from batching.figures import Figures, News
    from batching.interfaces import RunId, WorkerInfo


class Asked(NamedTuple):
    """What a worker wants to hear."""

    waiting: Collection[str] = ()
    """Batches of which it holds what has not begun."""
    run: RunId | None = None
    """One that waits for this worker to be empty."""
    queues: bool = False
    """It serves all of them."""


NOTHING: Final = Asked()


class Heard(NamedTuple):
    """What a worker hears when it shows a sign of life."""

    drain: bool
    """A person wants it to take nothing new."""
    queues: list[str]
    """The names of all queues, when it asked for them."""
    running: list[RunId]
    """What SQL thinks this worker runs."""
    stopping: set[str]
    """Of the batches that it asked about: nothing of them should begin any more."""
    stands: bool | None
    """Whether the run that it asked about can still be claimed: it is dispatched, and nobody has taken it."""


class WorkerRegistry:
    """The worker's own side of its row; every method raises DatabaseUnavailableError while SQL is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def rehearse(self, worker_id: str) -> None:
        """Prepare this process's way to the database, so that its first profiles need not wait for it."""
        with self._database.begin() as writing:
            rehearsal.rehearse_worker(writing, worker_id)
        if self._database.dialect == "postgresql":
            with self._database.direct() as direct:
                rehearsal.rehearse_claims(direct, worker_id)

    def register(self, info: WorkerInfo, *, drain: bool = False) -> None:
        """Announce a worker under its fresh id, and what its handlers take; with `drain`, one that was asked to."""
        schemas = advertised(info.handlers)
        with self._database.begin() as writing:
            leadership.register(writing, info, drain=drain)
            if schemas:
                advertising.advertise(writing, schemas)

    def beat(
        self,
        worker_id: str,
        *,
        draining: bool = False,
        stuck: str | None = None,
        counted: Figures | None = None,
        gauges: dict[str, Any] | None = None,
        asked: Asked = NOTHING,
    ) -> Heard | None:
        """Show a sign of life, and hear what there is to know, all in one transaction: each costs round trips.

        On a bad line a sign of life takes seconds in which this worker does nothing else.

        Args:
            worker_id: Whose.
            draining: It takes nothing new.
            stuck: Why it makes no progress; None while it does.
            counted: What it has counted, which is told on this occasion, by one statement more.
            gauges: What it holds now.
            asked: What it wants to hear.

        Returns:
            What it hears; None: it was declared dead and must register again under a new id.
        """
        seen = None if gauges is None else {**gauges, "connections": self._database.connections()._asdict()}
        if counted is not None:
            counted.grown("database_connects", "worker", total=self._database.connects)
        news = None if counted is None else counted.news()
        with self._database.begin() as writing:
            told = news is not None and figures.tell(writing, news)
            queues = leadership.queue_names(writing) if asked.queues else []
            running = [run for run, *_ in profile.running_of(writing, worker_id)]
            stopping = self._stopping(writing, asked.waiting)
            stands = None if asked.run is None else profile.stands(writing, asked.run)
            # Last: the sweep waits for this row's lock, and would wait for the reads.
            drain = leadership.beat(writing, worker_id, draining=draining, stuck=stuck, gauges=seen)
        self._told(counted, news, told)
        return None if drain is None else Heard(drain, queues, running, stopping, stands)

    @staticmethod
    def _stopping(connection: Connection, batch_ids: Collection[str]) -> set[str]:
        found = rows.read_batches(connection, batch_ids) if batch_ids else {}
        return {batch.id for batch in found.values() if batch.state is BatchState.STOPPING}

    @staticmethod
    def _told(counted: Figures | None, news: News | None, told: bool) -> None:
        if counted is not None and news is not None and told:
            counted.told(news)

    def touch(self, worker_id: str) -> None:
        """Show a bare sign of life: a statement of `beat` that takes too long must not cost the worker its life."""
        with self._database.begin() as writing:
            leadership.touch(writing, worker_id)

    def ask_to_drain(self, worker_id: str, *, drain: bool) -> None:
        """Ask a worker to drain, or to take work again."""
        with self._database.begin() as writing:
            leadership.ask_to_drain(writing, [worker_id], drain=drain)

    def give_back(self, worker_id: str, runs: Sequence[RunId]) -> int:
        """Return claimed runs uncharged; how many this worker really held."""
        with self._database.begin() as writing:
            return sweep.give_back(writing, worker_id, runs)

    def interrupted(self, batch_ids: Collection[str]) -> set[str]:
        """Those of these batches that were cancelled together with what runs of them."""
        with self._database.read() as reading:
            return rows.interrupted(reading, batch_ids)

    def leave(self, worker_id: str, counted: Figures | None = None) -> None:
        """Give everything back and delete the row: the end of a clean stop. Repeatable."""
        news = None if counted is None else counted.news()
        with self._database.begin() as writing:
            told = news is not None and figures.tell(writing, news)
            sweep.give_back(writing, worker_id, [run for run, *_ in profile.running_of(writing, worker_id)])
            leadership.unregister(writing, worker_id)
        self._told(counted, news, told)
