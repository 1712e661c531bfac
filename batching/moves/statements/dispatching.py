"""Pending -> dispatched."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import CTE, Integer, Select, Update, bindparam, case, func, null, or_, select, update

from batching.dialects import now
from batching.models import batches, counters, profiles
from batching.moves.rows import among
from batching.moves.statements.shared import AT_ONCE, BATCH, LEADS, UNFLUSHED, WRITER, materialized
from batching.states import BatchState, ProfileState

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, FromClause
    from sqlalchemy.sql.dml import ReturningUpdate

#: The columns of a profile that a message is made of.
DISPATCHED = (
    profiles.c.number,
    profiles.c.run,
    profiles.c.key,
    profiles.c.attempts,
    profiles.c.losses,
    profiles.c.pass_number,
)


@lru_cache
def dispatch(dialect: str) -> Select[Any] | Update:
    """Pending -> dispatched; takes `batch`, `behind`, `limit`, and the leader's `writer` and `epoch`.

    Looks at what is numbered `behind` that or higher, so that it need not walk over what was dispatched before: an
    index keeps an entry for each of those until PostgreSQL vacuums.
    """
    due = _due(BATCH, bindparam("limit", type_=Integer())).where(
        profiles.c.number > bindparam("behind", type_=Integer())
    )
    runs = (
        batches.c.id == BATCH,
        batches.c.state == BatchState.RUNNING,
        batches.c.rewritten == batches.c.generation,
        LEADS,
    )
    if dialect != "postgresql":
        return _moved(dialect, batches, due).where(*runs)
    batch = materialized(select(batches.c.id, batches.c.generation, batches.c.pass_number).where(*runs), "batch")
    return _with_dispatch_counted(_moved(dialect, batch, due).cte("moved"))


def dispatch_of(batch: CTE, limit: ColumnElement[int]) -> ReturningUpdate[Any]:
    """As `dispatch` on PostgreSQL, for the batch that another part of the same statement has locked and promoted."""
    due = _due(select(batch.c.id).scalar_subquery(), limit)
    return _moved("postgresql", batch, due).where(batch.c.rewritten == batch.c.generation)


def _due(batch_id: ColumnElement[Any], limit: ColumnElement[int]) -> Select[Any]:
    """The first profiles of a batch that may be dispatched."""
    return (
        select(profiles.c.number)
        .where(
            profiles.c.batch_id == batch_id,
            profiles.c.dispatched_at.is_(None),
            profiles.c.finished_at.is_(None),
            or_(profiles.c.not_before.is_(None), profiles.c.not_before <= now()),
        )
        .order_by(profiles.c.number)
        .limit(limit)
    )


def _moved(dialect: str, batch: FromClause, due: Select[Any]) -> ReturningUpdate[Any]:
    """Move what is due of the one batch that is given; no row is of a later generation than its batch."""
    return (
        update(profiles)
        .where(
            among(dialect, batch.c.id, due),
            profiles.c.state == ProfileState.PENDING,
            profiles.c.generation <= batch.c.generation,
        )
        .values(
            state=ProfileState.DISPATCHED,
            generation=batch.c.generation,
            attempts=case((profiles.c.pass_number == batch.c.pass_number, profiles.c.attempts), else_=0),
            pass_number=batch.c.pass_number,
            republished=0,
            not_before=null(),
            dispatched_at=AT_ONCE,
        )
        .returning(*DISPATCHED)
    )


def _with_dispatch_counted(moved: CTE) -> Select[Any]:
    number = select(BATCH.label("batch_id"), func.count().label("moved")).select_from(moved)
    tally = number.having(UNFLUSHED).subquery("tally")
    counted = (
        update(counters)
        .where(counters.c.batch_id == tally.c.batch_id, counters.c.worker_id == WRITER, tally.c.moved > 0)
        .values(pending=counters.c.pending - tally.c.moved, dispatched=counters.c.dispatched + tally.c.moved)
    )
    return select(moved).add_cte(counted.cte("counted"))
