"""Reads of the outbox: which callbacks there are, and how far they got."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from batching.models import batches, callbacks
from batching.states import BatchState, CallbackEvent, CallbackState
from batching.statistics.search import whole_id
from batching.statistics.views import CallbackView

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection


def read_callbacks(
    connection: Connection, batch_id: str | None, states: Iterable[CallbackState] | None, limit: int, after: str | None
) -> list[CallbackView]:
    """The latest callbacks first.

    Args:
        connection: In a read transaction.
        batch_id: Only of this batch.
        states: Only in one of these states.
        limit: So many at most.
        after: Only those that come after the callback with this id.

    Raises:
        InvalidInputError: It is no id.
    """
    query = select(callbacks).join(batches, batches.c.id == callbacks.c.batch_id)
    query = query.where(batches.c.state != BatchState.LOADING)  # such a batch is being deleted
    if batch_id is not None:
        query = query.where(callbacks.c.batch_id == batch_id)
    if states is not None:
        query = query.where(callbacks.c.state.in_([CallbackState(state).value for state in states]))
    if after is not None:
        query = query.where(callbacks.c.id < whole_id(after, "callback"))
    rows = connection.execute(query.order_by(callbacks.c.id.desc()).limit(limit))
    return [_as_view(row) for row in rows]


def _as_view(row: Any) -> CallbackView:
    state = CallbackState(row.state)
    return CallbackView(
        id=row.id,
        batch_id=row.batch_id,
        event=CallbackEvent(row.event),
        pass_number=row.pass_number,
        target=row.target.partition("?")[0],
        state=state,
        attempts=row.attempts,
        due_at=row.due_at if state is CallbackState.WAITING else None,
        error=row.error,
        created_at=row.created_at,
        settled_at=row.settled_at,
    )
