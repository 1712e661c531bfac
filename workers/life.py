"""A worker's row in SQL: under which identity it lives, and what it shows and learns with each sign of life."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Final

from batching.registry import Asked
from workers.identity import announce
from workers.resting import Rest
from workers.vitals import stuck

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batching.interfaces import RunId, WorkerInfo
    from batching.registry import Heard
    from workers.consumer import LaneConsumer
    from workers.ports import Ports

logger = logging.getLogger(__name__)

EVERY_QUEUE: Final = "*"


class Life:
    """Keeps a consumer alive in SQL's eyes; in the consumer's loop.

    Args:
        consumer: Who lives.
        ports: The registry, the pool and the handlers that are announced.
    """

    def __init__(self, consumer: LaneConsumer, ports: Ports) -> None:
        self._consumer = consumer
        self._registry, self._executor, self._settings = ports.registry, ports.executor, ports.settings
        self._handlers = ports.handlers
        self.info = self._fresh_identity()
        self.registered = False
        self.rest = Rest(consumer)
        self.shown = 0.0
        """When it showed a sign of life last, by the monotonic clock."""
        self._unheard = False
        """Whether something went wrong in the last one: then the next begins with the sign alone."""

    def start(self) -> None:
        """Begin to show signs of life. Call it in the loop's thread, or before the loop runs."""
        loop = self._consumer.loop
        loop.call_repeatedly(self._settings.heartbeat_interval, self.heartbeat)
        loop.call_soon(self.heartbeat)  # an error of the first one must not end all others

    def heartbeat(self) -> None:
        """Show that this worker lives, learn of new queues, and give back what SQL thinks it runs and it does not."""
        if self._consumer.gate.open:
            self.beat()
            self._consumer.pump()

    def reopen(self) -> None:
        """SQL may be back."""
        # Before the claim that failed is repeated: its COMMIT may have gone through. Those runs are this worker's, but
        # their payloads are not known, so they are given back.
        self.beat()
        self._consumer.pump()

    def fit(self) -> bool:
        """Whether this worker may claim: SQL can be used, and knows it to be alive."""
        gate = self._consumer.gate
        if gate.open and self.registered and monotonic() - self.shown > self._settings.worker_lease / 2:
            # This process was frozen, and may have been declared dead: what it claims now would count as lost later.
            self.beat()
        return gate.open and self.registered

    def beat(self) -> None:
        """Show one sign of life, if SQL can be used."""
        self._consumer.gate.run(self._beat)

    def ask_to_rest(self, *, rest: bool) -> None:
        """Ask this very worker to drain, or to take work again, as anybody else would: in SQL; from any thread."""
        self._consumer.loop.call_soon(self._ask_to_rest, rest)

    def _ask_to_rest(self, rest: bool) -> None:
        def ask() -> bool:
            self._registry.ask_to_drain(self.info.id, drain=rest)
            return True

        gate = self._consumer.gate
        if gate.open and self.registered and gate.run(ask):
            self.heartbeat()

    def _beat(self) -> bool:
        if not self.registered:
            # A fresh id for each try: one whose COMMIT was not answered may exist, and the sweep will find it silent.
            self.info = self._fresh_identity()
            self._registry.rehearse(self.info.id)
            self._registry.register(self.info)
            self.registered = True
        elif self._unheard:
            self._registry.touch(self.info.id)
        self._unheard = True
        if (heard := self._show()) is None:
            self._be_reborn()
            heard = self._show()
        if heard is None:  # declared dead again, at once: so be it, with the next sign of life
            return False
        self._unheard = False
        self.shown = monotonic()
        self._obey(heard)
        return True

    def _obey(self, heard: Heard) -> None:
        consumer = self._consumer
        self.rest.heard(asked=heard.drain)
        if not consumer.draining:
            queues = self._settings.queues
            consumer.intake.serve(heard.queues if EVERY_QUEUE in queues else queues)
        if heard.stands is False:
            consumer.intake.stop_waiting()
        consumer.give_back_stopped(heard.stopping)
        self._give_back_strays(heard.running)

    def _show(self) -> Heard | None:
        """Beat, and tell on this occasion what was counted and what is held; what there is to hear."""
        consumer = self._consumer
        gauges = {
            "pending": len(consumer.intake.pending),
            "active": len(consumer.active),
            "outcomes": len(consumer.outcomes),
        }
        return self._registry.beat(
            self.info.id,
            draining=consumer.draining,
            stuck=stuck(consumer, monotonic()),
            counted=consumer.figures,
            gauges=gauges,
            asked=Asked(
                waiting={request.claimed.run.batch_id for request in consumer.active.values() if request.waits},
                run=consumer.intake.waiting_run,
                queues=EVERY_QUEUE in self._settings.queues,
            ),
        )

    def _give_back_strays(self, running: Sequence[RunId]) -> None:
        consumer = self._consumer
        strays = [run for run in running if run not in consumer.held]
        if strays:
            returned = self._registry.give_back(self.info.id, strays)
            consumer.figures.count("sweep_repairs", "stray", amount=returned)
            logger.warning(
                "Gave back %d runs that SQL counted as running here and this worker does not know, such as %s",
                returned,
                strays[0].task_id,
                extra={"batch": strays[0].batch_id, "run": strays[0].run, "worker": self.info.id},
            )
            consumer.intake.forget(strays)

    def _be_reborn(self) -> None:
        """This worker was declared dead: what it held is pending again, so what has not begun must not begin."""
        fields = {"worker": self.info.id}
        logger.warning("Worker %s was declared dead; going on under a new identity", self.info.id, extra=fields)
        # First, and without SQL in between: each that begins meanwhile is a run that others may have too.
        for request in list(self._consumer.active.values()):
            self._consumer.recall(request)
        self.info = self._fresh_identity()
        self._registry.register(self.info, drain=self.rest.asked)

    def _fresh_identity(self) -> WorkerInfo:
        executor = self._executor
        return announce(executor.hostname, executor.pool, executor.slots(), self._handlers, self._settings.queues)
