"""The geometry of bars and charts, in parts of a drawing that is stretched to its place. Pure: no SQL, no clock."""

from __future__ import annotations

import math
from datetime import timedelta
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from batching.web.pages import words

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from batching.statistics import BatchView, Durations, ThroughputPoint

#: Width of every drawing, and height of every chart, in its own units.
WIDTH, HEIGHT = 1000.0, 100.0
#: What is there at all gets so much of a bar, however little it is.
_LEAST = 4.0
#: What has not ended shows at least so much of what is to come.
_STILL_TO_COME = 6.0
_GAP = 0.15
#: Of a chart over time, at most.
_COLUMNS = 90


class Segment(NamedTuple):
    """One state's share of a bar."""

    state: str
    profiles: int
    x: float
    width: float


class Block(NamedTuple):
    """One coloured piece of a column."""

    name: str
    y: float
    height: float


class Column(NamedTuple):
    """One column of a chart, and what it stands for in words."""

    x: float
    width: float
    blocks: tuple[Block, ...]
    title: str
    cells: tuple[str, ...]
    """The same in numbers: a row of the table behind the chart."""


class Chart(NamedTuple):
    """Columns on a common scale."""

    columns: tuple[Column, ...]
    top: str
    """What the full height stands for."""
    left: str
    right: str
    """What is at both ends of the axis."""
    headers: tuple[str, ...]
    summary: str
    """The chart in one sentence, for those who do not see it and for those in a hurry."""


def segments(view: BatchView) -> list[Segment]:
    """The accounting equation as a bar. It is full of what has settled only when the batch has ended."""
    counts = {state.value: int(getattr(view, state.value)) for state in words.PROFILE_ORDER}
    total = sum(counts.values())
    if not total:
        return []
    widths = {state: max(_LEAST, count / total * WIDTH) for state, count in counts.items() if count}
    if not view.terminal:
        open_width = sum(width for state, width in widths.items() if state in {"running", "dispatched", "pending"})
        if open_width < _STILL_TO_COME:
            widths["pending"] = widths.get("pending", 0.0) + _STILL_TO_COME - open_width
    scale = WIDTH / sum(widths.values())
    ends = list(accumulate(width * scale for width in widths.values()))
    starts = [0.0, *ends[:-1]]
    return [
        Segment(state, counts[state], round(start, 2), round(end - start, 2))
        for state, start, end in zip(widths, starts, ends, strict=True)
    ]


def equation(view: BatchView) -> str:
    """`1,000 = 982 succeeded + 3 failed + 15 pending`."""
    parts = [(state.value, int(getattr(view, state.value))) for state in words.PROFILE_ORDER]
    terms = " + ".join(f"{count:,} {state}" for state, count in parts if count)
    return f"{view.total:,} = {terms or '0'}"


class _Span(NamedTuple):
    """Some neighbouring points as one."""

    at: datetime
    seconds: float
    settled: int
    succeeded: int
    failed: int

    @property
    def end(self) -> datetime:
        return self.at + timedelta(seconds=self.seconds)

    @property
    def rate(self) -> float:
        return self.settled / self.seconds


def spans(points: Sequence[ThroughputPoint], *, over: bool) -> list[_Span]:
    """As many columns as can be told apart; every one of the same length.

    Args:
        points: Without gaps.
        over: The last of them is. One that has just begun would look like a collapse, and is left out.
    """
    whole = points if over or len(points) < 2 else points[:-1]
    step = math.ceil(len(whole) / _COLUMNS) if whole else 1
    # From the end: what does not fill a column is the oldest.
    starts = range(len(whole) % step, len(whole), step)
    groups = [whole[start : start + step] for start in starts] if len(whole) >= step else [whole]
    return [
        _Span(
            group[0].at,
            float(sum(each.seconds for each in group)),
            sum(each.settled for each in group),
            sum(each.succeeded for each in group),
            sum(each.failed for each in group),
        )
        for group in groups
        if group
    ]


def throughput(points: Sequence[ThroughputPoint], *, over: bool = False) -> Chart | None:
    """Profiles settled a second over time, succeeded and otherwise; None when nothing settled in that time."""
    found = spans(points, over=over)
    if not any(each.settled for each in found):
        return None
    start, end = found[0].at, found[-1].end
    seconds = (end - start).total_seconds()
    most = max(each.rate for each in found)
    top = _nice(most)
    settled, failed = sum(each.settled for each in found), sum(each.failed for each in found)
    return Chart(
        tuple(_over_time(each, start, seconds, top) for each in found),
        top=words.rate(top),
        left=words.clock(start),
        right=words.clock(end),
        headers=("From (UTC)", "Seconds", "Settled", "Succeeded", "Failed", "A second"),
        summary=f"{words.many(settled, 'profile')} settled in {words.duration(seconds)}, {failed:,} of them failed; "
        f"{words.rate(settled / seconds)} on average, at most {words.rate(most)}",
    )


