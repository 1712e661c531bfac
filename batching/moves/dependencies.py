"""Batches that wait for others: recorded with the batch, and looked at when one of those has ended.

A batch waits only for batches that existed when it was submitted, and nothing is ever added later, so no cycle of them
can be: whichever batch of a cycle was submitted last, another one would have had to name it before it existed.

Nobody has to be there when a batch ends: the leader finds, in every look, who waits for a batch that is over. So a
batch that ends while another is being submitted after it, in a transaction that may stay open for long, neither waits
for that transaction nor is missed.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Select, and_, exists, insert, select, update

from batching.dialects import now
from batching.errors import InvalidInputError
from batching.models import UNMET, batches, dependencies
from batching.moves.rows import remember
from batching.states import TERMINAL_BATCH_STATES, BatchState, DependsOn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection

    from batching.moves.rows import BatchRow
    from batching.options import After

#: Batches that wait, in one look of the leader: the next look sees the others.
_MANY = 100


class Unmet(NamedTuple):
    """One batch that another still waits for."""

    on_batch_id: str
    wants: DependsOn
    state: BatchState

    @property
    def is_met(self) -> bool:
        """Whether it has ended as it was wanted."""
        return self.state is BatchState.SUCCEEDED or (self.wants is DependsOn.ANY and self.is_over)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state in TERMINAL_BATCH_STATES


def find(connection: Connection, queue: str, after: Sequence[After]) -> dict[str, DependsOn]:
    """The batches that one which is about to be written shall wait for. Before it is there: or it could find itself.

    Settles the race with a prune: each batch that is named is locked so that it cannot be condemned until this is
    committed, and one that was condemned before is unknown. It may end meanwhile: see the module.

    Raises:
        InvalidInputError: A name is no batch's.
    """
    found: dict[str, DependsOn] = {}
    for each in after:
        on_batch_id = _find(connection, queue, each)
        # Named twice, the stricter wish holds.
        if found.get(on_batch_id) is not DependsOn.SUCCESS:
            found[on_batch_id] = each.wants
    return found


def record(connection: Connection, batch_id: str, found: Mapping[str, DependsOn]) -> None:
    """Write what a new batch waits for."""
    rows = [{"batch_id": batch_id, "on_batch_id": key, "wants": wants} for key, wants in found.items()]
    if rows:
        connection.execute(insert(dependencies), rows)


def _find(connection: Connection, queue: str, after: After) -> str:
    try:
        named = batches.c.id == str(uuid.UUID(after.name))
    except ValueError:
        named = and_(batches.c.queue == queue, batches.c.key == after.name)
    # Until the commit: a lock that lets everything but a deletion pass.
    lock = select(batches.c.id, batches.c.state).where(named).with_for_update(read=True, key_share=True)
    row = connection.execute(lock).one_or_none()
    if row is None or row.state == BatchState.LOADING:
        raise InvalidInputError(
            f"cannot submit after {after.name!r}: there is no batch with this id, and none with this key in the queue "
            f"{queue}; submit that one first"
        )
    return str(row.id)


def unmet(connection: Connection, batch_id: str) -> list[Unmet]:
    """What a batch still waits for, with what became of it."""
    return unmet_of(connection, [batch_id]).get(batch_id, [])


def unmet_of(connection: Connection, batch_ids: Sequence[str]) -> dict[str, list[Unmet]]:
    """What some batches still wait for; those that wait for nothing are absent."""
    if not batch_ids:
        return {}
    rows = connection.execute(
        select(dependencies.c.batch_id, dependencies.c.on_batch_id, dependencies.c.wants, batches.c.state)
        .join(batches, batches.c.id == dependencies.c.on_batch_id)
        .where(dependencies.c.batch_id.in_(batch_ids), dependencies.c.met_at.is_(None))
        .order_by(dependencies.c.on_batch_id)
    )
    found: dict[str, list[Unmet]] = defaultdict(list)
    for row in rows:
        found[row.batch_id].append(Unmet(row.on_batch_id, DependsOn(row.wants), BatchState(row.state)))
    return found


def settle(connection: Connection, batch: BatchRow) -> list[Unmet]:
    """Note what is met of a locked batch's dependencies; it may start when nothing is left. Met stays met.

    Returns:
        What is left.
    """
    found = unmet(connection, batch.id)
    met = [each.on_batch_id for each in found if each.is_met]
    if met:
        connection.execute(
            update(dependencies)
            .where(dependencies.c.batch_id == batch.id, dependencies.c.on_batch_id.in_(met))
            .values(met_at=now())
        )
    left = [each for each in found if not each.is_met]
    awaiting = update(batches).where(batches.c.id == batch.id, batches.c.awaiting.is_(not left))
    if connection.execute(awaiting.values(awaiting=bool(left))).rowcount and not left:
        remember(connection, batch, batch.state, batch.state, "waits for no other batch any more")
    return left


def broken(left: Sequence[Unmet]) -> str:
    """Why a batch can never start, given what it still waits for; empty while it can."""
    for each in left:
        if each.is_over:
            return f"batch {each.on_batch_id}, whose success it waits for, is {each.state}"
    return ""


def due() -> Select[Any]:
    """The batches that wait for one that is over; for the leader's look."""
    over = batches.alias("over")
    return (
        select(batches.c.id)
        .join(dependencies, dependencies.c.batch_id == batches.c.id)
        .join(over, over.c.id == dependencies.c.on_batch_id)
        .where(
            UNMET,
            over.c.finished_at.is_not(None),
            batches.c.awaiting,
            batches.c.state.in_([BatchState.QUEUED, BatchState.PAUSED]),
        )
        .limit(_MANY)
    )


def is_awaited(batch_id: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a batch that is not over waits for this one."""
    waiting = batches.alias("waiting")
    return exists(
        select(dependencies.c.batch_id)
        .join(waiting, waiting.c.id == dependencies.c.batch_id)
        .where(dependencies.c.on_batch_id == batch_id, dependencies.c.met_at.is_(None), waiting.c.finished_at.is_(None))
        .correlate(batches)
    )
