"""Handlers of the acceptance tests: each writes to the journal first, then does what its payload says."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batching import FailBatch, RetryProfile, SkipProfile, profile_handler
from tests.acceptance import journal

if TYPE_CHECKING:
    from batching import Profile

#: Seconds that a handler waits for its gate; far beyond any test, so that a forgotten gate fails by its own name.
_LONGEST_WAIT = 60.0


@profile_handler(name="acceptance.work")
def work(profile: Profile) -> Any:
    """Take `seconds`, or until the file `gate` exists, whoever asks for an end when `stubborn`; return `answer`.

    With `computes`, so many seconds of processor time, in which it never waits for anything.
    """
    asked = profile.payload or {}
    if asked.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    journal.write(profile)
    until = time.thread_time() + asked.get("computes", 0)
    while time.thread_time() < until:
        pass
    time.sleep(asked.get("seconds", 0))
    if "gate" in asked:
        _wait_for(Path(os.environ[journal.FOLDER]) / asked["gate"])
    return asked.get("answer", {"key": profile.key})


@profile_handler(name="acceptance.odd")
def odd(profile: Profile) -> Any:
    """End as the payload says: a name, or a list with one name for each run."""
    journal.write(profile)
    ways = profile.payload if isinstance(profile.payload, list) else [profile.payload]
    return _WAYS[ways[min(profile.run, len(ways)) - 1]]()


@profile_handler(name="acceptance.other")
def other(profile: Profile) -> str:
    """A handler that only some workers serve in the tests of two workers."""
    journal.write(profile)
    return "other"


def _wait_for(path: Path) -> None:
    until = time.monotonic() + _LONGEST_WAIT
    while not path.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"nobody opened the gate {path.name}")
        time.sleep(0.02)


def _raise(error: BaseException) -> Any:
    raise error


def _kill_worker() -> None:
    """Take the whole worker down: the parent, and this pool child with it."""
    os.kill(os.getppid(), signal.SIGKILL)
    os._exit(1)


_WAYS: dict[str, Any] = {
    "return": lambda: "returned",
    "raise": lambda: _raise(ValueError("the handler raised")),
    "skip": lambda: _raise(SkipProfile("nothing to do")),
    "retry": lambda: _raise(RetryProfile(0.05, "not yet")),
    "retry in 3 s": lambda: _raise(RetryProfile(3.0, "not yet")),
    "fail batch": lambda: _raise(FailBatch("no more of these")),
    "MemoryError": lambda: _raise(MemoryError("no room")),
    "SystemExit": lambda: _raise(SystemExit(3)),
    "no JSON": lambda: {"a", "set"},
    "os._exit": lambda: os._exit(7),
    "segfault": lambda: ctypes.string_at(0),
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "kill worker": _kill_worker,
}
