"""The counters of a batch: exact, without a row that everybody writes.

Each writer (a worker, a leader) has one row per batch and adds what its own guarded statements really moved. That row
is also its ticket: a writer locks it *before* it looks at the batch, and a bulk move of the whole batch locks all of
them. So a writer that holds its ticket sees a batch state that cannot change under it, and a bulk move sees exact sums,
although neither writes the batch's row in the hot path. (A share lock on the batch's row would do the same, but
PostgreSQL lets new share locks pass a waiting exclusive one, so a busy fleet could hold up a pause for ever.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import func, insert, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite

from batching.models import NOBODY, batches, counters

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Connection

    from batching.states import ProfileState


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
    waits for the other. A missing row is made under a share lock of the batch, which a bulk move excludes; and before
    any counter row is locked, so that no cycle of waits can form.

    Returns:
        The batches that exist.
    """
    wanted = sorted(set(batch_ids))
    ours = (counters.c.worker_id == writer_id) & counters.c.batch_id.in_(wanted)
    have = set(connection.scalars(select(counters.c.batch_id).where(ours)))
    missing = [batch_id for batch_id in wanted if batch_id not in have]
    if missing:
        have |= _open_rows(connection, writer_id, missing)
    locked = connection.scalars(select(counters.c.batch_id).where(ours).order_by(counters.c.batch_id).with_for_update())
    return set(locked) & have


def _open_rows(connection: Connection, writer_id: str, batch_ids: list[str]) -> set[str]:
    existing = list(
        connection.scalars(
            select(batches.c.id).where(batches.c.id.in_(batch_ids)).order_by(batches.c.id).with_for_update(read=True)
        )
    )
    for batch_id in existing:
        _insert_missing(connection, batch_id, writer_id)
    return set(existing)


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
    columns = [func.coalesce(func.sum(counters.c[name]), literal(0)) for name in Counts._fields]
    rows = connection.execute(
        select(counters.c.batch_id, *columns)
        .where(counters.c.batch_id.in_(list(batch_ids)))
        .group_by(counters.c.batch_id)
    )
    sums = {row[0]: Counts(*(int(value) for value in row[1:])) for row in rows}
    return {batch_id: sums.get(batch_id, Counts()) for batch_id in batch_ids}


def fold(connection: Connection, batch_id: str) -> None:
    """Fold the rows of a finished batch into nobody's: workers come and go, the sums stay. The row must be locked."""
    lock_all(connection, batch_id)
    counts = read(connection, batch_id)
    connection.execute(counters.delete().where(counters.c.batch_id == batch_id))
    connection.execute(insert(counters).values(batch_id=batch_id, worker_id=NOBODY, **counts._asdict()))
