"""Promotion and windowed dispatch: what the leader does in every tick. Decides by an `Outlook`, acts through moves."""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import TYPE_CHECKING

from batching.allowance import MOST_BEYOND, Allowance
from batching.brakes import LimitKey
from batching.interfaces import Bookmark, Lane
from batching.moves.promotion import Plan
from batching.states import BatchState, LimitKind
from batching.windows import LaneWindow

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.execution_manager import BatchExecutionManager
    from batching.interfaces import LeaderTerm
    from batching.moves.promotion import Start
    from batching.outlook import Active, Outlook
    from batching.settings import Settings

#: Profiles in one dispatch transaction: its rows are locked for as long as it takes.
CHUNK = 2_500
#: And in the first one for a lane that ran dry: its workers wait for it.
_FIRST_CHUNK = 250
#: Queues that are tried at once for what came with a hint; with more of them, a look costs less.
_FEW = 4
#: Seconds for which a batch is left alone when none of its waiting profiles was due.
_NOTHING_DUE_PAUSE = 0.1
#: And at least so many times as long as the search has taken.
_SEARCH_SHARE = 5.0
#: Seconds after which the dispatch of a batch begins anew with its first profile: what was given back, or is due for
#: its next attempt, stands there. Not in every look, because the way there is long: see `statements.dispatch`.
_ANEW = 1.0


