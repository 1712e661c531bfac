"""What a worker takes in: offers are popped from the lanes, wait for each other, and are claimed in groups.

Redis may lose or double any message: only a claim makes a run this worker's.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Final

from batching.errors import BrokerUnavailableError
from batching.interfaces import Lane
from workers.offers import Offer, Reader
from workers.popper import Popper
from workers.publisher import lane_key
from workers.unacknowledged import Unacknowledged

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batching.interfaces import RunId
    from workers.consumer import LaneConsumer
    from workers.ports import Ports

logger = logging.getLogger(__name__)

#: Seconds without an answer after which the lanes are empty.
_DRY: Final = 0.005


class Intake:
    """Pops as much as there is appetite for, and claims it; in the consumer's loop.

    An offer of a run that others died of wants this worker to itself: it waits until nothing is left here, and nothing
    else is taken until it is over.

    Args:
        consumer: Whose runs they become.
        ports: The broker, the manager that claims, and the handlers whose lanes are asked for.
    """

    def __init__(self, consumer: LaneConsumer, ports: Ports) -> None:
        self._consumer = consumer
        settings = ports.settings
        self._manager, self._publisher, self._settings = ports.manager, ports.publisher, settings
        self._handlers = sorted(ports.handlers)
        self.popper = Popper(ports.loop, ports.publisher, self._popped, ports.figures)
        self.reader = Reader(ports.handlers, ports.figures)
        self.pending: dict[RunId, Offer] = {}
        """Popped, not claimed."""
        self.queues: tuple[str, ...] = ()
        """Those whose lanes it asks for."""
        self.duplicates = self.refused = 0
        self._keys: list[str] = []
        self._pending_since = 0.0
        self._dry = False
        self._alone: Offer | None = None
        self._alone_run: RunId | None = None
        self._copies: Unacknowledged | None = None
        if settings.acknowledge == "claim":
            self._copies = Unacknowledged(ports.publisher, settings.visibility_timeout, ports.figures)

    def start(self) -> None:
        """Begin to look after copies of popped messages, if any are kept; in the loop's thread."""
        if self._copies is not None:
            # Twice in a time-out: what this worker holds is shown in time, unless something holds up its loop.
            self._consumer.loop.call_repeatedly(self._settings.visibility_timeout / 2, self._look_after_copies)

    def serve(self, queues: Sequence[str]) -> None:
        """Ask for the lanes of these queues from now on."""
        if tuple(queues) != self.queues:
            self.queues = tuple(queues)
            lanes = [Lane(queue, handler) for queue in queues for handler in self._handlers]
            self._keys = [lane_key(self._settings.key_prefix, lane) for lane in lanes]

    # --- popping

    def credit(self) -> int:
        """Messages to ask for now."""
        consumer = self._consumer
        if self._wants_to_be_alone() or not consumer.gate.open or not consumer.life.registered:
            return 0
        if len(consumer.outcomes) >= 2 * self._settings.flush_size:
            return 0
        target = consumer.appetite.target()
        credit = target - len(self.pending) - len(consumer.active)
        # Not one by one: short profiles come in groups then, and long ones are not hoarded either way.
        return min(credit, self._settings.flush_size) if credit >= max(1, target // 3) else 0

    def _wants_to_be_alone(self) -> bool:
        """Whether an offer waits for this worker to be empty, or its run goes on."""
        return self._alone is not None or self._alone_run in self._consumer.active

    def pop(self) -> None:
        """Ask for as many messages as there is credit for."""
        credit = self.credit()
        if credit > 0:
            self.popper.ask(self._keys, credit)
            if self._consumer.has_more_to_run():
                # More than the pool can begin with, and yet it has room: do not wait for the first outcomes.
                self._consumer.loop.call_later(_DRY, self._consumer.bell.ring)

    def is_dry(self) -> bool:
        """Whether there was less in the lanes than was asked for, or nothing yet."""
        return self._dry or self.popper.outstanding > 0

    def _popped(self, key: str, messages: Sequence[bytes], asked: int) -> None:
        self._dry = len(messages) < asked
        offers = [offer for raw in messages if (offer := self.reader.read(key, raw)) is not None]
        # All at once: each is a round trip, and a broker that is away now would hold this loop for every one of them.
        self._put_back([offer for offer in offers if not self._keep(offer)])
        if self._copies is not None:
            self._copies.keep([each for each in offers if self.pending.get(each.run) is each or self._alone is each])
        self._consumer.pump()

    def _keep(self, offer: Offer) -> bool:
        """Take note of an offer; False when it has to go back to its lane."""
        consumer = self._consumer
        if offer.run in consumer.held or offer.run in self.pending:
            self.duplicates += 1
            consumer.figures.count("duplicate_deliveries")
        elif consumer.draining or self._alone is not None:
            return False
        elif offer.alone:
            self._alone = offer
            # Others may serve them meanwhile: it can take long until this worker is empty.
            self._return_pending()
        else:
            if not self.pending:
                self._pending_since = monotonic()
                consumer.loop.call_later(self._settings.flush_interval, consumer.pump)
            self.pending[offer.run] = offer
        return True

    # --- giving up

    def close(self) -> None:
        """Stop asking, and put everything back that is not claimed. `pop` begins again."""
        self._put_back_raw(self.popper.close())
        if self._alone is not None:
            self.pending[self._alone.run], self._alone = self._alone, None
        self._return_pending()

    def forget(self, runs: Iterable[RunId]) -> None:
        """Let go of what was popped: there is nothing to be claimed any more."""
        self._let_go([offer for run in runs if (offer := self.pending.get(run)) is not None])

    def _let_go(self, offers: Sequence[Offer]) -> None:
        for offer in offers:
            self.pending.pop(offer.run, None)
        if self._copies is not None:
            # Soon: what is claimed goes to the pool first.
            self._consumer.loop.call_soon(self._copies.acknowledge, offers)

    @property
    def waiting_run(self) -> RunId | None:
        """The run that waits for this worker to be empty."""
        return None if self._alone is None else self._alone.run

    def stop_waiting(self) -> None:
        """Let go of the offer of that run: another worker took it."""
        if self._alone is not None:
            offer, self._alone = self._alone, None
            self._let_go([offer])

    def _return_pending(self) -> None:
        offers, self.pending = list(self.pending.values()), {}
        self._put_back(offers)

    def _put_back(self, offers: Sequence[Offer]) -> None:
        if self._put_back_raw([(offer.key, offer.raw) for offer in offers]) and self._copies is not None:
            self._copies.acknowledge(offers)

    def _put_back_raw(self, pairs: Sequence[tuple[str, bytes]]) -> bool:
        """Put messages back; when the broker is away they are lost, and published again in time."""
        if pairs:
            try:
                self._publisher.put_back(pairs)
            except BrokerUnavailableError as error:
                logger.info("Could not put %d messages back: %s", len(pairs), error)
                return False
        return True

    def _look_after_copies(self) -> None:
        if self._copies is not None:
            alone = () if self._alone is None else (self._alone,)
            self._copies.look([*self.pending.values(), *alone], self._keys)

    # --- claiming

    def claim_due(self) -> None:
        """Claim what waits, when waiting longer would not make a larger group."""
        consumer = self._consumer
        if self._alone is not None:
            if not consumer.active:
                offer, self._alone = self._alone, None
                if self._claim([offer]):
                    self._alone_run = offer.run
            return
        if not self.pending or self._wants_to_be_alone():
            return
        idle = len(consumer.active) < consumer.executor.slots()
        waited = monotonic() >= self._pending_since + self._settings.flush_interval
        if idle or waited or self.credit() == 0:
            offers = consumer.appetite.affordable(self.pending.values())[: self._settings.flush_size]
            if not offers or self._claim(offers):
                # Popped for quicker ones than these are: others may have room for them.
                self._return_pending()

    def _claim(self, offers: list[Offer]) -> bool:
        consumer = self._consumer
        runs = [offer.run for offer in offers]
        try:
            result = consumer.gate.run(lambda: self._manager.claim(consumer.worker_id, runs))
        except Exception:
            # Not the database's absence: the same group would fail again, and what is lost is published again.
            logger.exception("Could not claim %d runs; their messages are dropped", len(offers))
            self._let_go(offers)
            return True
        if result is None:
            if offers[0].alone:
                self._alone = offers[0]
            return False
        self._let_go(offers)
        self.refused += result.refused
        consumer.take(result.claimed)
        return True
