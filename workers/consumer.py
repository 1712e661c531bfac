"""The lanes' consumer: runs what its intake claims in the worker's pool, and settles it in groups.

It lives in one loop and one thread, and is the same for every pool; what differs is the `Executor`. SQL and Redis are
used from this loop alone. What else belongs to it has a room of its own: `Intake` pops and claims, `Life` keeps its row
in SQL, `Bell` tells others, `Drain` and `Rest` end it.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from batching.interfaces import Ending, Outcome
from workers.appetite import Appetite
from workers.bell import Bell
from workers.bundles import Bundle
from workers.events import Pace
from workers.failures import told
from workers.gate import SqlGate
from workers.intake import Intake
from workers.interrupter import LOOK, Interrupter
from workers.life import Life
from workers.requests import is_watched, tell_received
from workers.settling import Outcomes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from batching.interfaces import Claimed, RunId
    from workers.ports import Ports
    from workers.requests import RunRequest

logger = logging.getLogger(__name__)

#: Characters of payloads after which a bundle takes no further run.
_BUNDLE_SIZE: Final = 262_144
#: Seconds after which the pool has gone quiet, while it has enough to do; and for which it is waited for at most, if no
#: outcome has to be settled sooner.
_QUIET: Final = 0.002
_LISTEN: Final = 0.04
#: Seconds between two looks for bundles that take longer than planned.
_RELIEF: Final = 0.05


class LaneConsumer:
    """See the module. `start`, then it goes by itself; `workers.drain.Drain` ends it."""

    def __init__(self, ports: Ports) -> None:
        self.loop, self.executor, self.registry = ports.loop, ports.executor, ports.registry
        self.figures = ports.figures
        self._flush_interval = ports.settings.flush_interval
        self._held_of: Counter[str] = Counter()
        self.held: dict[RunId, RunRequest] = {}
        """Claimed, not settled: what SQL shall think that this worker runs."""
        self.active: dict[RunId, RunRequest] = {}
        """Claimed, not over."""
        self.ready: deque[RunRequest] = deque()
        """Claimed, not handed to the pool."""
        self.bundles: set[Bundle] = set()
        """In the pool's hands."""
        self.draining = False
        """It takes nothing new: it leaves, or rests."""
        self.leaving = False
        """The process stops."""
        self.on_quiet: Callable[[], None] | None = None
        """Called after each turn while draining."""
        self.progressed = monotonic()
        """When something was claimed, ended or settled last, by the monotonic clock."""
        self._pump_planned = self._relief_planned = self._listening = False
        self._told: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._heard = 0
        self._listen_until = 0.0
        settings = ports.settings
        self.appetite = Appetite(self.executor.slots, settings)
        self.outcomes = Outcomes(ports.manager, settings.flush_size, settings.flush_interval, self._held_of)
        self.intake = Intake(self, ports)
        self.life = Life(self, ports)
        self.gate = SqlGate(self.loop, self.life.reopen, self.figures)
        self.bell = Bell(self.loop, ports.publisher, settings.key_prefix, self.intake.is_dry)
        self.pace = Pace(self.loop, self.has_more_to_run)
        """Events that are told when there is time."""
        self.tell_in_time = self.pace.keep

    @property
    def worker_id(self) -> str:
        """Under which this worker claims now."""
        return self.life.info.id

    def start(self) -> None:
        """Register and begin. Call it in the loop's thread, or before the loop runs."""
        self.loop.call_repeatedly(LOOK, Interrupter(self).look)
        self.intake.start()
        self.life.start()

    def has_more_to_run(self) -> bool:
        """Whether this worker holds more than it can run at once."""
        return len(self.active) > self.executor.slots()

    # --- what the pool tells; from any thread

    def runs_ended(self, ended: Sequence[tuple[RunRequest, Outcome]]) -> None:
        """Runs are over."""
        self._tell(self._runs_ended, ended)

    def bundle_ended(self, bundle: Bundle, unrun: Sequence[RunRequest]) -> None:
        """The pool is through with a bundle."""
        self._tell(self._bundle_ended, bundle, unrun)

    def runs_returned(self, unrun: Sequence[RunRequest]) -> None:
        """Runs came out of a bundle that goes on."""
        self._tell(self._runs_returned, unrun)

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        self._told.append((function, arguments))
        if not self._listening:
            self._listening = True
            self.loop.call_soon(self._listen_soon)

    def _listen_soon(self) -> None:
        # A hundred threads would wake this loop for every run; while the pool has more at its door, nothing is urgent.
        if len(self.bundles) > self.executor.slots():
            self._heard = len(self._told)
            self._listen_until = monotonic() + min(_LISTEN, self._flush_interval)
            self.loop.call_later(_QUIET, self._listen_when_quiet)
        else:
            self._listen()

    def _listen_when_quiet(self) -> None:
        """Threads that began together end together, one after the other: what this loop does then holds them all up."""
        slots, told = self.executor.slots(), len(self._told)
        at_the_door = len(self.bundles) - told // 2 - slots  # the end of a bundle is told twice: its runs', its own
        if told > self._heard and at_the_door > slots // 4 and monotonic() < self._listen_until:
            self._heard = told
            self.loop.call_later(_QUIET, self._listen_when_quiet)
        else:
            self._listen()

    def _listen(self) -> None:
        self._listening = False  # before the look: whoever tells after it plans another
        while self._told:
            function, arguments = self._told.popleft()
            try:
                function(*arguments)
            except Exception:
                logger.exception("Could not take note of what the pool told: %r", function)

    def _runs_ended(self, ended: Sequence[tuple[RunRequest, Outcome]]) -> None:
        if not len(self.outcomes):
            self.loop.call_later(self._flush_interval, self.pump)
        self.progressed = monotonic()
        for request, outcome in ended:
            run = request.claimed.run
            self.active.pop(run, None)
            self.outcomes.add(request, outcome)
            handler = request.claimed.terms.lane.handler
            self.appetite.ended(handler, request.runtime)
            if request.runtime is not None:
                self.figures.ran(handler, run.batch_id, request.runtime)
        self._plan_pump()

    def _bundle_ended(self, bundle: Bundle, unrun: Sequence[RunRequest]) -> None:
        self.bundles.discard(bundle)
        self._runs_returned(unrun)

    def _runs_returned(self, unrun: Sequence[RunRequest]) -> None:
        for request in reversed(unrun):
            if self.draining or request.recalled:
                request.give_back()
            else:
                self.ready.appendleft(request)
        self._plan_pump()

    # --- the turn

    def pump(self) -> None:
        """Do whatever can be done now: hand over, settle, claim, pop. Repeatable."""
        self._pump_planned = False
        self._hand_over()
        self.settle_due()
        if not self.draining:
            if self.life.fit():
                self.intake.claim_due()
            self._hand_over()
            self.intake.pop()
        elif self.on_quiet is not None:
            self.on_quiet()

    def _plan_pump(self) -> None:
        # Results arrive in bursts: one turn for all of them makes larger groups.
        if not self._pump_planned:
            self._pump_planned = True
            self.loop.call_soon(self.pump)

    def _hand_over(self) -> None:
        if not self.ready:
            return
        while self.ready and (free := self.executor.handover(len(self.bundles)) - len(self.bundles)) > 0:
            if requests := self._next_bundle(free):
                bundle = Bundle(requests, self)
                self.bundles.add(bundle)
                self.executor.execute(bundle)
                self._plan_relief(bundle)
        self.executor.flush()

    def _plan_relief(self, bundle: Bundle) -> None:
        if len(bundle.requests) > 1 and not self._relief_planned:
            self._relief_planned = True
            self.loop.call_later(_RELIEF, self._relieve)

    def _relieve(self) -> None:
        """A run that takes longer than planned holds up its bundle: let those before and behind it go."""
        self._relief_planned = False
        for bundle in list(self.bundles):
            if bundle.relieve():
                self._plan_relief(bundle)

    def _next_bundle(self, free: int) -> list[RunRequest]:
        """The next runs of one batch that go to the pool together; none when those that waited are over already.

        Args:
            free: Bundles that the pool takes now: what is ready is shared out among them.
        """
        first = self.ready[0]
        batch_id = first.claimed.run.batch_id
        share = -(-len(self.ready) // free)
        most = min(self._bundle_size(first), share)
        chosen: list[RunRequest] = []
        size = 0
        while self.ready and len(chosen) < most and size < _BUNDLE_SIZE:
            if self.ready[0].claimed.run.batch_id != batch_id:
                break
            request = self.ready.popleft()
            if not request.over:
                chosen.append(request)
                size += len(request.claimed.payload)
        return chosen

    def _bundle_size(self, request: RunRequest) -> int:
        # The pool counts time limits by the job; all runs of a batch have the same.
        if request.claimed.terms.options.is_timed or self.executor.one_by_one(request.name):
            return 1
        return self.appetite.bundle(request.name)

    # --- what the intake claimed

    def take(self, claimed: Sequence[Claimed]) -> None:
        """These runs are this worker's now."""
        self.progressed = monotonic()
        requests = [self.executor.prepare(each, self.worker_id, self) for each in claimed]
        for request in requests:
            run = request.claimed.run
            self.held[run] = self.active[run] = request
            self._held_of[run.batch_id] += 1
            self.appetite.begun(request.name, len(request.claimed.payload))
        possible = [each for each in requests if not self._refuse_limits(each)]
        self.ready.extend(possible)
        if is_watched(possible):
            # What is over in a moment is told when it is over, in one event: who watches pays for each of them.
            tell_received([each for each in possible if self._bundle_size(each) == 1])

    def _refuse_limits(self, request: RunRequest) -> bool:
        """End a run, as failed, whose batch asks for time limits that this pool cannot keep; whether it did."""
        if self.executor.pool == "prefork" or not request.claimed.terms.options.is_timed:
            return False
        message = (
            f"its batch has a time limit, and a worker of the {self.executor.pool} pool can interrupt nothing; serve "
            "the handler by workers with --pool=prefork, or submit the batch without time limits"
        )
        request.finish(Outcome(Ending.FAILED, error=told("TimeLimitUnsupported", message)))
        return True

    # --- settling

    def settle_due(self) -> None:
        """Settle as many groups as are due."""
        while self.gate.open and self.outcomes.due(idle=not self.active or self.draining):
            done = self.gate.run(self.outcomes.settle)
            if done is None:
                return
            self.progressed = monotonic()
            for request in done:
                self._let_go(request)
            self.bell.settled({request.claimed.run.batch_id for request in done})
        if self.outcomes.stopping:
            stopping, self.outcomes.stopping = self.outcomes.stopping, set()
            self.give_back_stopped(stopping)

    def _let_go(self, request: RunRequest) -> None:
        run = request.claimed.run
        if self.held.get(run) is request:
            del self.held[run]
            self._held_of[run.batch_id] -= 1
            if not self._held_of[run.batch_id]:
                del self._held_of[run.batch_id]

    def give_back_stopped(self, batch_ids: Collection[str]) -> None:
        """What was claimed of a batch that stops, and has not begun, goes back: it must not hold the stop up."""
        for request in list(self.active.values()):
            if request.claimed.run.batch_id in batch_ids:
                self.recall(request)

    def give_back_waiting(self) -> None:
        """Give back what was claimed and has not begun."""
        for request in list(self.active.values()):
            self.recall(request)
        self.ready.clear()

    def recall(self, request: RunRequest) -> None:
        """Give a run back that has not begun: at once, or when its bundle lets go of it."""
        bundle = request.bundle
        if bundle is not None:
            if request.started or not self.executor.withdraw(bundle):
                request.recalled = True
                bundle.halt()
                return
            bundle.withdrawn()
        request.give_back()
