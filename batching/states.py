"""The states of a batch and of a profile, and the table of legal moves. Pure: no SQL, no clock."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class BatchState(StrEnum):
    """Where a batch is in its life. Each member says how a batch gets there and what happens next."""

    LOADING = "loading"
    """`submit` is writing its profiles in chunks; nobody else sees it. Sealed in one step into `queued`, or deleted."""
    QUEUED = "queued"
    """Waits in line for its turn (or for its back-off between passes). The leader promotes it to `running`."""
    RUNNING = "running"
    """At the head of the line: its profiles are dispatched, claimed and settled. Ends by `finish` or by a stop."""
    STOPPING = "stopping"
    """A target is set: nothing is dispatched or claimed any more. The target is reached when no profile runs."""
    PAUSED = "paused"
    """Put aside by a person, or parked after a failed pass. `resume` returns it to `queued` at its old position."""
    SUCCEEDED = "succeeded"
    """Every profile is settled and the pass did not fail. Terminal; `retry` opens a new pass."""
    FAILED = "failed"
    """Its last pass failed and no pass is left. Terminal; keeps its failures; `retry` opens a new pass."""
    CANCELLED = "cancelled"
    """A person cancelled it. Terminal; `retry` opens a new pass over what was not done."""
    EXPIRED = "expired"
    """Its deadline passed. Terminal; `retry` opens a new pass over what was not done."""


class ProfileState(StrEnum):
    """Where a profile is. The accounting equation adds up exactly these eight."""

    PENDING = "pending"
    """Waits in SQL: never dispatched yet, or back after a retry, a loss, a refusal or a give-back."""
    DISPATCHED = "dispatched"
    """A task message for its next run was published, or is about to be. Claimed, or found lost and published again."""
    RUNNING = "running"
    """Claimed by one worker at one run. Settled, retried later, given back, or taken back from a dead worker."""
    SUCCEEDED = "succeeded"
    """The handler returned. Final for the life of the profile."""
    FAILED = "failed"
    """Its attempts, or its losses, are used up. Final in this pass; pending again on the batch's next pass."""
    SKIPPED = "skipped"
    """The handler raised `SkipProfile`. Final for the life of the profile; does not count as a failure."""
    CANCELLED = "cancelled"
    """Never to run in this pass: its batch was cancelled or failed, or this one run was revoked by a person."""
    EXPIRED = "expired"
    """Its batch's deadline passed before it could run."""


class StopTarget(StrEnum):
    """What a `stopping` batch becomes once none of its profiles runs."""

    PAUSED = "paused"
    REQUEUE = "requeue"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class BulkMove(StrEnum):
    """A move of many profiles at once, recorded as one generation of the batch and rewritten row by row later.

    Rows whose generation is older are *read as* moved from the commit that recorded the move.
    """

    HOLD = "hold"
    """The batch stopped: what was dispatched and not claimed is pending again."""
    NEXT_PASS = "next_pass"  # noqa: S105 - no password, a turn at the head of the queue
    """A new pass of a failed batch: what failed is pending again."""
    REOPEN = "reopen"
    """A person retries a finished batch: whatever is not done is pending again."""
    CANCEL = "cancel"
    """Cancelled, or failed for good: what waits will not run."""
    EXPIRE = "expire"
    """The deadline passed: what waits will not run."""


class Remedy(StrEnum):
    """What a person does with some profiles of a batch: those that failed alike, or one."""

    RETRY = "retry"
    """Failed -> pending, with all its attempts; of a finished batch, in a partial pass over the chosen alone."""
    SKIP = "skip"
    """Failed or pending -> skipped: it never runs again, and does not count as a failure."""
    CANCEL = "cancel"
    """Failed or pending -> cancelled: not in this pass, and not as a failure; `retry` of the batch runs it again."""


class CallbackEvent(StrEnum):
    """What a callback tells of. At most one row per batch, event and pass."""

    SUCCESS = "success"
    """The batch succeeded."""
    FAILURE = "failure"
    """A pass failed, whether the batch has passes left or not: once per failed pass."""
    FINISH = "finish"
    """The batch reached a terminal state, whichever."""


class CallbackState(StrEnum):
    """Where a callback is on its way."""

    WAITING = "waiting"
    """Written in the transaction that caused it. Due at `due_at`, when a manager takes it, and it is due again later if
    that manager does not come back; delivered, or dead after so many attempts."""
    DELIVERED = "delivered"
    """The broker took its task, or the receiver answered its webhook with 2xx. Final."""
    DEAD = "dead"
    """Its attempts are used up. `batching callbacks retry` makes it wait again."""


