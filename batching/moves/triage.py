"""Remedies for some profiles of a batch, chosen by what went wrong or by key: retry, skip, cancel.

In steps of a bounded number of rows, each a transaction of its own under the locks of the batch, with exact counters
and a line in the history. A remedy that is cut short has done what it has done; the same call again does the rest.

Of a finished batch, `retry` opens a *partial* pass: it runs the chosen profiles alone, what else has failed stays
failed and is judged with them at the end, and no automatic pass follows, which would run the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import literal, null, select, update

from batching.dialects import now
from batching.errors import IllegalMoveError
from batching.models import attempts, profiles
from batching.moves import batch as batch_moves
from batching.moves import counters, queue_order
from batching.moves.rows import BatchRow, lock_batch, remember
from batching.parameters import is_among
from batching.states import TERMINAL_BATCH_STATES, BatchState, ProfileState, Remedy

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import Connection


class Chosen(NamedTuple):
    """Which profiles: those of one fingerprint, or one by its key."""

    fingerprint: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        return f"with fingerprint {self.fingerprint}" if self.key is None else f"with key {self.key!r}"


class Step(NamedTuple):
    """What one step did."""

    moved: int
    cursor: int | None
    """The number to go on from; None: that was all."""
    unwritten: bool = False
    """A bulk move is not written into the rows yet; nothing was done."""


_TARGETS = {
    Remedy.RETRY: ProfileState.PENDING,
    Remedy.SKIP: ProfileState.SKIPPED,
    Remedy.CANCEL: ProfileState.CANCELLED,
}
_DONE = {Remedy.RETRY: "retried", Remedy.SKIP: "skipped", Remedy.CANCEL: "cancelled"}


def step(
    connection: Connection, batch_id: str, remedy: Remedy, chosen: Chosen, cursor: int = 0, limit: int = 5_000
) -> Step:
    """Move up to `limit` of the chosen profiles, in their order.

    Settles the race with a stop or a conclusion (the batch's lock makes one the first), with claims, dispatches and
    settlements (their tickets are locked: each is fully before or fully after), and of two operators: each row moves
    once, from the state that it has under these locks.

    Args:
        connection: In a write transaction.
        batch_id: The batch.
        remedy: What to do with them.
        chosen: Which.
        cursor: Only profiles with a larger number.
        limit: Rows.

    Raises:
        IllegalMoveError: The batch is stopping.
    """
    queue_order.lock_queue_of(connection, batch_id)
    batch = lock_batch(connection, batch_id)
    if batch.state is BatchState.STOPPING:
        raise IllegalMoveError(
            f"cannot {remedy} profiles of batch {batch_id}: it is stopping; try again when it has reached its end"
        )
    if batch.rewritten != batch.generation:
        return Step(0, cursor, unwritten=True)
    counters.lock_all(connection, batch_id)
    numbers = _find(connection, batch, remedy, chosen, cursor, limit)
    moved = _move(connection, batch, remedy, _sources(remedy, chosen), numbers) if numbers else 0
    if moved:
        many = "1 profile" if moved == 1 else f"{moved:,} profiles"
        reason = f"{_DONE[remedy]} {many} {chosen}"
        if remedy is Remedy.RETRY and batch.state in TERMINAL_BATCH_STATES:
            batch_moves.open_pass(connection, batch, reason, partial=True)
        else:
            remember(connection, batch, batch.state, batch.state, reason)
    return Step(moved, numbers[-1] if len(numbers) >= limit else None)


def _sources(remedy: Remedy, chosen: Chosen) -> tuple[ProfileState, ...]:
    """The states that a remedy takes profiles out of. Never what is in flight: a stop is for that."""
    if remedy is Remedy.RETRY:
        by_key = (ProfileState.CANCELLED, ProfileState.EXPIRED) if chosen.key is not None else ()
        return (ProfileState.FAILED, *by_key)
    return (ProfileState.FAILED, ProfileState.PENDING)


def _find(
    connection: Connection, batch: BatchRow, remedy: Remedy, chosen: Chosen, cursor: int, limit: int
) -> list[int]:
    """Numbers of the next chosen profiles, in order."""
    own = profiles.c.batch_id == batch.id
    later_ones = profiles.c.number > cursor
    if chosen.key is not None:
        return list(connection.scalars(select(profiles.c.number).where(own, later_ones, profiles.c.key == chosen.key)))
    failed = select(profiles.c.number).where(own, later_ones, profiles.c.fingerprint == chosen.fingerprint)
    found = set(connection.scalars(failed.order_by(profiles.c.number).limit(limit)))
    if ProfileState.PENDING in _sources(remedy, chosen):
        # They failed so in the pass before, and wait for their turn in this one.
        waiting = (
            select(attempts.c.number)
            .where(
                attempts.c.batch_id == batch.id,
                attempts.c.number > cursor,
                attempts.c.pass_number == batch.pass_number - 1,
                attempts.c.outcome == ProfileState.FAILED,
                attempts.c.fingerprint == chosen.fingerprint,
            )
            .order_by(attempts.c.number)
            .limit(limit)
        )
        found |= set(connection.scalars(waiting))
    return sorted(found)[:limit]


def _move(
    connection: Connection, batch: BatchRow, remedy: Remedy, sources: Sequence[ProfileState], numbers: Collection[int]
) -> int:
    """Each of these rows from the state that it has to the remedy's, counted; returns how many moved."""
    target = _TARGETS[remedy]
    deltas: dict[str, int] = {target.value: 0}
    for source in sources:
        written = connection.execute(
            update(profiles)
            .where(
                profiles.c.batch_id == batch.id,
                is_among(connection.dialect.name, profiles.c.number, "numbers"),
                profiles.c.state == source,
            )
            .values(_values(source, target, batch)),
            {"numbers": numbers},
        )
        deltas[source.value] = -written.rowcount
        deltas[target.value] += written.rowcount
    counts = counters.read(connection, batch.id)
    # Whose handler raised `FailBatch` has failed: of a pass that is over, or of profiles that were taken out, none.
    over = remedy is Remedy.RETRY and batch.state in TERMINAL_BATCH_STATES
    left = 0 if over else counts.failed + deltas.get(ProfileState.FAILED.value, 0)
    deltas["aborts"] = min(counts.aborts, left) - counts.aborts
    counters.open_with(connection, batch.id, deltas)
    return deltas[target.value]


def _values(source: ProfileState, target: ProfileState, batch: BatchRow) -> dict[str, Any]:
    values: dict[str, Any] = {"state": target.value, "generation": batch.generation, "fingerprint": null()}
    if target is ProfileState.PENDING:
        # Of no pass yet: its attempts count anew at the next dispatch.
        anew = {"error": null(), "finished_at": null(), "worker_id": null(), "not_before": null()}
        return {**values, **anew, "pass_number": literal(0), "attempts": literal(0)}
    if source is ProfileState.PENDING:
        values |= {"finished_at": now(), "not_before": null()}
    return values
