"""Promotion: the next batch in line runs, and the first of its profiles are dispatched with it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    Select,
    Text,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql

from batching.database import now
from batching.models import batches, counters, history, queues
from batching.moves import profile
from batching.moves.counters import open_row
from batching.moves.rows import BATCH_COLUMNS, as_batch, move_batch
from batching.moves.statements import LEADS, WRITER
from batching.states import BatchState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sqlalchemy import ColumnElement, Connection

    from batching.interfaces import Dispatch, Lane, LeaderTerm
    from batching.moves.rows import BatchRow


class Start(NamedTuple):
    """A batch that was promoted, and what was dispatched of it in the same transaction."""

    batch_id: str
    total: int
    lane: Lane
    dispatches: list[Dispatch]


def promote(
    connection: Connection, queue: str, term: LeaderTerm, handlers: Collection[str] | None = None
) -> BatchRow | None:
    """Queued -> running for the next batch in line, with a counter row for the leader; none that backs off.

    With `handlers`, the next of those that go to one of them: idle workers gain nothing from any other.

    Settles the race of two leaders: the row is locked and skipped by the other, and the epoch guards the write.
    """
    parameters = {"line": queue, "writer": term.holder, "epoch": term.epoch}
    served = None if handlers is None else tuple(sorted(handlers))
    if connection.dialect.name == "postgresql":
        row = connection.execute(_promote_at_once(served is None), {**parameters, "served": list(served or ())}).first()
        return None if row is None else as_batch(row)
    row = connection.execute(_next(None if served is None else batches.c.handler.in_(served)), parameters).first()
    if row is None:
        return None
    batch = as_batch(row)
    changes = {"urgent": False, "not_before": null(), "started_at": _started_at()}
    move_batch(connection, batch, BatchState.RUNNING, f"pass {batch.pass_number} begins", **changes)
    open_row(connection, batch.id, term.holder)
    return batch


def start(
    connection: Connection,
    queue: str,
    term: LeaderTerm,
    handlers: Collection[str] | None,
    room: Callable[[BatchRow], int],
    max_losses: int,
) -> Start | None:
    """Promote the next batch in line, and dispatch the first of its profiles at once: one transaction instead of two.

    Settles what `promote` and `profile.dispatch` settle. The batch's row is locked, and every bulk move locks it first,
    so this writer needs no ticket.

    Args:
        connection: In a write transaction.
        queue: Whose line.
        term: The leader's.
        handlers: As for `promote`.
        room: How many profiles of the batch there is room for.
        max_losses: As for `profile.dispatch`.
    """
    batch = promote(connection, queue, term, handlers)
    if batch is None:
        return None
    lane, limit = batch.terms.lane, room(batch)
    dispatches = profile.dispatch_some(connection, batch.id, limit, term, lane, max_losses) if limit > 0 else []
    return Start(batch.id, batch.total, lane, dispatches)


def _next(served: ColumnElement[bool] | None) -> Select[Any]:
    """The first in line, locked; what another leader has locked is passed over."""
    queue = bindparam("line", type_=Text())
    return (
        select(*BATCH_COLUMNS)
        .where(
            batches.c.queue == queue,
            batches.c.state == BatchState.QUEUED,
            or_(batches.c.not_before.is_(None), batches.c.not_before <= now()),
            ~exists().where(queues.c.name == queue, queues.c.paused),
            LEADS,
            *([] if served is None else [served]),
        )
        .order_by(batches.c.urgent.desc(), batches.c.priority.desc(), batches.c.position, batches.c.id)
        .limit(literal_column("1"))
        .with_for_update(skip_locked=True, key_share=True)
    )


def _started_at() -> ColumnElement[Any]:
    return case((batches.c.pass_number == 1, now()), else_=batches.c.started_at)


@lru_cache
def _promote_at_once(anybody: bool) -> Select[Any]:
    """All of it in one statement; the guard repeats what the lock makes sure of, as in `move_batch`."""
    served = None if anybody else batches.c.handler == func.any(bindparam("served", type_=ARRAY(Text())))
    first = _next(served).cte("first")
    moved = (
        update(batches)
        .where(
            batches.c.id == first.c.id,
            batches.c.state == BatchState.QUEUED,
            batches.c.generation == first.c.generation,
        )
        .values(
            state=BatchState.RUNNING,
            reason=func.concat("pass ", batches.c.pass_number, " begins"),
            urgent=False,
            not_before=null(),
            started_at=_started_at(),
        )
        .returning(*BATCH_COLUMNS, batches.c.reason)
        .cte("moved")
    )
    told = insert(history).from_select(
        ["batch_id", "from_state", "to_state", "pass_number", "position", "generation", "reason"],
        select(
            moved.c.id,
            literal(BatchState.QUEUED.value),
            moved.c.state,
            moved.c.pass_number,
            moved.c.position,
            moved.c.generation,
            moved.c.reason,
        ),
    )
    opened = postgresql.insert(counters).from_select(["batch_id", "worker_id"], select(moved.c.id, WRITER))
    return select(*(moved.c[each.name] for each in BATCH_COLUMNS)).add_cte(
        told.cte("told"), opened.on_conflict_do_nothing().cte("opened")
    )
