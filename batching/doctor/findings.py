"""What an audit finds, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.database import Database

#: Seconds of silence after which a worker, a dispatch or a lease is worth a word; the sweep acts much earlier.
QUIET = 60.0


class Report(NamedTuple):
    """What was found. `problems` are those that are left."""

    ok: bool
    problems: list[str]
    repaired: list[str]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not agree with another.

    Args:
        text: What was found, on which id, and what to do, for people.
        repair: Puts it right in guarded writes of its own; returns whether it changed anything. None: nobody can.
        passing: A healthy system may look so for a moment, so that it counts only when it is found twice.
        key: What makes it the same finding when it is looked for again; by default its text.
    """

    text: str
    repair: Callable[[Database], bool] | None = None
    passing: bool = False
    key: str = ""

    @property
    def same(self) -> str:
        """See `key`."""
        return self.key or self.text
