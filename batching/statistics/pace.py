"""How fast a handler's profiles were, lately: for estimates before a batch is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import func, select

from batching.models import batches, rates
from batching.states import BatchState
from batching.statistics.line import AT_THE_HEAD, fresh_rate

if TYPE_CHECKING:
    from sqlalchemy import Connection

#: Batches that ended lately, of which the pace is taken.
_LATEST = 5


class Pace(NamedTuple):
    """Profiles a second, and where that comes from."""

    per_second: float
    basis: str


def measured_pace(connection: Connection, handler: str) -> Pace | None:
    """The rate of what runs of a handler now, else that of the latest batches that succeeded; None: never measured."""
    now_running = connection.scalar(
        select(func.sum(rates.c.per_second)).where(
            fresh_rate(), batches.c.handler == handler, batches.c.state.in_(AT_THE_HEAD)
        )
    )
    if now_running:
        return Pace(float(now_running), "as its batches run now")
    ended = connection.execute(
        select(batches.c.total, batches.c.started_at, batches.c.finished_at)
        .where(
            batches.c.finished_at.is_not(None),
            batches.c.handler == handler,
            batches.c.state == BatchState.SUCCEEDED.value,
            batches.c.pass_number == 1,
            batches.c.started_at.is_not(None),
            batches.c.total > 0,
        )
        .order_by(batches.c.finished_at.desc())
        .limit(_LATEST)
    ).all()
    seconds = sum((row.finished_at - row.started_at).total_seconds() for row in ended)
    if seconds <= 0:
        return None
    many = "batch" if len(ended) == 1 else f"{len(ended)} batches"
    return Pace(sum(row.total for row in ended) / seconds, f"as in the latest {many} of this handler that succeeded")
