"""What a queue, or each group in it, may hold at once: asked when a batch is submitted to a queue that has a limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, exists, func, literal, select

from batching.errors import QueueFullError
from batching.models import batches, counters, queues
from batching.states import BatchState

if TYPE_CHECKING:
    from sqlalchemy import Connection

#: What takes room: in line or running. A batch that was put aside (paused, parked) takes none.
_HELD: Final = (BatchState.QUEUED, BatchState.RUNNING, BatchState.STOPPING)
#: The first half of the key of PostgreSQL's advisory lock; the second is the queue's.
_LOCK: Final = 0x62617463

_LIMITS: Final = (queues.c.intake_batches, queues.c.intake_profiles, queues.c.intake_per_group)
_LIMITED: Final = func.coalesce(queues.c.intake_batches, queues.c.intake_profiles).is_not(None)


def is_limited(queue: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a queue has a limit, as a condition."""
    return exists(select(literal(1)).where(queues.c.name == queue, _LIMITED))


def admit(connection: Connection, queue: str, group: str, profiles: int, *, appended: bool = False) -> None:
    """Refuse a batch, or more profiles, that a queue has no room for: counts batches, sums counters, reads no profile.

    Settles the race of two producers for the last place: on PostgreSQL, whoever asks holds a lock until its commit, and
    the next one counts after that; SQLite has one writer anyway. It is no lock of the queue's row, since whoever
    concludes a batch needs that one, and the producer's transaction may stay open for long.

    Args:
        connection: In the transaction that puts the batch in line.
        queue: Where it goes.
        group: Its group.
        profiles: Those that it brings.
        appended: They come to a batch that is there; its lock is held.

    Raises:
        QueueFullError: Says what was found, and the limit.
    """
    limits = connection.execute(select(*_LIMITS).where(queues.c.name == queue, _LIMITED)).one_or_none()
    if limits is None:
        return
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK, func.hashtext(queue))))
    most_batches, most_profiles, per_group = limits
    held = [
        batches.c.queue == queue,
        batches.c.finished_at.is_(None),  # leads to the index of those that have not ended, which are few
        batches.c.state.in_(_HELD),
        *([batches.c.group == group] if per_group else []),
    ]
    whose = f"group {group!r} in queue {queue}" if per_group else f"queue {queue}"
    if most_batches is not None and not appended:
        found = _number(connection, select(func.count()).select_from(batches).where(*held))
        if found >= most_batches:
            raise _full(whose, f"{found:,} batches are in line or running", most_batches, queue, "batches")
    if most_profiles is not None:
        unsettled = func.sum(counters.c.pending + counters.c.dispatched + counters.c.running)
        joined = counters.join(batches, batches.c.id == counters.c.batch_id)
        found = _number(connection, select(unsettled).select_from(joined).where(*held))
        if found + profiles > most_profiles:
            more = f"{found:,} profiles are unsettled, and {profiles:,} more were brought"
            raise _full(whose, more, most_profiles, queue, "profiles")


def _number(connection: Connection, query: Any) -> int:
    return int(connection.scalar(query) or 0)


def _full(whose: str, found: str, most: int, queue: str, what: str) -> QueueFullError:
    return QueueFullError(
        f"cannot submit to {whose}: {found}, its limit is {most:,}; wait until some have ended, or raise it with "
        f"`batching queue set {queue} --intake-{what} N`"
    )
