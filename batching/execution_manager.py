"""BatchExecutionManager: dispatch, completion and failure of runs. Publishes through an injected publisher."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import TYPE_CHECKING

from batching import faults
from batching.errors import BatchingError
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
    """

    def __init__(
        self,
        state_manager: BatchStateManager,
        publisher: Publisher | None = None,
        *,
        max_losses: int = 2,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._state_manager = state_manager
        self._publisher = publisher
        self._max_losses = max_losses
        self._jitter = jitter

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
        dispatches = self._state_manager.dispatch(batch_id, limit, term, bookmark.number, brakes)
        bookmark.passed(dispatches)
        faults.reach("dispatch.committed")
        self.republish(dispatches)
        return len(dispatches)

    def start_batch(self, queue: str, term: LeaderTerm, plan: Plan) -> Start | None:
        """Promote the next batch in line, dispatch the first of its profiles, commit, then publish."""
        started = self._state_manager.start(queue, term, plan)
        if started is not None:
            faults.reach("start.committed")
            self.republish(started.dispatches)
        return started

    def republish(self, dispatches: Sequence[Dispatch]) -> None:
        if dispatches and self._publisher is not None:
            self._publisher.publish(dispatches)

    def claim(self, worker_id: str, runs: Sequence[RunId]) -> ClaimResult:
        result = self._state_manager.claim(worker_id, runs)
        faults.reach("claim.committed")
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
        result = self._state_manager.settle(worker_id, settlements)
        faults.reach("settle.committed")
        # Settled it is: the sweep repeats a conclusion that fails, and the same outcomes again would only be late.
        with suppress(BatchingError):
            self._state_manager.conclude({run.batch_id for run in result.applied} - _goes_on(settlements, holding))
        return result


_HARMLESS = frozenset({ProfileState.SUCCEEDED, ProfileState.SKIPPED})


def _goes_on(settlements: Sequence[Settlement], holding: Collection[str]) -> AbstractSet[str]:
    """Batches that this group cannot have ended: see `BatchExecutionManager.complete`."""
    if not holding:
        return frozenset()
    return set(holding) - {each.run.batch_id for each in settlements if each.state not in _HARMLESS}
