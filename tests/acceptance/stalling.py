"""A worker whose main loop can be held up: what a handler's module does in a signal that Celery sends there."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import signals

from batching import profile_handler
from tests.acceptance import journal

if TYPE_CHECKING:
    from batching import Profile

#: Far beyond any test.
_LONGEST = 90.0


@profile_handler(name="acceptance.stalled")
def stalled(profile: Profile) -> None:
    """Nothing."""
    journal.write(profile)


@signals.task_received.connect(weak=False)
def stall(request: Any, **_: Any) -> None:
    """Hold the loop up until the file `go on` exists; for this handler alone."""
    if request.name == "acceptance.stalled":
        gate = Path(os.environ[journal.FOLDER]) / "go on"
        until = time.monotonic() + _LONGEST
        while not gate.exists() and time.monotonic() < until:
            time.sleep(0.02)
