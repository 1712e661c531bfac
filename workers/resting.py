"""A drain that a person asked for: the worker takes nothing new, ends what it has, and stays up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.consumer import LaneConsumer

logger = logging.getLogger(__name__)


class Rest:
    """Lets a consumer rest while SQL says so, and go on afterwards; in the consumer's loop.

    The word is a column of the worker's row, read with each heartbeat: it needs neither remote control nor Redis, and a
    worker that is declared dead and comes back under another id takes it along.

    Args:
        consumer: Whose rest it is.
    """

    def __init__(self, consumer: LaneConsumer) -> None:
        self._consumer = consumer
        self.asked = False

    def heard(self, *, asked: bool) -> None:
        """What SQL said last. A stop of the whole process is not undone by it."""
        if asked == self.asked or self._consumer.leaving:
            return
        self.asked = asked
        if asked:
            self._begin()
        else:
            self._consumer.draining = False
            logger.info("Takes work again, as asked", extra={"worker": self._consumer.worker_id})
        # SQL and the leader learn of it now, not a heartbeat later.
        self._consumer.loop.call_soon(self._consumer.life.heartbeat)

    def _begin(self) -> None:
        """The first steps of `workers.drain.Drain`, in its order; running ones get all the time that they need."""
        consumer = self._consumer
        consumer.draining = True
        consumer.intake.close()
        consumer.give_back_waiting()
        message = "Drains, as asked: takes nothing new; %d runs have begun and may finish"
        logger.info(message, len(consumer.active), extra={"worker": consumer.worker_id})
