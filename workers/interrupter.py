"""Runs of a batch that was cancelled together with what runs of it: found by a look now and then, and interrupted."""

from __future__ import annotations

import logging
from time import monotonic, time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from batching.interfaces import RunId
    from workers.consumer import LaneConsumer
    from workers.requests import RunRequest

logger = logging.getLogger(__name__)

#: Seconds between two looks; what is over sooner is not worth one.
LOOK: Final = 0.4
#: Seconds after which a run that goes on all the same is killed.
_PATIENCE: Final = 5.0


class Interrupter:
    """Looks whether what this worker runs is still wanted; asks SQL only while something has been running for a while.

    Args:
        consumer: Whose runs.
    """

    def __init__(self, consumer: LaneConsumer) -> None:
        self._consumer = consumer
        self._asked: dict[RunId, float] = {}
        """When each run was told to end."""
        self._killed: set[RunId] = set()

    def look(self) -> None:
        """One look."""
        consumer = self._consumer
        active = consumer.active
        self._asked = {run: at for run, at in self._asked.items() if run in active}
        self._killed &= self._asked.keys()
        long = {each.claimed.run.batch_id for each in active.values() if _has_run_for_a_while(each)}
        if not long or not consumer.gate.open:
            return
        cancelled = consumer.gate.run(lambda: consumer.registry.interrupted(long)) or set()
        for request in list(active.values()):
            # Of one that is over, the child may be at another's already.
            if request.claimed.run.batch_id in cancelled and not request.over:
                self._end(request)

    def _end(self, request: RunRequest) -> None:
        run = request.claimed.run
        if request.waits:
            self._consumer.recall(request)
        elif run not in self._asked:
            self._asked[run] = monotonic()
            said = "Interrupts run %s: its batch was cancelled, with what runs of it"
            logger.info(said, request.id, extra=request.log_fields())
            self._consumer.executor.interrupt(request, force=False)
        elif run not in self._killed and monotonic() - self._asked[run] > _PATIENCE:
            self._killed.add(run)
            self._consumer.executor.interrupt(request, force=True)


def _has_run_for_a_while(request: RunRequest) -> bool:
    return not request.over and request.time_start is not None and time() - request.time_start > LOOK
