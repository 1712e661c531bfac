"""What the reads return: frozen data, each with `as_json()` for the command line and the dashboard."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from batching.states import TERMINAL_BATCH_STATES, BatchState, CallbackEvent, CallbackState, ProfileState, StopTarget

if TYPE_CHECKING:
    from collections.abc import Mapping


def plain(value: Any) -> Any:
    """A field's value as JSON has it; moments become ISO 8601 in UTC."""
    return value.isoformat() if isinstance(value, datetime) else value


class _AsJSON:
    """Gives a dataclass `as_json()`: its fields in their order; only `pass_number` is called `pass` there."""

    __slots__ = ()

    def as_json(self) -> dict[str, Any]:
        """As a JSON object; moments are ISO 8601 texts in UTC."""
        names = [each.name for each in fields(self)]  # type: ignore[arg-type]
        return {"pass" if name == "pass_number" else name: plain(getattr(self, name)) for name in names}


@dataclass(frozen=True, slots=True)
class BatchView(_AsJSON):
    """One batch as people see it: what was asked for, how far it is, and why it does not move."""

    id: str
    name: str
    key: str | None
    handler: str
    queue: str
    state: BatchState
    pass_number: int
    """Its turn at the head of the queue, counted from 1; `pass` in JSON."""
    place: int | None
    """0 runs, 1 is next; None: not in the queue."""
    total: int
    pending: int
    dispatched: int
    running: int
    succeeded: int
    failed: int
    skipped: int
    cancelled: int
    expired: int
    rate: float | None
    """Profiles settled a second, as the leader measured it lately; None when nobody did."""
    eta_seconds: float | None
    """Until it is through; None: unknown, and `eta_basis` says why."""
    eta_low: float | None
    eta_high: float | None
    """The range around `eta_seconds`; None beside one: too uneven for an upper bound."""
    eta_basis: str
    """What the range rests on, or why there is none; empty for what has ended."""
    reason: str
    """Why it does not move, or why it ended as it did; empty when there is nothing to say."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    priority: int
    group: str | None
    """Whose batches take turns with those of other groups; None: it names none."""
    target: StopTarget | None
    sealed: bool
    max_passes: int
    """The pass after which it fails: as its options say, counted anew from each retry by a person."""
    duplicates: int
    """Claims that were refused because the run was over already: harmless."""
    late: int
    """Outcomes of runs that were over already: counted, and otherwise ignored."""
    options: Mapping[str, Any]
    start_at: datetime | None = None
    """Its scheduled start."""
    deadline: datetime | None = None
    """The end of its completion window."""
    tags: tuple[str, ...] = ()
    properties: Mapping[str, Any] = field(default_factory=dict)
    waits_for: tuple[str, ...] = ()
    """Ids of the batches that it waits for still."""

    @property
    def unsettled(self) -> int:
        """Profiles that have no terminal state yet."""
        return self.pending + self.dispatched + self.running

    @property
    def settled(self) -> int:
        """Profiles that have their terminal state in this pass."""
        return self.succeeded + self.failed + self.skipped + self.cancelled + self.expired

    @property
    def terminal(self) -> bool:
        """Whether the batch has ended."""
        return self.state in TERMINAL_BATCH_STATES

    @property
    def percent(self) -> int:
        """Share of settled profiles, rounded down; never 100 before the batch has ended."""
        if not self.total:
            return 100 if self.terminal else 0
        share = self.settled * 100 // self.total
        return share if self.terminal else min(share, 99)

    def as_json(self) -> dict[str, Any]:
        """As a JSON object, with `percent`; moments are ISO 8601 texts in UTC."""
        # Not `super()`: a dataclass with slots is another class than the one that this function was defined in.
        return _AsJSON.as_json(self) | {
            "options": dict(self.options),
            "properties": dict(self.properties),
            "tags": list(self.tags),
            "waits_for": list(self.waits_for),
            "percent": self.percent,
        }


@dataclass(frozen=True, slots=True)
class ResultLine(_AsJSON):
    """One profile with its effective state: a line of `results`."""

    key: str
    state: ProfileState
    attempts: int
    """Attempts used in this pass."""
    result: Any
    """The decoded JSON that the handler returned; None unless it succeeded."""
    error: dict[str, str] | None
    """`type`, `message` and `fingerprint` of what ended it; None when nothing went wrong."""
    payload: Any = ...
    """The decoded JSON that was submitted or amended; left out when nobody asked for it."""

    def as_json(self) -> dict[str, Any]:
        """As a JSON object; `payload` is in it when it was asked for."""
        document = _AsJSON.as_json(self)
        if document["payload"] is ...:
            del document["payload"]
        return document


@dataclass(frozen=True, slots=True)
class FailureGroup(_AsJSON):
    """Failed profiles of one batch that failed for the same reason."""

    fingerprint: str
    type: str
    message: str
    """Of the first of them."""
    count: int
    keys: tuple[str, ...]
    """Up to five of them, in the order of submission."""


@dataclass(frozen=True, slots=True)
class FailureChange(_AsJSON):
    """How many profiles failed with one fingerprint in two passes, and what became of them."""

    fingerprint: str
    type: str
    message: str
    before: int
    """Failed so in the earlier pass."""
    now: int
    """Fail so in the later one."""
    fixed: int
    """Of those before: are done now, or were skipped."""
    same: int
    """Of those before: failed in the same way again."""
    changed: int
    """Of those before: failed in another way."""
    waiting: int
    """Of those before: have not come to an end in the later pass."""
    new: int
    """Of those now: had not failed before."""


@dataclass(frozen=True, slots=True)
class HistoryEntry(_AsJSON):
    """One transition of a batch."""

    at: datetime
    from_state: BatchState | None
    to_state: BatchState
    pass_number: int
    position: int
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class AttemptView(_AsJSON):
    """One run of one profile, and how it ended."""

    run: int
    pass_number: int
    attempt: int
    outcome: str
    """`running`, `retried`, `lost`, `given back`, or the terminal state that it reached."""
    worker_id: str | None
    started_at: datetime | None
    ended_at: datetime | None
    error: dict[str, str] | None


@dataclass(frozen=True, slots=True)
class CallbackView(_AsJSON):
    """One callback: what is told, to whom, and how far it got."""

    id: str
    batch_id: str
    event: CallbackEvent
    pass_number: int
    target: str
    """The name of a Celery task, or a URL without its query, which may carry a token."""
    state: CallbackState
    attempts: int
    due_at: datetime | None
    """When it is tried next; None once it is delivered or dead."""
    error: str | None
    """What went wrong in the last attempt."""
    created_at: datetime
    settled_at: datetime | None


@dataclass(frozen=True, slots=True)
class WorkerView(_AsJSON):
    """One worker process, as it announced itself."""

    id: str
    hostname: str
    pid: int
    pool: str
    slots: int
    handlers: tuple[str, ...]
    queues: tuple[str, ...]
    """`*` stands for every queue."""
    version: str
    draining: bool
    """It takes nothing new: it stops, or was asked to drain."""
    started_at: datetime
    heartbeat_at: datetime
    silent_seconds: float
    """Since its last heartbeat, by the database's clock."""
    live: bool
    """Not silent for longer than two leases."""
    running: int
    """Profiles that it runs."""
    drain_asked: bool = False
    """A person asked it to drain; `draining` follows with its next heartbeat."""
    stuck: str | None = None
    """Why it makes no progress, in its own words; None while it does."""

    def serves(self, queue: str, handler: str) -> bool:
        """Whether it takes new profiles of this lane."""
        open_for_work = self.live and not self.draining
        return open_for_work and handler in self.handlers and ("*" in self.queues or queue in self.queues)


