"""Task events in bulk: what Flower and `celery events` see of the runs.

Celery's dispatcher takes events one at a time, and publishes them by two dozen; here a group of runs is told at once,
into the same buffer, which Celery's loop flushes as ever.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from celery.utils.time import utcoffset

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

#: Events in one message, about; the dispatcher's own limit is 24 (celery/events/dispatcher.py `buffer_limit`).
_GROUP: Final = 500


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
