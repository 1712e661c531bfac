"""Task events in bulk: what Flower and `celery events` see of the runs.

Celery's dispatcher takes events one at a time, and publishes them by two dozen; here a group of runs is told at once,
into the same buffer, which Celery's loop flushes as ever. None is left out, but a burst of very short runs is told at a
pace that those who watch can follow: Flower needs 0.1 to 0.15 ms for one event, as much as the whole rest of a no-op.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from celery.utils.time import utcoffset

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from workers.loops import Loop

logger = logging.getLogger(__name__)

#: Events in one message, about; the dispatcher's own limit is 24 (celery/events/dispatcher.py `buffer_limit`).
_GROUP: Final = 500


#: While a worker has more to run: seconds between two groups of events, and events in each. Together 2,000 a second.
_PAUSE: Final = 0.05
_PACE: Final = 100
#: Events that wait, at most: a burst is spread out; whoever runs on at that speed is told of at the speed of its runs.
_MOST: Final = 20_000


def listens(eventer: Any) -> bool:
    """Whether anybody asked for events of tasks; the dispatcher itself is always on, for the worker's heartbeats."""
    return bool(eventer and eventer.enabled and (not eventer.groups or "task" in eventer.groups))


def send(eventer: Any, events: Sequence[dict[str, Any]]) -> None:
    """Send events of tasks to those who listen. Never raises: an event that cannot be sent must not cost anything.

    Args:
        eventer: Celery's dispatcher.
        events: Each with its `type`, its `uuid` and its own fields.
    """
    if not events:
        return
    try:
        if "task" in eventer.buffer_group:
            _buffer(eventer, events)
        else:
            for event in events:
                eventer.send(**event)
    except Exception as error:  # noqa: BLE001 - whatever the broker's client raises; the dispatcher keeps what it has
        logger.debug("Could not send %d events: %r", len(events), error)


class Pace:
    """Keeps the events of runs that are over at once, and sends them bit by bit; all when nothing else is to do.

    Args:
        loop: In whose thread they are sent.
        busy: Whether runs wait for the pool, so that what the watchers take is taken from them.
    """

    def __init__(self, loop: Loop, busy: Callable[[], bool]) -> None:
        self._loop = loop
        self._busy = busy
        self._waiting: deque[tuple[Any, dict[str, Any]]] = deque()
        self._planned = False

    def __len__(self) -> int:
        return len(self._waiting)

    def keep(self, eventer: Any, events: Sequence[dict[str, Any]]) -> None:
        """Send these events in time; call it from any thread."""
        at = time.time()
        self._waiting.extend((eventer, {"timestamp": at, **event}) for event in events)
        if not self._planned:
            self._planned = True
            self._loop.call_soon(self._turn)

    def hurry(self) -> None:
        """Send all that wait; in the loop's thread."""
        self._send(len(self._waiting))

    def _turn(self) -> None:
        waiting = len(self._waiting)
        self._send(max(_PACE, waiting - _MOST) if self._busy() else waiting)
        # Cleared before the look: whoever keeps one after it plans a turn.
        self._planned = False
        if self._waiting:
            self._planned = True
            self._loop.call_later(_PAUSE, self._turn)

    def _send(self, count: int) -> None:
        by_eventer: dict[int, tuple[Any, list[dict[str, Any]]]] = {}
        for _ in range(min(count, len(self._waiting))):
            eventer, event = self._waiting.popleft()
            by_eventer.setdefault(id(eventer), (eventer, []))[1].append(event)
        for eventer, events in by_eventer.values():
            if listens(eventer):
                send(eventer, events)


def _buffer(eventer: Any, events: Sequence[dict[str, Any]]) -> None:
    common = {
        "hostname": eventer.hostname,
        "utcoffset": utcoffset(),
        "pid": eventer.pid,
        "clock": eventer.clock.forward(),
        "timestamp": time.time(),
    }
    buffer = eventer._group_buffer["task"]  # noqa: SLF001 - its own `send` takes one event at a time
    buffer.extend(common | event for event in events)
    if len(buffer) >= _GROUP:
        eventer.flush(errors=False)
    elif eventer.on_send_buffered:
        eventer.on_send_buffered()
