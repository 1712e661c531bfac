"""A small event loop: readers, timers and calls from other threads.

One loop serves both kinds of worker. Where the pool forks, it is *nested* in Celery's own loop: its selector's file
descriptor is one more reader there (`hubs.HubBridge`), so no thread exists in a process that forks. Elsewhere it runs
in a thread of its own, so that a busy handler cannot stop heartbeats. Because it keeps its own timers, it outlives the
resets that Celery does to its loop whenever the broker's connection breaks.
"""

from __future__ import annotations

import heapq
import logging
import selectors
import socket
from collections import deque
from contextlib import suppress
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Callbacks of one turn, at most: Celery's own loop gets its turn even when callbacks add callbacks.
_TURN: Final = 10_000


class Timer:
    """A call that is due later."""

    __slots__ = ("arguments", "cancelled", "due", "function")

    def __init__(self, due: float, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.due = due
        self.function = function
        self.arguments = arguments
        self.cancelled = False

    def cancel(self) -> None:
        """Make it not happen; harmless afterwards."""
        self.cancelled = True


class Loop:
    """Readers, timers, and calls that are made soon. Only `call_soon` and `stop` may be used from other threads."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._soon: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._waker, self._bell = socket.socketpair()
        self._waker.setblocking(False)
        self._bell.setblocking(False)
        self._rung = False
        self._turning = False
        self._stopped = False
        self._selector.register(self._waker, selectors.EVENT_READ, self._woken)

    def fileno(self) -> int:
        """A descriptor that is readable when a reader or a call is ready, for nesting in another loop."""
        number: int = self._selector.fileno()
        return number

    def call_soon(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call it in the loop's thread, in its next turn."""
        self._soon.append((function, arguments))
        self._ring()

    def call_later(self, delay: float, function: Callable[..., object], *arguments: Any) -> Timer:
        """Call it after so many seconds."""
        timer = Timer(monotonic() + delay, function, arguments)
        heapq.heappush(self._timers, (timer.due, next(self._order), timer))
        if not self._turning:
            self._ring()
        return timer

    def call_repeatedly(self, interval: float, function: Callable[[], object]) -> Timer:
        """Call it every so many seconds, counted from the end of each call, until the returned timer is cancelled."""
        timer = Timer(0.0, function, ())

        def again() -> None:
            if timer.cancelled:
                return
            try:
                function()
            finally:
                self.call_later(interval, again)

        self.call_later(interval, again)
        return timer

    def add_reader(self, fd: int, function: Callable[[], object]) -> None:
        """Call it whenever the descriptor is readable or broken."""
        self._selector.register(fd, selectors.EVENT_READ, function)

    def remove_reader(self, fd: int) -> None:
        """Forget a descriptor; harmless when it is not known or closed already."""
        with suppress(KeyError, ValueError, OSError):
            self._selector.unregister(fd)

    def delay(self) -> float | None:
        """Seconds until the next timer is due; None when there is none."""
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        if self._soon:
            return 0.0
        return max(0.0, self._timers[0][0] - monotonic()) if self._timers else None

    def run_once(self, timeout: float | None = None) -> None:
        """One turn: wait for something to do, at most `timeout` seconds (None: as long as it takes), and do it."""
        delay = self.delay()
        wait = timeout if delay is None else delay if timeout is None else min(delay, timeout)
        self._turning = True
        try:
            for key, _ in self._selector.select(wait):
                self._guarded(key.data)
            self._run_timers()
            for _ in range(min(len(self._soon), _TURN)):
                function, arguments = self._soon.popleft()
                self._guarded(function, *arguments)
        finally:
            self._turning = False
        if self._soon:
            # In the outer loop, the descriptor must stay readable for what this turn left over.
            self._ring()

    def run_forever(self) -> None:
        """Turn until `stop`."""
        while not self._stopped:
            self.run_once()

    def stop(self) -> None:
        """End `run_forever` after its present turn."""
        self._stopped = True
        self._ring()

    def close(self) -> None:
        """Release the descriptors. The loop cannot be used afterwards."""
        self._selector.close()
        self._waker.close()
        self._bell.close()

    def _run_timers(self) -> None:
        now = monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if not timer.cancelled:
                self._guarded(timer.function, *timer.arguments)

    def _ring(self) -> None:
        # One byte is enough for any number of calls; the flag is cleared before the calls are taken, so none is missed.
        if not self._rung:
            self._rung = True
            with suppress(OSError):
                self._bell.send(b"\0")

    def _woken(self) -> None:
        with suppress(OSError):
            self._waker.recv(4096)
        self._rung = False

    @staticmethod
    def _guarded(function: Callable[..., object], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception:
            # It must not end the loop; nested, an OSError would look like a lost broker to Celery.
            logger.exception("A callback of the lanes' loop failed: %r", function)


__all__ = ["Loop", "Timer"]
