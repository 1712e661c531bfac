"""The counters of a batch: exact, without a row that everybody writes.

Each writer (a worker, a leader) has one row per batch and adds what its own guarded statements really moved. That row
is also its ticket: a writer locks it *before* it looks at the batch, and a bulk move of the whole batch locks all of
them. So a writer that holds its ticket sees a batch state that cannot change under it, and a bulk move sees exact sums,
although neither writes the batch's row in the hot path. (A share lock on the batch's row would do the same, but
PostgreSQL lets new share locks pass a waiting exclusive one, so a busy fleet could hold up a pause for ever.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Integer, bindparam, func, insert, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite

from batching.dialects import Identifier
from batching.models import NOBODY, batches, counters
from batching.parameters import is_among

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Connection, Select
    from sqlalchemy.sql.dml import ReturningInsert

    from batching.states import ProfileState

_WRITER = bindparam("writer", type_=Identifier())


class Counts(NamedTuple):
    """The summed counters of one batch, over effective states."""

    pending: int = 0
    dispatched: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    skipped: int = 0
    cancelled: int = 0
    expired: int = 0
    aborts: int = 0
    duplicates: int = 0
    late: int = 0

    @property
    def unsettled(self) -> int:
        """Profiles that have no terminal state yet."""
        return self.pending + self.dispatched + self.running

    def of(self, state: ProfileState) -> int:
        """The count of one state."""
        return int(getattr(self, state.value))


def take_ticket(connection: Connection, writer_id: str, batch_ids: Collection[str]) -> set[str]:
    """Lock this writer's counter rows of these batches, in id order; make those that are missing.

    Settles the race between a writer of profiles and a bulk move (pause, cancel, next pass, …) of the same batch: one
    waits for the other. Whoever holds the ticket must read the batch in a *later* statement: this one may have waited
    for a bulk move, and would see the batch as it was before.

    One statement, when all rows are there. When one is missing it locks nothing at all; the row is then made under a
    share lock of the batch, which a bulk move excludes, and only afterwards is any counter row locked: a bulk move
    locks the batch first and then waits for counter rows, so the other order could close a cycle of waits. A row that
    goes between the look and its lock was folded into a finished batch, in which nothing is left to move.

    Returns:
        The batches that exist.
    """
    wanted = sorted(set(batch_ids))
    parameters = {"writer": writer_id, "wanted": wanted, "number": len(wanted)}
    locked: set[str] = set(connection.scalars(_lock_if_all_there(connection.dialect.name), parameters))
    if locked or not wanted:
        return locked
    if len(wanted) == 1:
        only = {"writer": writer_id, "batch": wanted[0]}
        return set(connection.scalars(_open_and_lock(connection.dialect.name), only))
    _open_rows(connection, writer_id, wanted)
    return set(connection.scalars(_lock(connection.dialect.name), parameters))


#: Tickets that this process has taken, lately: whose rows are likely to be there. Being wrong costs a statement.
_taken: set[tuple[str, str]] = set()
_REMEMBERED = 10_000


def is_new(writer_id: str, batch_id: str) -> bool:
    """Whether this process has not asked so for this ticket before: it is not likely to be there."""
    if (writer_id, batch_id) in _taken:
        return False
    if len(_taken) >= _REMEMBERED:
        _taken.clear()
    _taken.add((writer_id, batch_id))
    return True


@lru_cache
def _open_and_lock(dialect: str) -> ReturningInsert[Any]:
    """For one batch, its share lock, the row and the row's lock come in that order within one statement."""
    build = postgresql if dialect == "postgresql" else sqlite
    batch = select(batches.c.id, _WRITER).where(batches.c.id == bindparam("batch", type_=Identifier()))
    opened: Any = build.insert(counters).from_select(["batch_id", "worker_id"], batch.with_for_update(read=True))
    key = [counters.c.batch_id, counters.c.worker_id]
    locked: ReturningInsert[Any] = opened.on_conflict_do_update(
        index_elements=key, set_={"late": counters.c.late}
    ).returning(counters.c.batch_id)
    return locked


