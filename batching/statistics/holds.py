"""What holds back a running batch of which nothing is in flight: its queue's pause or cap, or a rate limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from batching.brakes import LimitKey
from batching.models import batches, counters, queues
from batching.moves.braking import read_limits
from batching.options import BatchOptions
from batching.policies import brakes_of, names_of
from batching.states import BatchState, LimitKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection


def read_holds(connection: Connection, rows: Sequence[Any]) -> dict[str, str]:
    """Why each of these batches cannot dispatch now; those that can are absent.

    Args:
        connection: In a read transaction.
        rows: Of the table of batches, with `queue_paused`.
    """
    if not rows:
        return {}
    spent = {limit.key: limit for limit in read_limits(connection) if limit.available < 1}
    caps = _reached(connection, {row.queue for row in rows})
    found = {}
    for row in rows:
        options = BatchOptions.from_stored(row.options)
        shared = (*names_of(options), LimitKey(LimitKind.HANDLER, row.handler), LimitKey(LimitKind.QUEUE, row.queue))
        held = [spent[key] for key in (*brakes_of(row.id, options).limits, *shared) if key in spent]
        if row.queue_paused:
            found[row.id] = f"queue {row.queue} is paused"
        elif row.queue in caps:
            found[row.id] = f"queue {row.queue} is at its cap of {caps[row.queue]:,} profiles at once"
        elif held:
            own = held[0].key.kind is LimitKind.BATCH
            name = "its own rate limit" if own else f"the rate limit of {held[0].key.kind} {held[0].key.name}"
            found[row.id] = f"waits for {name}, {held[0].per_second:g} profiles a second"
    return found


def _reached(connection: Connection, names: set[str]) -> dict[str, int]:
    """The caps of those of these queues that are at them."""
    in_flight = func.coalesce(func.sum(counters.c.dispatched + counters.c.running), 0)
    active = batches.c.state.in_([BatchState.RUNNING.value, BatchState.STOPPING.value])
    rows = connection.execute(
        select(queues.c.name, queues.c.max_concurrency)
        .select_from(
            queues.join(batches, (batches.c.queue == queues.c.name) & active).join(
                counters, counters.c.batch_id == batches.c.id
            )
        )
        .where(queues.c.name.in_(sorted(names)), queues.c.max_concurrency.is_not(None))
        .group_by(queues.c.name, queues.c.max_concurrency)
        .having(in_flight >= queues.c.max_concurrency)
    )
    return {row.name: row.max_concurrency for row in rows}
