"""The proxy is as bad a line as it was told to be."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from tests.faults.proxy import GOOD, Line, Proxy
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    """In front of a server that sends back what it gets, each piece by itself."""
    path = tmp_path / "echo"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def echo(peer: socket.socket) -> None:
        with suppress(OSError), closing(peer):
            while data := peer.recv(65_536):
                peer.sendall(data)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    with Proxy(path) as made:
        yield made
    server.close()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as made:
        assert answer(made, b"hello") == b"hello"
        yield made


def answer(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    got = b""
    while len(got) < len(data):
        if not (piece := client.recv(65_536)):
            break
        got += piece
    return got


def test_a_good_line_passes_everything(client: socket.socket) -> None:
    data = bytes(range(256)) * 4_000
    assert answer(client, data) == data


def test_latency_delays_both_ways(proxy: Proxy, client: socket.socket) -> None:
    proxy.line = Line(latency=0.1, jitter=0.05)
    started = time.monotonic()
    assert answer(client, b"x") == b"x"
    assert time.monotonic() - started >= 0.1


def test_bandwidth_bounds(proxy: Proxy, client: socket.socket) -> None:
    proxy.line = Line(bandwidth=10_000)
    started = time.monotonic()
    assert len(answer(client, bytes(2_000))) == 2_000
    assert time.monotonic() - started >= 0.4


def test_slices_are_single_bytes_and_complete(proxy: Proxy, client: socket.socket) -> None:
    proxy.line = Line(sliced=True)
    assert answer(client, b"0123456789" * 50) == b"0123456789" * 50


def test_a_silent_line_swallows_until_it_is_good_again(proxy: Proxy, client: socket.socket) -> None:
    proxy.line = Line(silent=True)
    client.sendall(b"late")
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(10)
    proxy.line = GOOD
    client.settimeout(5)
    assert client.recv(10) == b"late"


def test_a_reset_is_a_reset(proxy: Proxy, client: socket.socket) -> None:
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(10)
    eventually(lambda: proxy.connections == 0)


def test_a_half_open_connection_says_nothing_and_does_not_end(proxy: Proxy, client: socket.socket) -> None:
    proxy.half_open()
    client.sendall(b"anybody there?")
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(10)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as fresh:
        assert answer(fresh, b"new") == b"new"


def test_a_closed_line_refuses_whoever_comes(proxy: Proxy, client: socket.socket) -> None:
    proxy.line = Line(closed=True)
    # The refusal may come before the connection is there for us, or after.
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as refused:
        assert not refused.recv(10)
    assert answer(client, b"who was there stays") == b"who was there stays"
