"""Caps and rate limits: what holds a dispatch back beside its window. Pure data and arithmetic: no SQL, no clock."""

from __future__ import annotations

import math
import re
from typing import Any, Final, NamedTuple

from batching.errors import InvalidInputError
from batching.states import LimitKind

_PER: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}
_RATE: Final = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(?:/([smh]))?")
#: The name of a limit that batches share; a handler's name or a queue's is one, too.
LIMIT_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")
_FASTEST: Final = 1_000_000.0
_SLOWEST: Final = 1.0 / 86_400


class LimitKey(NamedTuple):
    """Names a rate limit."""

    kind: LimitKind
    name: str

    def __str__(self) -> str:
        return self.name if self.kind is LimitKind.KEY else f"{self.kind} {self.name}"


class Limit(NamedTuple):
    """A rate limit, and what it has to give at the moment of a look."""

    key: LimitKey
    per_second: float
    burst: int
    available: float


class Brakes(NamedTuple):
    """What one dispatch of one batch must keep to, exactly."""

    cap: int | None = None
    """Of the batch's profiles that are dispatched or running."""
    queue_cap: int | None = None
    """Of those of all batches of its queue."""
    own: Limit | None = None
    """The batch's own rate, as its options say; its bucket is made full when it is not there."""
    limits: tuple[LimitKey, ...] = ()
    """The buckets that every dispatched profile takes a token from."""

    @property
    def hold(self) -> bool:
        """Whether there are any."""
        return self != _NONE


_NONE: Final = Brakes()


def parse_rate(value: Any, what: str = "a rate") -> float:
    """Profiles a second, from a number or as people write it: `10`, `10/s`, `600/m`, `5000/h`.

    Raises:
        InvalidInputError: It is none, or not between once a day and a million a second.
    """
    rate: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        rate = float(value)
    elif isinstance(value, str) and (found := _RATE.fullmatch(value.strip())):
        rate = float(found[1]) / _PER[found[2] or "s"]
    if rate is None or not _SLOWEST <= rate <= _FASTEST:
        raise InvalidInputError(
            f"{what} is a number of profiles a second, from one a day to {_FASTEST:,.0f}, or as 10/s, 600/m, 5000/h; "
            f"not {value!r}"
        )
    return rate


def burst_of(per_second: float) -> int:
    """Profiles that may go at once when nobody says so: those of half a second."""
    return max(1, math.ceil(per_second / 2))
