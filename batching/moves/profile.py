"""The moves of profiles: dispatch, claim, settle. Always in groups, each group in one guarded statement.

Every function first takes its writer's ticket (see `counters`), then looks at the batches, then moves rows, then counts
exactly the rows that the database says it moved.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Double,
    Integer,
    SmallInteger,
    String,
    Text,
    Update,
    bindparam,
    case,
    cast,
    exists,
    insert,
    null,
    or_,
    select,
    update,
)

from batching.database import Identifier, encode_rows, later, now, rows_from_json
from batching.interfaces import Claimed, ClaimResult, Dispatch, RunId, Settlement, SettleResult
from batching.models import attempts, leases, profiles
from batching.moves import counters
from batching.moves.rows import BatchRow, among, read_batches
from batching.states import BatchState, ProfileState, StopTarget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Connection
    from sqlalchemy.types import TypeEngine

    from batching.interfaces import LeaderTerm

_WORKER = bindparam("worker", type_=Identifier())
_HOLDER = bindparam("holder", type_=Identifier())

#: The name of the one lease, until there is a leader per queue.
LEADER = "leader"


#: The clock, read once for the whole statement: rows that are published together must not seem to overtake each other,
#: in whatever order the statement meets them.
AT_ONCE = select(now()).scalar_subquery()


def leads(term: LeaderTerm) -> ColumnElement[bool]:
    """True while this epoch is the lease's: a leader that was replaced writes nothing."""
    return exists().where(leases.c.name == LEADER, leases.c.holder == term.holder, leases.c.epoch == term.epoch)


def dispatch(connection: Connection, batch_id: str, limit: int, term: LeaderTerm, max_losses: int) -> list[Dispatch]:
    """Pending -> dispatched for up to `limit` due profiles, in their order.

    Settles the race of two leaders for the same rows (the second finds them not pending any more), of a leader with a
    stop (the ticket: nothing is dispatched once the batch is stopping), and of an old leader with its successor (the
    epoch). Nothing is dispatched while a bulk move is still being written into the rows.
    """
    if batch_id not in counters.take_ticket(connection, term.holder, [batch_id]):
        return []
    batch = read_batches(connection, [batch_id])[batch_id]
    if batch.state is not BatchState.RUNNING or batch.rewritten != batch.generation:
        return []
    due = (
        select(profiles.c.number)
        .where(
            profiles.c.batch_id == batch_id,
            profiles.c.dispatched_at.is_(None),
            profiles.c.finished_at.is_(None),
            or_(profiles.c.not_before.is_(None), profiles.c.not_before <= now()),
        )
        .order_by(profiles.c.number)
        .limit(limit)
    )
    moved = connection.execute(
        update(profiles)
        .where(
            profiles.c.batch_id == batch_id,
            among(connection, profiles.c.number, due),
            profiles.c.state == ProfileState.PENDING,
            leads(term),
        )
        .values(
            state=ProfileState.DISPATCHED,
            generation=batch.generation,
            attempts=case((profiles.c.pass_number == batch.pass_number, profiles.c.attempts), else_=0),
            pass_number=batch.pass_number,
            republished=0,
            not_before=null(),
            dispatched_at=AT_ONCE,
        )
        .returning(*DISPATCHED)
    ).all()
    counters.add(connection, batch_id, term.holder, {"pending": -len(moved), "dispatched": len(moved)})
    return sorted((as_dispatch(row, batch, max_losses) for row in moved), key=lambda each: each.run.number)


#: The columns that `as_dispatch` reads.
DISPATCHED = (profiles.c.number, profiles.c.run, profiles.c.key, profiles.c.attempts, profiles.c.losses)


def as_dispatch(row: Any, batch: BatchRow, max_losses: int) -> Dispatch:
    """What to publish for a dispatched row: it offers the run that a claim will grant."""
    return Dispatch(
        RunId(batch.id, row.number, row.run + 1),
        row.key,
        batch.terms.lane,
        row.attempts + 1,
        batch.pass_number,
        row.losses >= max_losses,
    )


def claim(connection: Connection, worker_id: str, runs: Sequence[RunId]) -> ClaimResult:
    """Dispatched -> running for the offered runs that still stand, all in one statement.

    Settles the race of two workers for one run (a message delivered twice): the row is `dispatched` at that run for
    the first of them only. And the race of a claim with a stop: the ticket, the batch's state and its generation.
    """
    offered = sorted(set(runs))
    known = counters.take_ticket(connection, worker_id, {run.batch_id for run in offered})
    running = {
        batch.id: batch for batch in read_batches(connection, known).values() if batch.state is BatchState.RUNNING
    }
    rows = [
        (run.batch_id, run.number, run.run - 1, running[run.batch_id].generation)
        for run in offered
        if run.batch_id in running
    ]
    won = _claim_rows(connection, worker_id, rows, running) if rows else []
    deltas = Counter(each.run.batch_id for each in won)
    refused = Counter(run.batch_id for run in offered if run.batch_id in known)
    for batch_id in sorted(known):
        granted = deltas[batch_id]
        counters.add(
            connection,
            batch_id,
            worker_id,
            {"dispatched": -granted, "running": granted, "duplicates": refused[batch_id] - granted},
        )
    return ClaimResult(won, len(runs) - len(won))


