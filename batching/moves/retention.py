"""Retention: which finished batches may go, and the step from which on they are gone for everybody."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import literal, or_, select, update

from batching.dialects import later
from batching.errors import InvalidInputError
from batching.models import batches
from batching.moves import callbacks, dependencies
from batching.states import TERMINAL_BATCH_STATES, BatchState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import ColumnElement, Connection


class Stale(NamedTuple):
    """What is old enough to go."""

    days: float
    """Since it ended."""
    states: tuple[str, ...] = ()
    """Only in one of these; empty for all in which a batch has ended."""
    queue: str | None = None
    """Only of this queue."""

    @classmethod
    def of(cls, days: float, states: Iterable[BatchState | str] | None, queue: str | None) -> Stale:
        """What a person asks for.

        Raises:
            InvalidInputError: A batch cannot have ended in one of the states.
        """
        wanted = tuple(str(state) for state in states or ())
        for state in wanted:
            if state not in TERMINAL_BATCH_STATES:
                known = ", ".join(sorted(TERMINAL_BATCH_STATES))
                raise InvalidInputError(f"cannot prune batches that are {state!r}: only what is {known} can be pruned")
        return cls(days, wanted, queue)


def awaited() -> ColumnElement[bool]:
    """Whether something still waits for a batch, which therefore stays, however old it is: the one place that says so.

    A condition on the table of batches.
    """
    return or_(callbacks.waits_for(batches.c.id), dependencies.is_awaited(batches.c.id))


def stale(connection: Connection, wanted: Stale, limit: int) -> list[str]:
    """Batches that may go, the oldest first; through the index of what has finished."""
    conditions = [
        batches.c.finished_at.is_not(None),
        batches.c.finished_at < later(literal(-wanted.days * 86_400.0)),
        ~awaited(),
    ]
    if wanted.states:
        conditions.append(batches.c.state.in_(wanted.states))
    if wanted.queue is not None:
        conditions.append(batches.c.queue == wanted.queue)
    return list(
        connection.scalars(select(batches.c.id).where(*conditions).order_by(batches.c.finished_at).limit(limit))
    )


def condemn(connection: Connection, batch_id: str) -> bool:
    """Mark a finished batch for deletion: from this commit on it is gone for everybody; returns whether it was there.

    Settles the race of a prune with a retry, of the batch or of one of its callbacks, and with a batch that is being
    submitted after it: whoever comes first. The lock comes in a statement of its own, so that the next one sees what
    was committed before; it waits for whoever refers to the batch (`dependencies.find`). A prune that is killed on
    its way leaves a loading batch without a lease, which the sweep deletes.
    """
    connection.execute(select(batches.c.id).where(batches.c.id == batch_id).with_for_update())
    changed = connection.execute(
        update(batches)
        .where(batches.c.id == batch_id, batches.c.finished_at.is_not(None), ~awaited())
        .values(state=BatchState.LOADING, finished_at=None, key=None, loading_until=None)
    )
    return changed.rowcount == 1
