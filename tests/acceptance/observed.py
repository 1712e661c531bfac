"""Handlers that are traced: they make spans of their own, and end as their payload says."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batching import SkipProfile, profile_handler
from tests.acceptance import journal
from tests.acceptance.handlers import _wait_for

if TYPE_CHECKING:
    from batching import Profile


@profile_handler(name="acceptance.traced")
def traced(profile: Profile) -> Any:
    """Make a span; fail, die or wait in the first run where the payload says so."""
    from opentelemetry import trace  # as a handler that is traced would, and one that is not would not

    journal.write(profile)
    with trace.get_tracer("user").start_as_current_span("inner"):
        how = profile.payload["how"] if profile.run == 1 else "well"
    if how == "fails":
        raise ValueError(profile.payload["secret"])
    if how == "skips":
        raise SkipProfile("nothing to do")
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "waits":
        _wait_for(Path(os.environ[journal.FOLDER]) / "never")
    return {"secret": profile.payload["secret"]}


@profile_handler(name="acceptance.untraced")
def untraced(profile: Profile) -> bool:
    """Whether what makes spans is in this process. (redis-py loads OpenTelemetry wherever it is installed.)"""
    journal.write(profile)
    return "batching.spans" in sys.modules
