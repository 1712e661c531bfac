"""Outcomes wait here for others, and are settled in one statement."""

from __future__ import annotations

import logging
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING

from batching.errors import DatabaseUnavailableError
from batching.interfaces import Ending, Outcome
from workers.failures import told
from workers.structured import run_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batching.interfaces import Claimed, IBatchExecutionManager, SettleResult
    from workers.requests import RunRequest

logger = logging.getLogger(__name__)


class Outcomes:
    """What ended and is not in SQL yet.

    Args:
        manager: Settles.
        size: Outcomes in one statement, at most.
        interval: Seconds that an outcome waits at most.
        held: Runs that this worker holds, by batch: claimed and not settled. Whoever claims and settles keeps it.
    """

    def __init__(self, manager: IBatchExecutionManager, size: int, interval: float, held: Counter[str]) -> None:
        self._manager = manager
        self._size = size
        self._interval = interval
        self._held = held
        self._waiting: list[tuple[RunRequest, Outcome]] = []
        self._since = 0.0
        self.late = 0
        self.stopping: set[str] = set()
        """Batches that turned out to be stopping; whoever gives back what has not begun clears it."""

    def __len__(self) -> int:
        return len(self._waiting)

    def requests(self) -> list[RunRequest]:
        """Those that wait here; for people."""
        return [request for request, _ in self._waiting]

    def add(self, request: RunRequest, outcome: Outcome) -> None:
        """Keep an outcome until it is settled."""
        if not self._waiting:
            self._since = monotonic()
        self._waiting.append((request, outcome))

    def due(self, *, idle: bool) -> bool:
        """Whether to settle now: the pool has nothing else to do, the group is full, or its oldest waited enough."""
        if not self._waiting:
            return False
        return idle or len(self._waiting) >= self._size or monotonic() >= self._since + self._interval

    def settle(self) -> list[RunRequest]:
        """Settle one group.

        The group leaves the buffer only when the database has answered: a COMMIT whose answer was lost is followed by
        the same statement, which then finds those runs settled and reports them as late.

        Returns:
            The requests that are over and done with.

        Raises:
            DatabaseUnavailableError: Nothing left the buffer.
        """
        # Runs that were claimed under an older identity are settled under it, and refused, since it was declared dead.
        holder = self._waiting[0][0].holder
        first, rest = self._waiting[: self._size], self._waiting[self._size :]
        group = [pair for pair in first if pair[0].holder == holder]
        self._complete(holder, [(request.claimed, outcome) for request, outcome in group])
        self._waiting = rest if len(group) == len(first) else [p for p in first if p[0].holder != holder] + rest
        self._since = monotonic()
        return [request for request, _ in group]

    def _holding(self, pairs: Sequence[tuple[Claimed, Outcome]]) -> list[str]:
        """Batches of which this worker holds more than these runs."""
        here = Counter(claimed.run.batch_id for claimed, _ in pairs)
        return [batch_id for batch_id, number in here.items() if self._held[batch_id] > number]

    def _complete(self, holder: str, pairs: list[tuple[Claimed, Outcome]]) -> None:
        try:
            self._note(self._manager.complete(holder, pairs, self._holding(pairs)))
        except DatabaseUnavailableError:
            raise
        except Exception:
            # One outcome that the database refuses must not hold up its neighbours.
            logger.exception("Could not settle %d outcomes together; settling them one by one", len(pairs))
            for pair in pairs:
                self._complete_alone(holder, *pair)

    def _complete_alone(self, holder: str, claimed: Claimed, outcome: Outcome) -> None:
        refused = Outcome(Ending.FAILED, error=told("OutcomeRefused", "the database refused to store its outcome"))
        for attempt in (outcome, refused):
            try:
                self._note(self._manager.complete(holder, [(claimed, attempt)]))
            except DatabaseUnavailableError:
                raise
            except Exception:
                fields = run_fields(claimed, holder)
                logger.exception("Could not settle run %s as %s", claimed.run.task_id, attempt.ending, extra=fields)
            else:
                return
        # Not held any more, so the next heartbeat gives it back.

    def _note(self, result: SettleResult) -> None:
        self.stopping |= result.stopping
        late = result.late
        if late:
            self.late += len(late)
            logger.info(
                "%d outcomes came late, their runs were over before (%d in all), such as %s",
                len(late),
                self.late,
                late[0].task_id,
                extra={"batch": late[0].batch_id, "run": late[0].run},
            )
