"""Handlers with time limits, in a module of their own: pools that cannot keep them refuse it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from batching import profile_handler
from tests.acceptance import journal

if TYPE_CHECKING:
    from batching import Profile


@profile_handler(name="acceptance.soft", soft_time_limit=1)
def soft(profile: Profile) -> str:
    """Run over a soft limit, unless the payload is less."""
    journal.write(profile)
    time.sleep(profile.payload)
    return "in time"


@profile_handler(name="acceptance.hard", time_limit=1)
def hard(profile: Profile) -> str:
    """Run over a hard limit, unless the payload is less."""
    journal.write(profile)
    time.sleep(profile.payload)
    return "in time"
