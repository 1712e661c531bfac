"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) from the feed, as an answer."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import anyio
from starlette.responses import StreamingResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import Message, Receive, Scope, Send

    from batching.web.feed import Event, Feed, Look

logger = logging.getLogger(__name__)

#: Milliseconds after which a browser connects again.
RETRY: Final = 2_000
#: Seconds of silence after which a comment shows that the line stands.
HEARTBEAT: Final = 15.0
#: Seconds that a reader may take for what was sent before it is given up: a dead one must not keep its place.
_PATIENCE: Final = 30.0
#: Seconds after which a stream ends, so that whoever reads it has to show again that they may.
_LONGEST: Final = 3_600.0
_BEAT: Final = b": the line stands\n\n"


def encode_event(event: Event, number: str) -> bytes:
    """An event as it goes over the line; its data is JSON on one line."""
    return b"id: " + number.encode() + b"\nevent: " + event.kind.encode() + b"\ndata: " + event.data + b"\n\n"


class EventStream(StreamingResponse):
    """How soon to connect again, all there is, then what changes. Gives a reader up that takes nothing for long.

    Args:
        feed: Where the news comes from.
        name: The id of a batch; None: all.
        look: Reads its documents; in a thread.
        until: True for the event that is the last.

    Raises:
        Problem: There are as many streams as there may be.
    """

    media_type = "text/event-stream"

    def __init__(self, feed: Feed, name: str | None, look: Look, until: Callable[[Event], bool] | None = None) -> None:
        self._feed = feed
        self._until = until
        self._stack = ExitStack()
        self._subscription = self._stack.enter_context(feed.subscribe(name, look))
        super().__init__(self._told())

    async def _told(self) -> AsyncIterator[bytes]:
        yield f"retry: {RETRY}\n\n".encode()
        ends = time.monotonic() + _LONGEST
        while time.monotonic() < ends:
            events = await self._subscription.next(HEARTBEAT)
            if self._subscription.closed:
                return
            yield b"".join(encode_event(event, self._feed.next_id()) for event in events) or _BEAT
            if self._until is not None and any(self._until(event) for event in events):
                return

    async def stream_response(self, send: Send) -> None:
        """Send with a bound on each step."""

        async def bounded(message: Message) -> None:
            with anyio.fail_after(_PATIENCE):
                await send(message)

        await super().stream_response(bounded)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve until either side leaves."""
        with self._stack:
            try:
                await super().__call__(scope, receive, send)
            except* TimeoutError:
                logger.info("Gave up a reader of events that took nothing for %g s", _PATIENCE)
