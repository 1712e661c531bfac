"""Positions: sparse numbers that order a queue. Made under the queue's row lock, which is always taken first."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Update, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from batching.dialects import Identifier
from batching.errors import IllegalMoveError, InvalidInputError
from batching.models import batches, queues
from batching.moves.rows import BatchRow, check_id, lock_batch, remember
from batching.parameters import encode_rows, parameter_rows
from batching.states import BatchState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection
    from sqlalchemy.types import TypeEngine


def ensure_queue(connection: Connection, name: str) -> None:
    """Make the queue's row when it is not there; two producers may do so at once."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(queues).values(name=name).on_conflict_do_nothing())


def change(connection: Connection, name: str, settings: Mapping[str, object]) -> bool:
    """Write some settings of a queue, in one statement: of two operators who change the same one, the later holds.

    Returns:
        Whether there is a queue of this name.
    """
    return connection.execute(update(queues).where(queues.c.name == name).values(dict(settings))).rowcount == 1


def lock_queue(connection: Connection, name: str) -> None:
    """Take the queue's lock. Whoever changes positions of batches in line holds it; it comes before any batch's lock.

    FOR NO KEY UPDATE: a producer whose new batch refers to the queue waits for nobody, and nobody for its transaction.
    """
    connection.execute(select(queues.c.name).where(queues.c.name == name).with_for_update(key_share=True))


def lock_queue_of(connection: Connection, batch_id: str) -> None:
    """Take the lock of a batch's queue; a batch never changes its queue, so reading the name needs no lock."""
    check_id(batch_id)
    name = connection.scalar(select(batches.c.queue).where(batches.c.id == batch_id))
    if name is not None:
        lock_queue(connection, name)


def tail(connection: Connection, queue: str) -> int:
    """A position behind all others of the queue; its lock must be held."""
    largest = connection.scalar(select(func.max(batches.c.position)).where(batches.c.queue == queue))
    return (largest or 0) + 1


def front(connection: Connection, queue: str) -> int:
    """A position before all others of the queue; its lock must be held."""
    smallest = connection.scalar(select(func.min(batches.c.position)).where(batches.c.queue == queue))
    return (smallest or 0) - 1


def move(connection: Connection, batch_id: str, place: int | str) -> int:
    """Put a waiting batch to another place among the waiting batches of its priority, group and deadline.

    Settles the race between two operators: the queue's lock makes one of them first, and the other sees its order.

    Args:
        connection: In a write transaction.
        batch_id: A batch that is queued or paused.
        place: `front`, `end`, or 1 for next, 2 for the one after it, ….

    Returns:
        The batch's new position.

    Raises:
        IllegalMoveError: The batch does not wait.
        InvalidInputError: The place is none.
    """
    if place not in {"front", "end"} and (isinstance(place, bool) or not isinstance(place, int) or place < 1):
        raise InvalidInputError(f"cannot move batch {batch_id} to {place!r}: a place is front, end, or 1, 2, 3, …")
    lock_queue_of(connection, batch_id)
    if isinstance(place, int):
        _lock_line(connection, batch_id)
    batch = lock_batch(connection, batch_id)
    if batch.state not in {BatchState.QUEUED, BatchState.PAUSED}:
        raise IllegalMoveError(
            f"cannot move batch {batch_id}: it is {batch.state}; only queued and paused batches have a place to change"
        )
    if place == "front":
        position = front(connection, batch.queue)
        _write(connection, batch, position)
    elif place == "end":
        position = tail(connection, batch.queue)
        _write(connection, batch, position)
    else:
        position = _insert_at(connection, batch, int(place))
    remember(connection, batch, batch.state, batch.state, f"moved to {place}", position=position)
    return position


def _lock_line(connection: Connection, batch_id: str) -> None:
    """Lock all that may get a new position, in id order: a worker's first ticket share-locks batches in that order."""
    own = select(batches.c.queue).where(batches.c.id == batch_id).scalar_subquery()
    connection.execute(
        select(batches.c.id)
        .where(batches.c.queue == own, (batches.c.state == BatchState.QUEUED) | (batches.c.id == batch_id))
        .order_by(batches.c.id)
        .with_for_update(key_share=True)
    )


def _insert_at(connection: Connection, batch: BatchRow, place: int) -> int:
    """Deal the positions that the waiting batches have out again, in the new order."""
    rows = connection.execute(
        select(batches.c.id, batches.c.position)
        .where(
            batches.c.queue == batch.queue,
            batches.c.priority == batch.priority,
            batches.c.group == batch.group,
            # A deadline orders before the position: among others, a new position would be no new place.
            batches.c.deadline == select(batches.c.deadline).where(batches.c.id == batch.id).scalar_subquery(),
            (batches.c.state == BatchState.QUEUED) | (batches.c.id == batch.id),
        )
        .order_by(batches.c.position, batches.c.id)
    ).all()
    order = [row.id for row in rows if row.id != batch.id]
    order.insert(min(place - 1, len(order)), batch.id)
    # Equal positions (two batches moved to the front of an empty queue) would leave the order to the ids.
    slots = [row.position for row in rows]
    if len(set(slots)) != len(slots):
        slots = list(range(slots[0], slots[0] + len(slots)))
    new: dict[str, int] = dict(zip(order, slots, strict=True))
    if dealt := [(row.id, new[row.id]) for row in rows if new[row.id] != row.position]:
        dialect = connection.dialect.name
        connection.execute(_deal(dialect), encode_rows(dialect, "dealt", _DEALT, dealt))
    return new[batch.id]


_DEALT: Final[dict[str, TypeEngine[Any]]] = {"id": Identifier(), "position": BigInteger()}


@lru_cache
def _deal(dialect: str) -> Update:
    dealt = parameter_rows(dialect, "dealt", _DEALT)
    return update(batches).where(batches.c.id == dealt.c.id).values(position=dealt.c.position)


def _write(connection: Connection, batch: BatchRow, position: int) -> None:
    connection.execute(update(batches).where(batches.c.id == batch.id).values(position=position))
