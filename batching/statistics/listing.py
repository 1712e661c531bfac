"""Batches as people see them: a fixed number of queries for any number of batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import ColumnElement, Select, case, select

from batching.models import LINE_ORDER, batches, queues, rates
from batching.moves import turns
from batching.moves.counters import Counts, read_many
from batching.moves.dependencies import unmet_of
from batching.states import TERMINAL_BATCH_STATES, BatchState, StopTarget
from batching.statistics import line
from batching.statistics.eta import Eta, Pace, estimate, unknown
from batching.statistics.holds import read_holds
from batching.statistics.reason import Facts, is_behind, why
from batching.statistics.views import BatchView

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from batching.moves.dependencies import Unmet
    from batching.statistics.views import WorkerView


#: Of `dialects.never`: what has no deadline.
_NEVER_YEAR = 9000


class _Around(NamedTuple):
    """What is read beside the batches' own rows."""

    moment: line.Moment
    counts: dict[str, Counts]
    heads: dict[str, line.Head]
    waits: dict[str, line.Wait]
    retries: dict[str, datetime]
    workers: list[WorkerView]
    awaited: dict[str, list[Unmet]]
    holds: dict[str, str]


def read_views(
    connection: Connection,
    condition: ColumnElement[bool],
    limit: int | None,
    lease: float,
    *,
    newest: bool = False,
    offset: int = 0,
) -> list[BatchView]:
    """The batches that meet a condition, running ones first, then the line in its order, then the latest finished.

    Args:
        connection: In a read transaction.
        condition: On the table of batches; batches that are still loading never show.
        limit: Batches at most; None for all, in no order.
        lease: Seconds; see `line.read_workers`.
        newest: In the order in which they were made instead, the last one first.
        offset: Batches at the beginning that are left out, when there is a limit.
    """
    chosen = (
        select(
            batches,
            queues.c.paused.label("queue_paused"),
            queues.c.draining.label("queue_draining"),
            rates.c.per_second,
            rates.c.counted,
            rates.c.over_seconds,
            rates.c.deviation,
        )
        .select_from(batches.join(queues, queues.c.name == batches.c.queue).outerjoin(rates, line.fresh_rate()))
        .where(batches.c.state != BatchState.LOADING.value, condition)
    )
    if newest:  # ids are made in order (UUIDv7, RFC 9562)
        chosen = chosen.order_by(batches.c.id.desc()).limit(limit)
    elif limit is not None:
        chosen = _in_order(chosen).limit(limit).offset(offset)
    rows = connection.execute(chosen).all()
    around = _read_around(connection, rows, lease)
    return [_as_view(row, around) for row in rows]


def _in_order(chosen: Select[Any]) -> Select[Any]:
    rank = case(
        (batches.c.state.in_(line.AT_THE_HEAD), 0),
        (batches.c.state == BatchState.QUEUED.value, 1),
        (batches.c.state == BatchState.PAUSED.value, 2),
        else_=3,
    )
    places = turns.places()
    # Inside a rank, either all or none have finished: the newest first, or the order of the line.
    order = (rank, batches.c.finished_at.desc(), batches.c.queue, places.c.place, *LINE_ORDER)
    return chosen.join(places, places.c.id == batches.c.id, isouter=True).order_by(*order)


def _read_around(connection: Connection, rows: Sequence[Any], lease: float) -> _Around:
    ids = [row.id for row in rows]
    lines = {row.queue for row in rows if row.state not in TERMINAL_BATCH_STATES}
    queued = [row for row in rows if row.state == BatchState.QUEUED]
    counts = read_many(connection, ids)
    still = [
        row.id
        for row in rows
        if row.state == BatchState.RUNNING and not counts[row.id].dispatched and not counts[row.id].running
    ]
    return _Around(
        moment=line.moment(connection),
        counts=counts,
        heads=line.heads(connection, lines) if lines else {},
        waits=line.waits(connection, [row.id for row in queued], {row.queue for row in queued}) if queued else {},
        retries=line.retries_at(connection, still) if still else {},
        workers=line.read_workers(connection, lease) if lines else [],
        holds=read_holds(connection, [row for row in rows if row.id in still and counts[row.id].pending]),
        awaited=unmet_of(connection, [row.id for row in rows if row.awaiting]),
    )


