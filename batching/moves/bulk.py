"""Bulk moves: verbs on a batch of any size, in constant time.

`apply` commits a new generation of the batch together with the counters as they are *after* the move. From that commit
on, every row of an older generation is read as moved (`states.effective_state`); `rewrite` then brings the rows up to
date in bounded steps. Nothing of the batch is dispatched until that is done, and a claim or a settlement compares or
writes the generation, so no row can escape its move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, and_, exists, insert, literal, null, select, update

from batching.dialects import now
from batching.models import batches, bulk_moves, profiles
from batching.moves import counters
from batching.moves.rows import among, read_batches
from batching.states import BULK_EFFECTS, TERMINAL_PROFILE_STATES, BulkMove, ProfileState

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from batching.moves.rows import BatchRow

#: Moves that open a new pass. Attempts need no reset: they count for the pass of the latest dispatch alone.
_NEW_PASS = frozenset({BulkMove.NEXT_PASS, BulkMove.REOPEN})


def apply(connection: Connection, batch: BatchRow, move: BulkMove) -> int:
    """Move all profiles of a locked batch that the move concerns; returns the batch's generation afterwards.

    Settles the race with claims, dispatches and settlements: their tickets are locked here, so each of them is either
    fully before (and in the sums) or fully after (and sees the new generation).
    """
    counters.lock_all(connection, batch.id)
    counts = counters.read(connection, batch.id)
    deltas: dict[str, int] = {}
    for source, target in BULK_EFFECTS[move].items():
        moved = counts.of(source)
        deltas[source.value] = deltas.get(source.value, 0) - moved
        deltas[target.value] = deltas.get(target.value, 0) + moved
    if move in _NEW_PASS:
        deltas["aborts"] = -counts.aborts
    counters.open_with(connection, batch.id, deltas)
    if not any(counts.of(source) for source in BULK_EFFECTS[move]) and batch.rewritten == batch.generation:
        return batch.generation  # no row is concerned: nothing to read differently, nothing to rewrite
    generation = batch.generation + 1
    connection.execute(insert(bulk_moves).values(batch_id=batch.id, generation=generation, move=move))
    connection.execute(
        update(batches)
        .where(batches.c.id == batch.id, batches.c.generation == batch.generation)
        .values(generation=generation)
    )
    return generation


def rewrite(connection: Connection, batch_id: str, limit: int) -> bool:
    """Bring up to about `limit` rows of a batch up to its generation, oldest bulk move first.

    Two leaders may do so at once: the second waits for the batch's row and goes on where the first stopped. The rows
    need no ticket: no counter changes, and nobody claims, dispatches or settles a row that is read as moved.

    Returns:
        Whether rows may be left to rewrite.
    """
    locked = connection.scalar(
        select(batches.c.id).where(batches.c.id == batch_id).with_for_update(skip_locked=True, key_share=True)
    )
    batch = read_batches(connection, [batch_id]).get(batch_id) if locked else None
    if batch is None or batch.rewritten == batch.generation:
        return False
    generation = batch.rewritten + 1
    move = younger_moves(connection, batch_id)[generation]
    done = _rewrite_step(connection, batch, move, generation, limit)
    values: dict[str, Any] = (
        {"rewritten": generation, "rewrite_cursor": 0} if done is None else {"rewrite_cursor": done}
    )
    connection.execute(update(batches).where(batches.c.id == batch_id).values(values))
    return done is not None or generation < batch.generation


def _rewrite_step(connection: Connection, batch: BatchRow, move: BulkMove, generation: int, limit: int) -> int | None:
    """One bounded step; the cursor to go on from, or None when every row that the move concerns is written."""
    ranged, own = False, profiles.c.batch_id == batch.id
    for source, target in BULK_EFFECTS[move].items():
        leading = _LEADING.get(source)
        if leading is None:
            ranged = True
            beyond, last = batch.rewrite_cursor, batch.rewrite_cursor + limit
            chosen = and_(own, profiles.c.number > beyond, profiles.c.number <= last)
        else:
            # In whatever order its index leads: sorted by number, each step would read all that is left.
            numbers = select(profiles.c.number).where(own, _concerned(generation, source), leading).limit(limit)
            chosen = among(connection.dialect.name, batch.id, numbers)
        written = connection.execute(
            update(profiles).where(chosen, _concerned(generation, source)).values(_values(target, move, generation))
        )
        if leading is None:
            continue
        # A row that somebody else wrote meanwhile (it was published again) was passed over, and is still to be written.
        rest = exists().where(own, _concerned(generation, source), leading)
        if written.rowcount >= limit or connection.scalar(select(rest)):
            return batch.rewrite_cursor
    if ranged and _goes_beyond(connection, batch, batch.rewrite_cursor + limit):
        return batch.rewrite_cursor + limit
    return None


def _goes_beyond(connection: Connection, batch: BatchRow, number: int) -> bool:
    """Whether profiles have larger numbers; not by the total, which says less once rows were lost and written off."""
    further = exists().where(profiles.c.batch_id == batch.id, profiles.c.number > number)
    return number < batch.total or bool(connection.scalar(select(further)))


#: The index that leads to the rows of a state; the others are walked by number.
_LEADING: dict[ProfileState, ColumnElement[bool]] = {
    ProfileState.PENDING: profiles.c.dispatched_at.is_(None) & profiles.c.finished_at.is_(None),
    ProfileState.DISPATCHED: profiles.c.dispatched_at.is_not(None),
    ProfileState.FAILED: profiles.c.fingerprint.is_not(None),
}


def _concerned(generation: int, source: ProfileState) -> ColumnElement[bool]:
    return and_(profiles.c.generation < generation, profiles.c.state == source.value)


def _values(target: ProfileState, move: BulkMove, generation: int) -> dict[str, Any]:
    values: dict[str, Any] = {
        "state": target.value,
        "generation": generation,
        "dispatched_at": null(),
        "worker_id": null(),
        "republished": literal(0),
        "finished_at": now() if target in TERMINAL_PROFILE_STATES else null(),
    }
    if move in _NEW_PASS:
        values |= {
            "not_before": null(),
            "error": null(),
            "fingerprint": null(),
        }
    return values


def younger_moves(connection: Connection, batch_id: str) -> dict[int, BulkMove]:
    """The bulk moves of a batch by generation, oldest first."""
    rows = connection.execute(
        select(bulk_moves.c.generation, bulk_moves.c.move)
        .where(bulk_moves.c.batch_id == batch_id)
        .order_by(bulk_moves.c.generation)
    )
    return {row.generation: BulkMove(row.move) for row in rows}


def failures_since(connection: Connection, batch_id: str) -> int:
    """The generation from which on a row that is stored as failed is one of the present pass.

    Older ones are read as pending: a move that touches failures does so to every older row.
    """
    moves = younger_moves(connection, batch_id)
    return max((number for number, move in moves.items() if ProfileState.FAILED in BULK_EFFECTS[move]), default=0)
