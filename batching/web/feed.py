"""What streams of events tell: one look into SQL for all who watch the same, and to each only what changed.

A notice from Redis (`batching.live`) says when to look; without Redis, or when it is away, everybody looks every other
second, and streams are marked stale. Each stream keeps the latest document of each batch that it has not sent yet, so
one that reads slowly misses steps, and never holds more than one list of batches.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio
import anyio.to_thread

from batching.errors import BatchingError
from batching.live import Listener
from batching.web.answers import encode
from batching.web.problems import Problem, problem_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batching.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds between two looks without a notice: while notices come, for what no notice tells (rates, places in line);
#: without them, for everything.
LIVE_LOOK: Final = 5.0
BLIND_LOOK: Final = 2.0
#: Seconds between two looks at least.
_SHORTEST: Final = 0.25
#: Seconds until a look that failed is repeated.
_AFTER_ERROR: Final = 2.0

Look = Callable[[], list[dict[str, Any]]]


class Status(NamedTuple):
    """How far a stream can be trusted."""

    live: bool
    """Notices arrive: changes show within a second."""
    stale: bool
    """What is told may be behind: Redis is away, or the database is."""
    reason: str
    """Why it is not live; empty when it is."""


class Event(NamedTuple):
    """One event of a stream."""

    kind: str
    data: bytes


class Subscription:
    """One stream's view of a topic: what it has not been told yet."""

    def __init__(self, topic: _Topic) -> None:
        self._topic = topic
        self._waiting: dict[str, bytes] = {}
        self._gone: set[str] = set()
        self._told: Status | None = None
        self._begun = False
        self._wake = asyncio.Event()
        self.closed = False
        """No more will come: the dashboard stops."""

    def offer(self, changed: Mapping[str, bytes], gone: AbstractSet[str]) -> None:
        """Take note of news, and of how the topic stands."""
        self._waiting.update(changed)
        for each in gone:
            self._waiting.pop(each, None)
        self._gone = (self._gone | gone) - changed.keys()
        begins = self._topic.read and not self._begun
        if begins or changed or gone or self._topic.status != self._told:
            self._wake.set()

    def close(self) -> None:
        """End the stream."""
        self.closed = True
        self._wake.set()

    async def next(self, seconds: float) -> list[Event]:
        """What is new; empty after so many seconds without news, or once it is closed."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)
        self._wake.clear()
        return [] if self.closed else self._take()

    def _take(self) -> list[Event]:
        events: list[Event] = []
        if self._topic.status is not None and self._topic.status != self._told:
            self._told = self._topic.status
            events.append(Event("status", encode(self._told._asdict())))
        if not self._topic.read:
            return events
        if self._begun:
            events += [Event("batch", document) for document in self._waiting.values()]
            events += [Event("gone", encode({"id": each})) for each in sorted(self._gone)]
        else:
            self._begun = True
            events.append(Event("snapshot", b'{"batches":[' + b",".join(self._topic.documents.values()) + b"]}"))
        self._waiting, self._gone = {}, set()
        return events


class _Topic:
    """What several streams watch: all batches, or one."""

    def __init__(self, feed: Feed, name: str | None, look: Look) -> None:
        self._feed = feed
        self._look = look
        self.name = name
        self.documents: dict[str, bytes] = {}
        self.read = False
        """It was looked at once."""
        self.status: Status | None = None
        """At the last look."""
        self.subscriptions: set[Subscription] = set()
        self.news = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def concerns(self, batch_ids: frozenset[str]) -> bool:
        """Whether a notice is about this."""
        return self.name is None or not batch_ids or self.name in batch_ids

    async def watch(self) -> None:
        """Look, tell, wait; until nobody watches."""
        while self.subscriptions:
            wait = await self._turn()
            begun = time.monotonic()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.news.wait(), wait)
            # Many notices in a moment are one look.
            await asyncio.sleep(max(0.0, _SHORTEST - (time.monotonic() - begun)))

    async def _turn(self) -> float:
        self.news.clear()  # before the look: what comes meanwhile leads to another
        self.status = self._feed.status
        try:
            documents = {each["id"]: encode(each) for each in await self._feed.run(self._look)}
        except Exception as error:  # noqa: BLE001 - whatever it is: a stream that went on silently would be believed
            self.status = self.status._replace(stale=True, reason=_told(error))
            self._tell({}, frozenset())
            return _AFTER_ERROR
        changed = {each: text for each, text in documents.items() if self.documents.get(each) != text}
        gone = self.documents.keys() - documents.keys()
        self.documents, self.read = documents, True
        self._tell(changed, gone)
        return LIVE_LOOK if self.status.live else BLIND_LOOK

    def _tell(self, changed: Mapping[str, bytes], gone: AbstractSet[str]) -> None:
        for subscription in self.subscriptions:
            subscription.offer(changed, gone)


def _told(error: Exception) -> str:
    """Why a look failed, for whoever watches; the log has the rest."""
    if isinstance(error, BatchingError):
        logger.info("Could not look for news: %s", error)
        return str(problem_of(error).detail)
    logger.error("Could not look for news", exc_info=error)
    return "an internal error; the dashboard's log has it"


class Feed:
    """The process's one ear, and its topics.

    Args:
        settings: The broker, and how many streams there may be.
        broker_url: Where notices come from; None: nowhere.
    """

    def __init__(self, settings: Settings, broker_url: str | None) -> None:
        self._settings = settings
        self._broker_url = broker_url
        self._topics: dict[str | None, _Topic] = {}
        self._listener: Listener | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connected = False
        self._streams = 0
        self._closed = False
        self._looks = anyio.CapacityLimiter(2)
        self._nonce = secrets.token_hex(4)
        self._number = 0

    @property
    def status(self) -> Status:
        """As of now."""
        if self._broker_url is None:
            return Status(False, False, f"no broker is configured: the database is looked at every {BLIND_LOOK:g} s")
        if not self._connected:
            return Status(False, True, f"Redis is away: the database is looked at every {BLIND_LOOK:g} s")
        return Status(True, False, "")

    def start(self) -> None:
        """Begin to listen; call it in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._closed = False
        if self._broker_url is not None:
            self._listener = Listener(self._broker_url, self._settings.key_prefix, self._heard, self._line)
            self._listener.start()

    async def stop(self) -> None:
        """End every stream, then listen no more. Safe to call twice."""
        self.end_streams()
        tasks = [topic.task for topic in self._topics.values() if topic.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._topics.clear()
        if self._listener is not None:
            await anyio.to_thread.run_sync(self._listener.stop)
            self._listener = None

    def end_streams(self) -> None:
        """Let every stream come to its end, and take no more of them."""
        self._closed = True
        for topic in self._topics.values():
            for subscription in topic.subscriptions:
                subscription.close()

    async def run(self, function: Look) -> list[dict[str, Any]]:
        """A look, in a thread of the feed's own: requests that wait for SQL hold up no stream, nor it them."""
        return await anyio.to_thread.run_sync(function, limiter=self._looks)

    def next_id(self) -> str:
        """The id of an event: for people, since every stream begins with all there is."""
        self._number += 1
        return f"{self._nonce}-{self._number}"

    @contextmanager
    def subscribe(self, name: str | None, look: Look) -> Iterator[Subscription]:
        """Watch a topic.

        Args:
            name: The id of a batch; None: all.
            look: Reads its documents; in a thread.

        Raises:
            Problem: There are as many streams as there may be.
        """
        if self._closed:
            raise Problem(503, "stopping", "this dashboard stops; connect again")
        if self._streams >= self._settings.web_streams:
            raise Problem(
                503,
                "too-many-streams",
                f"this dashboard serves {self._streams} streams of events, its limit (BATCHING_WEB_STREAMS); "
                "close some, or read without a stream",
            )
        topic = self._topics.get(name) or self._topics.setdefault(name, _Topic(self, name, look))
        subscription = Subscription(topic)
        topic.subscriptions.add(subscription)
        self._streams += 1
        subscription.offer({}, frozenset())
        if topic.task is None:
            topic.task = asyncio.create_task(topic.watch())
        try:
            yield subscription
        finally:
            self._streams -= 1
            topic.subscriptions.discard(subscription)
            if not topic.subscriptions and topic.task is not None:
                topic.task.cancel()
                self._topics.pop(name, None)

    def _heard(self, batch_ids: frozenset[str]) -> None:
        self._in_loop(lambda: self._spread(batch_ids))

    def _line(self, connected: bool) -> None:
        def change() -> None:
            self._connected = connected
            self._spread(frozenset())

        self._in_loop(change)

    def _spread(self, batch_ids: frozenset[str]) -> None:
        for topic in self._topics.values():
            if topic.concerns(batch_ids):
                topic.news.set()

    def _in_loop(self, function: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has ended: nobody is left to tell
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function)