@dataclass(frozen=True, slots=True)
class QueueView(_AsJSON):
    """One queue, its settings and what is in it."""

    name: str
    max_running: int
    paused: bool
    """Nothing is promoted and nothing is dispatched."""
    draining: bool
    """Nothing is promoted; what runs goes on."""
    max_concurrency: int | None
    """Profiles in the broker or running at once, at most; None: no cap."""
    intake_batches: int | None
    """Batches in line or running, at most; None: no limit."""
    intake_profiles: int | None
    """Unsettled profiles of those, at most; None: no limit."""
    intake_per_group: bool
    """Whether each group of batches has that to itself."""
    created_at: datetime
    queued: int
    running: int
    """Batches at the head of the line, those that are stopping included."""
    parked: int
    """Paused batches: not in line."""
    finished: int
    rate: float | None
    """Profiles settled a second by its running batches; None when nobody measured."""


@dataclass(frozen=True, slots=True)
class ThroughputPoint(_AsJSON):
    """What ended in a span of time."""

    at: datetime
    """When it begins."""
    seconds: int
    """Its length."""
    settled: int
    """Profiles whose run brought them into a terminal state, whichever."""
    succeeded: int
    failed: int
    retried: int
    """Runs that failed and are tried again: their profiles are not settled."""


@dataclass(frozen=True, slots=True)
class Durations(_AsJSON):
    """How long the runs of handlers took, as a histogram; runs that were lost or given back are not in it."""

    bounds: tuple[float, ...]
    """The largest seconds of each bucket, in ascending order; the last is infinite."""
    counts: tuple[int, ...]
    """Runs in each bucket alone."""
    seconds: float
    """Of all runs together."""

    @property
    def runs(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def as_json(self) -> dict[str, Any]:
        """As a JSON object: JSON has no infinity, so the last bound is null."""
        return {
            "bounds": [None if math.isinf(bound) else bound for bound in self.bounds],
            "counts": list(self.counts),
            "seconds": self.seconds,
            "runs": self.runs,
        }


def short_error(stored: str | None) -> dict[str, str] | None:
    """A stored error as people see it: without its traceback."""
    if not stored:
        return None
    error = json.loads(stored)
    return {name: str(error.get(name, "")) for name in ("type", "message", "fingerprint")}
