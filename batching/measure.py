"""Measures what people are shown as the rate of a batch: profiles settled a second, smoothed over some ten seconds."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

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
    from batching.outlook import Active, Outlook

#: Seconds over which a rate is smoothed.
SMOOTHING = 10.0


class Measurer:
    """Writes the rates of the running batches, once per call of `measure`.

    Args:
        database: Where they are written.
        clock: Monotonic seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._last: dict[str, tuple[float, int, float | None]] = {}

    def measure(self, term: LeaderTerm, outlook: Outlook) -> None:
        """Take the difference to the last call; the first look at a batch measures nothing yet."""
        at = self._clock()
        known = {each.row.id: self._update(each, at) for each in outlook.running}
        self._last = known
        measured = [(batch_id, rate, settled) for batch_id, (_, settled, rate) in known.items() if rate is not None]
        if measured:
            with self._database.begin() as connection:
                if connection.scalar(select(leads(term))):
                    _write(connection, measured)

    def _update(self, each: Active, at: float) -> tuple[float, int, float | None]:
        settled = each.row.total - each.counts.unsettled
        before, settled_before, rate = self._last.get(each.row.id, (at, settled, None))
        elapsed = at - before
        if elapsed <= 0:
            return before, settled, rate
        latest = max(0, settled - settled_before) / elapsed  # a new pass takes settled profiles back
        if rate is None:
            return at, settled, latest
        return at, settled, rate + (latest - rate) * (1.0 - math.exp(-elapsed / SMOOTHING))


def _write(connection: Connection, measured: list[tuple[str, float, int]]) -> None:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    for batch_id, rate, settled in sorted(measured):
        insert = dialect.insert(rates).values(batch_id=batch_id, per_second=rate, settled=settled, measured_at=now())
        connection.execute(
            insert.on_conflict_do_update(
                index_elements=[rates.c.batch_id],
                set_={
                    "per_second": insert.excluded.per_second,
                    "settled": insert.excluded.settled,
                    "measured_at": now(),
                },
            )
        )
    # Led by the few rates, not by the many finished batches that are kept.
    finished = select(batches.c.id).where(batches.c.id == rates.c.batch_id, batches.c.finished_at.is_not(None))
    connection.execute(delete(rates).where(finished.exists()))