@lru_cache
def _lock(dialect: str) -> Select[Any]:
    ours = (counters.c.worker_id == _WRITER) & is_among(dialect, counters.c.batch_id, "wanted")
    return select(counters.c.batch_id).where(ours).order_by(counters.c.batch_id).with_for_update()


@lru_cache
def _lock_if_all_there(dialect: str) -> Select[Any]:
    seen = counters.alias("seen")
    ours = (seen.c.worker_id == _WRITER) & is_among(dialect, seen.c.batch_id, "wanted")
    there = select(func.count()).select_from(seen).where(ours).scalar_subquery()
    return _lock(dialect).where(there == bindparam("number", type_=Integer()))


def _open_rows(connection: Connection, writer_id: str, batch_ids: list[str]) -> None:
    existing = select(batches.c.id).where(batches.c.id.in_(batch_ids)).order_by(batches.c.id).with_for_update(read=True)
    for batch_id in list(connection.scalars(existing)):
        _insert_missing(connection, batch_id, writer_id)


def open_row(connection: Connection, batch_id: str, writer_id: str) -> None:
    """Make a writer's row of a batch whose own row is locked."""
    _insert_missing(connection, batch_id, writer_id)


def _insert_missing(connection: Connection, batch_id: str, writer_id: str) -> None:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(counters).values(batch_id=batch_id, worker_id=writer_id).on_conflict_do_nothing())


def add(connection: Connection, batch_id: str, writer_id: str, deltas: Mapping[str, int]) -> None:
    """Add deltas to this writer's row of the batch; its ticket must be held."""
    changes = {name: delta for name, delta in deltas.items() if delta}
    if changes:
        connection.execute(
            update(counters)
            .where(counters.c.batch_id == batch_id, counters.c.worker_id == writer_id)
            .values({name: counters.c[name] + delta for name, delta in changes.items()})
        )


def open_with(connection: Connection, batch_id: str, deltas: Mapping[str, int]) -> None:
    """Write nobody's row of a batch whose row is locked: what submission and verbs count."""
    _insert_missing(connection, batch_id, NOBODY)
    add(connection, batch_id, NOBODY, deltas)


def lock_all(connection: Connection, batch_id: str) -> None:
    """Wait for every writer of this batch and keep them out; the batch's row must be locked first."""
    connection.execute(
        select(counters.c.worker_id)
        .where(counters.c.batch_id == batch_id)
        .order_by(counters.c.worker_id)
        .with_for_update()
    )


def read(connection: Connection, batch_id: str) -> Counts:
    """The sums of one batch, as committed when this statement starts."""
    return read_many(connection, [batch_id])[batch_id]


def read_many(connection: Connection, batch_ids: Collection[str]) -> dict[str, Counts]:
    """The sums of several batches; a batch without rows counts nothing."""
    rows = connection.execute(_read_many(connection.dialect.name), {"wanted": batch_ids})
    sums = {row[0]: Counts(*map(int, row[1:])) for row in rows}
    return {batch_id: sums.get(batch_id, Counts()) for batch_id in batch_ids}


_SUMS = [func.coalesce(func.sum(counters.c[name]), literal(0)).label(f"sum_{name}") for name in Counts._fields]


@lru_cache
def _read_many(dialect: str) -> Select[Any]:
    return (
        select(counters.c.batch_id, *_SUMS)
        .where(is_among(dialect, counters.c.batch_id, "wanted"))
        .group_by(counters.c.batch_id)
    )


def with_sums(chosen: Select[Any]) -> Select[Any]:
    """A query of batches with the sums of each behind its columns, in the order of `Counts`: one snapshot of both."""
    joined = chosen.add_columns(*_SUMS).join_from(batches, counters, counters.c.batch_id == batches.c.id, isouter=True)
    return joined.group_by(batches.c.id)


def fold(connection: Connection, batch_id: str) -> None:
    """Fold the rows of a finished batch into nobody's: workers come and go, the sums stay. The row must be locked."""
    lock_all(connection, batch_id)
    counts = read(connection, batch_id)
    connection.execute(counters.delete().where(counters.c.batch_id == batch_id))
    connection.execute(insert(counters).values(batch_id=batch_id, worker_id=NOBODY, **counts._asdict()))
