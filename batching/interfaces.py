"""The contracts of this system and the frozen data that crosses them. Knows no SQL, no Celery and no implementation."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from batching.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from sqlalchemy import Connection

    from batching.states import BatchState, ProfileState, StopTarget


class RunId(NamedTuple):
    """One run of one profile: the fence in every write, and the Celery task id."""

    batch_id: str
    number: int
    run: int

    @property
    def profile_id(self) -> str:
        """`<batch id>.<number>`: names the profile for life; handlers get it as their idempotency key."""
        return f"{self.batch_id}.{self.number}"

    @property
    def task_id(self) -> str:
        """`<profile id>.<run>`: the Celery task id of this run."""
        return f"{self.batch_id}.{self.number}.{self.run}"

    @classmethod
    def parse(cls, task_id: str) -> RunId:
        """Read a task id.

        Raises:
            ValueError: It is not `<batch id>.<number>.<run>`.
        """
        batch_id, number, run = task_id.split(".")
        if len(batch_id) != 36 or not (number.isascii() and number.isdigit() and run.isascii() and run.isdigit()):
            raise ValueError(f"{task_id!r} is not a run's task id")
        return cls(batch_id, int(number), int(run))


class Lane(NamedTuple):
    """(queue, handler): what one Redis list carries and a worker may serve."""

    queue: str
    handler: str


class Requeue(StrEnum):
    """Where a batch goes whose pass failed and that has passes left."""

    TAIL = "tail"
    """The end of the queue: it never holds up the others."""
    FRONT = "front"
    """Before all others of its priority."""
    KEEP = "keep"
    """Its old position."""
    PARK = "park"
    """Paused, for a person to look at."""


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How a batch runs. Immutable once submitted.

    Args:
        max_attempts: Tries of one profile inside one pass.
        max_passes: Turns of the batch before it is `failed`.
        failure_budget: Failed profiles that a pass may have: a count (int), or a ratio of the sealed total, rounded
            down (float below 1).
        fail_fast: Stop the pass as soon as the budget is spent; False lets the pass run to its end.
        requeue: Where the batch goes after a failed pass.
        window: Ceiling of its profiles in the broker at once; None for the lane's own.
        retry_backoff: Seconds before the second attempt; doubles each time, with full jitter.
        retry_backoff_max: Ceiling of that back-off in seconds.
        pass_backoff: Seconds before the second pass; doubles each time.
        pass_backoff_max: Ceiling of that back-off in seconds.
    """

    max_attempts: int = 3
    max_passes: int = 3
    failure_budget: int | float = 0
    fail_fast: bool = True
    requeue: Requeue = Requeue.TAIL
    window: int | None = None
    retry_backoff: float = 1.0
    retry_backoff_max: float = 300.0
    pass_backoff: float = 1.0
    pass_backoff_max: float = 300.0

    def __post_init__(self) -> None:
        for name, low, high in (("max_attempts", 1, 1000), ("max_passes", 1, 1000)):
            self._whole(name, low, high)
        if self.window is not None:
            self._whole("window", 1, 1_000_000)
        for name in ("retry_backoff", "retry_backoff_max", "pass_backoff", "pass_backoff_max"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 86_400:
                raise InvalidInputError(f"option {name} takes 0 to 86,400 seconds, not {value!r}")
        budget = self.failure_budget
        good = (isinstance(budget, int) and not isinstance(budget, bool) and budget >= 0) or (
            isinstance(budget, float) and 0 <= budget < 1
        )
        if not good:
            raise InvalidInputError(
                f"option failure_budget takes a count (0, 1, 2, …) or a ratio from 0.0 to below 1.0, not {budget!r}"
            )
        if not isinstance(self.fail_fast, bool):
            raise InvalidInputError(f"option fail_fast takes true or false, not {self.fail_fast!r}")
        try:
            object.__setattr__(self, "requeue", Requeue(self.requeue))
        except ValueError:
            raise InvalidInputError(f"option requeue takes tail, front, keep or park, not {self.requeue!r}") from None

    def _whole(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidInputError(f"option {name} takes a whole number from {low} to {high:,}, not {value!r}")

    def as_dict(self) -> dict[str, Any]:
        """As stored with the batch."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BatchOptions:
        """As read back, or as given on the command line.

        Raises:
            InvalidInputError: An option is unknown or out of its range.
        """
        known = {each.name for each in fields(cls)}
        for name in values:
            if name not in known:
                raise InvalidInputError(f"there is no option {name!r}; the options are {', '.join(sorted(known))}")
        return cls(**values)


class ProfileInput(NamedTuple):
    """A profile as it enters: its key, and its payload already encoded as JSON text and checked."""

    key: str
    payload: str


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """What `submit` asks for."""

    handler: str
    name: str
    queue: str = "default"
    key: str | None = None
    priority: int = 0
    options: BatchOptions = field(default_factory=BatchOptions)
    replace_key: bool = False
    """`--new`: an older batch with this key gives it up."""


class BatchReceipt(NamedTuple):
    """What `submit` answers: `created` is False when the key named a batch that was there already."""

    id: str
    total: int
    created: bool


class LeaderTerm(NamedTuple):
    """Proof of leadership in a write: the epoch must still be the lease's."""

    holder: str
    epoch: int


class Dispatch(NamedTuple):
    """A run that SQL has marked `dispatched`, to be published. Carries ids and labels, never a payload."""

    run: RunId
    key: str
    lane: Lane
    attempt: int
    pass_number: int
    alone: bool
    """True after `max_losses`: the worker runs it with nothing else beside it."""


class Terms(NamedTuple):
    """What all profiles of one batch share while they run."""

    lane: Lane
    pass_number: int
    options: BatchOptions


class Claimed(NamedTuple):
    """A run that this worker has won. `attempt` counts from 1 in this pass."""

    run: RunId
    key: str
    payload: str
    attempt: int
    losses: int
    terms: Terms


class ClaimResult(NamedTuple):
    """The runs won, and how many offers were refused (duplicate, over, paused, stopping, unknown)."""

    claimed: list[Claimed]
    refused: int


class Ending(StrEnum):
    """How a run ended, as the worker saw it."""

    SUCCEEDED = "succeeded"
    """The handler returned."""
    SKIPPED = "skipped"
    """The handler raised `SkipProfile`."""
    RETRY = "retry"
    """The handler raised `RetryProfile`."""
    FAILED = "failed"
    """The handler raised, ran over its time limit, or returned something that is not a result."""
    FAILED_BATCH = "failed batch"
    """The handler raised `FailBatch`."""
    LOST = "lost"
    """The pool child that ran it died under it."""
    REVOKED = "revoked"
    """A person revoked or terminated this one run."""
    GIVEN_BACK = "given back"
    """It never started, or our own shutdown ended it; nothing is charged."""


class ErrorInfo(NamedTuple):
    """An error fit to be stored and shown: bounded, without payload."""

    type: str
    message: str
    fingerprint: str
    traceback: str = ""


class Outcome(NamedTuple):
    """The end of a run, as plain data that a pool child can send."""

    ending: Ending
    result: str | None = None
    """The result's JSON text, for `succeeded`."""
    error: ErrorInfo | None = None
    delay: float | None = None
    """Seconds asked for by `RetryProfile`."""


class Settlement(NamedTuple):
    """What to write for one run: decided by `policies.settlement`, applied once by `settle`."""

    run: RunId
    state: ProfileState
    """Where the profile goes: a terminal state, or `pending`."""
    label: str
    """What the history calls it: `retried`, `lost`, `given back` or the state."""
    attempt: int
    pass_number: int
    result: str | None = None
    error: ErrorInfo | None = None
    delay: float | None = None
    charge: int = 0
    """Attempts used by this run: 0 or 1."""
    losses: int = 0
    """Losses added by this run: 0 or 1."""
    fails_pass: bool = False


class SettleResult(NamedTuple):
    """Which runs this call settled, and which were over already (late: an older run, or settled before)."""

    applied: list[RunId]
    late: list[RunId]
    stopping: frozenset[str] = frozenset()
    """Batches among them that are stopping: what a worker has claimed of them and not begun should go back."""


class WorkerInfo(NamedTuple):
    """A worker process as it announces itself."""

    id: str
    hostname: str
    pid: int
    pool: str
    slots: int
    handlers: tuple[str, ...]
    queues: tuple[str, ...]
    version: str


@runtime_checkable
class Publisher(Protocol):
    """The border to the broker. Nothing behind it is trusted with anything but a hint."""

    def publish(self, dispatches: Sequence[Dispatch]) -> None:
        """Publish one Celery task message per dispatch. Called after the commit; raises BrokerUnavailableError."""

    def lengths(self, lanes: Iterable[Lane]) -> dict[Lane, int]:
        """Messages that wait in each lane's list; raises BrokerUnavailableError."""

    def incarnation(self) -> str:
        """Changes when the broker restarted or was flushed since the last call; raises BrokerUnavailableError."""

    def discard(self, lane: Lane) -> None:
        """Drop what waits in a lane that nobody serves any more; harmless, since SQL has it all."""


@runtime_checkable
class IBatchStateManager(Protocol):
    """Every write. One guarded move per method, one transaction per call.

    A method whose `connection` is given writes in that transaction and leaves it open. A lost race is a result, not an
    exception; only an unknown batch or a verb that the state forbids raises.
    """

    def create_batch(self, spec: BatchSpec, connection: Connection | None = None) -> BatchReceipt:
        """Write an empty `loading` batch, or find the one that has the key."""

    def submit_whole(
        self, spec: BatchSpec, chunk: list[ProfileInput], announce: Callable[[], object] | None = None
    ) -> BatchReceipt:
        """Write a batch with all its profiles at the end of its queue at once, or find the one that has the key.

        `announce` is called as soon as others can see a new batch, which may be before it is durable; it is when this
        returns.
        """

    def add_profiles(self, batch_id: str, chunk: Iterable[ProfileInput], connection: Connection | None = None) -> int:
        """Append a chunk to a loading batch, renew its lease; returns the number of its last profile.

        Without a connection, the chunk may be read while it is written.
        """

    def seal(self, batch_id: str, connection: Connection | None = None) -> int:
        """Loading -> queued, at the end of its queue, counters set; returns the total."""

    def abandon(self, batch_id: str) -> bool:
        """Delete a loading batch and what was written of it."""

    def promote(self, queue: str, term: LeaderTerm, handlers: Collection[str] | None = None) -> str | None:
        """Queued -> running for the next batch in line (of these handlers); returns its id, or None when nobody may."""

    def dispatch(self, batch_id: str, limit: int, term: LeaderTerm) -> list[Dispatch]:
        """Pending -> dispatched for up to `limit` due profiles of a running batch, in their order."""

    def claim(self, worker_id: str, runs: Sequence[RunId]) -> ClaimResult:
        """Dispatched -> running for the offered runs that still stand."""

    def settle(self, worker_id: str, settlements: Sequence[Settlement]) -> SettleResult:
        """Running -> a terminal state or pending, for the runs that this worker still holds."""

    def conclude(self, batch_ids: Iterable[str]) -> list[str]:
        """Finish what has nothing unsettled, stop what spent its budget, reach the target of what stopped."""

    def stop(self, batch_id: str, target: StopTarget, reason: str) -> BatchState:
        """Pause, cancel, expire: the batch heads for `target`; returns its state after the call."""

    def resume(self, batch_id: str) -> BatchState:
        """Paused -> queued, at its old position."""

    def retry(self, batch_id: str, reason: str = "retried by a person") -> int:
        """A finished batch -> queued at the end, in a new pass over what is not done; returns the pass."""

    def move(self, batch_id: str, place: int | str) -> int:
        """Change the place in line: 1, 2, 3, … or `front` or `end`; returns the new position."""

    def mark_completed(self, batch_id: str) -> BatchState:
        """Finish a batch whose profiles are all settled; a finished batch stays as it is."""

    def request_promotion(self, batch_id: str) -> BatchState:
        """Durably ask for promotion ahead of the turn."""


@runtime_checkable
class IBatchExecutionManager(Protocol):
    """Dispatch, completion and failure of runs, through an injected publisher."""

    def execute_batch(self, batch_id: str) -> BatchState:
        """Ask for this batch to run next, ahead of its turn."""

    def dispatch_batch(self, batch_id: str, limit: int, term: LeaderTerm) -> int:
        """Mark up to `limit` profiles dispatched, commit, then publish; returns how many."""

    def republish(self, dispatches: Sequence[Dispatch]) -> None:
        """Publish runs again that are marked dispatched already; twice is harmless."""

    def claim(self, worker_id: str, runs: Sequence[RunId]) -> ClaimResult:
        """Claim offered runs for a worker."""

    def complete(
        self, worker_id: str, outcomes: Sequence[tuple[Claimed, Outcome]], holding: Collection[str] = ()
    ) -> SettleResult:
        """Settle a group of ended runs in one transaction, then conclude their batches.

        `holding` are batches of which this worker holds further runs, claimed and not in this group.
        """
