"""Submission: a loading batch that nobody sees, filled in chunks (`loading`), then sealed in one step or deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import uuid_utils
from sqlalchemy import Boolean, Double, String, bindparam, delete, func, insert, literal, select, update
from sqlalchemy.exc import IntegrityError

from batching.database import is_unique_violation
from batching.dialects import JSONText, Timestamp, later, never, now
from batching.errors import IllegalMoveError, QueueFullError
from batching.models import ACTIVE, attempts, batches, history, labels, profiles
from batching.moves import counters, dependencies, queue_order, room
from batching.moves.loading import LOADING_LEASE, LOADS
from batching.options import BatchReceipt, BatchSpec
from batching.specification import labels_of, moment_parameters
from batching.states import BatchState

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection


def create_batch(connection: Connection, spec: BatchSpec) -> BatchReceipt:
    """Write an empty loading batch, or find the one that holds the key.

    Settles the race of two producers with one key: UNIQUE (queue, key) lets one of them in; the other finds its batch.
    """
    queue_order.ensure_queue(connection, spec.queue)
    awaited = dependencies.find(connection, spec.queue, spec.after)
    if spec.key is not None and spec.replace_key:
        release_key(connection, spec.queue, spec.key)
    try:
        # Early, so that nothing is loaded in vain; `seal` asks again, for the profiles too.
        room.admit(connection, spec.queue, spec.group, 0)
    except QueueFullError:
        held = None if spec.key is None else find_key(connection, spec.queue, spec.key)
        if held is None:
            raise
        return held
    while True:
        batch_id = str(uuid_utils.uuid7())
        try:
            with connection.begin_nested():
                _insert_batch(connection, batch_id, spec)
                dependencies.record(connection, batch_id, awaited)
        except IntegrityError as error:
            if spec.key is None or not is_unique_violation(error):
                raise
            # None: its holder gave the key up, or was deleted, between the two statements; the key is free.
            if (found := find_key(connection, spec.queue, spec.key)) is not None:
                return found
        else:
            return BatchReceipt(batch_id, 0, created=True)


def _insert_batch(connection: Connection, batch_id: str, spec: BatchSpec) -> None:
    connection.execute(
        insert(batches).values(
            id=batch_id,
            queue=spec.queue,
            key=spec.key,
            name=spec.name,
            handler=spec.handler,
            state=BatchState.LOADING,
            priority=spec.priority,
            group=spec.group,
            position=0,
            last_pass=spec.options.max_passes,
            options=spec.options.as_dict(),
            loading_until=later(literal(LOADING_LEASE)),
            **asked_values(),
        ),
        asked_parameters(spec),
    )
    write_labels(connection, batch_id, spec)


def asked_values() -> dict[str, ColumnElement[Any]]:
    """The columns that the parameters of `asked_parameters` fill."""

    def moment(name: str) -> ColumnElement[Any]:
        absolute = bindparam(f"{name}_is", type_=Timestamp())
        return func.coalesce(absolute, later(bindparam(f"{name}_in", type_=Double())), type_=Timestamp())

    start = moment("start")
    return {
        "start_at": start,
        "not_before": start,
        "deadline": func.coalesce(moment("deadline"), never(), type_=Timestamp()),
        "awaiting": bindparam("awaiting", type_=Boolean()),
        "tags": bindparam("tags", type_=JSONText()),
        "properties": bindparam("properties", type_=JSONText()),
        "traceparent": bindparam("traceparent", type_=String(55)),
    }


def asked_parameters(spec: BatchSpec) -> dict[str, Any]:
    """What a producer asks for of when a batch runs, and what it is found by."""
    return {
        **moment_parameters("start", spec.start_at),
        **moment_parameters("deadline", spec.deadline),
        "awaiting": bool(spec.after),
        "tags": list(dict.fromkeys(spec.tags)) or None,
        "properties": dict(spec.properties) or None,
        "traceparent": spec.traceparent,
    }


def write_labels(connection: Connection, batch_id: str, spec: BatchSpec) -> None:
    """Write what the batch is found by."""
    found_by = [{"batch_id": batch_id, "name": name, "value": value} for name, value in labels_of(spec)]
    if found_by:
        connection.execute(insert(labels), found_by)


def find_key(connection: Connection, queue: str, key: str) -> BatchReceipt | None:
    """The batch that holds a key; `created` is False, and `total` is -1 while it still loads."""
    row = connection.execute(
        select(batches.c.id, batches.c.total, batches.c.state, batches.c.sealed).where(
            batches.c.queue == queue, batches.c.key == key
        )
    ).one_or_none()
    if row is None:
        return None
    loads = row.state == BatchState.LOADING
    return BatchReceipt(row.id, -1 if loads else row.total, created=False, open=not loads and not row.sealed)


def release_key(connection: Connection, queue: str, key: str) -> None:
    """Take the key from the batch that holds it, unless that still loads."""
    connection.execute(
        update(batches)
        .where(batches.c.queue == queue, batches.c.key == key, batches.c.state != BatchState.LOADING)
        .values(key=None)
    )


def seal(connection: Connection, batch_id: str, *, sealed: bool = True) -> int:
    """Loading -> queued at the end of its queue, with its counters; from this commit on everybody sees it.

    Settles the race with the sweep of abandoned batches: both are guarded by `loading` under the batch's lock. The
    queue's lock is not taken: the caller's own transaction may stay open for long, and every conclusion in the queue
    would wait for it. Two batches that are sealed at once may so get one position; their ids, made in order, decide.

    Args:
        connection: In a write transaction.
        batch_id: The batch.
        sealed: False leaves it open for more.

    Returns:
        The total number of profiles.

    Raises:
        QueueFullError: The queue has no room for it.
        IllegalMoveError: It does not load any more.
    """
    facts = connection.execute(
        select(batches.c.queue, batches.c.group, batches.c.total).where(batches.c.id == batch_id)
    ).one_or_none()
    if facts is None:
        raise _not_loading(batch_id)
    room.admit(connection, *facts)
    position = queue_order.tail(connection, facts.queue)
    total = connection.scalar(
        update(batches)
        .where(batches.c.id == batch_id, LOADS)
        .values(state=BatchState.QUEUED, sealed=sealed, position=position, loading_until=None, created_at=now())
        .returning(batches.c.total)
    )
    if total is None:
        raise _not_loading(batch_id)
    counters.open_with(connection, batch_id, {"pending": total})
    connection.execute(
        insert(history).values(
            batch_id=batch_id,
            from_state=BatchState.LOADING,
            to_state=BatchState.QUEUED,
            pass_number=1,
            position=position,
            generation=0,
            reason="submitted" if sealed else "opened",
        )
    )
    return int(total)


def _not_loading(batch_id: str) -> IllegalMoveError:
    return IllegalMoveError(f"cannot seal batch {batch_id}: it does not load any more; submit it again")


def delete_some(connection: Connection, batch_id: str, limit: int) -> bool:
    """Delete up to `limit` profiles of a batch, or at last the batch itself; returns whether something is left.

    Their attempts go with them, so that the cascade of the last step is bounded too. Only what is marked for deletion
    is deleted, by `lapse` or `condemn`: nobody sees it any more, and no verb can bring it back half way.
    """
    if not is_lapsed(connection, batch_id):
        return False
    first = connection.scalar(select(func.min(profiles.c.number)).where(profiles.c.batch_id == batch_id))
    if first is None:
        connection.execute(delete(batches).where(batches.c.id == batch_id))
        return False
    for table in (attempts, profiles):
        connection.execute(delete(table).where(table.c.batch_id == batch_id, table.c.number < first + limit))
    return True


def lapse(connection: Connection, batch_id: str, *, overdue_only: bool) -> bool:
    """Mark a loading batch for deletion, so that its producer can add nothing more; returns whether it was loading.

    Settles the race with a producer that comes back: adding and sealing are guarded by the lease's presence too.
    """
    condition = [batches.c.id == batch_id, batches.c.state == BatchState.LOADING]
    if overdue_only:
        condition.append(batches.c.loading_until < now())
    # Without a lease no chunk and no seal can follow. The key is free again at once; the rows go in steps.
    changed = connection.execute(update(batches).where(*condition).values(key=None, loading_until=None))
    return changed.rowcount == 1


def is_lapsed(connection: Connection, batch_id: str) -> bool:
    """Whether the deletion of a loading batch was begun."""
    row = connection.execute(
        select(batches.c.loading_until).where(batches.c.id == batch_id, batches.c.state == BatchState.LOADING)
    ).one_or_none()
    return row is not None and row.loading_until is None


def abandoned(connection: Connection, limit: int) -> list[str]:
    """Loading batches whose lease lapsed, or whose deletion was begun."""
    rows: Any = connection.scalars(
        select(batches.c.id)
        .where(
            ACTIVE,
            batches.c.state == BatchState.LOADING,
            func.coalesce(batches.c.loading_until < now(), literal(value=True)),
        )
        .order_by(batches.c.id)
        .limit(limit)
    )
    return list(rows)
