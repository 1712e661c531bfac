"""Measures what people are shown as the rate of a batch: profiles settled a second, smoothed over some ten seconds.

And what an estimate rests on: how many settled within the last minute, and how evenly.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from batching.database import now
from batching.models import batches, rates
from batching.moves.rows import leads

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from batching.database import Database
    from batching.interfaces import LeaderTerm
    from batching.outlook import Outlook

#: Seconds over which a rate is smoothed.
SMOOTHING = 10.0
#: Seconds that an estimate looks back.
WINDOW = 60.0
#: Seconds of the parts of that window that are compared to see how evenly profiles settle.
PART = 5.0


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
    """Writes the rates of the running batches, once per call of `measure`.

    Args:
        database: Where they are written.
        clock: Monotonic seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._tracks: dict[str, Track] = {}

    def measure(self, term: LeaderTerm, outlook: Outlook) -> None:
        """Take note of what is settled; the first look at a batch measures nothing yet."""
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
