"""A request's body as a file of lines: pulled chunk by chunk by the thread that reads it, so never more than a line.

The body is asked for only when the reader wants more, and the server stops reading from the socket meanwhile: a sender
that is quicker than SQL is held up by its own TCP connection.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import anyio
import anyio.from_thread
from starlette.requests import ClientDisconnect

from batching.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

#: Seconds that a sender may be silent in the middle of a body.
PATIENCE: Final = 30.0
#: Seconds between two looks whether the dashboard stops.
_LOOK: Final = 0.5


class Upload:
    """What `intake.read_file` takes for a stream. Read it in a thread that the event loop has started.

    Args:
        request: Whose body.
        stopping: Whether nobody waits for senders any more.
    """

    def __init__(self, request: Request, stopping: Callable[[], bool]) -> None:
        self.name = "the request"
        self._receive = request.receive
        self._stopping = stopping
        self._chunk = b""
        self._at = 0
        self._ended = False

    def readline(self, size: int = -1) -> bytes:
        """The next line with its end, or `size` bytes of it; empty at the end."""
        parts: list[bytes] = []
        room = size if size >= 0 else None
        while room is None or room > 0:
            if self._at >= len(self._chunk) and not self._pull():
                break
            found = self._chunk.find(b"\n", self._at)
            stop = len(self._chunk) if found < 0 else found + 1
            if room is not None:
                stop = min(stop, self._at + room)
                room -= stop - self._at
            parts.append(self._chunk[self._at : stop])
            self._at = stop
            if parts[-1].endswith(b"\n"):
                break
        return b"".join(parts)

    def _pull(self) -> bool:
        while not self._ended:
            self._chunk, self._at = anyio.from_thread.run(self._next), 0
            if self._chunk:
                return True
        return False

    async def _next(self) -> bytes:
        """The next chunk of the body; perhaps empty."""
        patient = time.monotonic() + PATIENCE
        while True:
            if self._stopping():
                raise Problem(503, "stopping", "the dashboard stops; nothing of this batch was kept, send it again")
            with anyio.move_on_after(_LOOK):
                message = await self._receive()
                break
            if time.monotonic() > patient:
                raise Problem(408, "too-slow", f"nothing of the body came for {PATIENCE:g} s; send it again, quicker")
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._ended = not message.get("more_body", False)
        return bytes(message.get("body", b""))
