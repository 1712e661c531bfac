"""Why a batch does not move, decided from facts: no SQL, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batching.states import TERMINAL_BATCH_STATES, BatchState, DependsOn, StopTarget

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Facts:
    """What the decision needs to know of one batch at one moment."""

    state: BatchState
    target: StopTarget | None
    stored: str
    """The reason that the last verb or move left with the batch."""
    queue: str
    handler: str
    pending: int
    dispatched: int
    running: int
    ahead: int
    """Batches of its queue that run or stand before it."""
    queue_paused: bool
    sealed: bool
    served: bool
    """Whether a live worker serves its lane."""
    led: bool
    """Whether a live manager leads."""
    backs_off_until: datetime | None
    """The end of its pause between passes, or its scheduled start; None when that is over."""
    retries_at: datetime | None
    """When the first of its profiles is due, if all that are left wait for a retry; None otherwise."""
    broker_away: bool = False
    """Whether the leader could not reach the broker a moment ago."""
    scheduled: bool = False
    """What it waits for is its scheduled start, not the end of a back-off."""
    held: str = ""
    """What of its queue or its limits holds it back, when nothing of it is in flight."""
    queue_draining: bool = False
    waits_for: tuple[str, DependsOn] | None = None
    """A batch that has to end before, and what is wanted of it."""


def why(facts: Facts) -> str:
    """One sentence on why the batch does not move, or ended as it did; empty when it moves or all is well."""
    if facts.state in TERMINAL_BATCH_STATES:
        return "" if facts.state is BatchState.SUCCEEDED else facts.stored
    match facts.state:
        case BatchState.QUEUED:
            return _why_queued(facts)
        case BatchState.RUNNING:
            return _why_running(facts)
        case BatchState.STOPPING:
            still = "1 profile still runs" if facts.running == 1 else f"{facts.running:,} profiles still run"
            return f"stopping: {still}, then {facts.target}"
        case _:
            return facts.stored or "paused"


def _why_queued(facts: Facts) -> str:
    if facts.queue_paused:
        return f"queue {facts.queue} is paused"
    if facts.queue_draining:
        return f"queue {facts.queue} drains: nothing new starts in it"
    if facts.waits_for is not None:
        batch_id, wants = facts.waits_for
        return f"waits for batch {batch_id} to {'end' if wants is DependsOn.ANY else 'succeed'}"
    if facts.backs_off_until is not None:
        what = "is scheduled to start at" if facts.scheduled else "backs off until"
        return f"{what} {moment(facts.backs_off_until)}"
    if facts.ahead:
        return f"{_BEHIND}1 batch" if facts.ahead == 1 else f"{_BEHIND}{facts.ahead:,} batches"
    return _why_nobody(facts)


_BEHIND = "behind "


def is_behind(reason: str) -> bool:
    """Whether a batch only waits for its turn: its place says so too, and it will come."""
    return reason.startswith(_BEHIND)


def _why_running(facts: Facts) -> str:
    unsettled = facts.pending + facts.dispatched + facts.running
    if not unsettled:
        return "" if facts.sealed else "open: waits for more profiles, or to be sealed"
    if not facts.served:
        return _why_nobody(facts)
    if facts.running or (facts.dispatched and not facts.broker_away):
        return ""
    if facts.broker_away:
        return "the broker cannot be reached; everything waits in SQL until it answers"
    waits = "" if facts.retries_at is None else f"waits for retries until {moment(facts.retries_at)}"
    return facts.held or waits or _why_nobody(facts)


def _why_nobody(facts: Facts) -> str:
    if not facts.served:
        return f"no live worker serves handler {facts.handler} in queue {facts.queue}"
    if not facts.led:
        return "no live manager leads the queues; a worker starts one, or `batching manager` does"
    return ""


def moment(at: datetime) -> str:
    """A moment for people, to the second, in UTC."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
