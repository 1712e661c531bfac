"""Promotion and windowed dispatch: what the leader does in every tick. Decides by an `Outlook`, acts through moves."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from batching.policies import lane_window

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.execution_manager import BatchExecutionManager
    from batching.interfaces import Lane, LeaderTerm
    from batching.outlook import Active, Outlook
    from batching.settings import Settings
    from batching.state_manager import BatchStateManager

#: Profiles in one dispatch transaction: its rows are locked for as long as it takes.
CHUNK = 1_000
#: Seconds for which a batch is left alone when none of its waiting profiles was due.
_NOTHING_DUE_PAUSE = 0.1


class RateMeter:
    """Profiles a second, smoothed: rises at once, decays over some two seconds.

    Args:
        clock: Monotonic seconds.
    """

    _DECAY = 2.0
    #: Below this an interval says little: a burst of four in a millisecond is not 4,000 a second.
    _SHORTEST = 0.02

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self.rate = 0.0

    def add(self, count: int) -> float:
        """So many since the last call; returns the rate."""
        at = self._clock()
        elapsed = max(at - self._at, self._SHORTEST)
        self._at = at
        latest = count / elapsed
        share = 1.0 if latest > self.rate else 1.0 - math.exp(-elapsed / self._DECAY)
        self.rate += (latest - self.rate) * share
        return self.rate


class Dispatcher:
    """Keeps the lanes' windows filled, and lets batches in, in the order of the queue.

    Args:
        state_manager: Promotes.
        execution_manager: Dispatches and publishes.
        settings: The window, when it is fixed.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        state_manager: BatchStateManager,
        execution_manager: BatchExecutionManager,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state_manager
        self._execution = execution_manager
        self._fixed_window = settings.lane_window
        self._clock = clock
        self._meters: dict[Lane, RateMeter] = {}
        self._in_broker: dict[Lane, int] = {}
        self._leave_alone: dict[str, float] = {}

    def promote(self, term: LeaderTerm, outlook: Outlook) -> list[str]:
        """Let batches in: `max_running` of each queue at least, and more while those cannot fill the workers."""
        promoted = []
        for queue in sorted(outlook.waiting):
            running = sum(1 for each in outlook.running if each.row.queue == queue)
            short = outlook.max_running.get(queue, 1) - running
            if short <= 0 and self._fills_workers(outlook, queue):
                continue
            batch_id = self._state.promote(queue, term)
            if batch_id is not None:
                promoted.append(batch_id)
        return promoted

    def _fills_workers(self, outlook: Outlook, queue: str) -> bool:
        """Whether what is in flight keeps the queue's workers busy for the better part of their window."""
        slots = outlook.queue_slots(queue)
        if not slots:
            return True  # nobody is idle, since nobody is there
        windows = [self._window(outlook, lane) for lane in outlook.lanes() if lane.queue == queue]
        return outlook.in_flight(queue) >= max([slots, *(window // 2 for window in windows)])

    def dispatch(self, term: LeaderTerm, outlook: Outlook) -> int:
        """Fill the windows of all lanes that a live worker serves; returns how many profiles were dispatched."""
        sent = 0
        for lane, active in outlook.lanes().items():
            waiting = sum(each.counts.dispatched for each in active)
            self._measure(lane, waiting)
            lane_sent = self._fill(term, outlook, lane, active, waiting) if outlook.slots(lane) else 0
            self._in_broker[lane] = waiting + lane_sent
            sent += lane_sent
        for lane in self._in_broker.keys() - outlook.lanes().keys():
            del self._in_broker[lane]
        return sent

    def _measure(self, lane: Lane, waiting: int) -> None:
        consumed = max(0, self._in_broker.get(lane, 0) - waiting)
        self._meters.setdefault(lane, RateMeter(self._clock)).add(consumed)

    def _window(self, outlook: Outlook, lane: Lane) -> int:
        meter = self._meters.get(lane)
        return lane_window(outlook.slots(lane), meter.rate if meter else 0.0, self._fixed_window)

    def _fill(self, term: LeaderTerm, outlook: Outlook, lane: Lane, active: list[Active], waiting: int) -> int:
        free = self._window(outlook, lane) - waiting
        sent = 0
        for each in active:
            if free <= 0:
                break
            done = self._fill_from(term, each, free)
            free -= done
            sent += done
        return sent

    def _fill_from(self, term: LeaderTerm, each: Active, free: int) -> int:
        """Dispatch what is due of one batch, in chunks, under its own ceiling."""
        batch_id, pending = each.row.id, each.counts.pending
        ceiling = each.row.options.window
        room = free if ceiling is None else min(free, ceiling - each.counts.dispatched)
        room = min(room, pending)
        if room <= 0 or self._clock() < self._leave_alone.get(batch_id, 0.0):
            return 0
        sent = 0
        while sent < room:
            wanted = min(CHUNK, room - sent)
            done = self._execution.dispatch_batch(batch_id, wanted, term)
            sent += done
            if done < wanted:
                self._leave_alone[batch_id] = self._clock() + _NOTHING_DUE_PAUSE
                break
        return sent

    def forget(self) -> None:
        """Begin anew, after a time of not being the leader."""
        self._meters.clear()
        self._in_broker.clear()
        self._leave_alone.clear()
