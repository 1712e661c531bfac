"""How the whole system is at one moment: who leads, what is alive, what runs where; and lists around the line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, and_, func, or_, select, text

from batching.dialects import age
from batching.errors import InvalidInputError, UnknownBatchError
from batching.models import UNDELIVERED, batches, callbacks, leases, profiles
from batching.moves.rows import LEADER
from batching.states import TERMINAL_BATCH_STATES, BatchState, ProfileState
from batching.statistics import line
from batching.statistics.listing import read_views
from batching.statistics.views import _AsJSON

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlalchemy import Connection

    from batching.statistics.views import BatchView

#: Runs of one worker that are listed, those that began first.
MOST_RUNS: Final = 20
#: Dead callbacks that are counted; more are `1,000`.
_MOST_DEAD: Final = 1_000


@dataclass(frozen=True, slots=True)
class Situation(_AsJSON):
    """The whole system at one moment, by the database's clock."""

    at: datetime
    led: bool
    """Whether a live manager leads: without one nothing is promoted, dispatched or swept."""
    leader: str | None
    """The process that holds the lease; None when nobody does."""
    epoch: int
    """How often the lease changed hands."""
    lease_seconds: float | None
    """Until the lease lapses unless it is renewed; negative: it has lapsed."""
    broker_away: bool
    """Whether the leader could not reach the broker a moment ago."""
    workers: int
    """Live ones."""
    silent: int
    """Workers that are registered and not heard of any more."""
    slots: int
    """Of the live ones that take new profiles."""
    busy: int
    """Profiles that run."""
    running: int
    """Batches at the head of a line, those that are stopping included."""
    queued: int
    paused: int
    callbacks_waiting: int
    callbacks_dead: int
    """Up to a thousand."""


@dataclass(frozen=True, slots=True)
class RunView(_AsJSON):
    """One profile that runs now."""

    worker_id: str
    batch_id: str
    batch_name: str
    handler: str
    number: int
    key: str
    started_at: datetime | None
    seconds: float
    """Since it was claimed, by the database's clock."""


def read_situation(connection: Connection, lease: float) -> Situation:
    """How the system is now.

    Args:
        connection: In a read transaction.
        lease: Seconds; see `line.read_workers`.
    """
    moment = line.moment(connection)
    held = connection.execute(
        select(leases.c.holder, leases.c.epoch, (-age(leases.c.expires_at)).label("left")).where(
            leases.c.name == LEADER
        )
    ).one_or_none()
    workers = line.read_workers(connection, lease)
    live = [each for each in workers if each.live]
    tally = _tally(connection)
    dead = select(callbacks.c.id).where(text("state = 'dead'")).limit(_MOST_DEAD).subquery()
    return Situation(
        at=moment.at,
        led=moment.led,
        leader=held.holder if held is not None and moment.led else None,
        epoch=0 if held is None else int(held.epoch),
        lease_seconds=None if held is None or held.holder is None else round(float(held.left), 3),
        broker_away=moment.broker_away,
        workers=len(live),
        silent=len(workers) - len(live),
        slots=sum(each.slots for each in live if not each.draining),
        busy=sum(each.running for each in workers),
        running=sum(tally.get(state, 0) for state in line.AT_THE_HEAD),
        queued=tally.get(BatchState.QUEUED.value, 0),
        paused=tally.get(BatchState.PAUSED.value, 0),
        callbacks_waiting=int(connection.scalar(select(func.count()).select_from(callbacks).where(UNDELIVERED)) or 0),
        callbacks_dead=int(connection.scalar(select(func.count()).select_from(dead)) or 0),
    )


def _tally(connection: Connection) -> dict[str, int]:
    """Batches that have not ended, by state; what has ended, however much is kept, is not looked at."""
    rows = connection.execute(
        select(batches.c.state, func.count())
        # Both ways: the first leads to an index, the second leaves out what is still loading.
        .where(text("finished_at IS NULL"), batches.c.state != BatchState.LOADING.value)
        .group_by(batches.c.state)
    )
    return {state: int(count) for state, count in rows}


