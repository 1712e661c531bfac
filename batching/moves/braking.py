"""Dispatch under caps and rate limits: exact, since whoever counts holds what the count depends on.

A cap of a batch is counted under the batch's lock, a queue's cap under the queue's: dispatch alone makes the count
grow, and every dispatch of a capped batch takes that lock, so two leaders at once cannot both fill the same place. A
token is taken from a locked bucket, by the database's clock, in the transaction that dispatches. Batches without caps
and limits never come here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, case, delete, func, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from batching.brakes import Limit, LimitKey
from batching.dialects import age, now
from batching.models import batches, counters, rate_limits
from batching.moves import profile, queue_order
from batching.states import BatchState, LimitKind

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection

    from batching.brakes import Brakes
    from batching.interfaces import Dispatch, LeaderTerm

#: A token that is missing by no more than rounding is there.
_ROUNDING = 1e-6
#: Of these batches, profiles may be in flight.
_IN_FLIGHT = (BatchState.RUNNING, BatchState.STOPPING)


def dispatch(
    connection: Connection,
    batch_id: str,
    limit: int,
    term: LeaderTerm,
    max_losses: int,
    brakes: Brakes,
    behind: int = 0,
) -> list[Dispatch]:
    """What `profile.dispatch` does, for as many profiles as all caps and limits leave room for.

    Settles the race of two leaders for the last place under a cap, or the last token: they wait for each other's lock,
    and the second counts what the first has dispatched.
    """
    if brakes.queue_cap is not None:
        queue_order.lock_queue_of(connection, batch_id)
    if brakes.cap is not None:
        connection.execute(select(batches.c.id).where(batches.c.id == batch_id).with_for_update(key_share=True))
    room = _under_caps(connection, batch_id, brakes, limit)
    if brakes.limits and room > 0:
        room = min(room, _tokens(connection, brakes))
    if room <= 0:
        return []
    dispatches = profile.dispatch(connection, batch_id, room, term, max_losses, behind)
    if brakes.limits and dispatches:
        _take_tokens(connection, brakes.limits, len(dispatches))
    return dispatches


def _under_caps(connection: Connection, batch_id: str, brakes: Brakes, limit: int) -> int:
    """Read in statements of their own, after the locks: they see what was committed before."""
    in_flight = func.coalesce(func.sum(counters.c.dispatched + counters.c.running), 0)
    rooms = [limit]
    if brakes.cap is not None:
        own = connection.scalar(select(in_flight).where(counters.c.batch_id == batch_id))
        rooms.append(brakes.cap - int(own or 0))
    if brakes.queue_cap is not None:
        queue = select(batches.c.queue).where(batches.c.id == batch_id).scalar_subquery()
        active = select(batches.c.id).where(batches.c.queue == queue, batches.c.state.in_(_IN_FLIGHT))
        all_ = connection.scalar(select(in_flight).where(counters.c.batch_id.in_(active)))
        rooms.append(brakes.queue_cap - int(all_ or 0))
    return min(rooms)


def _tokens(connection: Connection, brakes: Brakes) -> int:
    """Whole tokens that every bucket has, once all are locked, in the order of their names."""
    if brakes.own is not None:
        _fill(connection, brakes.own)
    found = connection.execute(
        select(_available().label("available"))
        .where(tuple_(rate_limits.c.kind, rate_limits.c.name).in_(brakes.limits))
        .order_by(rate_limits.c.kind, rate_limits.c.name)
        .with_for_update()
    ).all()
    # A limit that was taken away meanwhile limits nothing.
    return min((math.floor(row.available + _ROUNDING) for row in found), default=2**31 - 1)


def _fill(connection: Connection, limit: Limit) -> None:
    """Make a batch's own bucket, full, when it is not there."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    values = {
        "kind": limit.key.kind,
        "name": limit.key.name,
        "per_second": limit.per_second,
        "burst": limit.burst,
        "tokens": float(limit.burst),
    }
    connection.execute(dialect.insert(rate_limits).values(values).on_conflict_do_nothing())


def _take_tokens(connection: Connection, keys: Collection[LimitKey], number: int) -> None:
    """Guarded by the locks that are held since the look, and by a CHECK: a bucket never owes."""
    left = _available() - float(number)
    connection.execute(
        update(rate_limits)
        .where(tuple_(rate_limits.c.kind, rate_limits.c.name).in_(list(keys)))
        .values(tokens=case((left < 0, 0.0), else_=left), refilled_at=now())
    )


def _available() -> ColumnElement[float]:
    """What is in a bucket now (https://en.wikipedia.org/wiki/Token_bucket), by the database's clock."""
    since = age(rate_limits.c.refilled_at)
    filled = rate_limits.c.tokens + rate_limits.c.per_second * case((since > 0, since), else_=0.0)
    return case((filled > rate_limits.c.burst, rate_limits.c.burst), else_=filled)


# --- the limits themselves


def read_limits(connection: Connection) -> list[Limit]:
    """Every limit there is, and what it has to give now."""
    rows = connection.execute(
        select(rate_limits, _available().label("available")).order_by(rate_limits.c.kind, rate_limits.c.name)
    )
    return [
        Limit(LimitKey(LimitKind(row.kind), row.name), row.per_second, row.burst, float(row.available)) for row in rows
    ]


def set_limit(connection: Connection, key: LimitKey, per_second: float, burst: int) -> None:
    """Make a limit, full, or change one; what it has to give is kept, up to the new burst.

    Settles the race of two operators, and of one with a dispatch: the row's lock; who comes second is right.
    """
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    row = dialect.insert(rate_limits).values(
        kind=key.kind, name=key.name, per_second=per_second, burst=burst, tokens=float(burst)
    )
    kept = case((_available() > burst, float(burst)), else_=_available())
    changed = {"per_second": per_second, "burst": burst, "tokens": kept, "refilled_at": now()}
    connection.execute(row.on_conflict_do_update(index_elements=[rate_limits.c.kind, rate_limits.c.name], set_=changed))


def remove_limit(connection: Connection, key: LimitKey) -> bool:
    """Take a limit away; whether it was there."""
    found = connection.execute(
        delete(rate_limits).where(rate_limits.c.kind == key.kind, rate_limits.c.name == key.name)
    )
    return found.rowcount == 1


def forget_limits(connection: Connection) -> int:
    """Delete the buckets of single batches that are full: without one, a dispatch begins with a full one; how many."""
    full = (rate_limits.c.kind == LimitKind.BATCH) & (_available() >= rate_limits.c.burst)
    return connection.execute(delete(rate_limits).where(full)).rowcount
