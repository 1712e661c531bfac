"""The lanes' consumer: pops offers, claims them in groups, runs them in the worker's pool, settles in groups.

It lives in one loop and one thread, and is the same for every pool; what differs is the `Executor`. SQL and Redis are
used from this loop alone. Redis may lose or double any message: only a claim makes a run this worker's.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from batching.errors import BrokerUnavailableError
from batching.figures import Figures
from batching.interfaces import Ending, Lane, Outcome
from batching.live import PAUSE, News
from workers.appetite import Appetite
from workers.bundles import Bundle
from workers.events import Pace
from workers.failures import told
from workers.gate import SqlGate
from workers.identity import announce
from workers.interrupter import LOOK, Interrupter
from workers.offers import Offer, Reader
from workers.popper import Popper
from workers.publisher import lane_key
from workers.requests import tell_received
from workers.resting import Rest
from workers.settling import Outcomes
from workers.vitals import stuck

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from batching.interfaces import Claimed, IBatchExecutionManager, RunId, WorkerInfo
    from batching.moves.leadership import Heard
    from batching.settings import Settings
    from workers.loops import Loop
    from workers.publisher import RedisPublisher
    from workers.requests import RunRequest

logger = logging.getLogger(__name__)

#: Seconds between two rings of the leader's doorbell, and after one that failed.
_RING_PAUSE: Final = 0.02
_RING_REST: Final = 5.0
#: Seconds without an answer after which the lanes are empty.
_DRY: Final = 0.005
#: Characters of payloads after which a bundle takes no further run.
_BUNDLE_SIZE: Final = 262_144
#: Seconds for which what the pool tells is gathered, while it has enough to do.
_GATHER: Final = 0.002
#: Seconds between two looks for bundles that take longer than planned.
_RELIEF: Final = 0.05
EVERY_QUEUE: Final = "*"


class Registry(Protocol):
    """The worker's own row in SQL; `batching.registry.WorkerRegistry`."""

    def rehearse(self, worker_id: str) -> None: ...
    def register(self, info: WorkerInfo, *, drain: bool = False) -> None: ...
    def beat(
        self,
        worker_id: str,
        *,
        draining: bool = False,
        stuck: str | None = None,
        counted: Figures | None = None,
        gauges: dict[str, Any] | None = None,
    ) -> Heard | None: ...
    def ask_to_drain(self, worker_id: str, *, drain: bool) -> None: ...
    def running(self, worker_id: str) -> list[RunId]: ...
    def give_back(self, worker_id: str, runs: Sequence[RunId]) -> int: ...
    def stands(self, run: RunId) -> bool: ...
    def stopping(self, batch_ids: Collection[str]) -> set[str]: ...
    def interrupted(self, batch_ids: Collection[str]) -> set[str]: ...
    def queues(self) -> list[str]: ...
    def leave(self, worker_id: str, counted: Figures | None = None) -> None: ...


class Executor(Protocol):
    """The worker's pool, seen from the consumer."""

    pool: str
    hostname: str

    def slots(self) -> int:
        """Runs that can go on at once, now."""

    def handover(self, handed: int) -> int:
        """Bundles that the pool may have at once, when it has so many: its slots, and what may wait at its door."""

    def one_by_one(self, handler: str) -> bool:
        """Whether runs of a handler must go to the pool one by one."""

    def prepare(self, claimed: Claimed, holder: str, consumer: LaneConsumer) -> RunRequest:
        """Make the request of a claimed run."""

    def execute(self, bundle: Bundle) -> None:
        """Hand runs to the pool; they will call `runs_ended` and `bundle_ended`."""

    def flush(self) -> None:
        """Let what was handed over reach the pool at once."""

    def withdraw(self, bundle: Bundle) -> bool:
        """Take a bundle that has not begun out of the pool; False when it may begin all the same."""

    def interrupt(self, request: RunRequest, *, force: bool) -> None:
        """End one run by a person's wish, where the pool can."""

    def terminate(self, requests: Sequence[RunRequest], *, force: bool) -> bool:
        """Interrupt what runs; False when this pool cannot."""


@dataclass(frozen=True, slots=True)
class Ports:
    """What a consumer works with."""

    loop: Loop
    executor: Executor
    manager: IBatchExecutionManager
    registry: Registry
    publisher: RedisPublisher
    settings: Settings
    handlers: frozenset[str]
    figures: Figures = field(default_factory=Figures)