_CLAIM_COLUMNS: dict[str, TypeEngine[Any]] = {
    "batch_id": Identifier(),
    "number": Integer(),
    "run": Integer(),
    "generation": Integer(),
}


@lru_cache
def _claim_statement(dialect: str) -> Update:
    offers = rows_from_json(dialect, "offers", _CLAIM_COLUMNS)
    return (
        update(profiles)
        .where(
            profiles.c.batch_id == offers.c.batch_id,
            profiles.c.number == offers.c.number,
            profiles.c.run == offers.c.run,
            profiles.c.generation == offers.c.generation,
            profiles.c.state == ProfileState.DISPATCHED,
        )
        .values(state=ProfileState.RUNNING, run=profiles.c.run + 1, worker_id=_WORKER, started_at=now())
        .returning(
            profiles.c.batch_id,
            profiles.c.number,
            profiles.c.run,
            profiles.c.key,
            profiles.c.payload,
            profiles.c.attempts,
            profiles.c.losses,
        )
    )


def _claim_rows(
    connection: Connection, worker_id: str, rows: list[tuple[str, int, int, int]], running: dict[str, BatchRow]
) -> list[Claimed]:
    statement = _claim_statement(connection.dialect.name)
    moved = connection.execute(statement, {"offers": encode_rows(list(_CLAIM_COLUMNS), rows), "worker": worker_id})
    terms = {batch.id: batch.terms for batch in running.values()}
    won = [
        Claimed(RunId(batch_id, number, run), key, payload, attempts_used + 1, losses, terms[batch_id])
        for batch_id, number, run, key, payload, attempts_used, losses in moved
    ]
    return sorted(won, key=lambda each: each.run)


def settle(connection: Connection, writer_id: str, holder_id: str, settlements: Sequence[Settlement]) -> SettleResult:
    """Running -> a terminal state or pending, for the runs that `holder_id` still holds, all in one statement.

    Settles the race of a late result with the sweep that took the run back, and of an outcome sent twice: a row is
    `running` at one run for one worker, and only once.

    Args:
        connection: In a write transaction.
        writer_id: Whose counters move: the worker itself, or the leader that takes a dead worker's runs back.
        holder_id: The worker that holds the runs.
        settlements: The first of each run counts; a run that ends twice in one group is written once.
    """
    ordered = sorted({each.run: each for each in reversed(settlements)}.values(), key=lambda each: each.run)
    known = counters.take_ticket(connection, writer_id, {each.run.batch_id for each in ordered})
    batches_ = read_batches(connection, known)
    targets = {each.run: _under(each, batches_[each.run.batch_id]) for each in ordered if each.run.batch_id in known}
    rows = [_settle_row(each, targets[each.run], batches_) for each in ordered if each.run in targets]
    moved = {}
    if rows:
        statement = _settle_statement(connection.dialect.name)
        parameters = {"outcomes": encode_rows(list(_SETTLE_COLUMNS), rows), "holder": holder_id}
        for row in connection.execute(statement, parameters):
            moved[RunId(row.batch_id, row.number, row.run)] = row.started_at
    applied = [each for each in ordered if each.run in moved]
    late = [each.run for each in ordered if each.run not in moved]
    _remember_attempts(connection, holder_id, applied, targets, moved)
    _count_settled(connection, writer_id, applied, late, targets, known)
    stopping = frozenset(batch.id for batch in batches_.values() if batch.state is BatchState.STOPPING)
    return SettleResult([each.run for each in applied], late, stopping)


def _under(settlement: Settlement, batch: BatchRow) -> ProfileState:
    """Where a profile really goes: what would wait again in a batch that is cancelled or expires, ends with it."""
    if settlement.state is ProfileState.PENDING and batch.state is BatchState.STOPPING:
        if batch.target is StopTarget.CANCELLED:
            return ProfileState.CANCELLED
        if batch.target is StopTarget.EXPIRED:
            return ProfileState.EXPIRED
    return settlement.state


_SETTLE_COLUMNS: dict[str, TypeEngine[Any]] = {
    "batch_id": Identifier(),
    "number": Integer(),
    "run": Integer(),
    "state": String(12),
    "generation": Integer(),
    "result": Text(),
    "error": Text(),
    "fingerprint": String(16),
    "delay": Double(),
    "charge": SmallInteger(),
    "losses": SmallInteger(),
}


