"""What is read for one exposition, in one snapshot: some ten statements, however many batches are kept.

Nothing here walks over what has ended: that is counted by processes while it happens, or in an index and not often.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, exists, func, or_, select

import batching
from batching import migration
from batching.dialects import age, now
from batching.figures import BY_HANDLER, MOST_HANDLERS, OTHER, WHOLE
from batching.metrics.catalogue import BY_NAME, HISTOGRAM
from batching.models import (
    DEAD,
    ENDED,
    UNDELIVERED,
    UNENDED,
    batches,
    callbacks,
    counters,
    figures,
    gauges,
    leases,
    queues,
    rates,
    workers,
)
from batching.moves import turns
from batching.moves.leadership import BROKER_AWAY
from batching.moves.rows import LEADER
from batching.states import TERMINAL_PROFILE_STATES, BatchState, CallbackState, ProfileState
from batching.statistics.line import AT_THE_HEAD, fresh_rate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Connection, Row

#: Queues that are told apart; of those that were made later, only the sum is.
MOST_QUEUES: Final = 100
#: Seconds after which what the leader saw says nothing any more.
_STALE: Final = 15.0

REPAIRS: Final = ("message", "worker", "run", "batch", "submission", "stray", "restored")
STEPS: Final = ("dispatch", "publish", "claim", "settle")
PROCESSES: Final = ("worker", "manager")
STAGES: Final = ("pending", "active", "outcomes")

#: How many batches have ended, by queue and state.
Ended = dict[tuple[str, str], int]


class Sheet:
    """Values by metric and labels. Those with the same labels add up: names beyond a bound share one."""

    def __init__(self) -> None:
        self.values: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
        self.buckets: dict[str, dict[tuple[str, ...], Counter[int]]] = defaultdict(lambda: defaultdict(Counter))

    def put(self, name: str, value: float, *labels: str) -> None:
        """Add a value of a gauge or a counter."""
        self.values[name][labels] += value  # type: ignore[assignment] # a Counter holds what can be added

    def start(self, name: str, values: Iterable[str]) -> None:
        """Begin with 0 for each value of a single label, so that a series is there before anything happens."""
        for value in values:
            self.put(name, 0, value)


class Names:
    """The names that are told apart.

    Args:
        known: Those that come first, in their order.
        most: How many.
    """

    def __init__(self, known: Iterable[str], most: int) -> None:
        self._most = most
        self._names = set(list(dict.fromkeys(known))[:most])

    def label(self, name: str) -> str:
        """A name, or `other` when there are too many."""
        if name in self._names:
            return name
        if len(self._names) >= self._most:
            return OTHER
        self._names.add(name)
        return name


def read(connection: Connection, lease: float, ended: Ended) -> Sheet:
    """Fill a sheet.

    Args:
        connection: In a read transaction: all of it is one snapshot.
        lease: Seconds of silence after which a worker does not count as live.
        ended: From `count_ended`, of now or a while ago.
    """
    sheet = Sheet()
    sheet.put("build_info", 1, batching.__version__, _schema())
    handlers = _stored(connection, sheet)
    _lead(connection, sheet)
    names = _queues(connection, sheet)
    _batches(connection, sheet, names, ended)
    _line(connection, sheet, names)
    _profiles(connection, sheet, handlers)
    _workers(connection, sheet, lease)
    _callbacks(connection, sheet)
    _seen(connection, sheet, handlers)
    return sheet


@lru_cache
def _schema() -> str:
    """Never changes in a process, and takes longer than all the reads."""
    return migration.latest()


def count_ended(connection: Connection) -> Ended:
    """Walks the index of what has ended: not to be called for every exposition."""
    rows = connection.execute(
        select(batches.c.queue, batches.c.state, func.count())
        .where(ENDED)
        .group_by(batches.c.queue, batches.c.state)
        .order_by(batches.c.queue, batches.c.state)
    )
    return {(queue, state): int(number) for queue, state, number in rows}


def _stored(connection: Connection, sheet: Sheet) -> Names:
    """What processes have counted; returns the handlers that are told apart."""
    for name, values in (("sweep_repairs", REPAIRS), *((each, PROCESSES) for each in _BY_PROCESS)):
        sheet.start(name, values)
    found: list[str] = []
    for name, text, bucket, amount in connection.execute(
        select(figures.c.name, figures.c.labels, figures.c.bucket, figures.c.amount).order_by(
            figures.c.name, figures.c.labels
        )
    ):
        metric = BY_NAME.get(name)
        labels = tuple(json.loads(text)) if text else ()
        if metric is None or not metric.stored or len(labels) != len(metric.labels):
            continue  # another version counts it
        if name in BY_HANDLER:
            found.append(labels[0])
        if metric.kind == HISTOGRAM:
            sheet.buckets[name][labels][bucket] += amount
        elif bucket == WHOLE:
            sheet.put(name, amount, *labels)
    _begin_at_nothing(sheet, found)
    return Names((each for each in found if each != OTHER), MOST_HANDLERS)


def _begin_at_nothing(sheet: Sheet, handlers: Iterable[str]) -> None:
    """A handler that has been dispatched once has all its counts: `increase` does not see where a series begins."""
    for handler in set(handlers):
        for name in ("profiles_dispatched", "retries", "losses", "given_back"):
            sheet.put(name, 0, handler)
        for state in TERMINAL_PROFILE_STATES:
            sheet.put("profiles_settled", 0, handler, state.value)


_BY_PROCESS: Final = ("database_connects", "database_errors", "broker_errors")


def _lead(connection: Connection, sheet: Sheet) -> None:
    held = and_(leases.c.holder.is_not(None), leases.c.expires_at > now())
    is_leader = leases.c.name == LEADER
    at, led, away, epoch = connection.execute(
        select(
            now().label("at"),
            exists().where(is_leader, held).label("led"),
            exists().where(leases.c.name == BROKER_AWAY, held).label("away"),
            select(leases.c.epoch).where(is_leader).scalar_subquery().label("epoch"),
        )
    ).one()
    sheet.put("database_clock_seconds", at.timestamp())
    sheet.put("leader_up", bool(led))
    sheet.put("broker_up", not away)
    sheet.put("leader_changes", epoch or 0)


def _queues(connection: Connection, sheet: Sheet) -> Names:
    rows = connection.execute(select(queues.c.name, queues.c.paused).order_by(queues.c.created_at, queues.c.name)).all()
    names = Names((row.name for row in rows), MOST_QUEUES)
    for name, paused in rows:
        queue = names.label(name)
        sheet.put("queue_paused", bool(paused), queue)
        for state in BatchState:
            sheet.put("batches", 0, queue, state.value)
    return names


def _batches(connection: Connection, sheet: Sheet, names: Names, ended: Ended) -> None:
    for (queue, state), number in ended.items():
        sheet.put("batches", number, names.label(queue), state)
    rows = connection.execute(
        select(batches.c.queue, batches.c.state, func.count(), age(func.min(batches.c.started_at)))
        .where(UNENDED)
        .group_by(batches.c.queue, batches.c.state)
    )
    heads: dict[str, float] = {}
    for queue, state, number, seconds in rows:
        sheet.put("batches", number, names.label(queue), state)
        if state in AT_THE_HEAD and seconds is not None:
            heads[names.label(queue)] = max(heads.get(names.label(queue), 0.0), seconds)
    for queue, seconds in heads.items():
        sheet.put("head_seconds", seconds, queue)


def _line(connection: Connection, sheet: Sheet, names: Names) -> None:
    """The batch that is next, and the one that has waited for the longest, of each queue."""
    places = turns.places()
    since = func.coalesce(batches.c.start_at, batches.c.created_at, type_=batches.c.created_at.type)
    oldest_first = func.row_number().over(partition_by=batches.c.queue, order_by=[since, batches.c.id])
    ranked = (
        select(batches.c.queue, places.c.place, age(since).label("seconds"), oldest_first.label("seniority"))
        .join_from(places, batches, batches.c.id == places.c.id)
        .subquery("ranked")
    )
    rows = connection.execute(select(ranked).where(or_(ranked.c.seniority == 1, ranked.c.place == 1))).all()
    oldest: dict[str, Row[Any]] = {}
    following: dict[str, float] = {}
    for row in rows:
        queue, seconds = names.label(row.queue), float(row.seconds)
        if row.seniority == 1 and seconds >= 0 and (queue not in oldest or seconds > oldest[queue].seconds):
            oldest[queue] = row
        if row.place == 1:
            following[queue] = max(following.get(queue, 0.0), seconds)
    for queue, row in oldest.items():
        sheet.put("oldest_waiting_seconds", row.seconds, queue)
        sheet.put("oldest_waiting_place", row.place, queue)
    for queue, seconds in following.items():
        sheet.put("next_waiting_seconds", seconds, queue)


def _profiles(connection: Connection, sheet: Sheet, handlers: Names) -> None:
    """Sums of the counters: no profile is looked at."""
    sums = [func.sum(counters.c[state.value]) for state in ProfileState]
    rows = connection.execute(
        select(batches.c.handler, *sums)
        .join_from(batches, counters, counters.c.batch_id == batches.c.id)
        .where(UNENDED, batches.c.state != BatchState.LOADING)
        .group_by(batches.c.handler)
        .order_by(batches.c.handler)
    )
    for handler, *numbers in rows:
        for state, number in zip(ProfileState, numbers, strict=True):
            sheet.put("profiles", int(number), handlers.label(handler), state.value)
    measured = connection.execute(
        select(batches.c.handler, func.sum(rates.c.per_second))
        .join_from(rates, batches, fresh_rate())
        .where(batches.c.state.in_(AT_THE_HEAD))
        .group_by(batches.c.handler)
        .order_by(batches.c.handler)
    )
    for handler, rate in measured:
        sheet.put("settled_rate", rate, handlers.label(handler))


def _workers(connection: Connection, sheet: Sheet, lease: float) -> None:
    sheet.start("workers", ("live", "draining", "silent"))
    sheet.start("worker_held", STAGES)
    sheet.put("worker_slots", 0)
    rows = connection.execute(
        select(workers.c.slots, workers.c.draining, workers.c.gauges, age(workers.c.heartbeat_at).label("silent"))
    )
    for slots, draining, held, silent in rows:
        if silent > 2 * lease:
            sheet.put("workers", 1, "silent")
            continue
        sheet.put("workers", 1, "draining" if draining else "live")
        sheet.put("worker_slots", 0 if draining else slots)
        if isinstance(held, dict):
            for stage in STAGES:
                sheet.put("worker_held", _number(held.get(stage)), stage)
            _connections(sheet, "worker", held.get("connections"))


def _connections(sheet: Sheet, process: str, connections: object) -> None:
    if isinstance(connections, dict):
        for state in ("in_use", "idle"):
            sheet.put("database_connections", _number(connections.get(state)), process, state)
        sheet.put("database_overflow", _number(connections.get("overflow")), process)


def _number(value: object) -> float:
    """What a process of another version wrote may be anything."""
    return value if isinstance(value, int | float) else 0


def _callbacks(connection: Connection, sheet: Sheet) -> None:
    waiting = select(func.count(), age(func.min(callbacks.c.due_at))).where(UNDELIVERED)
    number, overdue = connection.execute(waiting).one()
    dead = connection.scalar(select(func.count()).select_from(callbacks).where(DEAD))
    sheet.put("callbacks", number, CallbackState.WAITING.value)
    sheet.put("callbacks", dead or 0, CallbackState.DEAD.value)
    sheet.put("callback_overdue_seconds", max(0.0, overdue or 0.0))


def _seen(connection: Connection, sheet: Sheet, handlers: Names) -> None:
    """What the leader saw last."""
    found = connection.execute(
        select(gauges.c.document, age(gauges.c.written_at).label("age")).where(gauges.c.name == "leader")
    ).one_or_none()
    if found is None:
        return
    sheet.put("figures_age_seconds", max(0.0, found.age))
    document: Mapping[str, Any] = found.document
    if found.age > _STALE or not isinstance(document, dict):
        return
    for name, key in (("lane_messages", "messages"), ("lane_window", "windows")):
        for handler, number in document.get(key, {}).items():
            sheet.put(name, _number(number), handlers.label(handler))
    _connections(sheet, "manager", document.get("connections"))


__all__ = ["Ended", "Names", "Sheet", "count_ended", "read"]
