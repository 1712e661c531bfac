"""The facts around a batch that are not in its own row: the line before it, rates, workers, the leader, retries."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import ColumnElement, Subquery, and_, exists, func, literal, or_, select

from batching.dialects import age, now
from batching.models import IN_LINE, batches, counters, leases, profiles, rates
from batching.models import workers as worker_table
from batching.moves import turns
from batching.moves.leadership import BROKER_AWAY
from batching.moves.rows import LEADER
from batching.states import BatchState, ProfileState
from batching.statistics.eta import Pace
from batching.statistics.views import WorkerView

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

#: Seconds after which a measured rate says nothing any more.
RATE_MAX_AGE = 30.0

AT_THE_HEAD = (BatchState.RUNNING.value, BatchState.STOPPING.value)


class Head(NamedTuple):
    """What runs at the head of one queue."""

    batches: int = 0
    unsettled: int = 0
    pace: Pace = Pace()
    """What was measured of them lately, together."""


class Wait(NamedTuple):
    """One queued batch's stand in its line."""

    place: int
    unsettled: int
    """Its own unsettled profiles and those of all queued batches before it."""


class Moment(NamedTuple):
    """The database's clock, and whether somebody leads, at the time of a read."""

    at: datetime
    led: bool
    broker_away: bool
    """Whether the leader could not reach the broker a moment ago."""


def moment(connection: Connection) -> Moment:
    """The clock and the leader."""
    holds = leases.c.holder.is_not(None) & (leases.c.expires_at > now())
    led = exists().where(leases.c.name == LEADER, holds)
    away = exists().where(leases.c.name == BROKER_AWAY, holds)
    row = connection.execute(select(now().label("at"), led.label("led"), away.label("away"))).one()
    return Moment(row.at, bool(row.led), bool(row.away))


def fresh_rate() -> ColumnElement[bool]:
    """The condition under which a row of `rates` still counts."""
    return and_(rates.c.batch_id == batches.c.id, age(rates.c.measured_at) < RATE_MAX_AGE)


def heads(connection: Connection, queues: Collection[str]) -> dict[str, Head]:
    """What runs in each of these queues; a queue where nothing runs is absent."""
    sums = _unsettled_by_batch(batches.c.state.in_(AT_THE_HEAD), batches.c.queue.in_(list(queues)))
    rows = connection.execute(
        select(
            batches.c.queue,
            func.count(),
            func.sum(func.coalesce(sums.c.unsettled, 0)),
            func.coalesce(func.sum(rates.c.counted), 0),
            func.coalesce(func.max(rates.c.over_seconds), 0.0),
            func.coalesce(func.sum(rates.c.counted / func.nullif(rates.c.over_seconds, 0.0)), 0.0),
            func.coalesce(func.sum(rates.c.per_second), 0.0),
            func.coalesce(func.sum(rates.c.deviation * rates.c.deviation), 0.0),
        )
        .select_from(batches.outerjoin(sums, sums.c.batch_id == batches.c.id).outerjoin(rates, fresh_rate()))
        .where(batches.c.state.in_(AT_THE_HEAD), batches.c.queue.in_(list(queues)))
        .group_by(batches.c.queue)
    )
    return {
        # Variances of independent paces add up.
        queue: Head(int(count), int(unsettled), Pace(int(settled), seconds, mean, latest, math.sqrt(variance)))
        for queue, count, unsettled, settled, seconds, mean, latest, variance in rows
    }


def waits(connection: Connection, batch_ids: Sequence[str], queues: Collection[str]) -> dict[str, Wait]:
    """The stand of those of these batches that are queued; reads the whole line of each of these queues."""
    own = batches.c.queue.in_(list(queues))
    sums = _unsettled_by_batch(IN_LINE, own)
    queued, order = turns.in_order(own)
    line = (
        select(
            queued.c.id,
            func.row_number().over(partition_by=queued.c.queue, order_by=order).label("place"),
            func.sum(func.coalesce(sums.c.unsettled, 0))
            .over(partition_by=queued.c.queue, order_by=order, rows=(None, 0))
            .label("unsettled"),
        )
        .select_from(queued.outerjoin(sums, sums.c.batch_id == queued.c.id))
        .subquery()
    )
    rows = connection.execute(select(line).where(line.c.id.in_(list(batch_ids))))
    return {row.id: Wait(int(row.place), int(row.unsettled)) for row in rows}