def _settle_row(settlement: Settlement, state: ProfileState, batches_: dict[str, BatchRow]) -> tuple[Any, ...]:
    error = settlement.error
    return (
        settlement.run.batch_id,
        settlement.run.number,
        settlement.run.run,
        state.value,
        batches_[settlement.run.batch_id].generation,
        settlement.result,
        encode_error(error),
        (error.fingerprint if error is not None else "unknown") if state is ProfileState.FAILED else None,
        settlement.delay if state is ProfileState.PENDING else None,
        settlement.charge,
        settlement.losses,
    )


@lru_cache
def _settle_statement(dialect: str) -> Update:
    outcomes = rows_from_json(dialect, "outcomes", _SETTLE_COLUMNS)
    waits = outcomes.c.state == ProfileState.PENDING.value
    return (
        update(profiles)
        .where(
            profiles.c.batch_id == outcomes.c.batch_id,
            profiles.c.number == outcomes.c.number,
            profiles.c.run == outcomes.c.run,
            profiles.c.state == ProfileState.RUNNING,
            profiles.c.worker_id == _HOLDER,
        )
        .values(
            state=outcomes.c.state,
            generation=outcomes.c.generation,
            result=outcomes.c.result,
            error=outcomes.c.error,
            fingerprint=outcomes.c.fingerprint,
            attempts=profiles.c.attempts + cast(outcomes.c.charge, SmallInteger),
            losses=case((outcomes.c.charge == 1, 0), else_=profiles.c.losses + cast(outcomes.c.losses, SmallInteger)),
            not_before=later(outcomes.c.delay),
            dispatched_at=null(),
            worker_id=case((waits, null()), else_=profiles.c.worker_id),
            finished_at=case((waits, null()), else_=now()),
        )
        .returning(profiles.c.batch_id, profiles.c.number, profiles.c.run, profiles.c.started_at)
    )


def _remember_attempts(
    connection: Connection,
    holder_id: str,
    applied: list[Settlement],
    targets: dict[RunId, ProfileState],
    started: dict[RunId, Any],
) -> None:
    """A success is the profile's own row; every other end of a run is kept here."""
    ended = [
        {
            "batch_id": each.run.batch_id,
            "number": each.run.number,
            "run": each.run.run,
            "pass_number": each.pass_number,
            "attempt": each.attempt,
            "outcome": each.label if targets[each.run] is each.state else targets[each.run].value,
            "worker_id": holder_id,
            "started_at": started[each.run],
            "error": encode_error(each.error),
            "fingerprint": each.error.fingerprint if each.error else None,
        }
        for each in applied
        if targets[each.run] is not ProfileState.SUCCEEDED
    ]
    if ended:
        connection.execute(insert(attempts), ended)


def _count_settled(
    connection: Connection,
    writer_id: str,
    applied: list[Settlement],
    late: list[RunId],
    targets: dict[RunId, ProfileState],
    known: set[str],
) -> None:
    deltas: dict[str, Counter[str]] = defaultdict(Counter)
    for each in applied:
        counts = deltas[each.run.batch_id]
        counts["running"] -= 1
        counts[targets[each.run].value] += 1
        counts["aborts"] += each.fails_pass
    for run in late:
        deltas[run.batch_id]["late"] += 1
    for batch_id in sorted(known & deltas.keys()):
        counters.add(connection, batch_id, writer_id, deltas[batch_id])


def stands(connection: Connection, run: RunId) -> bool:
    """Whether an offered run is still dispatched; read without locks, only a claim decides."""
    return bool(
        connection.scalar(
            select(
                exists().where(
                    profiles.c.batch_id == run.batch_id,
                    profiles.c.number == run.number,
                    profiles.c.run == run.run - 1,
                    profiles.c.state == ProfileState.DISPATCHED,
                )
            )
        )
    )


def running_of(connection: Connection, worker_id: str) -> list[tuple[RunId, int, int, int]]:
    """What SQL thinks this worker runs: run, attempts used, losses, pass; through the in-flight index."""
    rows = connection.execute(
        select(
            profiles.c.batch_id,
            profiles.c.number,
            profiles.c.run,
            profiles.c.attempts,
            profiles.c.losses,
            profiles.c.pass_number,
        ).where(
            profiles.c.dispatched_at.is_not(None),
            profiles.c.state == ProfileState.RUNNING,
            profiles.c.worker_id == worker_id,
        )
    )
    return [(RunId(row.batch_id, row.number, row.run), row.attempts, row.losses, row.pass_number) for row in rows]


def encode_error(error: Any) -> str | None:
    """An `ErrorInfo` as stored."""
    return None if error is None else json.dumps(error._asdict(), ensure_ascii=False, separators=(",", ":"))
