"""What a worker and a manager know of themselves, noted by the loop that does the work, for whoever asks from outside.

A probe is answered in another thread, which may neither use the loop's SQL nor wait for it. So the loop leaves a note
in every beat, and a loop that stands still is seen by the age of its last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final

from batching.health import Check, Health
from batching.statistics.fleet import GRACE

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.consumer import LaneConsumer

#: Seconds without any progress after which a worker that could make some is stuck.
STUCK_AFTER: Final = 30.0


@dataclass(frozen=True, slots=True)
class Vitals:
    """A worker, as its loop saw it at one moment."""

    at: float
    """By the monotonic clock."""
    worker_id: str
    registered: bool
    database: bool
    """Whether SQL answered when it was asked last."""
    broker: bool
    draining: bool
    held: int
    """Claimed runs that are not settled."""
    slots: int
    stuck: str | None
    """Why it makes no progress though it could; None while it does, or has nothing to do."""


def examine(consumer: LaneConsumer) -> Vitals:
    """Look at a consumer; in its loop."""
    now = monotonic()
    return Vitals(
        at=now,
        worker_id=consumer.worker_id,
        registered=consumer.life.registered,
        database=consumer.gate.open,
        broker=consumer.intake.popper.connected,
        draining=consumer.draining,
        held=len(consumer.held),
        slots=consumer.executor.slots(),
        stuck=stuck(consumer, now),
    )


def stuck(consumer: LaneConsumer, now: float) -> str | None:
    """Why a consumer makes no progress, or None.

    A run without a time limit may take as long as it likes, and an outage is not the worker's fault: a restart would
    help neither. What is left are runs that outlived their limit, a pool that begins nothing, and outcomes that nobody
    settles although SQL answers.
    """
    for bundle in list(consumer.bundles):
        limit = bundle.requests[0].limits[1] if bundle.started and bundle.requests else None
        if limit is not None and (over := now - bundle.began - limit) > GRACE:
            return (
                f"run {bundle.requests[0].id} is {over:.0f} s over its time limit of {limit:g} s, and the pool has not "
                "ended it"
            )
    since = now - consumer.progressed
    if since <= STUCK_AFTER or not consumer.gate.open:
        return None
    if len(consumer.outcomes):
        return f"{len(consumer.outcomes)} outcomes are not settled for {since:.0f} s, although the database answers"
    waiting = len(consumer.ready) + sum(not bundle.started for bundle in list(consumer.bundles))
    if waiting and not any(bundle.started for bundle in list(consumer.bundles)):
        return f"{waiting} runs wait for a pool that has begun none of them for {since:.0f} s"
    return None


def worker_liveness(vitals: Vitals | None, patience: float) -> Health:
    """Whether a worker gets on, by its last note.

    Args:
        vitals: The note; None before the first.
        patience: Seconds after which a note is too old.
    """
    if vitals is None:
        return Health((Check("loop", ok=False, why="the worker has not begun yet"),))
    age = monotonic() - vitals.at
    if age > patience:
        why = f"the loop of worker {vitals.worker_id} has not turned for {age:.0f} s"
        return Health((Check("loop", ok=False, why=why),))
    outage = "" if vitals.database else "; the database is away, which is waited out"
    progress = vitals.stuck or f"it holds {vitals.held} runs, and gets on{outage}"
    loop = Check("loop", ok=True, why=f"the loop of worker {vitals.worker_id} turned {age:.1f} s ago")
    return Health((loop, Check("progress", ok=vitals.stuck is None, why=progress)))


def worker_readiness(vitals: Vitals | None, patience: float) -> Health:
    """Whether a worker takes new profiles, by its last note; see `worker_liveness`."""
    live = worker_liveness(vitals, patience)
    if vitals is None or not live.ok:
        return live
    database = vitals.database and vitals.registered
    taking = f"has {vitals.slots} slots and holds {vitals.held} runs"
    return live.plus(
        Health(
            (
                Check("database", ok=database, why="answers" if database else "is away, or has not answered yet"),
                Check("broker", ok=vitals.broker, why="answers" if vitals.broker else "is away; tried again"),
                Check("takes work", ok=not vitals.draining, why="drains" if vitals.draining else taking),
            )
        )
    )


@dataclass(frozen=True, slots=True)
class Turn:
    """A manager, as its loop saw it after one turn."""

    at: float
    manager_id: str
    leads: bool
    trouble: str | None
    """What went wrong in it; None for nothing."""
    broker: bool


def manager_liveness(turn: Turn | None, patience: float) -> Health:
    """Whether a manager gets on: its turns come round, be it to lead or to stand by. An outage is waited out."""
    if turn is None:
        return Health((Check("turns", ok=False, why="the manager has not begun yet"),))
    age = monotonic() - turn.at
    if age > patience:
        return Health((Check("turns", ok=False, why=f"manager {turn.manager_id} ended no turn for {age:.0f} s"),))
    does = "leads" if turn.leads else "stands by"
    trouble = f", in trouble: {turn.trouble}" if turn.trouble else ""
    return Health((Check("turns", ok=True, why=f"manager {turn.manager_id} {does}{trouble}; last {age:.1f} s ago"),))


def manager_readiness(turn: Turn | None, patience: float) -> Health:
    """Whether a manager can lead: its database answers, and its broker."""
    live = manager_liveness(turn, patience)
    if turn is None or not live.ok:
        return live
    return live.plus(
        Health(
            (
                Check("database", ok=turn.trouble is None, why=turn.trouble or "answers"),
                Check("broker", ok=turn.broker, why="answers" if turn.broker else "is away"),
            )
        )
    )


class Notes:
    """Where a worker's loop leaves its notes, and what probes read of them.

    Args:
        patience: Seconds after which a note is too old.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.last: Vitals | None = None

    def note(self, consumer: LaneConsumer) -> None:
        """Leave a note; in the loop."""
        self.last = examine(consumer)

    def pages(self) -> dict[str, Callable[[], Health]]:
        """What probes ask for."""
        return {
            "/livez": lambda: worker_liveness(self.last, self._patience),
            "/readyz": lambda: worker_readiness(self.last, self._patience),
        }
