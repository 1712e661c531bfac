"""The contracts of this system and the frozen data that crosses them. Knows no SQL, no Celery and no implementation."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from sqlalchemy import Connection

    from batching.brakes import Brakes
    from batching.options import Amended, BatchOptions, BatchReceipt, BatchSpec, Difference, ProfileInput
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


class Bookmark:
    """How far the dispatch of one batch has got: the leader goes on from here, and at times begins anew.

    Only a hint: what is pending before it is found when the leader begins anew.
    """

    __slots__ = ("number",)

    def __init__(self, number: int = 0) -> None:
        self.number = number
        """The profile that was dispatched last; 0 for none."""

    def passed(self, dispatches: Sequence[Dispatch]) -> None:
        """These were dispatched, in the order of their numbers."""
        if dispatches:
            self.number = dispatches[-1].run.number


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

    def seal(self, batch_id: str, connection: Connection | None = None, *, sealed: bool = True) -> int:
        """Loading -> queued, at the end of its queue, counters set; returns the total. Not `sealed`: it stays open."""

    def compare(
        self, batch_id: str, chunk: Sequence[ProfileInput], first: int = 1, connection: Connection | None = None
    ) -> Difference:
        """How a chunk differs from what the batch has; nothing is written."""

    def append(
        self, batch_id: str, chunk: Sequence[ProfileInput], first: int = 1, connection: Connection | None = None
    ) -> Difference:
        """Append what an open batch does not have yet, by its key."""

    def seal_open(self, batch_id: str, expect: int | None = None) -> int:
        """Seal an open batch; returns its total."""

    def amend(self, batch_id: str, chunks: Iterable[Sequence[ProfileInput]]) -> Amended:
        """Other payloads for what is not done; a finished batch begins a new pass."""

    def abandon(self, batch_id: str) -> bool:
        """Delete a loading batch and what was written of it."""

    def promote(self, queue: str, term: LeaderTerm, handlers: Collection[str] | None = None) -> str | None:
        """Queued -> running for the next batch in line (of these handlers); returns its id, or None when nobody may."""

    def dispatch(
        self, batch_id: str, limit: int, term: LeaderTerm, behind: int = 0, brakes: Brakes | None = None
    ) -> list[Dispatch]:
        """Pending -> dispatched for up to `limit` due profiles of a running batch, in their order.

        Only those with a number beyond `behind` are looked at, and no more are dispatched than its caps and limits
        leave room for; without `brakes`, those of its own options.
        """

    def claim(self, worker_id: str, runs: Sequence[RunId]) -> ClaimResult:
        """Dispatched -> running for the offered runs that still stand."""

    def settle(self, worker_id: str, settlements: Sequence[Settlement]) -> SettleResult:
        """Running -> a terminal state or pending, for the runs that this worker still holds."""

    def conclude(self, batch_ids: Iterable[str]) -> list[str]:
        """Finish what has nothing unsettled, stop what spent its budget, reach the target of what stopped."""

    def stop(self, batch_id: str, target: StopTarget, reason: str, *, interrupt: bool = False) -> BatchState:
        """Pause, cancel, expire: the batch heads for `target`; returns its state after the call.

        With `interrupt`, what runs of it is not waited for but interrupted, where its worker's pool can do so.
        """

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

    def dispatch_batch(
        self,
        batch_id: str,
        limit: int,
        term: LeaderTerm,
        bookmark: Bookmark | None = None,
        brakes: Brakes | None = None,
    ) -> int:
        """Mark up to `limit` profiles dispatched, commit, then publish; returns how many.

        With a bookmark, only of those that come after it; it moves to the last of them.
        """

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
