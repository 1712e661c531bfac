"""The moves of a batch: stops, conclusions, and the verbs of people. One named function per transition.

Each works on a batch whose row is locked; `conclude` is the only place that decides how a pass ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import case, null, select, update

from batching.dialects import later, never, now
from batching.errors import IllegalMoveError, UnknownBatchError
from batching.models import batches
from batching.moves import budget, bulk, callbacks, counters, dependencies, queue_order
from batching.moves.rows import BatchRow, lock_batch, move_batch, read_batches, remember
from batching.options import Requeue
from batching.policies import pass_delay
from batching.states import TERMINAL_BATCH_STATES, BatchState, BulkMove, StopTarget, stronger

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from batching.moves.counters import Counts

_STOP_EFFECT = {
    StopTarget.PAUSED: BulkMove.HOLD,
    StopTarget.REQUEUE: BulkMove.HOLD,
    StopTarget.FAILED: BulkMove.HOLD,
    StopTarget.CANCELLED: BulkMove.CANCEL,
    StopTarget.EXPIRED: BulkMove.EXPIRE,
}


def request_promotion(connection: Connection, batch_id: str) -> BatchState:
    """Let a waiting batch run next, ahead of its turn and of its back-off; the leader promotes it."""
    batch = lock_batch(connection, batch_id)
    if batch.state in {BatchState.RUNNING, BatchState.STOPPING}:
        return batch.state
    if batch.state is not BatchState.QUEUED:
        raise IllegalMoveError(
            f"cannot execute batch {batch_id}: it is {batch.state}; only queued batches can be asked to run. "
            + ("Resume it first" if batch.state is BatchState.PAUSED else "Retry it to open a new pass")
        )
    connection.execute(update(batches).where(batches.c.id == batch_id).values(urgent=True, not_before=null()))
    remember(connection, batch, batch.state, batch.state, "asked to run ahead of its turn")
    return batch.state


def stop(
    connection: Connection, batch_id: str, target: StopTarget, reason: str, *, interrupt: bool = False
) -> BatchState:
    """Head for a target: at once when nothing of the batch runs, else through `stopping`.

    Settles the race of two stops: the batch's lock makes one the first, and the stronger target holds in the end.

    Args:
        connection: In a write transaction.
        batch_id: Which batch.
        target: What it becomes.
        reason: For its history, and for people.
        interrupt: What runs of it is interrupted by its workers, where their pool can do so.

    Returns:
        The batch's state afterwards.

    Raises:
        IllegalMoveError: The batch is finished, or is paused already.
    """
    queue_order.lock_queue_of(connection, batch_id)
    batch = lock_batch(connection, batch_id)
    if interrupt and batch.state not in TERMINAL_BATCH_STATES:
        connection.execute(update(batches).where(batches.c.id == batch_id).values(interrupt=True))
    if batch.state in TERMINAL_BATCH_STATES:
        verb = "pause" if target is StopTarget.PAUSED else "cancel"
        raise IllegalMoveError(
            f"cannot {verb} batch {batch_id}: it is {batch.state}; finished batches stay as they are"
        )
    if batch.state is BatchState.PAUSED and target is StopTarget.PAUSED:
        return batch.state
    if batch.state is BatchState.RUNNING:
        batch = _begin_stop(connection, batch, target, reason)
    elif batch.state is BatchState.STOPPING:
        batch = _strengthen(connection, batch, target, reason)
    else:
        return _stop_waiting(connection, batch, target, reason)
    # With the stored reason: that of the target which holds, whichever of two stops set it.
    return _reach_target(connection, batch, "")


def expire(connection: Connection, batch_id: str) -> bool:
    """-> expired, or on its way there, once the database's clock is past the batch's deadline.

    Settles the race of the last settlement with the deadline: under the batch's lock, a batch whose profiles were all
    settled before is concluded as it deserves, whoever was to do so; and what settles later finds it stopping, or over.
    A retry that took the deadline away meanwhile wins too.

    Returns:
        Whether the batch moved.
    """
    queue_order.lock_queue_of(connection, batch_id)
    try:
        batch = lock_batch(connection, batch_id)
    except UnknownBatchError:
        return False  # pruned meanwhile
    due = select(batches.c.deadline).where(batches.c.id == batch_id, batches.c.deadline <= now())
    if batch.state in TERMINAL_BATCH_STATES or (deadline := connection.scalar(due)) is None:
        return False
    counts = counters.read(connection, batch_id)
    if batch.sealed and counts.unsettled == 0 and (ended := _conclude(connection, batch, counts)) is not None:
        return ended is not batch.state
    if batch.target in {StopTarget.EXPIRED, StopTarget.CANCELLED}:
        return False
    stop(connection, batch_id, StopTarget.EXPIRED, f"its deadline, {deadline:%Y-%m-%d %H:%M:%S} UTC, passed")
    return True


def _begin_stop(connection: Connection, batch: BatchRow, target: StopTarget, reason: str) -> BatchRow:
    """Running -> stopping: nothing is claimed or dispatched any more, and what was dispatched is pending again."""
    generation = bulk.apply(connection, batch, _STOP_EFFECT[target])
    batch = _reread(connection, batch.id)
    move_batch(connection, batch, BatchState.STOPPING, reason, target=target, generation=generation)
    return _reread(connection, batch.id)


def _strengthen(connection: Connection, batch: BatchRow, target: StopTarget, reason: str) -> BatchRow:
    """stopping, for a stronger target; a weaker one changes nothing."""
    if stronger(batch.target, target) is batch.target:
        return batch
    bulk.apply(connection, batch, _STOP_EFFECT[target])
    connection.execute(update(batches).where(batches.c.id == batch.id).values(target=target, reason=reason))
    remember(connection, batch, BatchState.STOPPING, BatchState.STOPPING, f"now heading for {target}: {reason}")
    return _reread(connection, batch.id)


def _stop_waiting(connection: Connection, batch: BatchRow, target: StopTarget, reason: str) -> BatchState:
    """Queued or paused -> paused, cancelled or expired; nothing of it runs, so the target is reached at once."""
    if target is StopTarget.PAUSED:
        move_batch(connection, batch, BatchState.PAUSED, reason)
        return BatchState.PAUSED
    bulk.apply(connection, batch, _STOP_EFFECT[target])
    return _finish(connection, _reread(connection, batch.id), BatchState(target.value), reason)


def resume(connection: Connection, batch_id: str) -> BatchState:
    """Paused -> queued, at its old position."""
    batch = lock_batch(connection, batch_id)
    if batch.state is not BatchState.PAUSED:
        hint = "; it is on its way to paused, try again in a moment" if batch.target is StopTarget.PAUSED else ""
        raise IllegalMoveError(
            f"cannot resume batch {batch_id}: it is {batch.state}; only paused batches can be resumed{hint}"
        )
    move_batch(connection, batch, BatchState.QUEUED, "resumed", not_before=batches.c.start_at)
    return BatchState.QUEUED


def release(connection: Connection, batch_id: str) -> bool:
    """Look again at what a waiting batch waits for: it may start, or is cancelled, since that can never be met.

    Settles the race of two who do so, and of one with a verb: the batch's lock makes one of them the first. A batch
    that it waits for and that is retried at this very moment has either ended before, or not.

    Returns:
        Whether it waits for less than before.
    """
    queue_order.lock_queue_of(connection, batch_id)
    try:
        batch = lock_batch(connection, batch_id)
    except UnknownBatchError:
        return False
    if batch.state not in {BatchState.QUEUED, BatchState.PAUSED}:
        return False
    before = len(dependencies.unmet(connection, batch_id))
    left = dependencies.settle(connection, batch)
    if why := dependencies.broken(left):
        stop(connection, batch_id, StopTarget.CANCELLED, why)
        return True
    return len(left) < before


def reopen(connection: Connection, batch_id: str, reason: str, verb: str = "retry") -> int:
    """A finished batch -> queued at the end of its queue, in a new pass over whatever is not done.

    Settles the race of two operators who retry at once: the second finds it queued, and is told so.

    Returns:
        The number of the new pass.
    """
    queue_order.lock_queue_of(connection, batch_id)
    batch = lock_batch(connection, batch_id)
    if batch.state not in TERMINAL_BATCH_STATES:
        raise IllegalMoveError(
            f"cannot {verb} batch {batch_id}: it is {batch.state}; only finished batches can be retried"
        )
    counts = counters.read(connection, batch_id)
    if not counts.failed + counts.cancelled + counts.expired:
        raise IllegalMoveError(
            f"cannot {verb} batch {batch_id}: all of its {batch.total:,} profiles are done; submit a new batch to run "
            "them again"
        )
    if why := dependencies.broken(dependencies.settle(connection, batch)):
        raise IllegalMoveError(f"cannot retry batch {batch_id}: {why}; retry that one first")
    bulk.apply(connection, batch, BulkMove.REOPEN)
    return open_pass(connection, _reread(connection, batch_id), reason, partial=False)


def open_pass(connection: Connection, batch: BatchRow, reason: str, *, partial: bool) -> int:
    """A finished batch -> queued at the end of its queue, in a new pass; the locks of queue and batch are held.

    Args:
        connection: In a write transaction.
        batch: The finished batch.
        reason: For its history.
        partial: The pass runs what was chosen alone, so it is judged at its end, and no other follows by itself.

    Returns:
        The number of the new pass.
    """
    number = batch.pass_number + 1
    move_batch(
        connection,
        batch,
        BatchState.QUEUED,
        reason,
        pass_number=number,
        last_pass=number if partial else number + batch.options.max_passes - 1,
        partial=partial,
        position=queue_order.tail(connection, batch.queue),
        not_before=null(),
        interrupt=False,
        # A window that is over was for the passes before: a person who wants another has seen that.
        deadline=case((batches.c.deadline <= now(), never()), else_=batches.c.deadline),
        finished_at=null(),
    )
    return number


def mark_completed(connection: Connection, batch_id: str) -> BatchState:
    """Finish a batch whose profiles are all settled; a finished batch stays as it is.

    Raises:
        IllegalMoveError: Profiles are unsettled, or the batch is still open for more.
    """
    queue_order.lock_queue_of(connection, batch_id)
    batch = lock_batch(connection, batch_id)
    if batch.state in TERMINAL_BATCH_STATES:
        return batch.state
    counts = counters.read(connection, batch_id)
    if counts.unsettled or not batch.sealed:
        found = f"{counts.unsettled:,} of its {batch.total:,} profiles are unsettled" if batch.sealed else "it is open"
        raise IllegalMoveError(f"cannot complete batch {batch_id}: {found}; wait for them, or cancel the batch")
    if batch.state in {BatchState.RUNNING, BatchState.STOPPING}:
        return _conclude(connection, batch, counts) or batch.state
    return _finish(connection, batch, BatchState.SUCCEEDED, "completed by a person")


def wants_conclusion(batch: BatchRow, counts: Counts) -> bool:
    """Whether `conclude` has anything to do; read without locks, so only a reason to look again under them."""
    if batch.state is BatchState.STOPPING:
        return counts.running == 0
    if batch.state is not BatchState.RUNNING:
        return False
    return _is_settled(batch, counts) or _stops_early(batch, counts)


def is_due(connection: Connection, batch: BatchRow, counts: Counts) -> bool:
    """Whether `conclude` would move the batch if nothing came in between: also asks what the budgets by class say."""
    if not wants_conclusion(batch, counts):
        return False
    certain = batch.state is BatchState.STOPPING or _is_settled(batch, counts) or not batch.options.failure_budgets
    return certain or budget.verdict(connection, batch, counts) is not None


def _stops_early(batch: BatchRow, counts: Counts) -> bool:
    """Whether the pass may have failed so that the rest of it need not run.

    Not for what had failed before a partial pass began, and was not chosen to run again in it.
    """
    early = counts.aborts > 0 if batch.partial else budget.may_be_spent(batch, counts)
    # An open batch does not finish: when its last pass has failed, that is acted upon once it is sealed.
    may_end = batch.sealed or batch.pass_number < batch.last_pass
    return batch.options.fail_fast and may_end and early


def _is_settled(batch: BatchRow, counts: Counts) -> bool:
    return batch.sealed and counts.unsettled == 0


def conclude(connection: Connection, batch_id: str) -> bool:
    """Finish what has nothing unsettled, stop what spent its budget, reach the target of what stopped.

    Settles the race of the last two finishers: each calls this after its own COMMIT; the batch's lock makes one the
    first, and it reads the sums in a new statement under that lock, so one of them sees everything settled
    (a NOT EXISTS inside the settling transactions would let both see the other unfinished, and stick).

    Returns:
        Whether the batch moved.
    """
    queue_order.lock_queue_of(connection, batch_id)
    batch = lock_batch(connection, batch_id)
    return _conclude(connection, batch, counters.read(connection, batch_id)) is not None


def _conclude(connection: Connection, batch: BatchRow, counts: Counts) -> BatchState | None:
    if not wants_conclusion(batch, counts):
        return None
    if batch.state is BatchState.STOPPING:
        return _reach_target(connection, batch, "")
    reason = budget.verdict(connection, batch, counts)
    if reason is None:
        # Some budget is used up, but not that of the class of what failed; or all is done.
        return _finish(connection, batch, BatchState.SUCCEEDED, "") if _is_settled(batch, counts) else None
    batch = _begin_stop(connection, batch, _after_failed_pass(batch), reason)
    return _reach_target(connection, batch, reason)


def _after_failed_pass(batch: BatchRow) -> StopTarget:
    return StopTarget.REQUEUE if batch.pass_number < batch.last_pass else StopTarget.FAILED


def _reach_target(connection: Connection, batch: BatchRow, reason: str) -> BatchState:
    """Stopping -> its target, once nothing of the batch runs; else it goes on stopping."""
    counts = counters.read(connection, batch.id)
    if counts.running:
        return BatchState.STOPPING
    target, why = batch.target, reason or _stored_reason(connection, batch.id)
    if target in {StopTarget.PAUSED, StopTarget.EXPIRED} and _is_settled(batch, counts) and not counts.expired:
        # The last profiles settled while the stop was on its way: nothing is left to pause, or has expired.
        failure = budget.verdict(connection, batch, counts)
        if failure is None:
            return _finish(connection, batch, BatchState.SUCCEEDED, "")
        if target is StopTarget.PAUSED:
            target, why = _after_failed_pass(batch), failure
    match target:
        case StopTarget.PAUSED:
            move_batch(connection, batch, BatchState.PAUSED, why, target=None)
            return BatchState.PAUSED
        case StopTarget.REQUEUE:
            return _requeue(connection, batch, why)
        case StopTarget.FAILED:
            bulk.apply(connection, batch, BulkMove.CANCEL)
            return _finish(connection, _reread(connection, batch.id), BatchState.FAILED, why)
        case _:
            return _finish(connection, batch, BatchState(str(target)), why)


def _requeue(connection: Connection, batch: BatchRow, reason: str) -> BatchState:
    """Stopping -> queued in the next pass, where its policy puts it; or parked for a person."""
    policy = batch.options.requeue
    to = BatchState.PAUSED if policy is Requeue.PARK else BatchState.QUEUED
    callbacks.tell_failed_pass(connection, batch, to, reason)
    bulk.apply(connection, batch, BulkMove.NEXT_PASS)
    batch = _reread(connection, batch.id)
    position = batch.position
    if policy is Requeue.TAIL:
        position = queue_order.tail(connection, batch.queue)
    elif policy is Requeue.FRONT:
        position = queue_order.front(connection, batch.queue)
    move_batch(
        connection,
        batch,
        to,
        reason,
        target=None,
        pass_number=batch.pass_number + 1,
        position=position,
        not_before=later(pass_delay(batch.pass_number, batch.options)),
    )
    return to


def _finish(connection: Connection, batch: BatchRow, state: BatchState, reason: str) -> BatchState:
    """-> a terminal state, exactly once, since terminal states have no way here; and whoever asked is told."""
    ended = {"target": None, "finished_at": now(), "not_before": null(), "urgent": False}
    move_batch(connection, batch, state, reason, sealed=True, **ended)  # an open one that was stopped takes no more
    callbacks.tell_finish(connection, batch, state, reason)
    counters.fold(connection, batch.id)
    return state


def _stored_reason(connection: Connection, batch_id: str) -> str:
    return connection.scalar(select(batches.c.reason).where(batches.c.id == batch_id)) or ""


def _reread(connection: Connection, batch_id: str) -> BatchRow:
    """The batch after a write of this transaction; its lock is still held."""
    return read_batches(connection, [batch_id])[batch_id]
