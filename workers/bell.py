"""The doorbell, from the worker's side: what was settled is told to the leader and to whoever watches, now and then."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from batching.errors import BrokerUnavailableError
from batching.live import PAUSE, News

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from workers.loops import Loop
    from workers.publisher import RedisPublisher

#: Seconds between two rings of the leader's doorbell, and after one that failed.
_PAUSE: Final = 0.02
_REST: Final = 5.0
#: How much longer than a ring took it rests, up to that: on a slow line, the loop has better things to do.
_TIMES: Final = 4


class Bell:
    """Wakes the leader when lanes ran empty, since it has settled profiles to replace; tells whoever watches, too.

    Nothing depends on it: all of them look by themselves.

    Args:
        loop: Rings for what settled last.
        publisher: Carries it.
        prefix: Of Redis keys.
        dry: Whether there was less in the lanes than was asked for.
    """

    def __init__(self, loop: Loop, publisher: RedisPublisher, prefix: str, dry: Callable[[], bool]) -> None:
        self._loop = loop
        self._publisher = publisher
        self._dry = dry
        self.news = News(prefix)
        """Batches whose settlements nobody was told of yet."""
        self._rung = self._rests_until = 0.0
        self._planned = False

    def settled(self, batch_ids: Iterable[str]) -> None:
        """Runs of these batches are settled."""
        self.news.note(batch_ids)
        self.ring()

    def ring(self) -> None:
        """Ring, unless it rang a moment ago, or rests."""
        now = monotonic()
        if now >= self._rests_until:
            try:
                if self._send(now):
                    end = monotonic()
                    self._rests_until = end + min(_REST, _TIMES * (end - now))
            except BrokerUnavailableError:
                # A Redis that is frozen must not cost every group of outcomes a time-out.
                self._rests_until = monotonic() + _REST
        if self.news and not self._planned:
            self._planned = True
            self._loop.call_later(PAUSE, self._tell_rest)

    def _send(self, now: float) -> bool:
        news = (self.news.take(now),) if self.news.due(now) else ()
        if now >= self._rung + _PAUSE and self._dry():
            self._rung = now
            self._publisher.hint(*news)
            return True
        if news:
            self._publisher.tell(*news)
        return bool(news)

    def _tell_rest(self) -> None:
        """What settled last must not wait for the next group, which may never come."""
        self._planned = False
        self.ring()
