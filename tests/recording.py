"""A publisher that records: the fake at the outermost border, for tests that play the broker themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batching.errors import BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batching.interfaces import Dispatch, Lane


class RecordingPublisher:
    """Keeps what was published in lists; can be told to be away."""

    def __init__(self) -> None:
        self.published: list[Dispatch] = []
        """Everything, in order."""
        self.waiting: dict[Lane, list[Dispatch]] = {}
        """What nobody took yet, by lane."""
        self.away = False
        self.name = "first"

    def publish(self, dispatches: Sequence[Dispatch]) -> None:
        self._reach()
        for dispatch in dispatches:
            self.published.append(dispatch)
            self.waiting.setdefault(dispatch.lane, []).append(dispatch)

    def take(self) -> list[Dispatch]:
        """Pop everything, as a worker would."""
        taken = [dispatch for dispatches in self.waiting.values() for dispatch in dispatches]
        self.waiting.clear()
        return taken

    def lose(self) -> None:
        """FLUSHALL: what waited is gone, and the incarnation changes."""
        self.waiting.clear()
        self.name += "'"

    def history_of(self, batch_id: str) -> list[str]:
        """Keys that were ever published of a batch, since `published` was cleared."""
        return [dispatch.key for dispatch in self.published if dispatch.run.batch_id == batch_id]

    def lengths(self, lanes: Iterable[Lane]) -> dict[Lane, int]:
        self._reach()
        return {lane: len(self.waiting.get(lane, [])) for lane in lanes}

    def incarnation(self) -> str:
        self._reach()
        return self.name

    def discard(self, lane: Lane) -> None:
        self._reach()
        self.waiting.pop(lane, None)

    def _reach(self) -> None:
        if self.away:
            raise BrokerUnavailableError("the recording publisher was told to be away")
