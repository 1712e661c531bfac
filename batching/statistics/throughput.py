"""How much was settled when, and how long runs took: what workers counted and the leader added up."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from batching.dialects import now
from batching.errors import InvalidInputError
from batching.figures import RUN_BOUNDS, RUN_DURATION, WHOLE
from batching.models import batch_throughput, batches, durations, figures, throughput
from batching.moves.figures import ENDS, LADDER, SPANS
from batching.statistics.views import Durations, ThroughputPoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Connection

#: Minutes that can be asked for: a year.
_LONGEST: Final = 527_040
#: Points of one batch, at most; beyond, several spans are added up.
_POINTS: Final = 400


def read_throughput(connection: Connection, minutes: int) -> list[ThroughputPoint]:
    """What all batches settled, up to now, without gaps."""
    _check(minutes)
    seconds = next((each for each, kept in SPANS.items() if kept is None or minutes * 60 <= kept), max(SPANS))
    moment = _moment(connection)
    first = _floor(moment - minutes * 60, seconds)
    rows = connection.execute(
        select(throughput.c.at, *(throughput.c[name] for name in ENDS)).where(
            throughput.c.seconds == seconds, throughput.c.at >= first
        )
    )
    return _points(_by_beginning(rows, seconds), first, _floor(moment, seconds), seconds)


def read_batch_throughput(connection: Connection, batch_id: str, minutes: int) -> list[ThroughputPoint]:
    """What one batch settled, up to now or its end, without gaps; it begins with what it settled first."""
    _check(minutes)
    rows = connection.execute(
        select(batch_throughput.c.seconds, batch_throughput.c.at, *(batch_throughput.c[name] for name in ENDS))
        .where(batch_throughput.c.batch_id == batch_id)
        .order_by(batch_throughput.c.at)
    ).all()
    if not rows:
        return []
    ended = connection.scalar(select(batches.c.finished_at).where(batches.c.id == batch_id))
    # A worker tells of its last runs with its next heartbeat, which may come after the end of the batch.
    end = max(rows[-1].at, _moment(connection) if ended is None else ended.timestamp())
    first = max(rows[0].at, end - minutes * 60)
    stored = max(row.seconds for row in rows)
    fitting = (each for each in LADDER if each >= stored and (end - first) / each < _POINTS)
    seconds = next(fitting, max(stored, LADDER[-1]))
    first = _floor(first, seconds)
    told = [row[1:] for row in rows if row.at >= first]
    return _points(_by_beginning(told, seconds), first, _floor(end, seconds), seconds)


def read_durations(connection: Connection) -> Durations:
    """Of all runs that were ever counted."""
    chosen = select(figures.c.bucket, func.sum(figures.c.amount)).where(figures.c.name == RUN_DURATION)
    return _durations(dict(map(tuple, connection.execute(chosen.group_by(figures.c.bucket)))))


def read_batch_durations(connection: Connection, batch_id: str) -> Durations:
    """Of the runs of one batch."""
    chosen = select(durations.c.bucket, durations.c.amount).where(durations.c.batch_id == batch_id)
    return _durations(dict(map(tuple, connection.execute(chosen))))


def _durations(amounts: Mapping[int, float]) -> Durations:
    counts = tuple(int(amounts.get(bucket, 0)) for bucket in range(len(RUN_BOUNDS)))
    return Durations(RUN_BOUNDS, counts, float(amounts.get(WHOLE, 0.0)))


def _check(minutes: int) -> None:
    if not 1 <= minutes <= _LONGEST:
        raise InvalidInputError(f"cannot tell the throughput of {minutes} minutes: ask for 1 to {_LONGEST:,}")


def _moment(connection: Connection) -> float:
    """The database's clock: whoever asks may have another one."""
    at: datetime = connection.execute(select(now().label("at"))).one().at
    return at.timestamp()


def _floor(moment: float, seconds: int) -> int:
    return int(moment // seconds) * seconds


def _by_beginning(rows: Iterable[Any], seconds: int) -> dict[int, Counter[str]]:
    found: dict[int, Counter[str]] = {}
    for at, *numbers in rows:
        found.setdefault(_floor(at, seconds), Counter()).update(dict(zip(ENDS, map(int, numbers), strict=True)))
    return found


def _points(found: Mapping[int, Counter[str]], first: int, last: int, seconds: int) -> list[ThroughputPoint]:
    nothing: Counter[str] = Counter()
    return [
        ThroughputPoint(
            at=datetime.fromtimestamp(at, UTC),
            seconds=seconds,
            **{name: found.get(at, nothing)[name] for name in ENDS},
        )
        for at in range(first, last + 1, seconds)
    ]
