"""A handler that is quick unless its payload says otherwise, so that its runs travel in bundles."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batching import profile_handler
from tests.acceptance import journal

if TYPE_CHECKING:
    from types import FrameType

    from batching import Profile

_LONGEST_WAIT = 60.0


@profile_handler(name="acceptance.quick")
def quick(profile: Profile) -> Any:
    """Do at once what the payload names, in the first execution, or always; then wait, or return something large."""
    journal.write(profile)
    asked = profile.payload or {}
    folder = Path(os.environ[journal.FOLDER])
    if (way := asked.get("way")) and (asked.get("always") or _is_first(folder / f"{profile.key}.done")):
        _WAYS[way]()
    if "gate" in asked:
        _wait_for(folder / asked["gate"])
    return "x" * asked.get("result", 0)


def _is_first(path: Path) -> bool:
    if path.exists():
        return False
    path.touch()
    return True


def _wait_for(path: Path) -> None:
    until = time.monotonic() + _LONGEST_WAIT
    try:
        while not path.exists():
            if time.monotonic() > until:
                raise TimeoutError(f"nobody opened the gate {path.name}")
            time.sleep(0.02)
    finally:
        # What a handler cleans up when it is told to stop.
        path.with_suffix(".left").touch()


def _raise(error: BaseException) -> Any:
    raise error


def _die_behind() -> None:
    """Die after the bundle's last run, before its answer is on its way."""

    def leave(frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and frame.f_code.co_name == "trace_runs":
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(leave)
    threading.setprofile(leave)


_WAYS: dict[str, Any] = {
    "raise": lambda: _raise(ValueError("the handler raised")),
    "MemoryError": lambda: _raise(MemoryError("no room")),
    "SystemExit": lambda: _raise(SystemExit(3)),
    "os._exit": lambda: os._exit(7),
    "segfault": lambda: ctypes.string_at(0),
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "die behind": _die_behind,
}
