"""The sweep: finds what went quiet and feeds it to the ordinary moves. One pass = one function, safe to repeat."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from batching import faults, traces
from batching.errors import BrokerUnavailableError
from batching.figures import OTHER, Figures
from batching.logs import Log
from batching.moves import leadership, sweep
from batching.moves.batch import wants_conclusion
from batching.moves.sweep import LostEvidence
from batching.states import LimitKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from batching.execution_manager import BatchExecutionManager
    from batching.interfaces import Lane, LeaderTerm, Publisher, RunId
    from batching.outlook import Outlook
    from batching.settings import Settings
    from batching.state_manager import BatchStateManager

log = Log("batching.sweeper")

#: Seconds for which people are told that the broker is away: until some passes later nobody has said so again.
_BROKER_NOTE = 4.0


class SilenceWatch:
    """Declares nobody dead whom it has not itself watched being silent for a full lease.

    After an outage of SQL everybody looks silent, since nobody could write; so a stored time proves nothing. What
    proves it is that this process looked again and again, and the sign of life never changed. Time in which something
    went wrong does not count: who watches was hindered, and so may have been who is watched. It takes nothing away
    from what was watched before, either, or a database that errs now and then would let the dead live for ever; only a
    long gap does, after which nobody knows how things were.

    Args:
        lease: Seconds of watched silence.
        clock: Monotonic seconds.
    """

    def __init__(self, lease: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease = lease
        self._clock = clock
        self._silence: dict[str, tuple[datetime | None, float]] = {}
        self._last_look: float | None = None
        self._hindered = False

    def look(self, signs: Mapping[str, datetime | None]) -> list[str]:
        """Take note of everybody's last sign of life; returns whose silence has lasted a full lease."""
        at = self._clock()
        passed = 0.0 if self._last_look is None else at - self._last_look
        if passed > self._lease / 2:
            self._silence.clear()  # a gap: we were frozen, or SQL was away
        watched = 0.0 if self._hindered else passed
        self._last_look, self._hindered = at, False
        before, self._silence = self._silence, {}
        for worker, sign in signs.items():
            last = before.get(worker)
            self._silence[worker] = (sign, last[1] + watched if last and last[0] == sign else 0.0)
        return [worker for worker, (_, seconds) in self._silence.items() if seconds >= self._lease]

    def hinder(self) -> None:
        """Something went wrong: the time from the last look to the next does not count."""
        self._hindered = True


class Swept(NamedTuple):
    """What one pass of the sweep did."""

    concluded: list[str]
    lost_runs: int
    republished: int
    abandoned: list[str]


class Sweeper:
    """What the leader does beside promoting and dispatching.

    Args:
        state_manager: The moves.
        execution_manager: Publishes what has to be published again.
        publisher: Asked for evidence of lost messages.
        settings: Leases and delays.
        figures: Counts repairs; by default for nobody.
    """

    def __init__(
        self,
        state_manager: BatchStateManager,
        execution_manager: BatchExecutionManager,
        publisher: Publisher,
        settings: Settings,
        figures: Figures | None = None,
    ) -> None:
        self._figures = figures or Figures()
        self.lengths: dict[str, int] = {}
        """Messages in the broker as last seen, by handler."""
        self._state = state_manager
        self._execution = execution_manager
        self._publisher = publisher
        self._settings = settings
        self._watch = SilenceWatch(settings.worker_lease)
        self._failed: set[str] = set()
        """Workers whose runs could not be taken back when that was tried last."""
        self._incarnation: str | None = None

    def resume(self) -> None:
        """Go on, after an error or a time of not being the leader."""
        self._watch.hinder()

    def sweep(self, term: LeaderTerm, outlook: Outlook) -> Swept:
        """One pass.

        Raises:
            DatabaseUnavailableError: SQL is away; nothing is half done, the next pass goes on.
        """
        concluded = self._state.conclude(
            each.row.id for each in outlook.active if wants_conclusion(each.row, each.counts)
        )
        if any(each.kind is LimitKind.BATCH for each in outlook.limits):
            self._state.forget_limits()
        swept = Swept(
            concluded, self._take_back(term, outlook), self._republish(term, outlook), self._state.sweep_abandoned()
        )
        self._figures.count("sweep_repairs", "batch", amount=len(swept.concluded))
        self._figures.count("sweep_repairs", "message", amount=swept.republished)
        self._figures.count("sweep_repairs", "submission", amount=len(swept.abandoned))
        return swept

    def _take_back(self, term: LeaderTerm, outlook: Outlook) -> int:
        """Runs of workers that were silent for a watched lease are pending again."""
        with self._state.database.read() as connection:
            signs: dict[str, datetime | None] = dict(leadership.heartbeats(connection))
            signs |= dict.fromkeys(sweep.orphaned_workers(connection))
        lost = 0
        self._failed &= signs.keys()
        # One that cannot be taken back must not keep those behind it waiting: it comes last in the next pass.
        for worker_id in sorted(self._watch.look(signs), key=self._failed.__contains__):
            self._failed.add(worker_id)
            taken = self._state.take_back(worker_id, signs[worker_id], term)
            self._failed.discard(worker_id)
            if taken is not None:
                faults.reach("lost.taken")
                log.warning("worker is dead", worker=worker_id, lost_runs=len(taken))
                if (spans := traces.active()) is not None:
                    spans.lost(taken, self._execution.trace_of)
                lost += len(taken)
                self._figures.count("sweep_repairs", "worker")
                self._count_lost(taken, outlook)
        return lost

    def _count_lost(self, taken: Sequence[RunId], outlook: Outlook) -> None:
        self._figures.count("sweep_repairs", "run", amount=len(taken))
        handlers = {each.row.id: each.lane.handler for each in outlook.active}
        for batch_id, number in Counter(run.batch_id for run in taken).items():
            handler = self._figures.handler(handlers.get(batch_id, OTHER))
            self._figures.count("losses", handler, amount=number)

    def _republish(self, term: LeaderTerm, outlook: Outlook) -> int:
        """Dispatches whose message looks lost are published again; a broker that is away is asked again later."""
        self.lengths = {}
        lanes = outlook.lanes()
        if not lanes:
            return 0
        try:
            lengths = self._publisher.lengths(lanes)
            self.lengths = _by_handler(lengths)
            incarnation = self._publisher.incarnation()
            renewed = self._incarnation is not None and incarnation != self._incarnation
            evidence = LostEvidence(
                self._settings.suspect_after, frozenset(lane for lane, length in lengths.items() if not length), renewed
            )
            suspects = self._state.suspects(term, evidence)
            if suspects:
                faults.reach("suspects.marked")
            self._execution.republish(suspects)
        except BrokerUnavailableError as error:
            log.warning("broker is away", error=str(error))
            self._figures.count("broker_errors", "manager")
            self._state.note_broker_away(term, _BROKER_NOTE)
            return 0
        # Only now: a crash before this line examines everything once more.
        self._incarnation = incarnation
        if suspects:
            log.info("published again", runs=len(suspects), broker_renewed=renewed)
        return len(suspects)


def _by_handler(lengths: Mapping[Lane, int]) -> dict[str, int]:
    """Of all queues together."""
    found: Counter[str] = Counter()
    for lane, length in lengths.items():
        found[lane.handler] += length
    return dict(found)