def place_in_line(connection: Connection, batch_id: str) -> int | None:
    """0 runs, 1 is next; None: not in the queue."""
    own = connection.execute(select(batches.c.queue, batches.c.state).where(batches.c.id == batch_id)).one()
    if own.state in AT_THE_HEAD:
        return 0
    if own.state != BatchState.QUEUED:
        return None
    line = turns.places(batches.c.queue == own.queue)
    place: int | None = connection.scalar(select(line.c.place).where(line.c.id == batch_id))
    return place


def retries_at(connection: Connection, batch_ids: Sequence[str]) -> dict[str, datetime]:
    """When the first profile is due, for those of these batches where all that wait do so for a retry.

    A batch whose rows are not all rewritten is left out: they are read as moved, so their times may say nothing.
    """
    waiting = and_(
        profiles.c.batch_id == batches.c.id, profiles.c.dispatched_at.is_(None), profiles.c.finished_at.is_(None)
    )
    due = exists().where(waiting, or_(profiles.c.not_before.is_(None), profiles.c.not_before <= now()))
    first = select(func.min(profiles.c.not_before)).where(waiting).correlate(batches).scalar_subquery()
    rows = connection.execute(
        select(batches.c.id, first.label("first")).where(
            batches.c.id.in_(list(batch_ids)), batches.c.rewritten == batches.c.generation, ~due
        )
    )
    return {row.id: row.first for row in rows if row.first is not None}


def read_workers(connection: Connection, lease: float) -> list[WorkerView]:
    """Every worker there is, those that were heard last first.

    Args:
        connection: In a read transaction.
        lease: Seconds; a worker that is silent for two of them does not count as live.
    """
    busy = _runs_by_worker(connection)
    silent = age(worker_table.c.heartbeat_at).label("silent")
    order = (worker_table.c.heartbeat_at.desc(), worker_table.c.id)
    rows = connection.execute(select(worker_table, silent).order_by(*order))
    return [_as_worker(row, lease, busy.get(row.id, 0)) for row in rows]


def uninterruptible(connection: Connection, batch_id: str) -> dict[str, int]:
    """Profiles of a batch that run in pools other than prefork, by pool."""
    rows = connection.execute(
        select(worker_table.c.pool, func.count())
        .join(profiles, profiles.c.worker_id == worker_table.c.id)
        .where(
            profiles.c.batch_id == batch_id,
            profiles.c.dispatched_at.is_not(None),
            profiles.c.state == ProfileState.RUNNING.value,
            worker_table.c.pool != "prefork",
        )
        .group_by(worker_table.c.pool)
    )
    return {pool: int(count) for pool, count in rows}


def _as_worker(row: Any, lease: float, running: int) -> WorkerView:
    silent = max(0.0, round(float(row.silent), 3))
    return WorkerView(
        id=row.id,
        hostname=row.hostname,
        pid=row.pid,
        pool=row.pool,
        slots=row.slots,
        handlers=tuple(row.handlers),
        queues=tuple(row.queues),
        version=row.version,
        draining=bool(row.draining),
        started_at=row.started_at,
        heartbeat_at=row.heartbeat_at,
        silent_seconds=silent,
        live=silent <= 2 * lease,
        running=running,
        drain_asked=bool(row.drain_asked),
        stuck=row.stuck,
    )


def _runs_by_worker(connection: Connection) -> dict[str, int]:
    rows = connection.execute(
        select(profiles.c.worker_id, func.count())
        .where(profiles.c.dispatched_at.is_not(None), profiles.c.state == ProfileState.RUNNING.value)
        .group_by(profiles.c.worker_id)
    )
    return {worker_id: int(count) for worker_id, count in rows}


def _unsettled_by_batch(*conditions: ColumnElement[bool]) -> Subquery:
    """Unsettled profiles of each batch that fulfils these conditions, which have to lead through an index."""
    active = select(batches.c.id).where(*conditions)
    unsettled = func.sum(counters.c.pending + counters.c.dispatched + counters.c.running)
    return (
        select(counters.c.batch_id, func.coalesce(unsettled, literal(0)).label("unsettled"))
        .where(counters.c.batch_id.in_(active))
        .group_by(counters.c.batch_id)
        .subquery()
    )
