"""What the leader sees in one tick: the live workers, the active batches with their counts, and who waits."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Double, and_, exists, func, literal, literal_column, null, select, union_all

from batching.dialects import age, now
from batching.models import ACTIVE, HAS_DEADLINE, LINE_ORDER, SCHEDULED, batches, queues, rate_limits
from batching.moves import braking, dependencies, leadership, turns
from batching.moves.rows import as_counted, counted_batches
from batching.states import BatchState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batching.brakes import Limit, LimitKey
    from batching.database import Database
    from batching.interfaces import Lane, WorkerInfo
    from batching.moves.counters import Counts
    from batching.moves.rows import BatchRow


@dataclass(frozen=True, slots=True)
class Active:
    """A running or stopping batch, and its counts."""

    row: BatchRow
    counts: Counts

    @property
    def lane(self) -> Lane:
        """Where its profiles are dispatched."""
        return self.row.terms.lane


@dataclass(frozen=True, slots=True)
class Outlook:
    """One consistent look at everything that the leader decides by."""

    workers: list[WorkerInfo]
    active: list[Active]
    """In the order of the queue: priority, position, id."""
    waiting: frozenset[str]
    """Queues in which a batch may be promoted now."""
    max_running: dict[str, int]
    grouped: frozenset[str]
    """Queues in which groups take turns."""
    paused: frozenset[str]
    """Queues of which nothing is dispatched."""
    caps: Mapping[str, int]
    """Profiles of a queue that may be in flight at once, where there is a cap."""
    limits: Mapping[LimitKey, Limit]
    """The rate limits, and what they have to give."""
    unwritten: list[str]
    """Batches with bulk moves that are not written into their rows yet."""
    overdue: list[str]
    """Batches whose deadline has passed, the earliest first."""
    released: list[str]
    """Batches that wait for one that is over."""
    alarm: float
    """Seconds until the next scheduled start, end of a back-off, or deadline."""

    @property
    def running(self) -> list[Active]:
        """The batches that may be dispatched."""
        return [each for each in self.active if each.row.state is BatchState.RUNNING]

    def slots(self, lane: Lane) -> int:
        """Pool slots of the live workers that serve a lane."""
        return sum(worker.slots for worker in self.workers if serves(worker, lane))

    def lanes(self) -> dict[Lane, list[Active]]:
        """The running batches by lane, in the order of the queue; none of queues that are paused."""
        found: dict[Lane, list[Active]] = defaultdict(list)
        for each in self.running:
            if each.row.queue not in self.paused:
                found[each.lane].append(each)
        return dict(found)


def serves(worker: WorkerInfo, lane: Lane) -> bool:
    """Whether a worker consumes a lane."""
    return lane.handler in worker.handlers and ("*" in worker.queues or lane.queue in worker.queues)


def look(database: Database, worker_lease: float) -> Outlook:
    """Read it all in one transaction of four statements; its cost depends on what is active, not on what is kept.

    Args:
        database: The store.
        worker_lease: Seconds of silence after which no new work is meant for a worker.
    """
    with database.read() as connection:
        queues_ = connection.execute(_QUEUES).all()
        due = connection.execute(_DUE).all()
        return Outlook(
            workers=leadership.capabilities(connection, worker_lease),
            active=[Active(*each) for each in as_counted(connection.execute(_ACTIVE))],
            waiting=frozenset(row.name for row in queues_ if row.waits),
            max_running={row.name: row.max_running for row in queues_},
            grouped=frozenset(row.name for row in queues_ if row.grouped),
            paused=frozenset(row.name for row in queues_ if row.paused),
            caps={row.name: row.max_concurrency for row in queues_ if row.max_concurrency is not None},
            limits={each.key: each for each in braking.read_limits(connection)}
            if any(row.limited for row in queues_)
            else {},
            unwritten=[row.id for row in due if row.what == "write"],
            released=[row.id for row in due if row.what == "release"],
            overdue=[row.id for row in due if row.what == "expire" and row.left <= 0],
            alarm=min((row.left for row in due if row.left is not None and row.left > 0), default=math.inf),
        )


#: Deadlines looked at in one tick: those that have passed are dealt with, and the next tick sees the others.
_DEADLINES = 100

_unwritten = select(batches.c.id).where(batches.c.rewritten < batches.c.generation).order_by(batches.c.id)
_ends = (
    select(batches.c.id, (-age(batches.c.deadline)).label("left"))
    .where(HAS_DEADLINE, batches.c.state != BatchState.LOADING)
    .order_by(batches.c.deadline)
    .limit(_DEADLINES)
)
_starts = select(func.min(batches.c.not_before).label("at")).where(
    SCHEDULED,
    # The clock as a constant: with a function that is asked anew for each row, no index would be of use.
    batches.c.not_before > select(now()).scalar_subquery(),
)
_write, _end, _start = _unwritten.subquery("unwritten"), _ends.subquery("ends"), _starts.subquery("starts")
_release = dependencies.due().subquery("released")
#: What is due beside dispatching, each through an index of its own: bulk moves to be written into rows; deadlines, with
#: the seconds that are left; batches that wait for one that is over; and the seconds until one more may be promoted.
_DUE = union_all(
    select(literal("write").label("what"), _write.c.id, literal(None, Double()).label("left")),
    select(literal("expire"), _end.c.id, _end.c.left),
    select(literal("release"), _release.c.id, null()),
    select(literal("promote"), null(), -age(_start.c.at)),
)

#: Whether a queue has a batch that may be promoted is one look into the index of the line.
_QUEUES = select(
    queues.c.name,
    queues.c.max_running,
    queues.c.max_concurrency,
    queues.c.paused,
    # Nobody pays for limits where there are none.
    exists(select(literal_column("1")).select_from(rate_limits)).label("limited"),
    and_(
        queues.c.paused.is_(False),
        queues.c.draining.is_(False),
        exists().where(batches.c.queue == queues.c.name, turns.may_start()),
    ).label("waits"),
    turns.grouped(queues.c.name).label("grouped"),
)

_ACTIVE = counted_batches(ACTIVE, batches.c.state.in_([BatchState.RUNNING, BatchState.STOPPING])).order_by(*LINE_ORDER)
