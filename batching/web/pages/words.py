"""How the pages word numbers, times and states. Pure; the templates use them as filters."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from batching.states import BatchState, ProfileState

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.statistics import BatchView

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
#: Below this, two digits say more than a whole number.
_FEW = 10

#: The order of segments in every bar and legend: what is done first, what waits last.
PROFILE_ORDER = (
    ProfileState.SUCCEEDED,
    ProfileState.SKIPPED,
    ProfileState.FAILED,
    ProfileState.CANCELLED,
    ProfileState.EXPIRED,
    ProfileState.RUNNING,
    ProfileState.DISPATCHED,
    ProfileState.PENDING,
)

#: A sign beside each state of a batch, so that colour is not all that tells them apart.
SIGNS = {
    BatchState.QUEUED: "·",
    BatchState.RUNNING: "▶",
    BatchState.STOPPING: "◼",
    BatchState.PAUSED: "‖",
    BatchState.SUCCEEDED: "✓",
    BatchState.FAILED: "✕",
    BatchState.CANCELLED: "⊘",
    BatchState.EXPIRED: "◌",
}


def number(value: float | None) -> str:
    """`1,234`; `-` for None."""
    return "-" if value is None else f"{value:,}"


def many(count: int, singular: str, plural: str | None = None) -> str:
    """`1 profile`, `1,234 profiles`."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def duration(seconds: float | None) -> str:
    """`0.25 s`, `45 s`, `3 min 20 s`, `2 h 05 min`, `3 d 04 h`; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < _FEW:
        return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min" + (f" {whole % _MINUTE:02} s" if whole % _MINUTE else "")
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"
    return f"{whole // _DAY:,} d {whole % _DAY // _HOUR:02} h"


def about(seconds: float | None) -> str:
    """A duration as estimates deserve it: `7 s`, `40 s`, `6 min`, `2.5 h`, `3 d`."""
    if seconds is None:
        return "-"
    if seconds < _MINUTE:
        return f"{math.ceil(seconds)} s"
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= unit:
            share = seconds / unit
            return f"{share:.1f} {name}" if share < _FEW and unit != _MINUTE else f"{share:,.0f} {name}"
    raise AssertionError("unreachable")  # pragma: no cover


def rate(per_second: float | None) -> str:
    """`120/s`, `3.4/s`; `-` for None."""
    if per_second is None:
        return "-"
    return f"{per_second:,.0f}/s" if per_second >= _FEW else f"{per_second:.2g}/s"


def eta(view: BatchView) -> str:
    """`6 min to 10 min`, `at least 6 min`; empty when nobody can tell."""
    if view.eta_seconds is None:
        return ""
    low, high = about(view.eta_low), about(view.eta_high)
    if view.eta_high is None:
        return f"at least {low}"
    return low if low == high else f"{low} to {high}"


def absolute(at: datetime | None) -> str:
    """`2026-11-23 03:12:45 UTC`; `-` for None."""
    return "-" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def clock(at: datetime) -> str:
    """`03:12:45`, in UTC."""
    return f"{at.astimezone(UTC):%H:%M:%S}"


def relative(at: datetime | None, now: datetime) -> str:
    """`now`, `12 s ago`, `in 5 min`; `-` for None."""
    if at is None:
        return "-"
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"{about(seconds)} ago" if seconds > 0 else f"in {about(-seconds)}"


def shown(text: Any) -> str:
    """A text from elsewhere without characters that show nothing or turn the line around: those as escapes."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(text))


def compact(value: Any) -> str:
    """A text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def short_id(batch_id: str) -> str:
    """The beginning of an id, which tells batches apart that were not made in the same millisecond."""
    return batch_id[:13]


def percent(view: BatchView) -> str:
    """Rounded down, and never 100 before the end."""
    return f"{view.percent} %"


#: What the templates find under these names.
FILTERS: dict[str, Callable[..., Any]] = {
    "number": number,
    "many": many,
    "duration": duration,
    "about": about,
    "rate": rate,
    "eta": eta,
    "absolute": absolute,
    "clock": clock,
    "shown": shown,
    "compact": compact,
    "short_id": short_id,
    "percent": percent,
}
