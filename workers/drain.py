"""The end of a consumer: stop popping, give back, let running ones finish, give back the rest, leave."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from batching.interfaces import Ending, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.consumer import LaneConsumer

logger = logging.getLogger(__name__)

#: Seconds between the polite signal to a pool child and the one that it cannot refuse.
_LAST_WORDS: Final = 1.0
#: Seconds after the time is up that are left for SQL; then the sweep takes back what is still ours.
_LAST_WRITES: Final = 5.0


class Drain:
    """Ends a consumer, once. Runs in its loop; `finished` is called when it is through.

    The order matters. Popping stops first, or what is given back is popped again. What has not begun goes back before
    anything is waited for: others can have it at once. The announcement comes next, so that the leader sends no more
    for these slots. Running ones get what is left of the time and settle as ever. Only then are they interrupted and
    given back, uncharged, since the stop was ours; and the row goes last, because what still hangs on it is given back
    with it.

    Args:
        consumer: Whose end it is.
        timeout: Seconds that running ones get; 0 for none.
        finished: Called at the end.
    """

    def __init__(self, consumer: LaneConsumer, timeout: float, finished: Callable[[], None]) -> None:
        self._consumer = consumer
        self._timeout = timeout
        self._finished = finished
        self._done = False
        self._hurried = False
        self.abandoned = False
        """Whether the database did not answer in time."""

    def begin(self) -> None:
        """Start; call it in the loop's thread."""
        consumer = self._consumer
        # First: whatever fails below, there is an end.
        consumer.loop.call_later(self._timeout, self.hurry)
        consumer.loop.call_later(self._timeout + _LAST_WORDS + _LAST_WRITES, self._abandon)
        consumer.draining = consumer.leaving = True
        consumer.on_quiet = self._look
        consumer.intake.close()
        consumer.give_back_waiting()
        if consumer.active:
            logger.info("Draining: %d runs have %g s to finish", len(consumer.active), self._timeout)
        consumer.life.heartbeat()

    def hurry(self) -> None:
        """Give running ones no more time; call it in the loop's thread, as often as it comes."""
        if not self._hurried:
            self._hurried = True
            self._time_is_up()

    def _look(self) -> None:
        consumer = self._consumer
        if self._done or consumer.active or len(consumer.outcomes):
            return
        # While the gate is closed, its own timer tries again: one more for each look would double them every time.
        if not consumer.life.registered or (consumer.gate.open and consumer.gate.run(self._leave)):
            self._end()

    def _leave(self) -> bool:
        self._consumer.registry.leave(self._consumer.worker_id, self._consumer.figures)
        return True

    def _time_is_up(self) -> None:
        consumer = self._consumer
        running = list(consumer.active.values())
        if self._done or not running:
            return
        for request in running:
            request.stopping = True
        # Of one that is over, and not noted yet, the child may be at another's already.
        if consumer.executor.terminate([each for each in running if not each.over], force=False):
            logger.info("The time to drain is up: interrupting %d runs, to be given back", len(running))
            consumer.loop.call_later(_LAST_WORDS, self._end_running)
            return
        logger.warning(
            "The time to drain is up: %d runs are given back, but the %s pool cannot interrupt them; "
            "this process ends when they end, and what they return is refused",
            len(running),
            consumer.executor.pool,
        )
        self._end_running()

    def _end_running(self) -> None:
        consumer = self._consumer
        for bundle in list(consumer.bundles):
            bundle.salvage()
        running = [request for request in consumer.active.values() if not request.over]
        consumer.executor.terminate(running, force=True)
        for request in running:
            request.finish(Outcome(Ending.GIVEN_BACK))

    def _abandon(self) -> None:
        if not self._done:
            self.abandoned = True
            logger.warning("Leaving without a word to the database; the sweep takes back what this worker holds")
            self._end()

    def _end(self) -> None:
        self._done = True
        self._consumer.on_quiet = None
        self._consumer.pace.hurry()
        self._finished()