def _as_view(row: Any, around: _Around) -> BatchView:
    counts = around.counts[row.id]
    state = BatchState(row.state)
    rate = row.per_second if row.state in line.AT_THE_HEAD else None
    reason = why(_facts(row, counts, around))
    eta = _eta(row, counts, around, reason)
    return BatchView(
        id=row.id,
        name=row.name,
        key=row.key,
        handler=row.handler,
        queue=row.queue,
        state=state,
        pass_number=row.pass_number,
        place=_place(row, around),
        total=row.total,
        rate=None if rate is None else round(rate, 3),
        eta_seconds=eta.likely,
        eta_low=eta.low,
        eta_high=eta.high,
        eta_basis=eta.basis,
        reason=reason,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        priority=row.priority,
        group=row.group or None,
        target=StopTarget(row.target) if row.target else None,
        sealed=bool(row.sealed),
        max_passes=row.last_pass,
        options={name: told_option(name, value) for name, value in row.options.items()},
        start_at=row.start_at,
        deadline=None if row.deadline.year >= _NEVER_YEAR else row.deadline,
        tags=tuple(row.tags or ()),
        properties=row.properties or {},
        waits_for=tuple(each.on_batch_id for each in around.awaited.get(row.id, ())),
        **{name: value for name, value in counts._asdict().items() if name in BatchView.__slots__},
    )


def told_option(name: str, value: Any) -> Any:
    """An option as people see it: of a callback's URL without its query, which may carry a token."""
    return value.partition("?")[0] if name.startswith("on_") and isinstance(value, str) else value


def _place(row: Any, around: _Around) -> int | None:
    if row.state in line.AT_THE_HEAD:
        return 0
    wait = around.waits.get(row.id)
    return None if wait is None else wait.place


def _eta(row: Any, counts: Counts, around: _Around, reason: str) -> Eta:
    """From what was measured of what runs; a batch that something holds up has no end in sight."""
    if row.state in TERMINAL_BATCH_STATES:
        return Eta(None, None, None, "")
    head = around.heads.get(row.queue, line.Head())
    wait = around.waits.get(row.id)
    if wait is not None and (not reason or is_behind(reason)):
        ahead = f" by what runs now; {wait.place - 1 + head.batches:,} batches ahead"
        return estimate(wait.unsettled + head.unsettled, head.pace, ahead)
    if row.state != BatchState.RUNNING or reason:
        return unknown(reason or str(row.state))
    if not row.sealed:
        return unknown("open for more profiles")
    counted, seconds = row.counted or 0, row.over_seconds or 0.0
    mean = counted / seconds if seconds else 0.0
    return estimate(counts.unsettled, Pace(counted, seconds, mean, row.per_second or 0.0, row.deviation or 0.0))


def _facts(row: Any, counts: Counts, around: _Around) -> Facts:
    wait = around.waits.get(row.id)
    backs_off = row.not_before is not None and row.not_before > around.moment.at
    return Facts(
        state=BatchState(row.state),
        target=StopTarget(row.target) if row.target else None,
        stored=row.reason or "",
        queue=row.queue,
        handler=row.handler,
        pending=counts.pending,
        dispatched=counts.dispatched,
        running=counts.running,
        ahead=0 if wait is None else wait.place - 1 + around.heads.get(row.queue, line.Head()).batches,
        queue_paused=bool(row.queue_paused),
        held=around.holds.get(row.id, ""),
        queue_draining=bool(row.queue_draining),
        waits_for=next(((each.on_batch_id, each.wants) for each in around.awaited.get(row.id, ())), None),
        sealed=bool(row.sealed),
        served=any(worker.serves(row.queue, row.handler) for worker in around.workers),
        led=around.moment.led,
        broker_away=around.moment.broker_away,
        backs_off_until=row.not_before if backs_off else None,
        scheduled=backs_off and row.start_at is not None and row.start_at > around.moment.at,
        retries_at=around.retries.get(row.id),
    )
