"""What must agree within one batch: its counters, its rows, its state, its generations."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import Text, and_, case, func, insert, null, select, type_coerce, update

from batching.doctor.findings import Finding
from batching.errors import BatchingError, UnknownBatchError
from batching.interfaces import Claimed, Ending, Outcome, RunId, Terms
from batching.models import NOBODY, attempts, batches, bulk_moves, profiles
from batching.moves import batch as batch_moves
from batching.moves import bulk, counters, queue_order, rows
from batching.moves.profile import settle
from batching.options import BatchOptions
from batching.policies import settlement
from batching.states import (
    BULK_EFFECTS,
    TERMINAL_BATCH_STATES,
    BatchState,
    BulkMove,
    ProfileState,
    effective_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy import ColumnElement, Connection, Subquery

    from batching.database import Database
    from batching.moves.counters import Counts
    from batching.moves.rows import BatchRow

    Repair = Callable[[Connection, BatchRow], None]

#: Batches compared in one transaction.
_STEP = 200
_IN_FLIGHT = (ProfileState.DISPATCHED, ProfileState.RUNNING)
_MAY_BE_IN_FLIGHT = frozenset({BatchState.RUNNING, BatchState.STOPPING})


def findings(database: Database) -> Iterator[Finding]:
    """Look at every batch that is not loading, some of them in each snapshot."""
    after = ""
    while True:
        with database.read() as connection:
            # As text: options that cannot be read would stop the look at all others.
            found = connection.execute(
                select(batches.c.id, type_coerce(batches.c.options, Text).label("options"))
                .where(batches.c.state != BatchState.LOADING, *([batches.c.id > after] if after else []))
                .order_by(batches.c.id)
                .limit(_STEP)
            ).all()
            step = [
                finding
                for row in found
                for finding in (
                    _of_batch(connection, row.id) if _readable(row.options) else [_unreadable(row.id, row.options)]
                )
            ]
        yield from step
        if len(found) < _STEP:
            return
        after = found[-1].id


def recount(connection: Connection, batch_id: str) -> dict[ProfileState, int]:
    """Count the rows of a batch by their effective states."""
    counted, _ = _count(connection, batch_id, bulk.younger_moves(connection, batch_id), 0)
    return counted


class _Tally(NamedTuple):
    counted: dict[ProfileState, int]
    """Rows by effective state."""
    forgotten: tuple[int, int]
    """How many rows a bulk move that counts as written has left out, and the first such generation."""


def _count(connection: Connection, batch_id: str, moves: Mapping[int, BulkMove], rewritten: int) -> _Tally:
    counted = dict.fromkeys(ProfileState, 0)
    left_out, first = 0, 0
    grouped = connection.execute(
        select(profiles.c.state, profiles.c.generation, func.count())
        .where(profiles.c.batch_id == batch_id)
        .group_by(profiles.c.state, profiles.c.generation)
    )
    for stored, generation, count in grouped:
        state = ProfileState(stored)
        younger = {number: move for number, move in moves.items() if number > generation}
        counted[effective_state(state, tuple(younger.values()))] += count
        missed = [number for number, move in younger.items() if number <= rewritten and state in BULK_EFFECTS[move]]
        if missed:
            left_out, first = left_out + count, min(first or missed[0], missed[0])
    return _Tally(counted, (left_out, first))


def _of_batch(connection: Connection, batch_id: str) -> Iterator[Finding]:
    batch = rows.read_batches(connection, [batch_id])[batch_id]
    moves = bulk.younger_moves(connection, batch_id)
    counts = counters.read(connection, batch_id)
    tally = _count(connection, batch_id, moves, batch.rewritten)
    yield from _of_generations(connection, batch, moves, tally)
    yield from _of_runs(connection, batch)
    wrong = _wrong_counters(counts, tally.counted)
    if wrong:
        yield _finding(batch, f"its counters disagree with its rows ({'; '.join(wrong)})", _write_counters)
    if (there := sum(tally.counted.values())) != batch.total:
        yield _finding(batch, f"it was sealed with {batch.total:,} profiles and has {there:,} rows", _write_total)
    yield from _of_state(batch, tally.counted)
    if not wrong and batch_moves.is_due(connection, batch, counts):
        text = f"it is {batch.state} although nothing of it is left to wait for"
        yield _finding(batch, text, _write_counters, passing=True)


def _finding(batch: BatchRow, text: str, repair: Repair, *, passing: bool = False) -> Finding:
    """A finding that is repaired under all locks of its batch, after which its counters are what its rows say."""

    def put_right(database: Database) -> bool:
        with database.begin() as connection:
            queue_order.lock_queue_of(connection, batch.id)
            try:
                locked = rows.lock_batch(connection, batch.id)
            except UnknownBatchError:  # pruned meanwhile
                return False
            counters.lock_all(connection, batch.id)
            repair(connection, locked)
            batch_moves.conclude(connection, batch.id)
        return True

    return Finding(f"batch {batch.id}: {text}", put_right, passing)


# --- options that cannot be read


def _readable(options: str) -> bool:
    try:
        given = json.loads(options)
        BatchOptions.from_stored(given)
    except (ValueError, TypeError, AttributeError, BatchingError):
        return False
    return True


def _unreadable(batch_id: str, options: str) -> Finding:
    def put_right(database: Database) -> bool:
        with database.begin() as connection:
            written = connection.execute(
                update(batches)
                .where(batches.c.id == batch_id, type_coerce(batches.c.options, Text) == options)
                .values(options=BatchOptions().as_dict())
            )
            batch = rows.read_batches(connection, [batch_id])[batch_id]
            rows.remember(connection, batch, batch.state, batch.state, "doctor: its options could not be read")
        return written.rowcount == 1

    text = f"batch {batch_id}: its options cannot be read, so no manager can lead; repaired, it has the usual ones"
    return Finding(text, put_right)


# --- generations


def _of_generations(
    connection: Connection, batch: BatchRow, moves: Mapping[int, BulkMove], tally: _Tally
) -> Iterator[Finding]:
    if missing := sorted(set(range(1, batch.generation + 1)) - set(moves)):
        listed = ", ".join(map(str, missing))
        yield _finding(batch, f"nobody knows what moved its profiles in generation {listed}", _hold_missing)
    left_out, first = tally.forgotten
    if left_out:
        text = f"{left_out:,} profiles were left out when generation {first} was written into its rows"
        yield _finding(batch, text, _write_again)
    ahead = connection.scalar(
        select(func.count()).where(profiles.c.batch_id == batch.id, profiles.c.generation > batch.generation)
    )
    if ahead:
        text = f"{ahead:,} of its profiles are of a generation that it has not reached: nothing would ever run them"
        yield _finding(batch, text, _write_generation)


def _hold_missing(connection: Connection, batch: BatchRow) -> None:
    """A hold in the place of a move that is gone: of all moves the one that ends nothing and repeats nothing."""
    known = bulk.younger_moves(connection, batch.id)
    missing = sorted(set(range(1, batch.generation + 1)) - set(known))
    if missing:
        lines = [{"batch_id": batch.id, "generation": number, "move": BulkMove.HOLD} for number in missing]
        connection.execute(insert(bulk_moves), lines)
    _write_counters(connection, batch)


def _write_again(connection: Connection, batch: BatchRow) -> None:
    """Let the leader write the bulk moves once more, from the first that left rows out; writing is repeatable."""
    moves = bulk.younger_moves(connection, batch.id)
    _, (_, first) = _count(connection, batch.id, moves, batch.rewritten)
    if first:
        connection.execute(
            update(batches)
            .where(batches.c.id == batch.id, batches.c.generation == batch.generation)
            .values(rewritten=first - 1, rewrite_cursor=0)
        )
    _write_counters(connection, batch)


def _write_generation(connection: Connection, batch: BatchRow) -> None:
    connection.execute(
        update(profiles)
        .where(profiles.c.batch_id == batch.id, profiles.c.generation > batch.generation)
        .values(generation=batch.generation)
    )
    _write_counters(connection, batch)


# --- runs


def _ended_runs(batch_id: str) -> Subquery:
    """The last run of each profile that has ended in `attempts`."""
    last = func.max(attempts.c.run).label("last")
    ended = select(attempts.c.number, last).where(attempts.c.batch_id == batch_id).group_by(attempts.c.number)
    return ended.subquery("ended")


def _behind(last: ColumnElement[int]) -> ColumnElement[bool]:
    """A run never goes back; what runs, or succeeded, did not end in `attempts`, so it is a later one."""
    later_one = case((profiles.c.state.in_([ProfileState.RUNNING, ProfileState.SUCCEEDED]), 1), else_=0)
    return profiles.c.run < last + later_one


def _of_runs(connection: Connection, batch: BatchRow) -> Iterator[Finding]:
    ended = _ended_runs(batch.id)
    behind = connection.scalar(
        select(func.count())
        .select_from(profiles)
        .join(ended, ended.c.number == profiles.c.number)
        .where(profiles.c.batch_id == batch.id, _behind(ended.c.last))
    )
    if behind:
        text = f"{behind:,} of its profiles are at a run that has ended before: their next end could not be written"
        yield _finding(batch, text, _write_runs)


def _write_runs(connection: Connection, batch: BatchRow) -> None:
    """Bring each run to where it must be; what runs at a run that is over waits again."""
    ended = _ended_runs(batch.id)
    found = connection.execute(
        select(profiles.c.number, profiles.c.state, ended.c.last)
        .join(ended, ended.c.number == profiles.c.number)
        .where(profiles.c.batch_id == batch.id, _behind(ended.c.last))
    ).all()
    for number, state, last in found:
        values: dict[str, object] = {"run": last + (state == ProfileState.SUCCEEDED)}
        if state == ProfileState.RUNNING:
            values |= {"state": ProfileState.PENDING, "dispatched_at": null(), "worker_id": null()}
        connection.execute(
            update(profiles)
            .where(and_(profiles.c.batch_id == batch.id, profiles.c.number == number, profiles.c.state == state))
            .values(**values)
        )
    _write_counters(connection, batch)


# --- counters and totals


def _wrong_counters(counts: Counts, counted: Mapping[ProfileState, int]) -> list[str]:
    wrong = [
        f"{state.value}: counted {counts.of(state):,}, rows {number:,}"
        for state, number in counted.items()
        if counts.of(state) != number
    ]
    if not 0 <= counts.aborts <= counted[ProfileState.FAILED]:
        wrong.append(f"aborts: counted {counts.aborts:,}, failed rows {counted[ProfileState.FAILED]:,}")
    wrong += [
        f"{name}: counted {number:,}"
        for name, number in (("duplicates", counts.duplicates), ("late", counts.late))
        if number < 0
    ]
    return wrong


def _write_counters(connection: Connection, batch: BatchRow) -> None:
    """Bring the sums to what the rows say."""
    counts = counters.read(connection, batch.id)
    counted = recount(connection, batch.id)
    deltas = {state.value: number - counts.of(state) for state, number in counted.items()}
    deltas["aborts"] = max(0, min(counts.aborts, counted[ProfileState.FAILED])) - counts.aborts
    deltas |= {name: -value for name in ("duplicates", "late") if (value := getattr(counts, name)) < 0}
    counters.open_with(connection, batch.id, deltas)


def _write_total(connection: Connection, batch: BatchRow) -> None:
    """Nobody can bring rows back: the total follows, and the history says so."""
    there = sum(recount(connection, batch.id).values())
    connection.execute(
        update(batches).where(batches.c.id == batch.id, batches.c.total == batch.total).values(total=there)
    )
    why = f"doctor: it was sealed with {batch.total:,} profiles and has {there:,} rows"
    rows.remember(connection, batch, batch.state, batch.state, why)
    _write_counters(connection, batch)


# --- states


def _of_state(batch: BatchRow, counted: Mapping[ProfileState, int]) -> Iterator[Finding]:
    in_flight = sum(counted[state] for state in _IN_FLIGHT)
    if in_flight and batch.state not in _MAY_BE_IN_FLIGHT:
        yield _finding(batch, f"it is {batch.state} and has {in_flight:,} profiles in flight", _call_in)
    if batch.state is BatchState.STOPPING and (dispatched := counted[ProfileState.DISPATCHED]):
        yield _finding(batch, f"it is stopping and has {dispatched:,} dispatched profiles", _call_in)
    if batch.state in TERMINAL_BATCH_STATES and (waiting := counted[ProfileState.PENDING]):
        yield _finding(batch, f"it is {batch.state} and {waiting:,} of its profiles still wait", _end_or_reopen)


def _call_in(connection: Connection, batch: BatchRow) -> None:
    """Dispatched and running -> pending, uncharged, for a batch of which nothing should be in flight.

    Whoever still runs one of them comes late: the run is over, and the next claim makes a new one.
    """
    _write_counters(connection, batch)
    if batch.state not in _MAY_BE_IN_FLIGHT:
        _give_back_all(connection, batch)
    bulk.apply(connection, batch, BulkMove.HOLD)
    if batch.state in TERMINAL_BATCH_STATES:
        _end_or_reopen(connection, rows.read_batches(connection, [batch.id])[batch.id])


def _give_back_all(connection: Connection, batch: BatchRow) -> None:
    running = connection.execute(
        select(profiles.c.number, profiles.c.run, profiles.c.worker_id, profiles.c.attempts, profiles.c.pass_number)
        .where(profiles.c.batch_id == batch.id, profiles.c.state == ProfileState.RUNNING)
        .order_by(profiles.c.number)
    ).all()
    for holder in sorted({row.worker_id for row in running}):
        settlements = [
            settlement(
                Claimed(
                    RunId(batch.id, row.number, row.run), "", "", row.attempts + 1, 0,
                    Terms(batch.terms.lane, row.pass_number, BatchOptions()),
                ),
                Outcome(Ending.GIVEN_BACK), 0, 0.0,
            )
            for row in running
            if row.worker_id == holder
        ]  # fmt: skip
        settle(connection, NOBODY, holder, settlements)


def _end_or_reopen(connection: Connection, batch: BatchRow) -> None:
    """What waits in a finished batch ends with it; but of a batch that succeeded it was never done: back in line."""
    _write_counters(connection, batch)
    if batch.state is BatchState.EXPIRED:
        bulk.apply(connection, batch, BulkMove.EXPIRE)
    elif batch.state is not BatchState.SUCCEEDED:
        bulk.apply(connection, batch, BulkMove.CANCEL)
    else:
        position = queue_order.tail(connection, batch.queue)
        why = "doctor: some of its profiles had not been done"
        rows.move_batch(connection, batch, BatchState.QUEUED, why, position=position, finished_at=null())
