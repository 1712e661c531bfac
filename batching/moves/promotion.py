"""Promotion: the next batch in line runs, and the first of its profiles are dispatched with it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    CTE,
    JSON,
    Integer,
    Select,
    Text,
    bindparam,
    case,
    cast,
    column,
    exists,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql

from batching.dialects import Identifier, now
from batching.interfaces import Lane
from batching.models import LINE_ORDER, batches, counters, history, queues
from batching.moves import profile, turns
from batching.moves.counters import open_row
from batching.moves.rows import BATCH_COLUMNS, as_batch, move_batch
from batching.moves.statements import LEADS, UNFLUSHED, WRITER, dispatch_of
from batching.states import BatchState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import ColumnElement, Connection

    from batching.direct import Single
    from batching.interfaces import Dispatch, LeaderTerm
    from batching.moves.rows import BatchRow


class Plan(NamedTuple):
    """What may be promoted, and how much of it dispatched at once."""

    handlers: Collection[str] | None
    """Only batches of these; None: the next of all."""
    rooms: Mapping[str, int]
    """Profiles that there is room for, by handler; none for others."""
    most: int
    """Profiles in one dispatch, at most; `rooms` has no more."""
    in_turns: bool = False
    """Groups take turns in the queue: `turns.next_turn` chooses."""
    spent: Collection[str] = ()
    """Shared rate limits that have nothing to give: no batch that names one of them."""


class Start(NamedTuple):
    """A batch that was promoted, and what was dispatched of it in the same transaction."""

    batch_id: str
    total: int
    lane: Lane
    dispatches: list[Dispatch]


def promote(
    connection: Connection,
    queue: str,
    term: LeaderTerm,
    handlers: Collection[str] | None = None,
    chosen: str | None = None,
) -> BatchRow | None:
    """Queued -> running for the next batch in line, with a counter row for the leader; none that backs off.

    With `handlers`, the next of those that go to one of them: idle workers gain nothing from any other. Where groups
    take turns, the next in line is nobody's turn: only what was `chosen` (`turns.next_turn`) is promoted.

    Settles the race of two leaders: the row is locked and skipped by the other, and the epoch guards the write.
    """
    served = [] if handlers is None else [batches.c.handler.in_(sorted(handlers))]
    parameters = {"line": queue, "writer": term.holder, "epoch": term.epoch, "chosen": chosen}
    row = connection.execute(_next(*served, chosen=chosen is not None), parameters).first()
    if row is None:
        return None
    batch = as_batch(row)
    changes = {"urgent": False, "not_before": null(), "started_at": _started_at()}
    move_batch(connection, batch, BatchState.RUNNING, f"pass {batch.pass_number} begins", **changes)
    open_row(connection, batch.id, term.holder)
    return batch


def start(
    connection: Connection, queue: str, term: LeaderTerm, plan: Plan, max_losses: int, chosen: str | None = None
) -> Start | None:
    """Promote the next batch in line, and dispatch the first of its profiles with it; on PostgreSQL in one statement.

    Settles what `promote` and `profile.dispatch` settle. The batch's row is locked, and every bulk move locks it first,
    so this writer needs no ticket. The one statement looks at the batch again once it has the lock; of its profiles it
    sees those that it saw at its start, and moves those that nobody moved since.

    Args:
        connection: In a write transaction.
        queue: Whose line.
        term: The leader's.
        plan: What may be promoted, and how much of it dispatched.
        max_losses: As for `profile.dispatch`.
        chosen: As for `promote`.
    """
    if connection.dialect.name == "postgresql":
        return start_at_once(connection, queue, term, plan, max_losses, chosen)
    batch = promote(connection, queue, term, plan.handlers, chosen)
    if batch is None:
        return None
    lane, options = batch.terms.lane, batch.options
    ceilings = [each for each in (options.window, options.max_concurrency) if each is not None]
    limit = min([plan.rooms.get(lane.handler, 0), plan.most, *ceilings])
    if options.rate_limit is not None or options.rate_limits:
        limit = 0  # tokens are taken by the dispatch that follows
    dispatches = profile.dispatch_some(connection, batch.id, limit, term, lane, max_losses) if limit > 0 else []
    return Start(batch.id, batch.total, lane, dispatches)


def start_at_once(
    connection: Single, queue: str, term: LeaderTerm, plan: Plan, max_losses: int, chosen: str | None = None
) -> Start | None:
    """What `start` does on PostgreSQL: one statement, which needs no transaction around it."""
    parameters = {
        "line": queue,
        "writer": term.holder,
        "epoch": term.epoch,
        "served": None if plan.handlers is None else sorted(plan.handlers),
        "handlers": list(plan.rooms),
        "rooms": [max(0, room) for room in plan.rooms.values()],
    }
    if chosen is not None:
        parameters["chosen"] = chosen
    rows = connection.execute(_start_statement(chosen=chosen is not None), parameters).all()
    if not rows:
        return None
    batch_id, total, handler = rows[0][:3]
    sent = [row[3:] for row in rows if row[3] is not None]  # without a row of its own, the batch stands there alone
    lane = Lane(queue, handler)
    return Start(batch_id, total, lane, profile.as_dispatches(sent, batch_id, lane, max_losses))


def _next(*served: ColumnElement[bool], chosen: bool) -> Select[Any]:
    """The first in line, or the one whose turn it is, locked; what another leader has locked is passed over."""
    queue = bindparam("line", type_=Text())
    turn = [batches.c.id == bindparam("chosen", type_=Identifier())] if chosen else [~turns.grouped(queue)]
    return (
        select(*BATCH_COLUMNS)
        .where(
            batches.c.queue == queue,
            turns.may_start(),
            *turn,
            ~exists().where(queues.c.name == queue, or_(queues.c.paused, queues.c.draining)),
            LEADS,
            *served,
        )
        .order_by(*LINE_ORDER)
        .limit(literal_column("1"))
        .with_for_update(skip_locked=True, key_share=True)
    )


def _started_at() -> ColumnElement[Any]:
    return case((batches.c.pass_number == 1, now()), else_=batches.c.started_at)


@lru_cache
def _start_statement(*, chosen: bool) -> Select[Any]:
    """All of it; the guards repeat what the lock makes sure of, as in `move_batch`."""
    served = bindparam("served", type_=ARRAY(Text()))
    first = _next(or_(served.is_(None), batches.c.handler == func.any(served)), chosen=chosen).cte("first")
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
        ).where(UNFLUSHED),
    )
    sent = dispatch_of(moved, _room_of(moved)).cte("sent")
    number = select(func.count()).select_from(sent).scalar_subquery()
    counted = postgresql.insert(counters).from_select(
        ["batch_id", "worker_id", "pending", "dispatched"], select(moved.c.id, WRITER, -number, number)
    )
    counted = counted.on_conflict_do_update(
        index_elements=[counters.c.batch_id, counters.c.worker_id],
        set_={name: counters.c[name] + counted.excluded[name] for name in ("pending", "dispatched")},
    )
    return (
        select(moved.c.id, moved.c.total, moved.c.handler, sent)
        .select_from(moved.outerjoin(sent, true()))
        .add_cte(told.cte("told"), counted.cte("counted"))
    )


def _room_of(moved: CTE) -> ColumnElement[int]:
    """Of the batch's handler, and no more than the batch's own window; nothing for a handler that nobody serves."""
    rooms = (
        func.unnest(bindparam("handlers", type_=ARRAY(Text())), bindparam("rooms", type_=ARRAY(Integer())))
        .table_valued(column("handler", Text()), column("room", Integer()), name="rooms")
        .render_derived()
    )
    options = cast(moved.c.options, JSON())
    ceilings = [cast(options[name].as_string(), Integer()) for name in ("window", "max_concurrency")]
    # With a limit, tokens are taken by the dispatch that follows.
    unlimited = options["rate_limit"].as_string().is_(None) & (
        func.coalesce(options["rate_limits"].as_string(), "[]") == "[]"
    )
    least = (
        select(func.least(rooms.c.room, *ceilings))
        .select_from(moved)
        .where(rooms.c.handler == moved.c.handler, unlimited)
    )
    return func.coalesce(least.scalar_subquery(), 0)  # LIMIT NULL would be no limit at all
