"""How many messages of a lane may be in the broker at once: some moments of what its workers consume, measured."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from batching.policies import WINDOW_TIME, lane_window

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds for which a window is new, and for which one is trusted to last meanwhile: many workers may be waiting.
_NEW: Final = 1.0
_UNKNOWN: Final = 0.08


class RateMeter:
    """Profiles a second, smoothed: rises at once, decays over some two seconds.

    Args:
        clock: Monotonic seconds.
    """

    _DECAY = 2.0
    #: Below this an interval says little: a group of a thousand that was claimed in a moment is not the rate of a lane.
    #: As long as a window lasts, so that a first burst asks for no more than what there was of it.
    _SHORTEST = WINDOW_TIME

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self._count = 0
        self.rate = 0.0

    def add(self, count: int) -> float:
        """So many since the last call; returns the rate."""
        at = self._clock()
        self._count += count
        elapsed = at - self._at
        if elapsed < self._SHORTEST:
            self.rate = max(self.rate, self._count / self._SHORTEST)
            return self.rate
        latest = self._count / elapsed
        self._at, self._count = at, 0
        share = 1.0 if latest > self.rate else 1.0 - math.exp(-elapsed / self._DECAY)
        self.rate += (latest - self.rate) * share
        return self.rate


class LaneWindow:
    """One lane's window, and what is in it as far as the leader knows.

    Args:
        fixed: A setting that overrides the measurement; 0 for none.
        clock: Monotonic seconds.
    """

    def __init__(self, fixed: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._fixed = fixed
        self._clock = clock
        self._began = clock()
        self._meter = RateMeter(clock)
        self._last = self._seen = self._emptied = self._exhausted = 0
        self.waiting = 0
        """Messages in the broker: as last seen, and sent since."""

    def look(self, waiting: int) -> None:
        """So many messages were seen in the broker; what was there before and is not, has been consumed."""
        self._emptied = 0 if waiting else self._emptied + bool(self.waiting)
        # Once tells nothing of their speed: idle workers take what their slots can begin with, and may be long at it.
        self._exhausted = self._last if self._emptied > 1 else 0
        self._meter.add(max(0, self.waiting - waiting))
        self.waiting = self._seen = waiting

    @property
    def last(self) -> int:
        """The size that was filled up last."""
        return self._last

    @property
    def dry(self) -> bool:
        """Whether the workers were seen to have taken all there was."""
        return not self._seen

    def sent(self, count: int) -> None:
        """So many more were published."""
        self.waiting += count

    def size(self, slots: int) -> int:
        """Messages that may be there at once; `policies.lane_window`."""
        return lane_window(slots, self._meter.rate, self._fixed, exhausted=self._exhausted)

    def free(self, slots: int) -> int:
        """Messages that may be sent now; the size that they fill up is remembered."""
        self._last = self.size(slots)
        return max(0, self._last - self.waiting)

    def lasts(self) -> float:
        """Seconds until what is in the broker is consumed, at the measured rate; soon while little is known of it."""
        known = self.waiting / self._meter.rate if self._meter.rate else math.inf
        return min(known, _UNKNOWN) if self._clock() < self._began + _NEW else known
