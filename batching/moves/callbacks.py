"""The outbox of callbacks: written by whoever ends a pass, in the same transaction; taken, settled, made to wait again.

A delivery is fenced like a run: taking a callback raises its `run` and pushes its due time ahead by a lease, and only
that run may settle it. A manager that dies on the way leaves a callback that is due again when the lease is over; so
each is delivered at least once, and always under the same id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import uuid_utils
from sqlalchemy import exists, literal, null, select, update
from sqlalchemy.dialects import postgresql, sqlite

from batching.callbacks import Callback, document
from batching.dialects import later, now
from batching.errors import IllegalMoveError, UnknownCallbackError
from batching.models import UNDELIVERED, batches, callbacks
from batching.moves import counters
from batching.moves.rows import is_id, lock_batch
from batching.states import BatchState, CallbackEvent, CallbackState, ProfileState

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection

    from batching.moves.rows import BatchRow


def tell_finish(connection: Connection, batch: BatchRow, state: BatchState, reason: str) -> None:
    """Write what is to be told of a batch that reaches a terminal state in this transaction."""
    if state is BatchState.SUCCEEDED:
        _tell(connection, batch, CallbackEvent.SUCCESS, state, reason)
    elif state is BatchState.FAILED:
        _tell(connection, batch, CallbackEvent.FAILURE, state, reason)
    _tell(connection, batch, CallbackEvent.FINISH, state, reason)


def tell_failed_pass(connection: Connection, batch: BatchRow, state: BatchState, reason: str) -> None:
    """Write what is to be told of a pass that failed, before its failures are pending again.

    Args:
        connection: In the transaction that opens the next pass.
        batch: As it was in the pass that failed.
        state: Where it goes: queued, or paused for a person.
        reason: Why the pass failed.
    """
    _tell(connection, batch, CallbackEvent.FAILURE, state, reason)


def _tell(connection: Connection, batch: BatchRow, event: CallbackEvent, state: BatchState, reason: str) -> None:
    """Once per batch, event and pass, which the table repeats; nothing is read or written when nobody asked."""
    target = batch.options.callback(event)
    if target is None:
        return
    named = connection.execute(select(batches.c.name, batches.c.key).where(batches.c.id == batch.id)).one()
    counts = counters.read(connection, batch.id)
    facts = {
        "event": event.value,
        "batch_id": batch.id,
        "name": named.name,
        "key": named.key,
        "queue": batch.queue,
        "handler": batch.handler,
        "pass": batch.pass_number,
        "state": state.value,
        "reason": reason,
        "total": batch.total,
        "counts": {each.value: counts.of(each) for each in ProfileState},
    }
    build = postgresql if connection.dialect.name == "postgresql" else sqlite
    row = {
        "id": str(uuid_utils.uuid7()),
        "batch_id": batch.id,
        "event": event,
        "pass_number": batch.pass_number,
        "target": target,
        "document": facts,
    }
    connection.execute(build.insert(callbacks).values(row).on_conflict_do_nothing())


def waits_for(batch_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a callback of a batch waits: such a batch is not pruned."""
    return exists().where(callbacks.c.batch_id == batch_id, callbacks.c.state == CallbackState.WAITING)


def are_due(connection: Connection) -> bool:
    """Whether there is anything to take; one look into an index that holds only what waits."""
    return (
        connection.scalar(select(callbacks.c.id).where(UNDELIVERED, callbacks.c.due_at <= now()).limit(1)) is not None
    )


def take(connection: Connection, limit: int, lease: float) -> list[Callback]:
    """Take what is due, the longest due first; nobody else gets it before the lease is over.

    Settles the race of two managers: each row is locked by one of them and passed over by the other.

    Args:
        connection: In a write transaction.
        limit: Callbacks.
        lease: Seconds.
    """
    due = connection.scalars(
        select(callbacks.c.id)
        .where(UNDELIVERED, callbacks.c.due_at <= now())
        .order_by(callbacks.c.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    if not due:
        return []
    rows = connection.execute(
        update(callbacks)
        .where(callbacks.c.id.in_(due), UNDELIVERED)
        .values(run=callbacks.c.run + 1, attempts=callbacks.c.attempts + 1, due_at=later(literal(lease)))
        .returning(
            callbacks.c.id,
            callbacks.c.run,
            callbacks.c.attempts,
            callbacks.c.target,
            callbacks.c.document,
            callbacks.c.created_at,
        )
    )
    return [
        Callback(row.id, row.run, row.attempts, row.target, document(row.id, row.created_at, row.document))
        for row in rows
    ]


def delivered(connection: Connection, taken: Callback) -> bool:
    """Waiting -> delivered; False when this delivery was void: its lease was over and another took it."""
    return _settle(connection, taken, {"state": CallbackState.DELIVERED, "settled_at": now(), "error": null()})


def failed(connection: Connection, taken: Callback, error: str, delay: float | None) -> bool:
    """Waiting, and due again after a delay; or dead.

    Args:
        connection: In a write transaction.
        taken: The delivery.
        error: What went wrong; shown to people.
        delay: Seconds; None: no more attempts.
    """
    if delay is None:
        return _settle(connection, taken, {"state": CallbackState.DEAD, "settled_at": now(), "error": error})
    return _settle(connection, taken, {"due_at": later(literal(delay)), "error": error})


def _settle(connection: Connection, taken: Callback, values: dict[str, Any]) -> bool:
    """Settles the race of a delivery that took too long with the one after it: only the latest run writes."""
    written = connection.execute(
        update(callbacks)
        .where(callbacks.c.id == taken.id, callbacks.c.run == taken.run, callbacks.c.state == CallbackState.WAITING)
        .values(values)
    )
    return written.rowcount == 1


def revive(connection: Connection, callback_id: str) -> None:
    """Dead -> waiting, due at once, with all its attempts.

    Settles the race with a prune: the batch's lock makes one the first, and a batch that is being deleted is unknown.

    Raises:
        UnknownCallbackError: There is none with this id.
        IllegalMoveError: It is not dead.
    """
    found = select(callbacks.c.batch_id).where(callbacks.c.id == callback_id)
    batch_id = connection.scalar(found) if is_id(callback_id) else None
    if batch_id is None:
        raise UnknownCallbackError(
            f"there is no callback {callback_id}; `batching callbacks list` shows those there are"
        )
    lock_batch(connection, batch_id)
    written = connection.execute(
        update(callbacks)
        .where(callbacks.c.id == callback_id, callbacks.c.state == CallbackState.DEAD)
        .values(state=CallbackState.WAITING, attempts=0, due_at=now(), settled_at=null())
    )
    if written.rowcount != 1:
        state = connection.scalar(select(callbacks.c.state).where(callbacks.c.id == callback_id))
        raise IllegalMoveError(
            f"cannot retry callback {callback_id}: it is {state}; only dead callbacks can be retried"
        )