def _over_time(point: _Span, start: datetime, seconds: float, top: float) -> Column:
    x, width = _across(point, start, seconds)
    others = max(0, point.settled - point.succeeded - point.failed)
    # Failures at the bottom: that is where a few of them are seen.
    stack = _stack([("failed", point.failed), ("succeeded", point.succeeded), ("skipped", others)], top * point.seconds)
    pace = words.rate(point.rate)
    counted = (point.settled, point.succeeded, point.failed)
    return Column(
        x,
        width,
        stack,
        f"{words.clock(point.at)}: {pace}, {point.settled:,} settled, {point.failed:,} failed",
        (words.clock(point.at), f"{point.seconds:g}", *(f"{each:,}" for each in counted), pace),
    )


def _across(point: _Span, start: datetime, seconds: float) -> tuple[float, float]:
    """Where its column begins, and how wide it is."""
    width = point.seconds / seconds * WIDTH
    x = (point.at - start).total_seconds() / seconds * WIDTH
    return round(x + width * _GAP / 2, 2), round(width * (1 - _GAP), 2)


def failures(points: Sequence[ThroughputPoint]) -> Chart | None:
    """How many failed over time; None when nothing did."""
    found = spans(points, over=False)
    if not any(each.failed for each in found):
        return None
    start, end = found[0].at, found[-1].end
    seconds = (end - start).total_seconds()
    top = _nice(max(each.failed for each in found))
    failed, settled = sum(each.failed for each in found), sum(each.settled for each in found)
    return Chart(
        tuple(_failed(each, start, seconds, top) for each in found),
        top=f"{top:,.0f}",
        left=words.clock(start),
        right=words.clock(end),
        headers=("From (UTC)", "Failed", "Share"),
        summary=f"{words.many(failed, 'profile')} failed in {words.duration(seconds)}, "
        f"{failed / max(1, settled):.1%} of what settled",
    )


def _failed(point: _Span, start: datetime, seconds: float, top: float) -> Column:
    x, width = _across(point, start, seconds)
    share = f"{point.failed / point.settled:.1%}" if point.settled else "-"
    title = f"{words.clock(point.at)}: {point.failed:,} failed, {share} of what settled"
    return Column(
        x, width, _stack([("failed", point.failed)], top), title, (words.clock(point.at), f"{point.failed:,}", share)
    )


def histogram(durations: Durations) -> Chart | None:
    """How long runs took; None when nothing was measured."""
    total = sum(durations.counts)
    if not total:
        return None
    used = [index for index, count in enumerate(durations.counts) if count]
    # One empty bar on either side shows that the rest is empty.
    low, high = max(0, used[0] - 1), min(len(durations.counts), used[-1] + 2)
    top, width = max(durations.counts), WIDTH / (high - low)
    columns = []
    for place, index in enumerate(range(low, high)):
        count, name = durations.counts[index], _range(durations.bounds, index)
        columns.append(
            Column(
                round((place + _GAP / 2) * width, 2),
                round(width * (1 - _GAP), 2),
                _stack([("duration", count)], top),
                f"{name}: {count:,}, {count / total:.1%}",
                (name, f"{count:,}", f"{count / total:.1%}"),
            )
        )
    mean = words.duration(durations.seconds / total)
    return Chart(
        tuple(columns),
        f"{top:,}",
        _range(durations.bounds, low),
        _range(durations.bounds, high - 1),
        ("Took", "Runs", "Share"),
        f"{words.many(total, 'run')}: half took {_within(durations, 0.5)}, "
        f"95 % {_within(durations, 0.95)}; {mean} on average",
    )


def _stack(parts: Sequence[tuple[str, float]], top: float) -> tuple[Block, ...]:
    """Pieces of a column from the bottom upwards; what is there at all can be seen."""
    blocks, level = [], HEIGHT
    for name, value in parts:
        if value:
            height = max(1.0, value / top * HEIGHT)
            level -= height
            blocks.append(Block(name, round(level, 2), round(height, 2)))
    return tuple(blocks)


def _nice(value: float) -> float:
    """The next round number that is not much larger."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * 0.999)


def _range(bounds: Sequence[float], index: int) -> str:
    above = words.duration(bounds[index - 1]) if index else ""
    if math.isinf(bounds[index]):
        return f"over {above}"
    below = words.duration(bounds[index])
    return f"{above} to {below}" if index else f"up to {below}"


def _within(durations: Durations, share: float) -> str:
    """The bound of the bar in which this share of all runs is reached."""
    wanted = share * sum(durations.counts)
    index = next(place for place, sofar in enumerate(accumulate(durations.counts)) if sofar >= wanted)
    bound = durations.bounds[index]
    if math.isinf(bound):
        return f"over {words.duration(durations.bounds[index - 1])}"
    return f"up to {words.duration(bound)}"
