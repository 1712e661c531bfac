"""What workers do, and what none of them does: reads for probes, for `workers` and for `top`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import and_, func, or_, select

from batching.dialects import age
from batching.interfaces import Lane, RunId
from batching.models import batches, profiles, queues
from batching.moves import turns
from batching.moves.rows import read_constants
from batching.states import BatchState, ProfileState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection

    from batching.statistics.views import WorkerView

#: Seconds beyond a run's time limit that its pool gets to kill it, and its worker to settle it.
GRACE: Final = 30.0


class Occupation(NamedTuple):
    """What one worker runs of one batch."""

    worker_id: str
    batch_id: str
    handler: str
    running: int
    oldest_seconds: float
    """Since the first of them was claimed."""


def unserved(connection: Connection, workers: Iterable[WorkerView]) -> list[Lane]:
    """The lanes of batches that run, or could, and that none of these workers serves."""
    open_queue = and_(queues.c.paused.is_(False), or_(batches.c.state == BatchState.RUNNING, ~queues.c.draining))
    rows = connection.execute(
        select(batches.c.queue, batches.c.handler)
        .join(queues, queues.c.name == batches.c.queue)
        .where(
            batches.c.finished_at.is_(None),  # leads to the index of those that have not ended
            or_(batches.c.state == BatchState.RUNNING, turns.may_start()),
            open_queue,
        )
        .distinct()
        .order_by(batches.c.queue, batches.c.handler)
    )
    known = list(workers)
    return [Lane(*row) for row in rows if not any(each.serves(*row) for each in known)]


def overdue_runs(connection: Connection, worker_id: str) -> list[str]:
    """Task ids of a worker's runs that are over their batch's own time limit for longer than it takes to end them."""
    rows = connection.execute(
        select(profiles.c.batch_id, profiles.c.number, profiles.c.run, age(profiles.c.started_at).label("seconds"))
        .where(
            profiles.c.dispatched_at.is_not(None),
            profiles.c.state == ProfileState.RUNNING,
            profiles.c.worker_id == worker_id,
        )
        .order_by(profiles.c.started_at)
    ).all()
    constants = read_constants(connection, {row.batch_id for row in rows})
    limits = {batch_id: known.options.time_limit for batch_id, known in constants.items()}
    return [
        RunId(row.batch_id, row.number, row.run).task_id
        for row in rows
        if (limit := limits.get(row.batch_id)) is not None and row.seconds > limit + GRACE
    ]


def occupations(connection: Connection) -> list[Occupation]:
    """What every worker runs, by batch: what holds most of a worker comes first."""
    oldest = func.max(age(profiles.c.started_at))
    rows = connection.execute(
        select(profiles.c.worker_id, profiles.c.batch_id, batches.c.handler, func.count(), oldest)
        .join(batches, batches.c.id == profiles.c.batch_id)
        .where(profiles.c.dispatched_at.is_not(None), profiles.c.state == ProfileState.RUNNING)
        .group_by(profiles.c.worker_id, profiles.c.batch_id, batches.c.handler)
        .order_by(profiles.c.worker_id, func.count().desc(), profiles.c.batch_id)
    )
    return [Occupation(str(each[0]), each[1], each[2], int(each[3]), max(0.0, float(each[4]))) for each in rows]


def named(workers: Iterable[WorkerView], name: str) -> list[WorkerView]:
    """Those workers that a name means: an id or its beginning (eight digits), a Celery name, or a host."""
    known = list(workers)
    exact = [each for each in known if name in {each.id, each.hostname}]
    if exact:
        return exact
    host = [each for each in known if each.hostname.rpartition("@")[2] == name]
    return host or [each for each in known if len(name) >= _SHORTEST_ID and each.id.startswith(name)]


#: Digits of a worker's id that name it.
_SHORTEST_ID = 8


def newest(workers: Iterable[WorkerView]) -> list[WorkerView]:
    """The latest worker of each Celery name: one that was killed stays registered until its lease is over."""
    latest: dict[str, WorkerView] = {}
    for each in workers:
        known = latest.get(each.hostname)
        if known is None or each.started_at > known.started_at:
            latest[each.hostname] = each
    return sorted(latest.values(), key=lambda each: (each.hostname, each.id))