def read_runs(connection: Connection) -> list[RunView]:
    """What runs now, by worker, what began first being first; up to twenty of each worker.

    The index of what is in flight leads: it holds the windows, whatever the batches hold.
    """
    nth = func.row_number().over(
        partition_by=profiles.c.worker_id, order_by=(profiles.c.started_at, profiles.c.batch_id, profiles.c.number)
    )
    running = (
        select(
            profiles.c.worker_id,
            profiles.c.batch_id,
            profiles.c.number,
            profiles.c.key,
            profiles.c.started_at,
            age(profiles.c.started_at).label("seconds"),
            nth.label("nth"),
        )
        .where(profiles.c.dispatched_at.is_not(None), profiles.c.state == ProfileState.RUNNING.value)
        .subquery()
    )
    rows = connection.execute(
        select(running, batches.c.name, batches.c.handler)
        .join(batches, batches.c.id == running.c.batch_id)
        .where(running.c.nth <= MOST_RUNS)
        .order_by(running.c.worker_id, running.c.nth)
    )
    return [_as_run(row) for row in rows]


def _as_run(row: Any) -> RunView:
    return RunView(
        worker_id=row.worker_id,
        batch_id=row.batch_id,
        batch_name=row.name,
        handler=row.handler,
        number=row.number,
        key=row.key,
        started_at=row.started_at,
        seconds=max(0.0, round(float(row.seconds or 0.0), 3)),
    )


def read_peers(connection: Connection, batch_id: str) -> list[str]:
    """The waiting batches among which `move` counts places, in their order, with the one that is asked about.

    Those of its queue, priority, group and deadline: see `moves/queue_order.py`.
    """
    own = connection.execute(
        select(batches.c.queue, batches.c.priority, batches.c.group, batches.c.deadline).where(batches.c.id == batch_id)
    ).one_or_none()
    if own is None:
        raise UnknownBatchError(f"cannot read the line of batch {batch_id}: it was deleted meanwhile")
    return list(
        connection.scalars(
            select(batches.c.id)
            .where(
                batches.c.queue == own.queue,
                batches.c.priority == own.priority,
                batches.c.group == own.group,
                batches.c.deadline == own.deadline,
                or_(batches.c.state == BatchState.QUEUED.value, batches.c.id == batch_id),
            )
            .order_by(batches.c.position, batches.c.id)
        )
    )


def read_finished(
    connection: Connection,
    lease: float,
    *,
    queue: str | None,
    states: Iterable[BatchState] | None,
    after: str | None,
    limit: int,
    offset: int = 0,
) -> list[BatchView]:
    """Batches that have ended, the latest first; the next page begins `after` the id of the last one, or at `offset`.

    Raises:
        InvalidInputError: The batch that the page before ended with has been pruned, or has begun anew.
    """
    wanted = [BatchState(state).value for state in states or TERMINAL_BATCH_STATES]
    found: list[ColumnElement[bool]] = [batches.c.finished_at.is_not(None), batches.c.state.in_(wanted)]
    if queue is not None:
        found.append(batches.c.queue == queue)
    if after is not None:
        ended = connection.scalar(select(batches.c.finished_at).where(batches.c.id == after))
        if ended is None:
            raise InvalidInputError(f"cannot go on after batch {after}: it is gone, or runs again; begin at the latest")
        earlier = and_(batches.c.finished_at == ended, batches.c.id < after)
        # Said twice: the first bound leads the index, the second tells those of the same moment apart.
        found += [batches.c.finished_at <= ended, or_(batches.c.finished_at < ended, earlier)]
    order = (batches.c.finished_at.desc(), batches.c.id.desc())
    ids = list(connection.scalars(select(batches.c.id).where(*found).order_by(*order).limit(limit).offset(offset)))
    views = {view.id: view for view in read_views(connection, batches.c.id.in_(ids), None, lease)} if ids else {}
    return [views[each] for each in ids]
