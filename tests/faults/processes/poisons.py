"""Handlers that nobody should write, and somebody will: what each does to its process is in its name."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from batching import profile_handler
from tests.acceptance import journal

if TYPE_CHECKING:
    from batching import Profile

_MUCH = 100_000_000


class Unpicklable(Exception):  # noqa: N818 - a name that says what it is
    """Cannot leave its process."""

    def __init__(self) -> None:
        super().__init__("cannot be pickled")
        self.held = lambda: None

    def __reduce__(self) -> Any:
        raise TypeError("not even tried")


class Unprintable(Exception):  # noqa: N818 - as above
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Basic(BaseException):
    """No `Exception`, so `except Exception` lets it pass."""


def _raise(error: BaseException) -> Any:
    raise error


def _leak() -> Any:
    """Take memory until the system gives no more: a limit of this process, half a gigabyte above what it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115, PTH123 - as short as can be
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 500_000_000, hard))
    held = []
    try:
        while True:
            held.append(bytearray(20_000_000))
    finally:
        held.clear()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _print_much() -> None:
    line = "x" * 99_999 + "\n"
    for _ in range(_MUCH // len(line)):
        sys.stdout.write(line)


def _print_in_spite() -> None:
    """Print as much as it likes, and hear no exception."""
    for _ in range(_MUCH // 100_000):
        with suppress(Exception):
            print("x" * 99_999, file=sys.stderr)  # noqa: T201 - what handlers do


def _recurse(depth: int = 0) -> int:
    return _recurse(depth + 1)


def _nested() -> Any:
    found: list[Any] = []
    for _ in range(100_000):
        found = [found]
    return found


WAYS: dict[str, Any] = {
    # Its process ends.
    "segfault": lambda: ctypes.string_at(0),
    "os._exit": lambda: os._exit(7),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "abort": os.abort,
    # Its process lives.
    "MemoryError": lambda: _raise(MemoryError("no room")),
    "leak": _leak,
    "BaseException": lambda: _raise(Basic("not an Exception")),
    "SystemExit": lambda: sys.exit(3),
    "KeyboardInterrupt": lambda: _raise(KeyboardInterrupt()),
    "GeneratorExit": lambda: _raise(GeneratorExit()),
    "RecursionError": _recurse,
    "unpicklable": lambda: _raise(Unpicklable()),
    "unprintable": lambda: _raise(Unprintable()),
    "long message": lambda: _raise(ValueError("x" * _MUCH)),
    "100 MB": lambda: "x" * _MUCH,
    "prints 100 MB": _print_much,
    "prints 100 MB in spite of it": _print_in_spite,
    "deep": _nested,
    "NaN": lambda: float("nan"),
    "surrogate": lambda: "\ud800",
}


@profile_handler(name="faults.poison")
def poison(profile: Profile) -> Any:
    """End as the payload says."""
    journal.write(profile)
    way = profile.payload
    return "fine" if way is None else WAYS[way]()


@profile_handler(name="faults.loop", time_limit=2)
def loop(profile: Profile) -> str:
    """Go on for ever, and hold on to the interpreter's lock."""
    journal.write(profile)
    while profile.payload == "loop":
        pass
    return "over"
