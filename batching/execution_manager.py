"""BatchExecutionManager: dispatch, completion and failure of runs. Publishes through an injected publisher."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import suppress
from itertools import groupby
from time import perf_counter
from typing import TYPE_CHECKING

from batching import faults, traces
from batching.errors import BatchingError
from batching.figures import Figures
from batching.interfaces import Bookmark
from batching.policies import settlement
from batching.states import ProfileState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from collections.abc import Set as AbstractSet

    from batching.brakes import Brakes
    from batching.interfaces import (
        Claimed,
        ClaimResult,
        Dispatch,
        LeaderTerm,
        Outcome,
        Publisher,
        RunId,
        Settlement,
        SettleResult,
    )
    from batching.moves.promotion import Plan, Start
    from batching.state_manager import BatchStateManager
    from batching.states import BatchState


class BatchExecutionManager:
    """Implements `IBatchExecutionManager`; see there for what each method promises.

    Args:
        state_manager: Every write goes through it.
        publisher: The border to the broker; None in processes that never dispatch (producers, workers).
        max_losses: Losses after which a profile runs alone, and one more fails it.
        jitter: Uniform numbers in [0, 1) for back-offs.
        figures: Counts what is done; by default for nobody.
    """

    def __init__(
        self,
        state_manager: BatchStateManager,
        publisher: Publisher | None = None,
        *,
        max_losses: int = 2,
        jitter: Callable[[], float] = random.random,
        figures: Figures | None = None,
    ) -> None:
        self._state_manager = state_manager
        self._publisher = publisher
        self._max_losses = max_losses
        self._jitter = jitter
        self._figures = figures or Figures()

    def execute_batch(self, batch_id: str) -> BatchState:
        return self._state_manager.request_promotion(batch_id)

    def dispatch_batch(
        self,
        batch_id: str,
        limit: int,
        term: LeaderTerm,
        bookmark: Bookmark | None = None,
        brakes: Brakes | None = None,
    ) -> int:
        """Publish after the commit: a crash between the two leaves dispatches without messages: the sweep's."""
        if bookmark is None:
            bookmark = Bookmark()
        began = perf_counter()
        dispatches = self._state_manager.dispatch(batch_id, limit, term, bookmark.number, brakes)
        self._count_dispatched(dispatches, perf_counter() - began)
        bookmark.passed(dispatches)
        faults.reach("dispatch.committed")
        self._publish(dispatches)
        self._trace(dispatches, began)
        return len(dispatches)

    def start_batch(self, queue: str, term: LeaderTerm, plan: Plan) -> Start | None:
        """Promote the next batch in line, dispatch the first of its profiles, commit, then publish."""
        began = perf_counter()
        started = self._state_manager.start(queue, term, plan)
        if started is not None:
            self._count_dispatched(started.dispatches, perf_counter() - began)
            faults.reach("start.committed")
            self._publish(started.dispatches)
            self._trace_start(started, began)
        return started

    def _count_dispatched(self, dispatches: Sequence[Dispatch], seconds: float) -> None:
        if dispatches:  # all of one batch
            self._figures.step("dispatch", len(dispatches), seconds)
            handler = self._figures.handler(dispatches[0].lane.handler)
            self._figures.count("profiles_dispatched", handler, amount=len(dispatches))

    def republish(self, dispatches: Sequence[Dispatch]) -> None:
        began = perf_counter()
        self._publish(dispatches)
        self._trace(dispatches, began, again=True)

    def _publish(self, dispatches: Sequence[Dispatch]) -> None:
        if dispatches and self._publisher is not None:
            began = perf_counter()
            self._publisher.publish(dispatches)
            self._figures.step("publish", len(dispatches), perf_counter() - began)

    def claim(self, worker_id: str, runs: Sequence[RunId]) -> ClaimResult:
        faults.reach("claim.begun")
        began = perf_counter()
        result = self._state_manager.claim(worker_id, runs)
        self._figures.step("claim", len(runs), perf_counter() - began)
        self._figures.count("runs_claimed", amount=len(result.claimed))
        self._figures.count("claims_refused", amount=result.refused)
        faults.reach("claim.committed")
        if (spans := traces.active()) is not None:
            spans.claimed(result.claimed, self.trace_of, _at(began))
        return result

    def complete(
        self, worker_id: str, outcomes: Sequence[tuple[Claimed, Outcome]], holding: Collection[str] = ()
    ) -> SettleResult:
        """Conclude after the commit: each finisher looks again once its own outcome is visible to all.

        Not for a batch in `holding` of which everything in the group was done without a failure: that cannot have
        ended the pass. A pass ends when nothing is unsettled, or nothing runs any more, and this worker's further runs
        are running until it settles them (then it looks) or they are taken back from it (then the sweep looks); or
        when a failure spent the budget, and whoever settled that failure looks. Should this worker be wrong about what
        it holds, the sweep concludes what nobody concluded.
        """
        settlements = [settlement(claimed, outcome, self._max_losses, self._jitter()) for claimed, outcome in outcomes]
        faults.reach("settle.decided")
        began = perf_counter()
        result = self._state_manager.settle(worker_id, settlements)
        self._figures.step("settle", len(settlements), perf_counter() - began)
        self._count_settled(outcomes, settlements, result)
        faults.reach("settle.committed")
        if (spans := traces.active()) is not None:
            ends = [(claimed, end) for (claimed, _), end in zip(outcomes, settlements, strict=True)]
            spans.settled(ends, result.late, self.trace_of, _at(began))
        # Settled it is: the sweep repeats a conclusion that fails, and the same outcomes again would only be late.
        with suppress(BatchingError):
            self._state_manager.conclude({run.batch_id for run in result.applied} - _goes_on(settlements, holding))
        return result

    def _count_settled(
        self,
        outcomes: Sequence[tuple[Claimed, Outcome]],
        settlements: Sequence[Settlement],
        result: SettleResult,
    ) -> None:
        self._figures.count("late_results", amount=len(result.late))
        late = set(result.late)
        ends: dict[str, tuple[str, Counter[str]]] = {}
        batch_id, counted = "", Counter[str]()
        # Neighbours are mostly of one batch: thousands of them a second are only added up.
        for (claimed, _), each in zip(outcomes, settlements, strict=True):
            if late and each.run in late:
                continue
            if each.run.batch_id != batch_id:
                batch_id = each.run.batch_id
                _, counted = ends.setdefault(batch_id, (claimed.terms.lane.handler, Counter()))
            counted[each.label] += 1
        for batch_id, (handler, counted) in ends.items():
            self._figures.ended(handler, batch_id, counted)

    # --- traces: nothing but a look at whether there are any, where there are none

    def trace_of(self, batch_id: str) -> str | None:
        """The trace that a batch was submitted in, empty for none; None: its profiles are not traced."""
        spans = traces.active()
        return None if spans is None else spans.parent_of(batch_id, self._state_manager.traceparent)

    def _trace(self, dispatches: Sequence[Dispatch], began: float, *, again: bool = False) -> None:
        if (spans := traces.active()) is None:
            return
        for batch_id, some in groupby(dispatches, lambda each: each.run.batch_id):
            if (parent := self.trace_of(batch_id)) is not None:
                spans.dispatched(some, parent, _at(began), again=again)

    def _trace_start(self, started: Start, began: float) -> None:
        if (spans := traces.active()) is None:
            return
        if (parent := self.trace_of(started.batch_id)) is not None:
            # Without a dispatch, nobody has read which pass it is; only the first one roots a trace.
            pass_number = started.dispatches[0].pass_number if started.dispatches else None
            spans.started(started.batch_id, pass_number, started.lane, parent)
            spans.dispatched(started.dispatches, parent, _at(began))


def _at(began: float) -> float:
    """A moment of `perf_counter`, in seconds since the epoch."""
    return time.time() - (perf_counter() - began)


_HARMLESS = frozenset({ProfileState.SUCCEEDED, ProfileState.SKIPPED})


def _goes_on(settlements: Sequence[Settlement], holding: Collection[str]) -> AbstractSet[str]:
    """Batches that this group cannot have ended: see `BatchExecutionManager.complete`."""
    if not holding:
        return frozenset()
    return set(holding) - {each.run.batch_id for each in settlements if each.state not in _HARMLESS}
