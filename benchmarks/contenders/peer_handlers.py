"""The peers' handlers, each in the two forms that systems ask for; what they do is in `benchmarks.journal`."""

from __future__ import annotations

from benchmarks import journal


def noop(payload: str) -> None:
    """Append a byte."""
    journal.noop()


def sleep50(payload: str) -> None:
    """Sleep for 50 ms, append a byte."""
    journal.sleep50()


def stamp(payload: str) -> None:
    """Append the time."""
    journal.stamp()


async def anoop(payload: str) -> None:
    """Append a byte."""
    journal.noop()


async def asleep50(payload: str) -> None:
    """Sleep for 50 ms, append a byte."""
    await journal.asleep50()


async def astamp(payload: str) -> None:
    """Append the time."""
    journal.stamp()


SYNCHRONOUS = {"noop": noop, "sleep50": sleep50, "stamp": stamp}
ASYNCHRONOUS = {"noop": anoop, "sleep50": asleep50, "stamp": astamp}
