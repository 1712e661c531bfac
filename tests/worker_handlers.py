"""Handlers for tests of workers: they do what their payload says."""

from __future__ import annotations

import gc
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from batching import FailBatch, RetryProfile, SkipProfile, profile_handler

if TYPE_CHECKING:
    from batching import Profile


@profile_handler(name="tests.echo")
def echo(profile: Profile) -> Any:
    """Return the payload."""
    return profile.payload


@profile_handler(name="tests.nap")
def nap(profile: Profile) -> int:
    """Take some seconds; return the process that did."""
    time.sleep(profile.payload)
    return os.getpid()


@profile_handler(name="tests.print")
def say(profile: Profile) -> int:
    """Print a line of so many characters, and one for its end."""
    print("x" * profile.payload)  # noqa: T201 - what handlers do
    return int(profile.payload)


@profile_handler(name="tests.odd")
def odd(profile: Profile) -> Any:
    """End in the way that the payload names."""
    return _ENDINGS[profile.payload](profile)


def _raise(error: BaseException) -> Any:
    raise error


def _die_once(profile: Profile) -> str:
    if profile.run == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


_ENDINGS: dict[str, Any] = {
    "return": lambda profile: {"key": profile.key, "run": profile.run, "idempotency": profile.idempotency_key},
    "raise": lambda profile: _raise(ValueError(f"no use for 'it', number {profile.run}")),
    "skip": lambda _: _raise(SkipProfile("nothing to do")),
    "retry": lambda profile: "again" if profile.attempt > 1 else _raise(RetryProfile(0.01, "not yet")),
    "fail batch": lambda _: _raise(FailBatch("no more of these")),
    "memory": lambda _: _raise(MemoryError("no room")),
    "exit": lambda _: _raise(SystemExit(3)),
    "interrupt": lambda _: _raise(KeyboardInterrupt()),
    "set": lambda _: {1, 2},
    "spared": lambda _: gc.get_freeze_count(),
    "nan": lambda _: float("nan"),
    "large": lambda _: "x" * 100_000,
    "surrogate": lambda _: "\ud800",
    "die once": _die_once,
    "die": lambda _: os.kill(os.getpid(), signal.SIGKILL),
}
