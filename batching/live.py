"""Notices through Redis: which batches have news. Hints like the doorbell: whoever gets one looks into SQL.

A notice is `{"batches": [ids]}` on the channel `<key_prefix>live`; without ids it says that something is new. Nothing
is kept: a notice that nobody hears is gone, so whoever watches also looks by itself, now and then.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import redis

from batching.broker import SOCKET_TIMEOUT, redis_client
from batching.errors import ConfigurationError
from batching.settings import mask_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)

#: Seconds between two notices of one process.
PAUSE: Final = 0.25
#: Ids in one notice; of more, it says only that there is news.
MOST: Final = 500
#: Seconds of silence after which a listener asks the server whether it is there.
_ASK_AFTER: Final = 5.0
_LONGEST_PAUSE: Final = 5.0


def channel(key_prefix: str) -> str:
    """The channel's name."""
    return f"{key_prefix}live"


def publication(key_prefix: str, batch_ids: Iterable[str] = ()) -> tuple[str, str, str]:
    """The command that publishes a notice, to be sent along with others.

    Args:
        key_prefix: Before the channel's name.
        batch_ids: Batches with news; none: something is new.
    """
    named = sorted(set(batch_ids))
    return "PUBLISH", channel(key_prefix), json.dumps({"batches": named if len(named) <= MOST else []})


def read_notice(raw: bytes | str) -> frozenset[str] | None:
    """The ids in a notice, none for news without a name; None when it is no notice."""
    try:
        ids = json.loads(raw)["batches"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return frozenset(ids) if isinstance(ids, list) and all(isinstance(each, str) for each in ids) else None


class News:
    """Ids that wait to be told, at most four times a second. Pure: the clock is passed in."""

    def __init__(self, key_prefix: str) -> None:
        self._key_prefix = key_prefix
        self._ids: set[str] = set()
        self._quiet_until = 0.0

    def __bool__(self) -> bool:
        return bool(self._ids)

    def note(self, batch_ids: Iterable[str]) -> None:
        """Keep them until they are told."""
        self._ids.update(batch_ids)

    def due(self, now: float) -> bool:
        """Whether there is something to tell, and it is time to."""
        return bool(self._ids) and now >= self._quiet_until

    def take(self, now: float) -> tuple[str, str, str]:
        """The command that tells all of it; the next is due a pause later.

        Args:
            now: Monotonic seconds.
        """
        command = publication(self._key_prefix, self._ids)
        self._ids.clear()
        self._quiet_until = now + PAUSE
        return command


class Listener:
    """Hears notices in a thread of its own, and connects again for as long as it takes.

    Args:
        url: The broker.
        key_prefix: Before the channel's name.
        on_notice: Called in this thread with the ids of a notice.
        on_line: Called in this thread with whether notices arrive, whenever that changes.
    """

    def __init__(
        self,
        url: str,
        key_prefix: str,
        on_notice: Callable[[frozenset[str]], object],
        on_line: Callable[[bool], object],
    ) -> None:
        self._url = url
        self._channel = channel(key_prefix)
        self._on_notice = on_notice
        self._on_line = on_line
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batching-live", daemon=True)
        self._connected = False

    def start(self) -> None:
        """Begin; returns at once, connected or not."""
        self._thread.start()

    def stop(self) -> None:
        """End within a second or so. Safe to call twice."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(SOCKET_TIMEOUT)

    def _run(self) -> None:
        pause = 0.1
        while not self._stopping.is_set():
            try:
                self._listen()
            except (redis.RedisError, OSError, ConfigurationError) as error:
                if self._connected or pause == 0.1:
                    logger.warning("No notices from %s, trying again: %s", mask_url(self._url), error)
                pause = 0.1 if self._connected else min(_LONGEST_PAUSE, 2 * pause)
                self._say(connected=False)
                self._stopping.wait(pause)
        self._say(connected=False)

    def _listen(self) -> None:
        with redis_client(self._url, protocol=2) as client, client.pubsub() as subscription:
            subscription.subscribe(self._channel)
            heard, asked = time.monotonic(), False
            while not self._stopping.is_set():
                message: dict[str, Any] | None = subscription.get_message(timeout=0.5)
                now = time.monotonic()
                if message is not None:
                    heard, asked = now, False
                    self._hear(message)
                elif now - heard > _ASK_AFTER + SOCKET_TIMEOUT:
                    raise TimeoutError(f"no answer within {SOCKET_TIMEOUT:g} s")
                elif now - heard > _ASK_AFTER and not asked:
                    subscription.ping()  # a server that is frozen, or cut off, closes nothing
                    asked = True

    def _hear(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            self._say(connected=True)
            self._on_notice(frozenset())  # whatever was told before is missed: look once
        elif message["type"] == "message" and (ids := read_notice(message["data"])) is not None:
            self._on_notice(ids)

    def _say(self, *, connected: bool) -> None:
        if connected != self._connected:
            self._connected = connected
            self._on_line(connected)
