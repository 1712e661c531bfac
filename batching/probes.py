"""`/livez` and `/readyz` of a process that serves nothing else: a few lines of HTTP in a thread of their own.

By hand, and not `http.server`: the process may fork while this thread is at work, so it touches nothing that has a
lock: no logging, no name resolution, no import, no SQL. What it answers is read from data that others have left.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Final

from batching.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batching.health import Health

#: Seconds that one client gets to say what it wants, and bytes that it gets to say it in.
_PATIENCE: Final = 2.0
_LONGEST: Final = 4_096
_REASONS: Final = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Not Well"}
_EVERYWHERE: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what is asked, not bound


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port`, `[host]:port` or `:port`.

    Raises:
        ConfigurationError: It is none of these.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65_535 or host.count(":") == 1:
        raise ConfigurationError(
            f"cannot use BATCHING_HEALTH_ADDRESS={text!r}: it takes host:port, as 127.0.0.1:8081 or 0.0.0.0:8081"
        )
    return host.strip("[]"), int(port)


def url_of(address: str, path: str) -> str:
    """Where a process on this machine answers that was told to listen on an address."""
    host, port = parse_address(address)
    host = _EVERYWHERE.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{path}"


class Probe:
    """Answers probes until it is closed.

    Args:
        address: `host:port`; port 0 for any that is free.
        pages: What is looked at, by path. Called in this object's thread, so it may only read what is there.

    Raises:
        ConfigurationError: The address cannot be listened on.
    """

    def __init__(self, address: str, pages: Mapping[str, Callable[[], Health]]) -> None:
        self._pages = dict(pages)
        self._socket = _listen(address)
        self.port = int(self._socket.getsockname()[1])
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="probes", daemon=True)
        # A child that kept the socket would hold the port, and answer nobody, after its parent's end.
        os.register_at_fork(after_in_child=self._let_go)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes `accept`, which `close` alone does not
        self._socket.close()
        if self._thread.is_alive():
            self._thread.join(2 * _PATIENCE)

    def _let_go(self) -> None:
        with suppress(OSError):
            self._socket.close()

    def _serve(self) -> None:
        while not self._closed:
            try:
                client, _ = self._socket.accept()
            except OSError:
                # The end; or such as too many open files: not as fast as the processor can.
                threading.Event().wait(0.1)
                continue
            with client, suppress(OSError):
                client.settimeout(_PATIENCE)
                client.sendall(self._answer(_request_line(client)))
                client.shutdown(socket.SHUT_WR)

    def _answer(self, line: bytes) -> bytes:
        words = line.split()
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response(400, {"error": "this is no HTTP request"})
        method, path = words[0], words[1].decode("latin-1").partition("?")[0]
        if path not in self._pages:
            return _response(404, {"error": f"there are {' and '.join(sorted(self._pages))}"})
        if method not in {b"GET", b"HEAD"}:
            return _response(405, {"error": "GET and HEAD"}, "Allow: GET, HEAD\r\n")
        try:
            health = self._pages[path]()
        except Exception as error:  # noqa: BLE001 - a probe that ends its thread would never answer again
            return _response(503, {"ok": False, "error": f"could not look: {type(error).__name__}"})
        return _response(health.status, health.as_json(), body=method == b"GET")


def _listen(address: str) -> socket.socket:
    host, port = parse_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(16)
    except OSError as error:
        listening.close()
        raise ConfigurationError(
            f"cannot answer probes on {address}: {error.strerror or error}; set BATCHING_HEALTH_ADDRESS to an address "
            "of this machine that is free: each process needs its own"
        ) from error
    return listening


def _request_line(client: socket.socket) -> bytes:
    """The first line, once the whole head has come: a client that is answered earlier may lose the answer."""
    said, until = b"", monotonic() + _PATIENCE
    while b"\r\n\r\n" not in said and len(said) < _LONGEST and monotonic() < until:
        part = client.recv(_LONGEST)
        if not part:
            break
        said += part
    return said.split(b"\r\n", 1)[0]


def _response(status: int, document: Mapping[str, object], more: str = "", *, body: bool = True) -> bytes:
    content = json.dumps(document).encode() + b"\n"
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        f"Cache-Control: no-store\r\nConnection: close\r\n{more}\r\n"
    )
    return head.encode() + (content if body else b"")
