"""The moves of profiles: dispatch, claim, settle. Always in groups, each group in one guarded statement.

Every function first takes its writer's ticket (see `counters`), then moves and counts rows with one statement that also
looks at the batches (see `statements`): exactly the rows that the database says it moved are counted.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import exists, insert, select

from batching.interfaces import Claimed, ClaimResult, Dispatch, RunId, SettleResult, Terms
from batching.models import attempts, batches, profiles
from batching.moves import counters, statements
from batching.moves.rows import read_constants, remember_constants
from batching.parameters import encode_rows, is_among
from batching.states import BatchState, ProfileState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from sqlalchemy import Connection, Row, Select

    from batching.direct import Single
    from batching.interfaces import ErrorInfo, Lane, LeaderTerm, Settlement


def dispatch(
    connection: Connection, batch_id: str, limit: int, term: LeaderTerm, max_losses: int, behind: int = 0
) -> list[Dispatch]:
    """Pending -> dispatched for up to `limit` due profiles, in their order, of those with a number beyond `behind`.

    Settles the race of two leaders for the same rows (the second finds them not pending any more), of a leader with a
    stop (the ticket: nothing is dispatched once the batch is stopping), and of an old leader with its successor (the
    epoch). Nothing is dispatched while a bulk move is still being written into the rows.
    """
    if batch_id not in counters.take_ticket(connection, term.holder, [batch_id]):
        return []
    lane = read_constants(connection, [batch_id])[batch_id].lane
    return dispatch_some(connection, batch_id, limit, term, lane, max_losses, behind)


def dispatch_some(
    connection: Connection,
    batch_id: str,
    limit: int,
    term: LeaderTerm,
    lane: Lane,
    max_losses: int,
    behind: int = 0,
) -> list[Dispatch]:
    """What `dispatch` does once it holds the ticket, or the lock of the batch itself."""
    dialect, writer = connection.dialect.name, term.holder
    parameters = {"batch": batch_id, "behind": behind, "limit": limit, "writer": writer, "epoch": term.epoch}
    moved = connection.execute(statements.dispatch(dialect), parameters).all()
    if moved and dialect != "postgresql":
        counters.add(connection, batch_id, writer, {"pending": -len(moved), "dispatched": len(moved)})
    return as_dispatches(moved, batch_id, lane, max_losses)


def as_dispatches(rows: Iterable[Any], batch_id: str, lane: Lane, max_losses: int) -> list[Dispatch]:
    """What to publish for rows of `statements.DISPATCHED`: each offers the run that a claim will grant."""
    return [
        Dispatch(RunId(batch_id, number, run + 1), key, lane, used + 1, pass_number, losses >= max_losses)
        for number, run, key, used, losses, pass_number in sorted(map(tuple, rows))
    ]


def claim(connection: Connection, worker_id: str, runs: Sequence[RunId]) -> ClaimResult:
    """Dispatched -> running for the offered runs that still stand, all in one statement.

    Settles the race of two workers for one run (a message delivered twice): the row is `dispatched` at that run for
    the first of them only. And the race of a claim with a stop: the ticket, the batch's state and its generation.
    """
    known = counters.take_ticket(connection, worker_id, {run.batch_id for run in runs})
    offered = [run for run in sorted(set(runs)) if run.batch_id in known]
    won = claim_some(connection, worker_id, offered, known) if offered else []
    return ClaimResult(won, len(runs) - len(won))


def claim_some(connection: Connection, worker_id: str, offered: list[RunId], known: Collection[str]) -> list[Claimed]:
    """What `claim` does once it holds the ticket of the `known` batches, all that the offers are of."""
    dialect = connection.dialect.name
    parameters = encode_rows(dialect, "offers", statements.OFFERS, offered)
    moved = connection.execute(statements.claim(dialect), {**parameters, "wanted": known, "writer": worker_id}).all()
    if dialect != "postgresql":
        _count_claimed(connection, worker_id, offered, moved)
    return _as_claimed(connection, moved)


def claim_first(connection: Single, worker_id: str, batch_id: str, runs: Sequence[RunId]) -> ClaimResult:
    """What `claim` does, for runs of one batch of which this worker has no ticket yet; on PostgreSQL, in one statement.

    Settles the same races: see `statements.claim_first`.
    """
    offered = sorted(set(runs))
    parameters = encode_rows("postgresql", "offers", statements.OFFERS, offered)
    given = {**parameters, "batch": batch_id, "writer": worker_id, "offered": len(offered)}
    moved = connection.execute(statements.claim_first(), given).all()
    if not moved:
        return ClaimResult([], len(runs))
    *_, pass_number, queue, handler, options = moved[0]
    constants = remember_constants(batch_id, queue, handler, options)
    terms = Terms(constants.lane, pass_number, constants.options)
    won = [
        Claimed(RunId(batch_id, number, run), key, payload, used + 1, losses, terms)
        for _, number, run, key, payload, used, losses, *_ in sorted(tuple(row[:-3]) for row in moved)
    ]
    return ClaimResult(won, len(runs) - len(won))


def _as_claimed(connection: Connection, rows: Sequence[Any]) -> list[Claimed]:
    passes = {(row.batch_id, row.pass_number) for row in rows}
    constants = read_constants(connection, {batch_id for batch_id, _ in passes})
    terms = {
        (batch_id, number): Terms(constants[batch_id].lane, number, constants[batch_id].options)
        for batch_id, number in passes
    }
    return [
        Claimed(RunId(batch_id, number, run), key, payload, used + 1, losses, terms[batch_id, pass_number])
        for batch_id, number, run, key, payload, used, losses, pass_number in sorted(map(tuple, rows))
    ]


def _count_claimed(connection: Connection, worker_id: str, offered: list[RunId], moved: Sequence[Row[Any]]) -> None:
    won = Counter(row.batch_id for row in moved)
    for batch_id, number in Counter(run.batch_id for run in offered).items():
        granted = won[batch_id]
        deltas = {"dispatched": -granted, "running": granted, "duplicates": number - granted}
        counters.add(connection, batch_id, worker_id, deltas)


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
    ends = {each.run: each for each in reversed(settlements)}
    known = counters.take_ticket(connection, writer_id, {run.batch_id for run in ends})
    standing = [ends[run] for run in sorted(ends) if run.batch_id in known]
    late: list[RunId] = []
    stopping: frozenset[str] = frozenset()
    if standing:
        write = _settle_at_once if connection.dialect.name == "postgresql" else _settle_in_steps
        parameters = {"wanted": known, "writer": writer_id, "holder": holder_id}
        late, stopping = write(connection, parameters, standing)
    if len(standing) < len(ends):
        late = sorted({*late, *(run for run in ends if run.batch_id not in known)})
    if not late:
        return SettleResult([each.run for each in standing], [], stopping)
    over = set(late)
    return SettleResult([each.run for each in standing if each.run not in over], late, stopping)


def _settle_at_once(
    connection: Connection, parameters: dict[str, Any], ordered: list[Settlement]
) -> tuple[list[RunId], frozenset[str]]:
    """Move, count and remember in one statement; returns what was late, and the batches that are stopping."""
    unusual = sorted(write_settlements(connection, parameters, ordered))
    late = [ordered[place - 1].run for place, _, is_late in unusual if is_late]
    return late, frozenset(ordered[place - 1].run.batch_id for place, stopping, _ in unusual if stopping)


def _settle_in_steps(
    connection: Connection, parameters: dict[str, Any], ordered: list[Settlement]
) -> tuple[list[RunId], frozenset[str]]:
    """The same for SQLite: its one write lock is held, so that nobody comes between the steps."""
    moved = {RunId(*row[:3]): row[3:] for row in write_settlements(connection, parameters, ordered)}
    late = [each.run for each in ordered if each.run not in moved]
    applied = [_Applied(each, *moved[each.run]) for each in ordered if each.run in moved]
    _remember_attempts(connection, parameters["holder"], applied)
    _count_settled(connection, parameters["writer"], applied, late)
    return late, frozenset(connection.scalars(_stopping(connection.dialect.name), parameters))


def write_settlements(connection: Connection, parameters: dict[str, Any], ordered: list[Settlement]) -> Sequence[Any]:
    """What moves the rows in `settle`, once it holds the ticket of the batches `wanted`."""
    dialect = connection.dialect.name
    successes = all(each.state is ProfileState.SUCCEEDED for each in ordered)
    columns, encode = (statements.SUCCESSES, _success) if successes else (statements.OUTCOMES, _outcome)
    outcomes = encode_rows(dialect, "outcomes", columns, [encode(each) for each in ordered])
    return connection.execute(statements.settle(dialect, successes=successes), {**outcomes, **parameters}).all()


def _success(settlement: Settlement) -> tuple[Any, ...]:
    return (*settlement.run, settlement.result)


def _outcome(settlement: Settlement) -> tuple[Any, ...]:
    """A row of `statements.OUTCOMES`."""
    error = settlement.error
    return (
        *settlement.run,
        settlement.result,
        settlement.state.value,
        settlement.label,
        settlement.pass_number,
        settlement.attempt,
        encode_error(error),
        None if error is None else error.fingerprint,
        settlement.delay,
        settlement.charge,
        settlement.losses,
        int(settlement.fails_pass),
    )


@lru_cache
def _stopping(dialect: str) -> Select[tuple[str]]:
    return select(batches.c.id).where(batches.c.state == BatchState.STOPPING, is_among(dialect, batches.c.id, "wanted"))


class _Applied(NamedTuple):
    """A settlement that applied."""

    settlement: Settlement
    state: str
    """Where the profile really went."""
    started_at: Any


def _remember_attempts(connection: Connection, holder_id: str, applied: Sequence[_Applied]) -> None:
    """A success is the profile's own row; every other end of a run is kept here."""
    ended = [
        {
            "batch_id": each.run.batch_id,
            "number": each.run.number,
            "run": each.run.run,
            "pass_number": each.pass_number,
            "attempt": each.attempt,
            "outcome": each.label if state == each.state else state,
            "worker_id": holder_id,
            "started_at": started_at,
            "error": encode_error(each.error),
            "fingerprint": each.error.fingerprint if each.error else None,
        }
        for each, state, started_at in applied
        if state != ProfileState.SUCCEEDED
    ]
    if ended:
        connection.execute(insert(attempts), ended)


def _count_settled(
    connection: Connection, writer_id: str, applied: Sequence[_Applied], late: Collection[RunId]
) -> None:
    deltas: dict[str, Counter[str]] = defaultdict(Counter)
    for each, state, _ in applied:
        counts = deltas[each.run.batch_id]
        counts["running"] -= 1
        counts[state] += 1
        counts["aborts"] += each.fails_pass
    for run in late:
        deltas[run.batch_id]["late"] += 1
    for batch_id in sorted(deltas):
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


def encode_error(error: ErrorInfo | None) -> str | None:
    """An `ErrorInfo` as stored."""
    return None if error is None else json.dumps(error._asdict(), ensure_ascii=False, separators=(",", ":"))
