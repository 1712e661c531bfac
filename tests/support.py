"""Waiting for conditions, and for processes. The only place in the tests that sleeps."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, TypeVar

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

T = TypeVar("T")


def eventually(condition: Callable[[], T], timeout: float = 10.0, interval: float = 0.02) -> T:
    """Call a condition until it returns something true, or an assertion until it stops raising.

    Args:
        condition: Returns a true value when it holds, or asserts. A function that asserts may return None.
        timeout: Seconds until the last failure is raised as it is.
        interval: Seconds between two calls.

    Returns:
        What the condition returned.
    """
    deadline = time.monotonic() + timeout
    while True:
        failure: AssertionError | None = None
        try:
            value = condition()
        except AssertionError as error:
            failure = error
        else:
            if value or value is None:
                return value
        if time.monotonic() > deadline:
            raise failure or AssertionError(f"after {timeout:g} s it still returned {value!r}: {condition}")
        time.sleep(interval)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago; for programs that cannot take port 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_running(pid: int) -> bool:
    """Whether a process still does anything: a zombie, which waits for a parent that never asks, does not."""
    try:
        return psutil.Process(pid).status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return False


def wait_for_exit(pid: int, timeout: float = 10.0) -> None:
    """Wait until a process, a child of ours or not, has ended."""

    def ended() -> None:
        assert not is_running(pid), f"process {pid} still runs: {_describe(pid)}"

    eventually(ended, timeout)


def descendants(pid: int | None = None) -> list[int]:
    """Process ids of all children, and theirs; of this process by default."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def assert_no_leftovers(before: Iterable[int] = (), timeout: float = 10.0) -> None:
    """Assert that this process has no running children beyond those it had before."""
    known = set(before)

    def none_left() -> None:
        left = [_describe(pid) for pid in descendants() if pid not in known and is_running(pid)]
        assert not left, f"left behind: {left}"

    eventually(none_left, timeout)


def listening_ports(pids: Sequence[int]) -> list[int]:
    """TCP ports that these processes listen on."""
    return [
        connection.laddr.port
        for pid in pids
        for connection in psutil.Process(pid).net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    ]


def _describe(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return f"{pid} {' '.join(process.cmdline())[:200]} ({process.status()})"
    except psutil.NoSuchProcess:
        return f"{pid} (gone)"