class Dispatcher:
    """Keeps the lanes' windows filled, and lets batches in, in the order of the queue.

    Args:
        execution_manager: Promotes, dispatches and publishes.
        settings: The window, when it is fixed.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        execution_manager: BatchExecutionManager,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._execution = execution_manager
        self._fixed_window = settings.lane_window
        self._clock = clock
        self._windows: dict[Lane, LaneWindow] = {}
        self._leave_alone: dict[str, float] = {}
        self._sent: dict[str, int] = {}
        self._reading: dict[str, _Reading] = {}
        self._allowed: tuple[Outlook, Allowance] | None = None
        self.pace = math.inf
        """Seconds after which the lanes need another look: half of what is in the fullest of them is consumed then."""

    def promote(self, term: LeaderTerm, outlook: Outlook) -> list[Start]:
        """Let batches in: `max_running` of each queue at least, and more while those cannot fill the workers.

        Comes after `dispatch` of the same outlook, which finds out what the running batches have left to give. The ones
        beyond `max_running` are let in for the sake of idle workers, so only those that a live worker serves.
        """
        started = []
        for queue in sorted(outlook.waiting):
            if self._has_place(outlook, queue):
                started.append(self._start(term, outlook, queue, None))
            elif hungry := self._hungry(outlook, queue) - self._braked(outlook, queue):
                started.append(self._start(term, outlook, queue, hungry))
        return [each for each in started if each is not None]

    def welcome(self, term: LeaderTerm, outlook: Outlook) -> list[Start]:
        """Let in what came since the outlook, without another look: what was submitted to idle workers runs at once.

        A queue that had a place for a batch still has it: only the leader fills places, and each outlook is used once.
        """
        idle = [queue for queue in sorted(outlook.max_running) if self._has_place(outlook, queue)]
        if len(idle) > _FEW:
            return []
        started = [self._start(term, outlook, queue, None) for queue in idle]
        return [each for each in started if each is not None]

    @staticmethod
    def _has_place(outlook: Outlook, queue: str) -> bool:
        return _running(outlook, queue) < outlook.max_running.get(queue, 1)

    def _braked(self, outlook: Outlook, queue: str) -> frozenset[str]:
        """Handlers of which another batch would feed nobody: a limit of theirs, or of the queue, is spent."""
        served = {handler for worker in outlook.workers for handler in worker.handlers}
        if _running(outlook, queue) >= outlook.max_running.get(queue, 1) + MOST_BEYOND:
            return frozenset(served)
        allowance = self._allowance(outlook)
        return frozenset(handler for handler in served if allowance.braked(queue, handler))

    def _allowance(self, outlook: Outlook) -> Allowance:
        """What caps and limits leave room for, in this outlook."""
        if self._allowed is None or self._allowed[0] is not outlook:
            self._allowed = (outlook, Allowance(outlook))
        return self._allowed[1]

    def _start(self, term: LeaderTerm, outlook: Outlook, queue: str, handlers: frozenset[str] | None) -> Start | None:
        spent = () if handlers is None else self._allowance(outlook).spent()
        plan = Plan(handlers, self._rooms(outlook, queue), CHUNK, queue in outlook.grouped, spent)
        started = self._execution.start_batch(queue, term, plan)
        if started is not None:
            self._window(started.lane).sent(len(started.dispatches))
            reading = self._reading[started.batch_id] = _Reading(self._clock)
            reading.bookmark.passed(started.dispatches)
        return started

    def _rooms(self, outlook: Outlook, queue: str) -> dict[str, int]:
        """How many profiles of each handler there is room for in the broker, for those that a live worker serves.

        None where a cap of the queue or a limit must be kept to: the dispatch that follows does.
        """
        if queue in outlook.caps or LimitKey(LimitKind.QUEUE, queue) in outlook.limits:
            return {}
        served = {handler for worker in outlook.workers for handler in worker.handlers}
        free = [each for each in sorted(served) if LimitKey(LimitKind.HANDLER, each) not in outlook.limits]
        lanes = [lane for handler in free if outlook.slots(lane := Lane(queue, handler))]
        return {lane.handler: min(CHUNK, self._window(lane).free(outlook.slots(lane))) for lane in lanes}

    def _hungry(self, outlook: Outlook, queue: str) -> frozenset[str]:
        """Handlers of those workers of the queue whom the running batches cannot keep busy for half of their window.

        Workers of the same handlers are looked at together: what only others can run feeds none of them.
        """
        slots: Counter[tuple[str, ...]] = Counter()
        for worker in outlook.workers:
            if "*" in worker.queues or queue in worker.queues:
                slots[worker.handlers] += worker.slots
        # A batch that stops still occupies workers; it has nothing more to give.
        supply: Counter[str] = Counter()
        for each in outlook.active:
            if each.row.queue == queue:
                supply[each.lane.handler] += (
                    each.counts.dispatched + each.counts.running + self._can_give(outlook, each)
                )
        lanes = [lane for lane in outlook.lanes() if lane.queue == queue]
        windows = {lane.handler: self._window(lane).size(outlook.slots(lane)) for lane in lanes}
        return frozenset(
            handler
            for handlers, number in slots.items()
            if sum(supply[each] for each in handlers) < max([number, *(windows.get(each, 0) // 2 for each in handlers)])
            for handler in handlers
        )

    def _can_give(self, outlook: Outlook, each: Active) -> int:
        """Profiles that a batch could still put in flight, beyond those that the outlook has seen in flight."""
        if each.row.state is not BatchState.RUNNING or not outlook.slots(each.lane):
            return 0
        batch_id, pending, ceiling = each.row.id, each.counts.pending, each.row.options.window
        if batch_id in self._leave_alone:
            return self._sent.get(batch_id, 0)  # what waits is not due, or is held by a bulk move
        room = min(pending, self._allowance(outlook).room(each))
        return int(room if ceiling is None else min(room, max(0, ceiling - each.counts.dispatched)))

    def dispatch(self, term: LeaderTerm, outlook: Outlook) -> int:
        """Fill the windows of all lanes that a live worker serves; returns how many profiles were dispatched."""
        sent = 0
        self.pace = math.inf
        self._sent.clear()
        allowance = self._allowance(outlook)
        known = {each.row.id for each in outlook.running}
        self._leave_alone = {each: until for each, until in self._leave_alone.items() if each in known}
        self._reading = {each: reading for each, reading in self._reading.items() if each in known}
        for lane, active in outlook.lanes().items():
            window = self._window(lane)
            window.look(sum(each.counts.dispatched for each in active))
            if slots := outlook.slots(lane):
                lane_sent = self._fill(term, outlook, window, slots, active)
                sent += lane_sent
                # What a cap or a limit holds back is not waited for at the pace of a lane.
                if sum(min(each.counts.pending, allowance.room(each)) for each in active) > lane_sent:
                    self.pace = min(self.pace, window.lasts() / 2)
        for lane in self._windows.keys() - outlook.lanes().keys():
            del self._windows[lane]
        return sent

    def _window(self, lane: Lane) -> LaneWindow:
        if lane not in self._windows:
            self._windows[lane] = LaneWindow(self._fixed_window, self._clock)
        return self._windows[lane]

    def _fill(self, term: LeaderTerm, outlook: Outlook, window: LaneWindow, slots: int, active: list[Active]) -> int:
        free = window.free(slots)
        sent = 0
        for each in active:
            if free <= 0:
                break
            room = int(min(free, self._allowance(outlook).room(each)))
            done = self._fill_from(term, outlook, each, room, max(_FIRST_CHUNK, 2 * slots) if window.dry else CHUNK)
            window.sent(done)
            free -= done
            sent += done
        return sent

    def _fill_from(self, term: LeaderTerm, outlook: Outlook, each: Active, free: int, first: int) -> int:
        """Dispatch what is due of one batch, in chunks, under its own ceiling."""
        batch_id, pending = each.row.id, each.counts.pending
        ceiling = each.row.options.window
        room = free if ceiling is None else min(free, ceiling - each.counts.dispatched)
        room = min(room, pending)
        started = self._clock()
        if room <= 0 or started < self._leave_alone.get(batch_id, 0.0):
            return 0
        self._leave_alone.pop(batch_id, None)
        reading = self._reading.setdefault(batch_id, _Reading(self._clock))
        reading.look()
        allowance = self._allowance(outlook)
        sent = 0
        while sent < room:
            wanted = min(CHUNK if sent else first, CHUNK, room - sent)
            from_the_first = not reading.bookmark.number
            done = self._execution.dispatch_batch(batch_id, wanted, term, reading.bookmark, allowance.brakes(each))
            allowance.sent(each, done)
            sent += done
            if done < wanted and not from_the_first:
                reading.begin_anew()
            elif done < wanted:
                # Finding nothing due among a million that wait for their retry takes a while: not over and over again.
                at = self._clock()
                self._leave_alone[batch_id] = at + max(_NOTHING_DUE_PAUSE, _SEARCH_SHARE * (at - started))
                break
        self._sent[batch_id] = sent
        return sent

    def windows(self) -> dict[str, int]:
        """Messages that may be in the broker at once, as last decided, by handler."""
        found: Counter[str] = Counter()
        for lane, window in self._windows.items():
            found[lane.handler] += window.last
        return dict(found)

    def forget(self) -> None:
        """Begin anew, after a time of not being the leader."""
        self._windows.clear()
        self._leave_alone.clear()
        self._sent.clear()
        self._reading.clear()
        self._allowed = None


def _running(outlook: Outlook, queue: str) -> int:
    return sum(1 for each in outlook.running if each.row.queue == queue)


class _Reading:
    """Where the leader is in the profiles of one batch that it dispatches.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self.bookmark = Bookmark()

    def look(self) -> None:
        """Begin anew when it is time."""
        if self._clock() - self._began >= _ANEW:
            self.begin_anew()

    def begin_anew(self) -> None:
        """Go back to the first profile."""
        self.bookmark.number, self._began = 0, self._clock()
