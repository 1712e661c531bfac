"""Copies of popped messages, kept in the broker until their runs are claimed: `BATCHING_ACKNOWLEDGE=claim`.

A worker that pops a message and dies before the claim takes it along, and the leader's sweep misses it after seconds.
With this, any worker that serves its lane offers it again once it has been out of sight for `visibility_timeout`. It is
a second way back, and never trusted with more than the first: the sweep stays, and a claim is granted once whoever
offers a run, however often. So every command here may fail, or be late, and nothing is lost or doubled by it.

The copies are one sorted set, the key `popped`: members are a list's key and a message, scores the seconds of the
*server's* clock at which they were popped, or shown to be held by a worker that lives. Celery's emulation
(kombu.transport.redis, `QoS`) keeps a hash and an index, by the clocks of its consumers, never renews them, and gives
running tasks to others when a connection breaks or a handler takes longer than its time-out.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from batching.broker import exchange, translated_errors
from batching.errors import BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from batching.figures import Figures
    from workers.offers import Offer
    from workers.publisher import RedisPublisher

logger = logging.getLogger(__name__)

#: Seconds in which nothing is sent after a command that failed: at first, then twice as long, up to the longest.
_FIRST_REST: Final = 0.1
_LONGEST_REST: Final = 5.0
#: How much longer than a slow answer took it rests, up to that: the loop that waits for it has better things to do.
_TIMES: Final = 4
#: Seconds from which an answer is slow.
_SLOW: Final = 0.05
#: Copies that one look takes.
_LOOKED_AT: Final = 500
#: Copies that are to be dropped when there is no rest any more, at most; those beyond are offered again, and refused.
_MOST_OWED: Final = 20_000
#: Time-outs after which a copy goes that no worker offers again, since none serves its lane.
_ABANDONED: Final = 30
_END_OF_KEY: Final = b"\n"


def copies_key(prefix: str) -> str:
    """The sorted set of all copies."""
    return f"{prefix}popped"


class Unacknowledged:
    """The copies of what one worker holds, and those that others left. Never raises for the broker's sake.

    Args:
        publisher: The border to the broker.
        visibility_timeout: Seconds for which a message may be out of sight.
        figures: Counts what is offered again.
    """

    def __init__(self, publisher: RedisPublisher, visibility_timeout: float, figures: Figures) -> None:
        self._publisher = publisher
        self._key = copies_key(publisher.key_prefix)
        self._timeout = visibility_timeout
        self._figures = figures
        # The server's clock minus this process's monotonic one.
        self._ahead: float | None = None
        self._owed: list[bytes] = []
        self._unkept: set[bytes] = set()
        self._skip = 0
        self._rests_until = self._rest = 0.0
        self._told = False

    def keep(self, offers: Sequence[Offer]) -> None:
        """Keep copies of what was popped.

        Those that could not be kept, since the broker is busy or away, are kept with the next look, if they are still
        held by then; should this worker die meanwhile, they are the sweep's.
        """
        if not offers:
            return
        if (now := self._now()) is not None and self._send(("ZADD", self._key, *_scored(offers, now))) is not None:
            self._told = False
        else:
            self._unkept.update(map(_member, offers))

    def acknowledge(self, offers: Iterable[Offer]) -> None:
        """Drop copies: their runs are claimed, refused, or back in their lanes. While it rests, as soon as it can."""
        members = [*map(_member, offers)]
        self._unkept.difference_update(members)
        if owed := [*self._owed, *members]:
            self._owed = [] if self._send(("ZREM", self._key, *owed)) is not None else owed[-_MOST_OWED:]

    def look(self, held: Sequence[Offer], keys: Collection[str]) -> None:
        """Show that what is held is still held, and offer again what others have not claimed in time.

        Args:
            held: What this worker has popped and not claimed.
            keys: The lists that it serves. Copies of others are left to others, and go when nobody wants them for long.
        """
        self.acknowledge(())
        if (now := self._now()) is None:
            return
        renewal = [("ZADD", self._key, "XX", *_scored(held, now))] if held else []
        if self._unkept and (unkept := [each for each in held if _member(each) in self._unkept]):
            renewal.append(("ZADD", self._key, *_scored(unkept, now)))
        expired = ("ZRANGE", self._key, "-inf", now - self._timeout, "BYSCORE", "LIMIT", self._skip, _LOOKED_AT)
        abandoned = ("ZREMRANGEBYSCORE", self._key, "-inf", now - _ABANDONED * self._timeout)
        if (answers := self._send(*renewal, ("TIME",), expired, abandoned)) is None:
            return
        *_, clock, found, _ = answers
        self._unkept.clear()
        self._set_clock(clock)
        served = frozenset(keys) if found else ()
        ours = [member for member in found if _list_of(member) in served]
        # A page full of what others serve must not hide what is ours behind it.
        self._skip = self._skip + len(found) - len(ours) if len(found) == _LOOKED_AT else 0
        self._offer_again(ours)

    def _offer_again(self, members: Sequence[bytes]) -> None:
        """Of several workers that find a copy, the one whose ZREM removes it puts the message back."""
        if not members or (removed := self._send(*(("ZREM", self._key, member) for member in members))) is None:
            return
        taken = [member for member, count in zip(members, removed, strict=True) if count]
        if taken:
            try:
                self._publisher.put_back([(_list_of(member), member.partition(_END_OF_KEY)[2]) for member in taken])
            except BrokerUnavailableError as error:
                self._hinder(error, 0.0)
                return
            self._figures.count("sweep_repairs", "restored", amount=len(taken))
            logger.info("Offers %d messages again that a worker popped and did not claim", len(taken))

    def _now(self) -> float | None:
        """Seconds by the server's clock; None while it does not answer."""
        if self._ahead is None and (answers := self._send(("TIME",))) is not None:
            self._set_clock(answers[0])
        return None if self._ahead is None else monotonic() + self._ahead

    def _set_clock(self, answer: Sequence[bytes]) -> None:
        seconds, microseconds = answer
        self._ahead = int(seconds) + int(microseconds) / 1e6 - monotonic()

    def _send(self, *commands: tuple[Any, ...]) -> list[Any] | None:
        """Their answers; None when the broker refused one, or is away, or gets a rest."""
        began = monotonic()
        if began < self._rests_until:
            return None
        try:
            with translated_errors(self._publisher.url):
                answers = exchange(self._publisher.client, *commands)
        except BrokerUnavailableError as error:
            self._hinder(error, monotonic() - began)
            return None
        self._rest = 0.0
        if (took := monotonic() - began) > _SLOW:
            self._rests_until = began + took + min(_LONGEST_REST, _TIMES * took)
        return answers

    def _hinder(self, error: BrokerUnavailableError, took: float) -> None:
        self._rest = min(_LONGEST_REST, max(2 * self._rest, _FIRST_REST))
        self._rests_until = monotonic() + min(_LONGEST_REST, max(self._rest, _TIMES * took))
        if not self._told:
            self._told = True
            logger.warning("Could not keep copies of popped messages; what is lost now, the sweep misses: %s", error)


def _list_of(member: bytes) -> str:
    return member.partition(_END_OF_KEY)[0].decode(errors="replace")


def _member(offer: Offer) -> bytes:
    return offer.key.encode() + _END_OF_KEY + offer.raw


def _scored(offers: Iterable[Offer], now: float) -> list[float | bytes]:
    return [part for offer in offers for part in (now, _member(offer))]