class LaneConsumer:
    """See the module. `start`, then it goes by itself; `workers.drain.Drain` ends it."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self.loop, self.executor, self.registry = ports.loop, ports.executor, ports.registry
        self.settings = ports.settings
        self.figures = ports.figures
        self.gate = SqlGate(self.loop, self._reopen, self.figures)
        self._held_of: Counter[str] = Counter()
        self.news = News(self.settings.key_prefix)
        """Batches whose settlements nobody was told of yet."""
        self.outcomes = Outcomes(ports.manager, self.settings.flush_size, self.settings.flush_interval, self._held_of)
        self.popper = Popper(self.loop, ports.publisher, self._popped, self.figures)
        self.reader = Reader(ports.handlers, self.figures)
        self.info = self._fresh_identity()
        self.registered = False
        self.pending: dict[RunId, Offer] = {}
        """Popped, not claimed."""
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
        self.rest = Rest(self)
        self.on_quiet: Callable[[], None] | None = None
        """Called after each turn while draining."""
        self.duplicates = self.refused = 0
        self.progressed = monotonic()
        """When something was claimed, ended or settled last, by the monotonic clock."""
        self._alone: Offer | None = None
        self._alone_run: RunId | None = None
        self.queues: tuple[str, ...] = ()
        """Those whose lanes it asks for."""
        self._keys: list[str] = []
        self._pending_since = 0.0
        self._dry = False
        self._rung = 0.0
        self._beaten = 0.0
        self._pump_planned = self._relief_planned = self._news_planned = self._listening = False
        self._told: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._appetite = Appetite(self.executor.slots, self.settings)
        self.pace = Pace(self.loop, self._more_to_run)
        """Events that are told when there is time."""
        self.tell_in_time = self.pace.keep

    @property
    def worker_id(self) -> str:
        """Under which this worker claims now."""
        return self.info.id

    def start(self) -> None:
        """Register and begin. Call it in the loop's thread, or before the loop runs."""
        self.loop.call_repeatedly(self.settings.heartbeat_interval, self.heartbeat)
        self.loop.call_repeatedly(LOOK, Interrupter(self).look)
        self.loop.call_soon(self.heartbeat)  # an error of the first one must not end all others

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

    def _more_to_run(self) -> bool:
        """Whether this worker holds more than it can run at once."""
        return len(self.active) > self.executor.slots()

    def _listen_soon(self) -> None:
        # A hundred threads would wake this loop for every run; while the pool has more at its door, nothing is urgent.
        if len(self.bundles) > self.executor.slots():
            self.loop.call_later(_GATHER, self._listen)
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
            self.loop.call_later(self.settings.flush_interval, self.pump)
        self.progressed = monotonic()
        for request, outcome in ended:
            run = request.claimed.run
            self.active.pop(run, None)
            if self._alone_run == run:
                self._alone_run = None
            self.outcomes.add(request, outcome)
            handler = request.claimed.terms.lane.handler
            self._appetite.ended(handler, request.runtime)
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
            self._claim_due()
            self._hand_over()
            self._pop()
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
        return self._appetite.bundle(request.name)

    # --- popping

    def credit(self) -> int:
        """Messages to ask for now."""
        if self._alone is not None or self._alone_run is not None or not self.gate.open or not self.registered:
            return 0
        if len(self.outcomes) >= 2 * self.settings.flush_size:
            return 0
        target = self._appetite.target()
        credit = target - len(self.pending) - len(self.active)
        # Not one by one: short profiles come in groups then, and long ones are not hoarded either way.
        return min(credit, self.settings.flush_size) if credit >= max(1, target // 3) else 0

    def _pop(self) -> None:
        credit = self.credit()
        if credit > 0:
            self.popper.ask(self._keys, credit)
            if len(self.active) > self.executor.slots():
                # More than the pool can begin with, and yet it has room: do not wait for the first outcomes.
                self.loop.call_later(_DRY, self._ring)

    def _popped(self, key: str, messages: Sequence[bytes], asked: int) -> None:
        self._dry = len(messages) < asked
        offers = [offer for raw in messages if (offer := self.reader.read(key, raw)) is not None]
        # All at once: each is a round trip, and a broker that is away now would hold this loop for every one of them.
        self._put_back([offer for offer in offers if not self._keep(offer)])
        self.pump()

    def _keep(self, offer: Offer) -> bool:
        """Take note of an offer; False when it has to go back to its lane."""
        if offer.run in self.held or offer.run in self.pending:
            self.duplicates += 1
            self.figures.count("duplicate_deliveries")
        elif self.draining or self._alone is not None:
            return False
        elif offer.alone:
            self._alone = offer
            # Others may serve them meanwhile: it can take long until this worker is empty.
            self.return_pending()
        else:
            if not self.pending:
                self._pending_since = monotonic()
                self.loop.call_later(self.settings.flush_interval, self.pump)
            self.pending[offer.run] = offer
        return True

    def give_back_waiting(self) -> None:
        """Give back what was claimed and has not begun."""
        for request in list(self.active.values()):
            self.recall(request)
        self.ready.clear()

    def ask_to_rest(self, *, rest: bool) -> None:
        """Ask this very worker to drain, or to take work again, as anybody else would: in SQL; from any thread."""
        self.loop.call_soon(self._ask_to_rest, rest)

    def _ask_to_rest(self, rest: bool) -> None:
        def ask() -> bool:
            self.registry.ask_to_drain(self.worker_id, drain=rest)
            return True

        if self.gate.open and self.registered and self.gate.run(ask):
            self.heartbeat()

    def return_pending(self) -> None:
        """Put what was popped and not claimed back into its lanes."""
        offers, self.pending = list(self.pending.values()), {}
        if self.draining and self._alone is not None:
            offers.append(self._alone)
            self._alone = None
        self._put_back(offers)

    def _put_back(self, offers: Sequence[Offer]) -> None:
        self.put_back_raw([(offer.key, offer.raw) for offer in offers])

    def put_back_raw(self, pairs: Sequence[tuple[str, bytes]]) -> None:
        """Put messages back; when the broker is away they are lost, and published again in time."""
        if pairs:
            try:
                self._ports.publisher.put_back(pairs)
            except BrokerUnavailableError as error:
                logger.info("Could not put %d messages back: %s", len(pairs), error)

    # --- claiming

    def _claim_due(self) -> None:
        if self.gate.open and self.registered and monotonic() - self._beaten > self.settings.worker_lease / 2:
            # This process was frozen, and may have been declared dead: what it claims now would count as lost later.
            self._beat()
        if not self.gate.open or not self.registered:
            return
        if self._alone is not None:
            if not self.active:
                offer, self._alone = self._alone, None
                if self._claim([offer]) and self.active:
                    self._alone_run = offer.run
            return
        if not self.pending or self._alone_run is not None:
            return
        idle = len(self.active) < self.executor.slots()
        waited = monotonic() >= self._pending_since + self.settings.flush_interval
        if idle or waited or self.credit() == 0:
            offers = self._appetite.affordable(self.pending.values())[: self.settings.flush_size]
            if not offers or self._claim(offers):
                # Popped for quicker ones than these are: others may have room for them.
                self.return_pending()

    def _claim(self, offers: list[Offer]) -> bool:
        try:
            result = self.gate.run(lambda: self._ports.manager.claim(self.worker_id, [offer.run for offer in offers]))
        except Exception:
            # Not the database's absence: the same group would fail again, and what is lost is published again.
            logger.exception("Could not claim %d runs; their messages are dropped", len(offers))
            self._forget(offers)
            return True
        if result is None:
            if offers[0].alone:
                self._alone = offers[0]
            return False
        self._forget(offers)
        self.progressed = monotonic()
        self.refused += result.refused
        requests = [self.executor.prepare(claimed, self.worker_id, self) for claimed in result.claimed]
        for request in requests:
            run = request.claimed.run
            self.held[run] = self.active[run] = request
            self._held_of[run.batch_id] += 1
            self._appetite.begun(request.name, len(request.claimed.payload))
        possible = [each for each in requests if not self._refuse_limits(each)]
        self.ready.extend(possible)
        # What is over in a moment is told when it is over, in one event: who watches pays for each of them.
        tell_received([each for each in possible if self._bundle_size(each) == 1])
        return True

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

    def _forget(self, offers: Sequence[Offer]) -> None:
        for offer in offers:
            self.pending.pop(offer.run, None)

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
            self.news.note({request.claimed.run.batch_id for request in done})
            self._ring()
        if self.outcomes.stopping:
            stopping, self.outcomes.stopping = self.outcomes.stopping, set()
            self._give_back_stopped(stopping)

    def _let_go(self, request: RunRequest) -> None:
        run = request.claimed.run
        if self.held.get(run) is request:
            del self.held[run]
            self._held_of[run.batch_id] -= 1
            if not self._held_of[run.batch_id]:
                del self._held_of[run.batch_id]

    def _give_back_stopped(self, batch_ids: Collection[str]) -> None:
        """What was claimed of a batch that stops, and has not begun, goes back: it must not hold the stop up."""
        for request in list(self.active.values()):
            if request.claimed.run.batch_id in batch_ids:
                self.recall(request)

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

    def _ring(self) -> None:
        """Wake the leader when the lanes ran empty: it has settled profiles to replace. Tell whoever watches, too."""
        now = monotonic()
        dry = (self._dry or self.popper.outstanding) and now >= self._rung + _RING_PAUSE
        news = (self.news.take(now),) if now >= self._rung and self.news.due(now) else ()
        try:
            if dry:
                self._rung = now
                self._ports.publisher.hint(*news)
            elif news:
                self._ports.publisher.tell(*news)
        except BrokerUnavailableError:
            # All of them look by themselves; a Redis that is frozen must not cost every group of outcomes a time-out.
            self._rung = monotonic() + _RING_REST
        if self.news and not self._news_planned:
            self._news_planned = True
            self.loop.call_later(PAUSE, self._tell_rest)

    def _tell_rest(self) -> None:
        """What settled last must not wait for the next group, which may never come."""
        self._news_planned = False
        self._ring()

    # --- life

    def heartbeat(self) -> None:
        """Show that this worker lives, learn of new queues, and give back what SQL thinks it runs and it does not."""
        if self.gate.open:
            self._beat()
            self.pump()

    def _reopen(self) -> None:
        # Before the claim that failed is repeated: its COMMIT may have gone through. Those runs are this worker's, but
        # their payloads are not known, so they are given back.
        self._beat()
        self.pump()

    def _beat(self) -> None:
        self.gate.run(self._beat_once)

    def _beat_once(self) -> bool:
        if not self.registered:
            # A fresh id for each try: one whose COMMIT was not answered may exist, and the sweep will find it silent.
            self.info = self._fresh_identity()
            self.registry.rehearse(self.info.id)
            self.registry.register(self.info)
            self.registered = True
        elif (heard := self._show_life()) is None:
            self._be_reborn()
        else:
            self.rest.heard(asked=heard.drain)
        if not self.draining:
            self._serve(self.registry.queues() if EVERY_QUEUE in self.settings.queues else self.settings.queues)
        if self._alone is not None and not self.registry.stands(self._alone.run):
            self._alone = None  # another worker took it: nothing is left to be empty for
        waiting = {request.claimed.run.batch_id for request in self.active.values() if request.waits}
        if waiting:
            self._give_back_stopped(self.registry.stopping(waiting))
        self._give_back_strays()
        self._beaten = monotonic()
        return True

    def _show_life(self) -> Heard | None:
        """Beat, and tell on this occasion what was counted and what is held; what is asked of this worker."""
        gauges = {"pending": len(self.pending), "active": len(self.active), "outcomes": len(self.outcomes)}
        return self.registry.beat(
            self.worker_id,
            draining=self.draining,
            stuck=stuck(self, monotonic()),
            counted=self.figures,
            gauges=gauges,
        )

    def _give_back_strays(self) -> None:
        strays = [run for run in self.registry.running(self.worker_id) if run not in self.held]
        if strays:
            returned = self.registry.give_back(self.worker_id, strays)
            self.figures.count("sweep_repairs", "stray", amount=returned)
            logger.warning(
                "Gave back %d runs that SQL counted as running here and this worker does not know, such as %s",
                returned,
                strays[0].task_id,
                extra={"batch": strays[0].batch_id, "run": strays[0].run, "worker": self.worker_id},
            )
            for run in strays:
                self.pending.pop(run, None)

    def _be_reborn(self) -> None:
        """This worker was declared dead: what it held is pending again, so what has not begun must not begin."""
        fields = {"worker": self.worker_id}
        logger.warning("Worker %s was declared dead; going on under a new identity", self.worker_id, extra=fields)
        # First, and without SQL in between: each that begins meanwhile is a run that others may have too.
        for request in list(self.active.values()):
            self.recall(request)
        self.info = self._fresh_identity()
        self.registry.register(self.info, drain=self.rest.asked)

    def _fresh_identity(self) -> WorkerInfo:
        executor = self.executor
        return announce(executor.hostname, executor.pool, executor.slots(), self._ports.handlers, self.settings.queues)

    def _serve(self, queues: Sequence[str]) -> None:
        if tuple(queues) != self.queues:
            self.queues = tuple(queues)
            lanes = [Lane(queue, handler) for queue in queues for handler in sorted(self._ports.handlers)]
            self._keys = [lane_key(self.settings.key_prefix, lane) for lane in lanes]
