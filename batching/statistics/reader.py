"""`Statistics`: every read for people. One call, one consistent snapshot; nothing is ever written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import Subquery, and_, func, select, true

from batching.models import batches, history, rates
from batching.models import queues as queue_table
from batching.moves.counters import Counts, read_many
from batching.settings import get_settings
from batching.states import TERMINAL_BATCH_STATES, BatchState
from batching.statistics import fleet, line, lookup
from batching.statistics.dashboard import DashboardReads
from batching.statistics.failures import compare_failures, read_failures
from batching.statistics.listing import read_views
from batching.statistics.outbox import read_callbacks
from batching.statistics.profile_reads import read_attempts, read_page
from batching.statistics.situation import read_finished
from batching.statistics.throughput import (
    read_batch_durations,
    read_batch_throughput,
    read_durations,
    read_throughput,
)
from batching.statistics.views import HistoryEntry, QueueView

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from batching.database import Database
    from batching.interfaces import Lane
    from batching.settings import Settings
    from batching.states import CallbackState
    from batching.statistics.fleet import Occupation
    from batching.statistics.profile_reads import Page
    from batching.statistics.search import Search
    from batching.statistics.views import (
        AttemptView,
        BatchView,
        CallbackView,
        Durations,
        FailureChange,
        FailureGroup,
        ResultLine,
        ThroughputPoint,
        WorkerView,
    )

_PAGE_ROWS = 1000


class Statistics(DashboardReads):
    """Reads for the command line, the dashboard and producers.

    Wherever a batch is asked for, a unique prefix of its id is enough (at least eight digits). A batch that is still
    loading is invisible.

    Args:
        database: Where to read.
        settings: For the length of a worker's lease; by default those of this process.
    """

    def __init__(self, database: Database, settings: Settings | None = None) -> None:
        self._database = database
        self._lease = (settings or get_settings()).worker_lease

    def resolve(self, id_or_prefix: str) -> str:
        """The id of the one batch that this text names.

        Raises:
            UnknownBatchError: No batch's id starts so.
            InvalidInputError: The text is too short, or several ids start so; the message lists them.
        """
        with self._database.read() as connection:
            return lookup.resolve(connection, id_or_prefix)

    def batch(self, batch_id: str) -> BatchView:
        """One batch.

        Raises:
            UnknownBatchError: There is none with this id.
        """
        with self._database.read() as connection:
            found = lookup.resolve(connection, batch_id)
            return read_views(connection, batches.c.id == found, None, self._lease)[0]

    def state(self, batch_id: str) -> BatchState:
        """The state of one batch, and nothing else: for whoever waits for its end.

        Raises:
            UnknownBatchError: There is none with this id.
        """
        with self._database.read() as connection:
            found = lookup.resolve(connection, batch_id)
            return BatchState(connection.scalars(select(batches.c.state).where(batches.c.id == found)).one())

    def batches(
        self,
        queue: str | None = None,
        states: Iterable[BatchState] | None = None,
        limit: int = 100,
        *,
        offset: int = 0,
    ) -> list[BatchView]:
        """Batches: running ones first, then the line in its order, then paused ones, then the latest finished.

        Args:
            queue: Only this queue's.
            states: Only those in one of these states.
            limit: So many at most.
            offset: So many at the beginning are left out.
        """
        wanted = {BatchState(state) for state in (BatchState if states is None else states)}
        own = true() if queue is None else batches.c.queue == queue
        # What has ended is kept, and is much more: it is not to be sorted with the others.
        goes_on = and_(own, batches.c.finished_at.is_(None), batches.c.state.in_(wanted - TERMINAL_BATCH_STATES))
        ended = wanted & TERMINAL_BATCH_STATES
        with self._database.read() as connection:
            found = read_views(connection, goes_on, limit, self._lease, offset=offset)
            if ended and len(found) < limit:
                before = (offset and connection.scalar(select(func.count()).select_from(batches).where(goes_on))) or 0
                found += read_finished(
                    connection,
                    self._lease,
                    queue=queue,
                    states=ended,
                    after=None,
                    limit=limit - len(found),
                    offset=max(0, offset - before),
                )
            return found

    def search(self, wanted: Search) -> list[BatchView]:
        """The batches that were meant, the newest first; the next page begins `after` the last of them.

        Raises:
            InvalidInputError: Nothing can be searched for in these words.
        """
        with self._database.read() as connection:
            return read_views(connection, wanted.condition(), wanted.limit, self._lease, newest=True)

    def counts(self, batch_id: str) -> Counts:
        """The exact counts of a batch's profiles by effective state.

        Raises:
            UnknownBatchError: There is no batch with this id.
        """
        with self._database.read() as connection:
            found = lookup.resolve(connection, batch_id)
            return read_many(connection, [found])[found]

    def place_in_line(self, batch_id: str) -> int | None:
        """0: it runs, 1: it is next; None: it is not in the queue.

        Raises:
            UnknownBatchError: There is no batch with this id.
        """
        with self._database.read() as connection:
            return line.place_in_line(connection, lookup.resolve(connection, batch_id))

    def results(self, batch_id: str, *, payloads: bool = False) -> Iterator[ResultLine]:
        """Every profile with its state and result, in the order of submission, streamed in constant memory.

        Each page is a snapshot of its own: one transaction held open at the pace of a slow reader would be ended by
        the server, and would keep dead rows from being cleaned. For a finished batch all pages agree.

        Args:
            batch_id: The batch.
            payloads: Also what was submitted.

        Raises:
            UnknownBatchError: There is no batch with this id, or it was deleted meanwhile.
        """
        found = self.resolve(batch_id)
        return self._stream(found, payloads)

    def _stream(self, batch_id: str, payloads: bool) -> Iterator[ResultLine]:
        after: int | None = 0
        while after is not None:
            page = self._page(batch_id, after, payloads)
            yield from page.lines
            after = page.cursor

    def _page(self, batch_id: str, after: int, payloads: bool) -> Page:
        with self._database.read() as connection:
            return read_page(connection, batch_id, after, _PAGE_ROWS, payloads=payloads)

    def failures(self, batch_id: str, pass_number: int | None = None) -> list[FailureGroup]:
        """Profiles that failed in one pass of a batch, by fingerprint, the largest group first.

        Args:
            batch_id: The batch.
            pass_number: By default the present one.

        Raises:
            UnknownBatchError: There is no batch with this id.
            InvalidInputError: The batch has not come to that pass.
        """
        with self._database.read() as connection:
            return read_failures(connection, lookup.resolve(connection, batch_id), pass_number)

    def failure_changes(self, batch_id: str, pass_number: int | None = None) -> tuple[int, list[FailureChange]]:
        """What became of the failures of one pass in the next, by fingerprint, the most frequent first.

        Args:
            batch_id: The batch.
            pass_number: The later of the two; by default the last that has begun.

        Returns:
            The later pass, and the changes.

        Raises:
            UnknownBatchError: There is no batch with this id.
            InvalidInputError: The batch has not come to that pass, or there is none before it.
        """
        with self._database.read() as connection:
            return compare_failures(connection, lookup.resolve(connection, batch_id), pass_number)

    def history(self, batch_id: str) -> list[HistoryEntry]:
        """Every transition of a batch, the first first.

        Raises:
            UnknownBatchError: There is no batch with this id.
        """
        with self._database.read() as connection:
            found = lookup.resolve(connection, batch_id)
            rows = connection.execute(select(history).where(history.c.batch_id == found).order_by(history.c.id))
            return [
                HistoryEntry(
                    at=row.at,
                    from_state=BatchState(row.from_state) if row.from_state else None,
                    to_state=BatchState(row.to_state),
                    pass_number=row.pass_number,
                    position=row.position,
                    generation=row.generation,
                    reason=row.reason,
                )
                for row in rows
            ]

    def attempts(self, batch_id: str, key: str) -> list[AttemptView]:
        """Every run of one profile, in all passes, the first first.

        Raises:
            UnknownBatchError: There is no batch with this id.
            InvalidInputError: The batch has no profile with this key.
        """
        with self._database.read() as connection:
            return read_attempts(connection, lookup.resolve(connection, batch_id), key)

    def callbacks(
        self,
        batch_id: str | None = None,
        states: Iterable[CallbackState] | None = None,
        limit: int = 100,
        *,
        after: str | None = None,
    ) -> list[CallbackView]:
        """Callbacks, the latest first.

        Args:
            batch_id: Only this batch's.
            states: Only those in one of these states.
            limit: So many at most.
            after: The id of a callback: only those that come after it, which were made earlier.

        Raises:
            UnknownBatchError: There is no batch with this id.
            InvalidInputError: `after` is no id.
        """
        with self._database.read() as connection:
            found = None if batch_id is None else lookup.resolve(connection, batch_id)
            return read_callbacks(connection, found, states, limit, after)

    def workers(self) -> list[WorkerView]:
        """Every worker there is, those that were heard last first."""
        with self._database.read() as connection:
            return line.read_workers(connection, self._lease)

    def occupations(self) -> list[Occupation]:
        """What every worker runs, by batch."""
        with self._database.read() as connection:
            return fleet.occupations(connection)

    def unserved(self) -> list[Lane]:
        """The lanes of batches that run, or could, and that no live worker serves."""
        with self._database.read() as connection:
            return fleet.unserved(connection, line.read_workers(connection, self._lease))

    def overdue_runs(self, worker_id: str) -> list[str]:
        """Task ids of a worker's runs that are over their batch's own time limit and have not ended."""
        with self._database.read() as connection:
            return fleet.overdue_runs(connection, worker_id)

    def uninterruptible(self, batch_id: str) -> dict[str, int]:
        """Profiles of a batch that run where nothing can interrupt them, by the worker's pool.

        Raises:
            UnknownBatchError: There is no batch with this id.
        """
        with self._database.read() as connection:
            return line.uninterruptible(connection, lookup.resolve(connection, batch_id))

    def led(self) -> bool:
        """Whether a live manager leads."""
        with self._database.read() as connection:
            return line.moment(connection).led

    def throughput(self, batch_id: str | None = None, *, minutes: int = 60) -> list[ThroughputPoint]:
        """What was settled when, in spans of one length without gaps, the first first; some seconds late.

        Runs are counted when they end: what a person, or a deadline, ends all at once is not among it. Of a worker that
        is killed, what it did since its last heartbeat is missing.

        Args:
            batch_id: One batch, from the first profile that it settled; None for all of them together.
            minutes: So many up to now, or up to the end of that batch. For all batches, an hour comes in spans of 10
                seconds, a day in minutes, and what is longer in hours.

        Raises:
            UnknownBatchError: There is no batch with this id.
            InvalidInputError: It is less than a minute, or more than a year.
        """
        with self._database.read() as connection:
            if batch_id is None:
                return read_throughput(connection, minutes)
            return read_batch_throughput(connection, lookup.resolve(connection, batch_id), minutes)

    def durations(self, batch_id: str | None = None) -> Durations:
        """How long runs took, as a histogram, some seconds late.

        Args:
            batch_id: The runs of one batch; None for all that there ever were.

        Raises:
            UnknownBatchError: There is no batch with this id.
        """
        with self._database.read() as connection:
            if batch_id is None:
                return read_durations(connection)
            return read_batch_durations(connection, lookup.resolve(connection, batch_id))

    def queues(self) -> list[QueueView]:
        """Every queue, by name, with what is in it."""
        with self._database.read() as connection:
            goes_on, ended = _going_on(), _ended()
            tallies = [*(goes_on.c[name] for name in _TALLIES), ended.c.finished]
            rows = connection.execute(
                select(queue_table, *(func.coalesce(each, 0).label(each.name) for each in tallies), goes_on.c.rate)
                .select_from(
                    queue_table.outerjoin(goes_on, goes_on.c.queue == queue_table.c.name).outerjoin(
                        ended, ended.c.queue == queue_table.c.name
                    )
                )
                .order_by(queue_table.c.name)
            )
            return [QueueView(**row._mapping) for row in rows]  # noqa: SLF001 - SQLAlchemy's public name for it


_TALLIES: Final = {
    "queued": (BatchState.QUEUED,),
    "running": (BatchState.RUNNING, BatchState.STOPPING),
    "parked": (BatchState.PAUSED,),
}


def _going_on() -> Subquery:
    """By queue: batches that have not ended, and the rate of those that run."""
    at_the_head = line.fresh_rate() & batches.c.state.in_(line.AT_THE_HEAD)
    tallies = [func.count().filter(batches.c.state.in_(states)).label(name) for name, states in _TALLIES.items()]
    return (
        select(batches.c.queue, *tallies, func.sum(rates.c.per_second).label("rate"))
        .select_from(batches.outerjoin(rates, at_the_head))
        .where(batches.c.finished_at.is_(None))
        .group_by(batches.c.queue)
        .subquery("goes_on")
    )


def _ended() -> Subquery:
    """By queue: how many have ended; walks nothing but their index."""
    counted = select(batches.c.queue, func.count().label("finished")).where(batches.c.finished_at.is_not(None))
    return counted.group_by(batches.c.queue).subquery("ended")
