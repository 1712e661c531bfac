"""How the moves read a batch's row and write its history: shared by every move of a batch."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import any_, func, insert, select, update

from batching.errors import IllegalMoveError, UnknownBatchError
from batching.interfaces import BatchOptions, Lane, Terms
from batching.models import batches, history
from batching.states import BATCH_MOVES, BatchState, StopTarget

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import ColumnElement, Connection, Row, Select


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch as the moves need it."""

    id: str
    queue: str
    handler: str
    state: BatchState
    target: StopTarget | None
    priority: int
    position: int
    generation: int
    rewritten: int
    rewrite_cursor: int
    pass_number: int
    last_pass: int
    sealed: bool
    total: int
    options: BatchOptions

    @property
    def terms(self) -> Terms:
        """What all its profiles share while they run."""
        return Terms(Lane(self.queue, self.handler), self.pass_number, self.options)


_COLUMNS = [batches.c[name] for name in BatchRow.__dataclass_fields__]


def _as_batch(row: Row[Any]) -> BatchRow:
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
    values["state"] = BatchState(values["state"])
    values["target"] = StopTarget(values["target"]) if values["target"] else None
    values["options"] = BatchOptions.from_dict(values["options"])
    return BatchRow(**values)


def lock_batch(connection: Connection, batch_id: str) -> BatchRow:
    """Read a batch under its row lock: verbs and conclusions of one batch happen one after the other.

    FOR NO KEY UPDATE, not FOR UPDATE: a settlement that holds its ticket inserts attempts, and their foreign key locks
    the key of the batch. Under FOR UPDATE it would wait for a stop that itself waits for the ticket.

    Raises:
        UnknownBatchError: No batch has this id, or it is still loading.
    """
    check_id(batch_id)
    row = connection.execute(
        select(*_COLUMNS).where(batches.c.id == batch_id).with_for_update(key_share=True)
    ).one_or_none()
    if row is None or row.state == BatchState.LOADING:
        raise _unknown(batch_id)
    return _as_batch(row)


def check_id(batch_id: str) -> None:
    """Refuse what is no id at all: PostgreSQL would raise an error about the syntax of a UUID.

    Raises:
        UnknownBatchError: It is not a UUID in its canonical form.
    """
    try:
        canonical = str(uuid.UUID(batch_id)) == batch_id
    except (AttributeError, TypeError, ValueError):
        canonical = False
    if not canonical:
        raise _unknown(batch_id)


def _unknown(batch_id: str) -> UnknownBatchError:
    return UnknownBatchError(f"there is no batch {batch_id}; `batching list` shows those there are")


def among(connection: Connection, column: ColumnElement[int], numbers: Select[Any]) -> ColumnElement[bool]:
    """`column IN (numbers)`, with the numbers found first.

    PostgreSQL would be free to join the two instead, and while it has no statistics about a table that has just been
    filled, it pairs each row with each: seconds for what takes milliseconds.
    """
    if connection.dialect.name == "postgresql":
        return column == any_(func.array(numbers.scalar_subquery()))
    return column.in_(numbers)


def read_batches(connection: Connection, batch_ids: Collection[str]) -> dict[str, BatchRow]:
    """Read batches without a lock; inside a ticket (see `counters`) what matters of them cannot change."""
    rows = connection.execute(select(*_COLUMNS).where(batches.c.id.in_(list(batch_ids))))
    return {row.id: _as_batch(row) for row in rows}


def move_batch(connection: Connection, batch: BatchRow, to: BatchState, reason: str, **values: Any) -> None:
    """Write one legal transition of a locked batch, and its history.

    The guard (state and generation as read under the lock) can only fail when the lock was not taken; it is there so
    that such a mistake changes nothing.
    """
    if to not in BATCH_MOVES[batch.state]:
        raise IllegalMoveError(f"cannot move batch {batch.id} from {batch.state} to {to}: there is no such move")
    written = connection.execute(
        update(batches)
        .where(batches.c.id == batch.id, batches.c.state == batch.state, batches.c.generation == batch.generation)
        .values(state=to, reason=reason, **values)
    )
    if written.rowcount != 1:
        raise IllegalMoveError(f"cannot move batch {batch.id} from {batch.state} to {to}: it changed meanwhile")
    remember(
        connection,
        batch,
        batch.state,
        to,
        reason,
        pass_number=values.get("pass_number", batch.pass_number),
        position=values.get("position", batch.position),
        generation=values.get("generation", batch.generation),
    )


def remember(
    connection: Connection, batch: BatchRow, was: BatchState | None, to: BatchState, reason: str, **facts: int
) -> None:
    """Add a line to the batch's history."""
    connection.execute(
        insert(history).values(
            batch_id=batch.id,
            from_state=was,
            to_state=to,
            reason=reason,
            pass_number=facts.get("pass_number", batch.pass_number),
            position=facts.get("position", batch.position),
            generation=facts.get("generation", batch.generation),
        )
    )
