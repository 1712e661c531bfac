"""Queues and rate limits as people set them: `queue_manager.queues` and `queue_manager.limits`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from batching.brakes import LIMIT_NAME, LimitKey, burst_of, parse_rate
from batching.errors import InvalidInputError, UnknownQueueError
from batching.moves import braking, queue_order
from batching.states import LimitKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.brakes import Limit
    from batching.database import Database
    from batching.statistics import QueueView, Statistics

_MOST: Final = 1_000_000
_MOST_PROFILES: Final = 2_000_000_000


class Queues:
    """The settings of queues. What is set is in force at the leader's next look, within a second.

    Args:
        database: Where they are kept.
        statistics: The reads.
        ring: Wakes the leader.
    """

    def __init__(self, database: Database, statistics: Statistics, ring: Callable[[], None]) -> None:
        self._database = database
        self._statistics = statistics
        self._ring = ring

    def list(self) -> list[QueueView]:
        """Every queue, by name."""
        return self._statistics.queues()

    def get(self, name: str) -> QueueView:
        """One queue.

        Raises:
            UnknownQueueError: There is none of this name.
        """
        for view in self.list():
            if view.name == name:
                return view
        raise _unknown(name)

    def set(
        self,
        name: str,
        *,
        max_running: int | None = None,
        max_concurrency: int | None = None,
        intake_batches: int | None = None,
        intake_profiles: int | None = None,
        intake_per_group: bool | None = None,
    ) -> QueueView:
        """Change what is given of a queue; made when it does not exist.

        Args:
            name: The queue's.
            max_running: So many of its batches run at once at least; when they cannot fill the workers, more.
            max_concurrency: So many of its profiles are in the broker or run at once at most; 0 takes the cap away.
            intake_batches: So many of its batches are in line or run at most: more are refused at submit; 0 takes the
                limit away. What is there already stays.
            intake_profiles: So many of their profiles are unsettled at most; 0 takes the limit away.
            intake_per_group: Whether each group of its batches has these two to itself.

        Raises:
            InvalidInputError: A number is out of range, or the name is none.
        """
        if not LIMIT_NAME.fullmatch(name) or len(name) > 64:
            raise InvalidInputError(
                f"cannot set up the queue {name!r}: a queue's name has letters, digits, '_', '-' and '.', at most 64"
            )
        changes: dict[str, int | bool | None] = {}
        if max_running is not None:
            changes["max_running"] = _whole(name, "max_running", max_running, 1)
        if max_concurrency is not None:
            changes["max_concurrency"] = _whole(name, "max_concurrency", max_concurrency, 0) or None
        if intake_batches is not None:
            changes["intake_batches"] = _whole(name, "intake_batches", intake_batches, 0) or None
        if intake_profiles is not None:
            changes["intake_profiles"] = _whole(name, "intake_profiles", intake_profiles, 0, _MOST_PROFILES) or None
        if intake_per_group is not None:
            changes["intake_per_group"] = intake_per_group
        with self._database.begin() as connection:
            queue_order.ensure_queue(connection, name)
        return self._change(name, **changes) if changes else self.get(name)

    def pause(self, name: str) -> QueueView:
        """Promote nothing and dispatch nothing of a queue; what is in the broker or runs goes on to its end."""
        return self._change(name, paused=True)

    def drain(self, name: str) -> QueueView:
        """Promote nothing of a queue; batches that run go on to their end."""
        return self._change(name, draining=True)

    def wait_idle(
        self,
        name: str,
        timeout: float | None = None,
        poll: float = 0.2,
        show: Callable[[QueueView], object] | None = None,
    ) -> QueueView:
        """Block until no batch of a queue runs or stops, as after a drain.

        Args:
            name: Which queue.
            timeout: Seconds; None waits for ever.
            poll: Seconds between two looks.
            show: Called with each look.

        Raises:
            UnknownQueueError: There is none of this name.
            TimeoutError: Some still run; they go on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (view := self.get(name)).running:
            if show is not None:
                show(view)
            if deadline is not None and time.monotonic() >= deadline:
                batches = "1 batch runs" if view.running == 1 else f"{view.running:,} batches run"
                raise TimeoutError(f"queue {name} is not idle after {timeout:g} s: {batches}; nothing was stopped")
            time.sleep(poll)
        return view

    def resume(self, name: str) -> QueueView:
        """End a pause or a drain."""
        return self._change(name, paused=False, draining=False)

    def _change(self, name: str, **settings: object) -> QueueView:
        with self._database.begin() as connection:
            if not queue_order.change(connection, name, settings):
                raise _unknown(name)
        self._ring()
        return self.get(name)


class RateLimits:
    """Rate limits that batches share: token buckets, global over all workers.

    A limit is of a key (whatever batches name it in `rate_limits`), of a handler, or of a queue.

    Args:
        database: Where they are kept.
        ring: Wakes the leader.
    """

    def __init__(self, database: Database, ring: Callable[[], None]) -> None:
        self._database = database
        self._ring = ring

    def list(self) -> list[Limit]:
        """Every limit, and what it has to give now; those of single batches, too, while they are in use."""
        with self._database.read() as connection:
            return braking.read_limits(connection)

    def set(
        self, name: str, rate: float | str, *, burst: int | None = None, kind: LimitKind | str = LimitKind.KEY
    ) -> None:
        """Make a limit, or change it.

        Args:
            name: The key, or the name of the handler or queue.
            rate: Profiles a second, or as `600/m`.
            burst: Profiles that may go at once; by default those of half a second.
            kind: `key`, `handler` or `queue`.

        Raises:
            InvalidInputError: One of these is none.
        """
        key, per_second = _key(name, kind), parse_rate(rate)
        most = burst_of(per_second) if burst is None else _whole(name, "burst", burst, 1)
        with self._database.begin() as connection:
            braking.set_limit(connection, key, per_second, most)
        self._ring()

    def remove(self, name: str, *, kind: LimitKind | str = LimitKind.KEY) -> bool:
        """Take a limit away; whether it was there."""
        with self._database.begin() as connection:
            removed = braking.remove_limit(connection, _key(name, kind))
        self._ring()
        return removed


def _key(name: str, kind: LimitKind | str) -> LimitKey:
    if kind not in {LimitKind.KEY, LimitKind.HANDLER, LimitKind.QUEUE}:
        raise InvalidInputError(f"a rate limit is of a key, a handler or a queue, not of a {kind!r}")
    if not LIMIT_NAME.fullmatch(str(name)):
        raise InvalidInputError(f"cannot limit {name!r}: a name has letters, digits, '_', '-' and '.', at most 200")
    return LimitKey(LimitKind(kind), name)


def _whole(name: str, what: str, value: int, least: int, most: int = _MOST) -> int:
    if type(value) is not int or not least <= value <= most:
        raise InvalidInputError(f"{what} of {name} is a whole number from {least} to {most:,}, not {value!r}")
    return value


def _unknown(name: str) -> UnknownQueueError:
    return UnknownQueueError(f"there is no queue {name!r}; `batching queue list` shows those there are")
