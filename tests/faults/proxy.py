"""A TCP proxy between a process and a server, which can be told to be a bad line.

The faults are toxiproxy's (https://github.com/Shopify/toxiproxy#toxics), because these are how networks really fail:
slow, silent, torn, cut. A proxy stands before one server, so that a worker can lose Redis and keep PostgreSQL, or the
other way round.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

_CHUNK = 65_536
#: Seconds between two looks at a line that lets nothing through.
_LOOK = 0.02


@dataclass(frozen=True)
class Line:
    """How the line is: as good as no proxy, by default.

    Args:
        latency: Seconds that each piece of data takes, in each direction.
        jitter: Up to so many seconds more or less, at random.
        sliced: One byte at a time.
        bandwidth: Bytes per second in each direction; None for no bound.
        silent: Accepts everything and lets nothing through, as a network does that drops packets.
        closed: Refuses new connections.
    """

    latency: float = 0.0
    jitter: float = 0.0
    sliced: bool = False
    bandwidth: int | None = None
    silent: bool = False
    closed: bool = False


GOOD = Line()


class Proxy:
    """Listens on a port of 127.0.0.1 and passes on to a Unix socket, in a thread of its own.

    Args:
        upstream: The server's socket.
        seed: For the jitter.
    """

    def __init__(self, upstream: Path, *, seed: int = 1) -> None:
        self.line = GOOD
        self.accepted = 0
        """Connections so far."""
        self._upstream = upstream
        self._chance = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._pairs: set[_Pair] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    @property
    def connections(self) -> int:
        """Those that are open now, as the clients see them."""
        return len(self._pairs)

    def reset(self) -> None:
        """Answer every connection with RST, as a host does that has been restarted."""
        self._call(_Pair.reset)

    def half_open(self) -> None:
        """End every connection on the server's side, and tell no client: as a firewall does that forgets."""
        self._call(_Pair.leave_half_open)

    def _call(self, function: Callable[[_Pair], None]) -> None:
        """Do something to every connection, in the proxy's own thread."""
        done = threading.Event()

        def call() -> None:
            for pair in list(self._pairs):
                function(pair)
            done.set()

        self._loop.call_soon_threadsafe(call)
        assert done.wait(10), "the proxy does not answer"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._listener))
        self._loop.run_forever()
        server.close()
        for pair in list(self._pairs):
            pair.reset()
        pending = asyncio.all_tasks(self._loop)
        for task in pending:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        pair = _Pair(writer)
        if self.line.closed:
            pair.reset()
            return
        self._pairs.add(pair)
        try:
            with suppress(OSError, asyncio.CancelledError):  # the latter at the end of the proxy
                there, back = await asyncio.open_unix_connection(str(self._upstream))
                pair.server = back
                await self._carry(pair, reader, writer, there, back)
        finally:
            self._pairs.discard(pair)
            pair.close()

    async def _carry(
        self,
        pair: _Pair,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there: asyncio.StreamReader,
        back: asyncio.StreamWriter,
    ) -> None:
        """Both ways, until one side ends."""
        ways = [asyncio.create_task(self._pump(pair, *way)) for way in ((reader, back), (there, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if pair.half_open:  # its client still believes in it
                await ways[0]
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(self, pair: _Pair, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(_CHUNK):
                while self.line.silent:  # noqa: ASYNC110 - the line is changed from another thread
                    await asyncio.sleep(_LOOK)
                if not pair.half_open:
                    await self._send(sink, data)

    async def _send(self, sink: asyncio.StreamWriter, data: bytes) -> None:
        line = self.line
        if line.latency or line.jitter:
            await asyncio.sleep(max(0.0, line.latency + line.jitter * self._chance.uniform(-1, 1)))
        if line.bandwidth is not None:
            await asyncio.sleep(len(data) / line.bandwidth)
        for piece in [data[at : at + 1] for at in range(len(data))] if line.sliced else [data]:
            sink.write(piece)
            await sink.drain()


class _Pair:
    """A client's connection, and the one to the server that belongs to it."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.server: asyncio.StreamWriter | None = None
        self.half_open = False

    def reset(self) -> None:
        """Both sides are told by RST: what is on its way is thrown away."""
        self.half_open = False
        for side in (self.client, self.server):
            if side is not None:
                end: socket.socket | None = side.get_extra_info("socket")
                if end is not None and end.family == socket.AF_INET:
                    # Linger for no time: close() sends RST instead of FIN (man 7 socket, SO_LINGER).
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                side.transport.abort()

    def leave_half_open(self) -> None:
        """The server's side ends."""
        self.half_open = True
        if self.server is not None:
            self.server.transport.abort()

    def close(self) -> None:
        """Both sides, in peace."""
        for side in (self.client, self.server):
            if side is not None:
                side.close()
