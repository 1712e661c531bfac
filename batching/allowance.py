"""What caps and rate limits leave room for, in one look of the leader: sums over what is in flight; no SQL."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

from batching.brakes import Brakes, Limit, LimitKey
from batching.policies import brakes_of, names_of
from batching.states import LimitKind

if TYPE_CHECKING:
    from batching.outlook import Active, Outlook

#: Batches of one queue that run at once beyond its `max_running`, at most, for the sake of idle workers: while all that
#: run are held back, each look would let in one more.
MOST_BEYOND: Final = 200


class Allowance:
    """How many profiles of a batch may be dispatched, as far as the leader knows; `moves.braking` knows it exactly.

    Args:
        outlook: What was seen.
    """

    def __init__(self, outlook: Outlook) -> None:
        self._outlook = outlook
        self._brakes: dict[str, Brakes] = {}
        self._queues: Counter[str] = Counter()
        """What is in flight of queues with a cap."""
        self._unclaimed: dict[LimitKey, int] = defaultdict(int)
        """What is in the broker under a limit."""
        self._taken: Counter[LimitKey] = Counter()
        """Tokens taken since the look."""
        self._sent: Counter[str] = Counter()
        for each in outlook.active:
            self._count(each)

    def _count(self, each: Active) -> None:
        brakes = self.brakes(each)
        if brakes.queue_cap is not None:
            self._queues[each.row.queue] += each.counts.dispatched + each.counts.running
        for key in brakes.limits:
            self._unclaimed[key] += each.counts.dispatched

    def brakes(self, each: Active) -> Brakes:
        """What a dispatch of this batch must keep to."""
        if each.row.id not in self._brakes:
            lane, limits = each.lane, self._outlook.limits
            shared = [
                *names_of(each.row.options),
                LimitKey(LimitKind.HANDLER, lane.handler),
                LimitKey(LimitKind.QUEUE, lane.queue),
            ]
            cap = self._outlook.caps.get(lane.queue)
            there = [key for key in shared if key in limits] if limits else ()
            self._brakes[each.row.id] = brakes_of(each.row.id, each.row.options, cap, there)
        return self._brakes[each.row.id]

    def room(self, each: Active) -> float:
        """Profiles of this batch that may be dispatched now; infinite without caps and limits."""
        brakes = self.brakes(each)
        if not brakes.hold:
            return math.inf
        rooms = [math.inf]
        if brakes.cap is not None:
            rooms.append(brakes.cap - each.counts.dispatched - each.counts.running - self._sent[each.row.id])
        if brakes.queue_cap is not None:
            rooms.append(brakes.queue_cap - self._queues[each.row.queue])
        rooms += [self._tokens(self._outlook.limits.get(key) or _own(brakes)) for key in brakes.limits]
        return max(0.0, min(rooms))

    def _tokens(self, limit: Limit) -> float:
        """Also no more than `burst` wait in the broker: what waits there for busy workers may all start at once."""
        waiting = self._unclaimed[limit.key] + self._taken[limit.key]
        return min(math.floor(limit.available) - self._taken[limit.key], limit.burst - waiting)

    def sent(self, each: Active, number: int) -> None:
        """So many were dispatched since the look."""
        brakes = self.brakes(each)
        self._sent[each.row.id] += number
        if brakes.queue_cap is not None:
            self._queues[each.row.queue] += number
        for key in brakes.limits:
            self._taken[key] += number

    # --- promotion

    def braked(self, queue: str, handler: str) -> bool:
        """Whether a limit of a queue or a handler itself forbids the first profile that a batch would dispatch."""
        keys = (LimitKey(LimitKind.HANDLER, handler), LimitKey(LimitKind.QUEUE, queue))
        cap = self._outlook.caps.get(queue)
        return any(self._is_spent(key) for key in keys) or (cap is not None and self._queues[queue] >= cap)

    def spent(self) -> frozenset[str]:
        """The names of shared limits that have nothing to give."""
        return frozenset(key.name for key in self._outlook.limits if key.kind is LimitKind.KEY and self._is_spent(key))

    def _is_spent(self, key: LimitKey) -> bool:
        limit = self._outlook.limits.get(key)
        return limit is not None and self._tokens(limit) < 1


def _own(brakes: Brakes) -> Limit:
    assert brakes.own is not None, "every other limit was found in the outlook"  # noqa: S101 - states what holds
    return brakes.own
