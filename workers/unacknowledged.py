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

#: Seconds after a command that failed in which none is sent: a broker that is frozen, or full, holds nobody up.
_REST: Final = 5.0
#: Copies that one look takes.
_LOOKED_AT: Final = 500
#: Seconds after which a copy goes that no worker offers again, since none serves its lane.
_ABANDONED: Final = 60.0
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
        self._rests_until = 0.0
        self._hindered = False

    def keep(self, offers: Sequence[Offer]) -> None:
        """Keep copies of what was popped; those that could not be kept are the sweep's, should this worker die."""
        if offers and (now := self._now()) is not None:
            self._send(("ZADD", self._key, *_scored(offers, now)))

    def acknowledge(self, offers: Iterable[Offer]) -> None:
        """Drop copies: their runs are claimed, refused, or back in their lanes."""
        if members := [_member(offer) for offer in offers]:
            self._send(("ZREM", self._key, *members))

    def look(self, held: Sequence[Offer], keys: Collection[str]) -> None:
        """Show that what is held is still held, and offer again what others have not claimed in time.

        Args:
            held: What this worker has popped and not claimed.
            keys: The lists that it serves; of others, only what is abandoned goes.
        """
        if (now := self._now()) is None:
            return
        renewal = (("ZADD", self._key, "XX", *_scored(held, now)),) if held else ()
        expired = ("ZRANGE", self._key, "-inf", now - self._timeout, "BYSCORE", "LIMIT", 0, _LOOKED_AT, "WITHSCORES")
        if (answers := self._send(*renewal, ("TIME",), expired)) is None:
            return
        self._set_clock(answers[-2])
        found = answers[-1]
        taken: list[tuple[bytes, tuple[str, bytes]]] = []
        abandoned: list[bytes] = []
        for member, score in zip(found[::2], found[1::2], strict=True):
            key, _, raw = member.partition(_END_OF_KEY)
            name = key.decode(errors="replace")
            if name in keys:
                taken.append((member, (name, raw)))
            elif float(score) < now - _ABANDONED:
                abandoned.append(member)
        if abandoned:
            self._send(("ZREM", self._key, *abandoned))
        self._offer_again(taken)

    def _offer_again(self, taken: Sequence[tuple[bytes, tuple[str, bytes]]]) -> None:
        """Of several workers that find a copy, the one whose ZREM removes it puts the message back."""
        if not taken or (removed := self._send(*(("ZREM", self._key, member) for member, _ in taken))) is None:
            return
        messages = [message for (_, message), count in zip(taken, removed, strict=True) if count]
        if messages:
            try:
                self._publisher.put_back(messages)
            except BrokerUnavailableError as error:
                self._hinder(error)
                return
            self._figures.count("sweep_repairs", "restored", amount=len(messages))
            logger.info("Offers %d messages again that a worker popped and did not claim", len(messages))

    def _now(self) -> float | None:
        """Seconds by the server's clock; None while it does not answer."""
        if self._ahead is None and (answers := self._send(("TIME",))) is not None:
            self._set_clock(answers[0])
        return None if self._ahead is None else monotonic() + self._ahead

    def _set_clock(self, answer: Sequence[bytes]) -> None:
        seconds, microseconds = answer
        self._ahead = int(seconds) + int(microseconds) / 1e6 - monotonic()

    def _send(self, *commands: tuple[Any, ...]) -> list[Any] | None:
        """Their answers; None when the broker refused one, or is away."""
        if monotonic() < self._rests_until:
            return None
        try:
            with translated_errors(self._publisher.url):
                answers = exchange(self._publisher.client, *commands)
        except BrokerUnavailableError as error:
            self._hinder(error)
            return None
        self._hindered = False
        return answers

    def _hinder(self, error: BrokerUnavailableError) -> None:
        self._rests_until = monotonic() + _REST
        if not self._hindered:
            self._hindered = True
            logger.warning("Could not keep copies of popped messages; what is lost now, the sweep misses: %s", error)


def _member(offer: Offer) -> bytes:
    return offer.key.encode() + _END_OF_KEY + offer.raw


def _scored(offers: Iterable[Offer], now: float) -> list[float | bytes]:
    return [part for offer in offers for part in (now, _member(offer))]
