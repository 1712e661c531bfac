"""A handler that a second worker brings, in a module that the first does not import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batching import profile_handler
from tests.acceptance import journal

if TYPE_CHECKING:
    from batching import Profile


@profile_handler(name="acceptance.elsewhere")
def elsewhere(profile: Profile) -> str:
    """Say where it ran, in the journal."""
    journal.write(profile)
    return "elsewhere"
