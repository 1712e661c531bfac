"""Measures what people are shown as the rate of a batch: profiles settled a second, smoothed over some ten seconds.

And what an estimate rests on: how many settled within the last minute, and how evenly. On the same occasion, what all
processes have counted is added up.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from batching.dialects import now
from batching.errors import DatabaseUnavailableError
from batching.figures import Figures
from batching.logs import Log
from batching.models import batches, rates
from batching.moves import figures
from batching.moves.rows import leads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection

    from batching.database import Database
    from batching.figures import News
    from batching.interfaces import LeaderTerm
    from batching.outlook import Outlook

log = Log("batching.measure")

#: Seconds over which a rate is smoothed.
SMOOTHING = 10.0
#: Seconds that an estimate looks back.
WINDOW = 60.0
#: Seconds of the parts of that window that are compared to see how evenly profiles settle.
PART = 5.0
#: Seconds between two rounds of deleting figures that are too old.
_CLEANING = 60.0
#: Seconds after which the leader writes what it sees although nothing has changed: as long as it does, it is current.
_REPEATED = 5.0
#: Seconds between two times that the leader tells what it counted itself.
_TOLD = 2.5


class Measured(NamedTuple):
    """What is known of one batch: a row of `rates`."""

    per_second: float
    settled: int
    counted: int
    over_seconds: float
    deviation: float


class Track:
    """What one batch has settled, look by look."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()
        self._rate: float | None = None

    def look(self, at: float, settled: int) -> Measured | None:
        """Take note; None while there is nothing to compare with.

        Args:
            at: Monotonic seconds.
            settled: Profiles that are settled by now.
        """
        if self._looks and at <= self._looks[-1][0]:
            return self._measured() if self._rate is not None else None
        if self._looks:
            before, had = self._looks[-1]
            if settled < had:  # a new pass, or a person, took settled profiles back
                self._looks.clear()
            latest = max(0, settled - had) / (at - before)
            weight = 1.0 - math.exp(-(at - before) / SMOOTHING)
            self._rate = latest if self._rate is None else self._rate + (latest - self._rate) * weight
        self._looks.append((at, settled))
        while at - self._looks[0][0] > WINDOW and len(self._looks) > 2:
            self._looks.popleft()
        return None if self._rate is None else self._measured()

    def _measured(self) -> Measured:
        (first, had), (last, has) = self._looks[0], self._looks[-1]
        seconds, counted = last - first, has - had
        deviation = math.sqrt(max(counted, self._variance())) / seconds if seconds else 0.0
        return Measured(self._rate or 0.0, has, counted, seconds, deviation)

    def _variance(self) -> float:
        """Of the number that settles in the window, from how much its parts differ; at least that of a Poisson count.

        So bursts (slow profiles that end together) widen a range, instead of being taken for a pace.
        """
        parts: list[int] = []
        begun, had = self._looks[0]
        for at, settled in self._looks:
            if at - begun >= PART:
                parts.append(settled - had)
                begun, had = at, settled
        return statistics.variance(parts) * len(parts) if len(parts) > 1 else 0.0


class Measurer:
    """Writes the rates of the running batches, and adds up what processes counted, once per call of `measure`.

    Args:
        database: Where they are written.
        clock: Monotonic seconds.
        counted: What this process counts itself.
        retention_days: For which the throughput of all batches is kept.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float] = time.monotonic,
        *,
        counted: Figures | None = None,
        retention_days: float = 30.0,
    ) -> None:
        self._database = database
        self._clock = clock
        self._counted = counted or Figures()
        self._retention_days = retention_days
        self._next_cleaning = self._next_news = 0.0
        self._noted: tuple[float, Mapping[str, Any]] | None = None
        self._tracks: dict[str, Track] = {}

    def measure(self, term: LeaderTerm, outlook: Outlook, seen: Mapping[str, Any] | None = None) -> None:
        """Take note of what is settled; the first look at a batch measures nothing yet.

        Args:
            term: Proof of leadership.
            outlook: A look at what is active.
            seen: What this leader sees beside SQL, for who watches.
        """
        at = self._clock()
        self._tracks = {each.row.id: self._tracks.get(each.row.id) or Track() for each in outlook.running}
        looks = {
            each.row.id: self._tracks[each.row.id].look(at, each.row.total - each.counts.unsettled)
            for each in outlook.running
        }
        measured = {batch_id: found for batch_id, found in looks.items() if found is not None}
        if measured:
            with self._database.begin() as connection:
                if connection.scalar(select(leads(term))):
                    _write(connection, measured)
        try:
            self._add_up(at, term, seen)
        except DatabaseUnavailableError:
            raise
        except Exception:
            # Figures are for people: whatever is wrong with some, batches go on, and the next ones are counted again.
            log.exception("figures are dropped that cannot be added up")
            with self._database.begin() as connection:
                figures.discard(connection)

    def _add_up(self, at: float, term: LeaderTerm, seen: Mapping[str, Any] | None) -> None:
        news, heard = self._own_news(at), False
        with self._database.begin() as connection:
            if connection.scalar(select(leads(term))):
                heard = news is not None and figures.tell(connection, news)
                figures.fold(connection)
                if seen is not None and self._is_news(at, seen):
                    figures.note_gauges(connection, term, "leader", seen)
                if at >= self._next_cleaning:
                    self._next_cleaning = at + _CLEANING
                    figures.forget(connection, self._retention_days)
        if heard and news is not None:
            self._counted.told(news)

    def _own_news(self, at: float) -> News | None:
        """What this process counted; not in every round, as it is the only one that always has some."""
        if at < self._next_news:
            return None
        self._next_news = at + _TOLD
        self._counted.grown("database_connects", "manager", total=self._database.connects)
        return self._counted.news()

    def _is_news(self, at: float, seen: Mapping[str, Any]) -> bool:
        """Whether what the leader sees has changed, or was not written for a while."""
        if self._noted is not None and seen == self._noted[1] and at - self._noted[0] < _REPEATED:
            return False
        self._noted = (at, seen)
        return True


def _write(connection: Connection, measured: dict[str, Measured]) -> None:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    for batch_id, found in sorted(measured.items()):
        insert = dialect.insert(rates).values(batch_id=batch_id, measured_at=now(), **found._asdict())
        renewed = {name: insert.excluded[name] for name in Measured._fields}
        connection.execute(
            insert.on_conflict_do_update(index_elements=[rates.c.batch_id], set_={**renewed, "measured_at": now()})
        )
    # Led by the few rates, not by the many finished batches that are kept.
    finished = select(batches.c.id).where(batches.c.id == rates.c.batch_id, batches.c.finished_at.is_not(None))
    connection.execute(delete(rates).where(finished.exists()))
