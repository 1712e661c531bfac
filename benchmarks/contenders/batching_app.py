"""The handlers of this project's own workers."""

from __future__ import annotations

from batching import Profile, profile_handler
from benchmarks import journal


@profile_handler(name="bench.noop")
def noop(profile: Profile) -> None:
    """Append a byte."""
    journal.noop()


@profile_handler(name="bench.sleep50")
def sleep50(profile: Profile) -> None:
    """Sleep for 50 ms, append a byte."""
    journal.sleep50()


@profile_handler(name="bench.stamp")
def stamp(profile: Profile) -> None:
    """Append the time."""
    journal.stamp()
