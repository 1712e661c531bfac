"""How many runs a worker claims: enough that its pool never waits for SQL, and no more, so that it hoards nothing."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from batching.settings import Settings
    from workers.offers import Offer

#: Seconds that a run takes at least, as far as planning goes; and the weight of the newest one in the average.
_SHORTEST_RUN: Final = 0.00005
_NEWEST: Final = 0.1
#: Seconds of work in one bundle, and runs in it, at most.
_BUNDLE_TIME: Final = 0.01
_BUNDLE_SIZE: Final = 200
#: Bytes of payloads to hold of one handler, about.
_PAYLOADS: Final = 16_777_216
#: Share by which the longest run is forgotten with every one that is shorter.
_FORGOTTEN: Final = 0.05


class Appetite:
    """Measures what runs take, handler by handler, and plans by that.

    Work is counted by what a run takes, not by how many ended lately: small groups make a pool wait for SQL, and a rate
    measured then would keep them small. A handler that nobody has seen yet counts as slow: what is not claimed can be
    claimed a moment later, and what is claimed is held back from others.

    Args:
        slots: Runs that can go on at once, now.
        settings: Flush interval and size.
    """

    def __init__(self, slots: Callable[[], int], settings: Settings) -> None:
        self._slots = slots
        self._interval = settings.flush_interval
        self._most = settings.flush_size
        self._seconds: dict[str, float] = {}
        self._longest: dict[str, float] = {}
        self._sizes: dict[str, float] = {}
        self._active: Counter[str] = Counter()

    def begun(self, handler: str, size: int) -> None:
        """A run of this handler was claimed, with a payload of so many characters."""
        self._active[handler] += 1
        before = self._sizes.get(handler, size)
        self._sizes[handler] = before + _NEWEST * (size - before)

    def ended(self, handler: str, seconds: float | None) -> None:
        """It is over; None when it never ran."""
        self._active[handler] -= 1
        if seconds is not None:
            before = self._seconds.get(handler, seconds)
            self._seconds[handler] = before + _NEWEST * (seconds - before)
            longest = self._longest.get(handler, seconds)
            self._longest[handler] = seconds if seconds > longest else longest + _FORGOTTEN * (seconds - longest)

    def room(self, handler: str) -> int:
        """Runs of one handler to hold: what the pool takes twice over, and two flushes' worth of work for it.

        Less when their payloads are large: they wait in memory.
        """
        slots = self._slots()
        seconds = self._seconds.get(handler)
        if seconds is None:
            return 2 * slots
        buffer = int(2 * self._interval * slots / max(_SHORTEST_RUN, seconds))
        return 2 * slots + min(self._most, buffer, int(_PAYLOADS / max(1.0, self._sizes.get(handler, 0.0))))

    def bundle(self, handler: str) -> int:
        """Runs to hand to the pool at once: some milliseconds of work, even if they take as long as the longest ones.

        One when nobody has seen the handler yet, or when it is slow: those behind a slow run would wait for it.
        """
        longest = self._longest.get(handler)
        return 1 if longest is None else max(1, min(_BUNDLE_SIZE, int(_BUNDLE_TIME / max(_SHORTEST_RUN, longest))))

    def target(self) -> int:
        """Runs to hold in all: as for the slowest handler at work; when none is, as for the quickest that was."""
        at_work = [self.room(handler) for handler, count in self._active.items() if count]
        if at_work:
            return min(at_work)
        return max((self.room(handler) for handler in self._seconds), default=2 * self._slots())

    def affordable(self, offers: Iterable[Offer]) -> list[Offer]:
        """Those that there is room for, in their order."""
        room: dict[str, int] = {}
        chosen = []
        for offer in offers:
            handler = offer.handler
            if handler not in room:
                room[handler] = self.room(handler) - self._active[handler]
            if room[handler] > 0:
                room[handler] -= 1
                chosen.append(offer)
        return chosen
