"""How the moves read a batch's row and write its history: shared by every move of a batch."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import and_, any_, exists, func, insert, literal_column, select, update

from batching.errors import IllegalMoveError, UnknownBatchError
from batching.interfaces import Lane, Terms
from batching.models import batches, history, leases, profiles
from batching.moves import counters
from batching.moves.counters import Counts
from batching.options import BatchOptions
from batching.parameters import is_among
from batching.states import BATCH_MOVES, BatchState, StopTarget

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from sqlalchemy import ColumnElement, Connection, Select, TextClause

    from batching.interfaces import LeaderTerm


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch as the moves need it."""

    id: str
    queue: str
    handler: str
    state: BatchState
    target: StopTarget | None
    priority: int
    group: str
    position: int
    generation: int
    rewritten: int
    rewrite_cursor: int
    pass_number: int
    last_pass: int
    partial: bool
    sealed: bool
    total: int
    options: BatchOptions

    @property
    def terms(self) -> Terms:
        """What all its profiles share while they run."""
        return Terms(Lane(self.queue, self.handler), self.pass_number, self.options)


#: The name of the one lease, until there is a leader per queue.
LEADER = "leader"


def leads(term: LeaderTerm) -> ColumnElement[bool]:
    """True while this epoch is the lease's: a leader that was replaced writes nothing."""
    return exists().where(leases.c.name == LEADER, leases.c.holder == term.holder, leases.c.epoch == term.epoch)


BATCH_COLUMNS = [batches.c[name] for name in BatchRow.__dataclass_fields__]


def as_batch(row: Sequence[Any]) -> BatchRow:
    """A row of `BATCH_COLUMNS`."""
    values = dict(zip(BatchRow.__dataclass_fields__, row, strict=True))
    values["state"] = BatchState(values["state"])
    values["target"] = StopTarget(values["target"]) if values["target"] else None
    values["options"] = BatchOptions.from_stored(values["options"])
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
        select(*BATCH_COLUMNS).where(batches.c.id == batch_id).with_for_update(key_share=True)
    ).one_or_none()
    if row is None or row.state == BatchState.LOADING:
        raise _unknown(batch_id)
    return as_batch(row)


def check_id(batch_id: str) -> None:
    """Refuse what is no id at all: PostgreSQL would raise an error about the syntax of a UUID.

    Raises:
        UnknownBatchError: It is not a UUID in its canonical form.
    """
    if not is_id(batch_id):
        raise _unknown(batch_id)


def is_id(text: str) -> bool:
    """Whether it is a UUID in its canonical form."""
    try:
        return str(uuid.UUID(text)) == text
    except (AttributeError, TypeError, ValueError):
        return False


def _unknown(batch_id: str) -> UnknownBatchError:
    return UnknownBatchError(f"there is no batch {batch_id}; `batching list` shows those there are")


def among(dialect: str, batch_id: ColumnElement[Any] | str, numbers: Select[Any]) -> ColumnElement[bool]:
    """Whether a profile is one of those of this batch that a query of `profiles.number` finds first.

    PostgreSQL is told where the rows lie instead of their numbers, and nothing else that leads to them: while it has no
    statistics about a table that has just been filled, or keeps a plan of the time when the table was small, it would
    look at all profiles of the batch for them, or pair each row with each. What lies there in the snapshot of this
    statement is what the query found. A row that somebody else writes in that moment is passed over, or (by servers
    older than "Add missing EPQ recheck for TID Scan") moved if the other conditions still hold: they must suffice.
    """
    if dialect == "postgresql":
        return _lies_at == any_(func.array(numbers.with_only_columns(_lies_at).scalar_subquery()))
    return and_(profiles.c.batch_id == batch_id, profiles.c.number.in_(numbers))


#: Where a row lies (https://www.postgresql.org/docs/current/ddl-system-columns.html).
_lies_at: ColumnElement[Any] = literal_column("profiles.ctid")


def read_batches(connection: Connection, batch_ids: Collection[str]) -> dict[str, BatchRow]:
    """Read batches without a lock; inside a ticket (see `counters`) what matters of them cannot change."""
    rows = connection.execute(_read_batches(connection.dialect.name), {"wanted": batch_ids})
    return {row.id: as_batch(row) for row in rows}


@lru_cache
def _read_batches(dialect: str) -> Select[Any]:
    return select(*BATCH_COLUMNS).where(is_among(dialect, batches.c.id, "wanted"))


def read_traceparent(connection: Connection, batch_id: str) -> str | None:
    """The trace that a batch was submitted in; None for none."""
    found: str | None = connection.scalar(select(batches.c.traceparent).where(batches.c.id == batch_id))
    return found


def interrupted(connection: Connection, batch_ids: Collection[str]) -> set[str]:
    """Those of these batches of which what runs is to be interrupted."""
    return set(connection.scalars(_interrupted(connection.dialect.name), {"wanted": batch_ids}))


@lru_cache
def _interrupted(dialect: str) -> Select[tuple[str]]:
    cancelled = batches.c.interrupt & (batches.c.state == BatchState.STOPPING)
    return select(batches.c.id).where(is_among(dialect, batches.c.id, "wanted"), cancelled)


def counted_batches(*conditions: ColumnElement[bool] | TextClause) -> Select[Any]:
    """The batches that fulfil some conditions, with their counts in the same snapshot; for `as_counted`."""
    return counters.with_sums(select(*BATCH_COLUMNS).where(*conditions))


def as_counted(rows: Iterable[Sequence[Any]]) -> list[tuple[BatchRow, Counts]]:
    """Rows of `counted_batches`."""
    width = len(BATCH_COLUMNS)
    return [(as_batch(row[:width]), Counts(*map(int, row[width:]))) for row in rows]


def read_counted(connection: Connection, batch_ids: Collection[str]) -> list[tuple[BatchRow, Counts]]:
    """Read batches and their counts without a lock, in one statement."""
    return as_counted(connection.execute(_read_counted(connection.dialect.name), {"wanted": batch_ids}))


@lru_cache
def _read_counted(dialect: str) -> Select[Any]:
    return counted_batches(is_among(dialect, batches.c.id, "wanted")).order_by(batches.c.id)


class Constants(NamedTuple):
    """What never changes of a batch."""

    lane: Lane
    options: BatchOptions


#: Of the batches that this process has met lately. An id is never given to another batch, so nothing here grows old.
_constants: dict[str, Constants] = {}
_CONSTANTS_KEPT = 1_000


def read_constants(connection: Connection, batch_ids: Iterable[str]) -> dict[str, Constants]:
    """What never changes of some batches; asks the database only for those that this process has not met yet."""
    found, unknown = {}, []
    for batch_id in batch_ids:
        if (known := _constants.get(batch_id)) is not None:
            found[batch_id] = known
        else:
            unknown.append(batch_id)
    if unknown:
        for each in read_batches(connection, unknown).values():
            found[each.id] = _keep(each.id, Constants(each.terms.lane, each.options))
    return found


def remember_constants(batch_id: str, queue: str, handler: str, options: dict[str, Any]) -> Constants:
    """What another statement read along the way."""
    return _constants.get(batch_id) or _keep(
        batch_id, Constants(Lane(queue, handler), BatchOptions.from_stored(options))
    )


def _keep(batch_id: str, constants: Constants) -> Constants:
    if len(_constants) >= _CONSTANTS_KEPT:
        _constants.clear()
    _constants[batch_id] = constants
    return constants


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