class DependsOn(StrEnum):
    """What a batch wants of another one that it waits for."""

    SUCCESS = "success"
    """That it succeeds; if it ends otherwise, the one that waits is cancelled."""
    ANY = "any"
    """That it ends, however."""


class LimitKind(StrEnum):
    """What a rate limit is of: with its name, it names the limit."""

    KEY = "key"
    """Of whatever batches name it in their `rate_limits`: one external API, one tenant."""
    HANDLER = "handler"
    """Of all batches of a handler, in all queues."""
    QUEUE = "queue"
    """Of all batches of a queue."""
    BATCH = "batch"
    """Of one batch: its option `rate_limit`. Made at its first dispatch, forgotten when it is over."""


TERMINAL_BATCH_STATES: Final = frozenset(
    {BatchState.SUCCEEDED, BatchState.FAILED, BatchState.CANCELLED, BatchState.EXPIRED}
)

UNSETTLED_PROFILE_STATES: Final = (ProfileState.PENDING, ProfileState.DISPATCHED, ProfileState.RUNNING)

TERMINAL_PROFILE_STATES: Final = tuple(state for state in ProfileState if state not in UNSETTLED_PROFILE_STATES)

#: Every legal move of a batch. A move that is not here is refused, by the functions that make moves and in a test.
BATCH_MOVES: Final[dict[BatchState, frozenset[BatchState]]] = {
    BatchState.LOADING: frozenset({BatchState.QUEUED}),
    # To `succeeded` straight from `queued` or `paused` only by `mark_completed`, when every profile is settled already.
    BatchState.QUEUED: frozenset(
        {BatchState.RUNNING, BatchState.PAUSED, BatchState.SUCCEEDED, BatchState.CANCELLED, BatchState.EXPIRED}
    ),
    BatchState.RUNNING: frozenset({BatchState.STOPPING, BatchState.SUCCEEDED}),
    # To `succeeded` when a pause met a batch whose last profiles then settled.
    BatchState.STOPPING: frozenset(
        {
            BatchState.QUEUED,
            BatchState.PAUSED,
            BatchState.SUCCEEDED,
            BatchState.FAILED,
            BatchState.CANCELLED,
            BatchState.EXPIRED,
        }
    ),
    BatchState.PAUSED: frozenset({BatchState.QUEUED, BatchState.SUCCEEDED, BatchState.CANCELLED, BatchState.EXPIRED}),
    BatchState.SUCCEEDED: frozenset({BatchState.QUEUED}),
    BatchState.FAILED: frozenset({BatchState.QUEUED}),
    BatchState.CANCELLED: frozenset({BatchState.QUEUED}),
    BatchState.EXPIRED: frozenset({BatchState.QUEUED}),
}

#: Later beats earlier when two stops meet: a pause never undoes a cancel.
STOP_STRENGTH: Final = (
    StopTarget.PAUSED,
    StopTarget.REQUEUE,
    StopTarget.FAILED,
    StopTarget.EXPIRED,
    StopTarget.CANCELLED,
)

#: What each bulk move does to a profile that does not run. States that are not named stay as they are.
BULK_EFFECTS: Final[dict[BulkMove, dict[ProfileState, ProfileState]]] = {
    BulkMove.HOLD: {ProfileState.DISPATCHED: ProfileState.PENDING},
    BulkMove.NEXT_PASS: {
        ProfileState.DISPATCHED: ProfileState.PENDING,
        ProfileState.FAILED: ProfileState.PENDING,
    },
    BulkMove.REOPEN: {
        ProfileState.FAILED: ProfileState.PENDING,
        ProfileState.CANCELLED: ProfileState.PENDING,
        ProfileState.EXPIRED: ProfileState.PENDING,
    },
    BulkMove.CANCEL: {
        ProfileState.PENDING: ProfileState.CANCELLED,
        ProfileState.DISPATCHED: ProfileState.CANCELLED,
    },
    BulkMove.EXPIRE: {
        ProfileState.PENDING: ProfileState.EXPIRED,
        ProfileState.DISPATCHED: ProfileState.EXPIRED,
    },
}


def stronger(current: StopTarget | None, wanted: StopTarget) -> StopTarget:
    """The stop target that holds when `wanted` meets `current`."""
    if current is None:
        return wanted
    return max(current, wanted, key=STOP_STRENGTH.index)


def effective_state(stored: ProfileState, moves: tuple[BulkMove, ...]) -> ProfileState:
    """What a stored state is read as, after the bulk moves that are younger than its row, oldest first."""
    state = stored
    for move in moves:
        state = BULK_EFFECTS[move].get(state, state)
    return state
