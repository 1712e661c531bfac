"""A handler with time limits, in a module of its own: pools that cannot keep them refuse it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from batching import profile_handler

if TYPE_CHECKING:
    from batching import Profile


@profile_handler(name="tests.hard", time_limit=1)
def hard(profile: Profile) -> None:
    """Run over a hard limit."""
    time.sleep(profile.payload)


@profile_handler(name="tests.soft", soft_time_limit=1)
def soft(profile: Profile) -> None:
    """Run over a soft limit."""
    time.sleep(profile.payload)
