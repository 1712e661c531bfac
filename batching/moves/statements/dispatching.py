"""Pending -> dispatched."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import CTE, Integer, Select, Update, bindparam, case, func, null, or_, select, update

from batching.dialects import now
from batching.models import batches, counters, profiles
from batching.moves.rows import among
from batching.moves.statements.shared import AT_ONCE, BATCH, LEADS, UNFLUSHED, WRITER
from batching.states import BatchState, ProfileState

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
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
    due = (
        select(profiles.c.number)
        .where(
            profiles.c.batch_id == BATCH,
            profiles.c.number > bindparam("behind", type_=Integer()),
            profiles.c.dispatched_at.is_(None),
            profiles.c.finished_at.is_(None),
            or_(profiles.c.not_before.is_(None), profiles.c.not_before <= now()),
        )
        .order_by(profiles.c.number)
        .limit(bindparam("limit", type_=Integer()))
    )
    moved = (
        update(profiles)
        .where(
            batches.c.id == BATCH,
            batches.c.state == BatchState.RUNNING,
            batches.c.rewritten == batches.c.generation,
            profiles.c.batch_id == batches.c.id,
            among(dialect, due),
            profiles.c.state == ProfileState.PENDING,
            LEADS,
        )
        .values(
            state=ProfileState.DISPATCHED,
            generation=batches.c.generation,
            attempts=case((profiles.c.pass_number == batches.c.pass_number, profiles.c.attempts), else_=0),
            pass_number=batches.c.pass_number,
            republished=0,
            not_before=null(),
            dispatched_at=AT_ONCE,
        )
        .returning(*DISPATCHED)
    )
    return _with_dispatch_counted(moved.cte("moved")) if dialect == "postgresql" else moved


def dispatch_of(batch: CTE, limit: ColumnElement[int]) -> ReturningUpdate[Any]:
    """As `dispatch` on PostgreSQL, for the batch that another part of the same statement has locked and promoted."""
    due = (
        select(profiles.c.number)
        .where(
            profiles.c.batch_id == select(batch.c.id).scalar_subquery(),
            profiles.c.dispatched_at.is_(None),
            profiles.c.finished_at.is_(None),
            or_(profiles.c.not_before.is_(None), profiles.c.not_before <= now()),
        )
        .order_by(profiles.c.number)
        .limit(limit)
    )
    return (
        update(profiles)
        .where(
            profiles.c.batch_id == batch.c.id,
            batch.c.rewritten == batch.c.generation,
            among("postgresql", due),
            profiles.c.state == ProfileState.PENDING,
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
