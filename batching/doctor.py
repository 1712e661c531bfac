"""The audit: counters against rows, states against what they promise, SQL against Redis and the workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import func, select

from batching.database import age
from batching.errors import BrokerUnavailableError
from batching.interfaces import Lane, RunId
from batching.models import batches, leases, profiles, workers
from batching.moves import batch as batch_moves
from batching.moves import bulk, counters, queue_order, rows, sweep
from batching.moves.profile import running_of
from batching.moves.rows import LEADER
from batching.states import TERMINAL_BATCH_STATES, BatchState, ProfileState, effective_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from batching.database import Database
    from batching.interfaces import Publisher

#: Seconds of silence after which a worker or a dispatch is worth a word; the sweep acts much earlier.
_QUIET = 60.0
#: Batches compared in one transaction.
_STEP = 200


class Report(NamedTuple):
    """What was found. `problems` are those that are left."""

    ok: bool
    problems: list[str]
    repaired: list[str]


class _Finding(NamedTuple):
    text: str
    batch_id: str | None = None
    worker_id: str | None = None


def examine(database: Database, publisher: Publisher | None = None, fix: bool = False) -> Report:
    """Compare everything that must agree.

    Safe beside running workers: each batch is read in one snapshot, in which counters and rows agree at every commit.

    Args:
        database: The store.
        publisher: The broker, when it should be asked too.
        fix: Repair what can be repaired, and look again at what was.
    """
    repaired: list[str] = []
    findings = list(_findings(database, publisher))
    if fix:
        repaired = [finding.text for finding in findings if _repair(database, finding)]
        findings = list(_findings(database, publisher)) if repaired else findings
    problems = [finding.text for finding in findings]
    return Report(not problems, problems, repaired)


def _findings(database: Database, publisher: Publisher | None) -> Iterator[_Finding]:
    after = ""
    while True:
        with database.read() as connection:
            ids = list(
                connection.scalars(
                    select(batches.c.id)
                    .where(batches.c.state != BatchState.LOADING, *([batches.c.id > after] if after else []))
                    .order_by(batches.c.id)
                    .limit(_STEP)
                )
            )
            found = [finding for batch_id in ids for finding in _batch_findings(connection, batch_id)]
        yield from found
        if len(ids) < _STEP:
            break
        after = ids[-1]
    with database.read() as connection:
        found = [*_worker_findings(connection), *_leader_findings(connection)]
    yield from found
    if publisher is not None:
        yield from _broker_findings(database, publisher)


def recount(connection: Connection, batch_id: str) -> dict[ProfileState, int]:
    """Count the rows of a batch by their effective states."""
    moves = bulk.younger_moves(connection, batch_id)
    counted = dict.fromkeys(ProfileState, 0)
    grouped = connection.execute(
        select(profiles.c.state, profiles.c.generation, func.count())
        .where(profiles.c.batch_id == batch_id)
        .group_by(profiles.c.state, profiles.c.generation)
    )
    for state, generation, count in grouped:
        younger = tuple(move for number, move in moves.items() if number > generation)
        counted[effective_state(ProfileState(state), younger)] += count
    return counted


def _batch_findings(connection: Connection, batch_id: str) -> Iterator[_Finding]:
    batch = rows.read_batches(connection, [batch_id])[batch_id]
    counts = counters.read(connection, batch_id)
    counted = recount(connection, batch_id)
    wrong = [
        f"{state.value}: counted {counts.of(state):,}, rows {number:,}"
        for state, number in counted.items()
        if counts.of(state) != number
    ]
    if wrong:
        yield _Finding(f"batch {batch_id}: its counters disagree with its rows ({'; '.join(wrong)})", batch_id)
    if sum(counted.values()) != batch.total:
        yield _Finding(
            f"batch {batch_id}: it was sealed with {batch.total:,} profiles and has {sum(counted.values()):,} rows"
        )
    in_flight = counted[ProfileState.DISPATCHED] + counted[ProfileState.RUNNING]
    if in_flight and batch.state not in {BatchState.RUNNING, BatchState.STOPPING}:
        yield _Finding(f"batch {batch_id}: it is {batch.state} and has {in_flight:,} profiles in flight")
    if counted[ProfileState.PENDING] and batch.state in TERMINAL_BATCH_STATES:
        yield _Finding(
            f"batch {batch_id}: it is {batch.state} and {counted[ProfileState.PENDING]:,} of its profiles still wait"
        )
    if batch_moves.wants_conclusion(batch, counts) and not wrong:
        yield _Finding(f"batch {batch_id}: it is {batch.state} although nothing of it is left to wait for", batch_id)


def _worker_findings(connection: Connection) -> Iterator[_Finding]:
    for worker_id in sweep.orphaned_workers(connection):
        held = len(running_of(connection, worker_id))
        yield _Finding(f"worker {worker_id}: it is not registered and holds {held:,} running profiles", None, worker_id)
    silent = connection.execute(select(workers.c.id, workers.c.hostname).where(age(workers.c.heartbeat_at) > _QUIET))
    for row in silent:
        yield _Finding(
            f"worker {row.id} on {row.hostname}: no sign of life for over {_QUIET:g} s; a manager takes it back"
        )


def _leader_findings(connection: Connection) -> Iterator[_Finding]:
    waits = connection.scalar(
        select(func.count()).where(batches.c.state.in_([BatchState.QUEUED, BatchState.RUNNING, BatchState.STOPPING]))
    )
    if not waits:
        return
    overdue = connection.scalar(select(age(leases.c.expires_at)).where(leases.c.name == LEADER))
    if overdue is None or overdue > 0:
        yield _Finding(f"no manager leads although {waits:,} batches wait or run; start one with `batching manager`")


def _broker_findings(database: Database, publisher: Publisher) -> Iterator[_Finding]:
    with database.read() as connection:
        silent = connection.execute(
            select(batches.c.queue, batches.c.handler, func.count().label("dispatches"))
            .join(profiles, profiles.c.batch_id == batches.c.id)
            .where(
                profiles.c.dispatched_at.is_not(None),
                profiles.c.state == ProfileState.DISPATCHED,
                batches.c.state == BatchState.RUNNING,
                profiles.c.generation == batches.c.generation,
                age(profiles.c.dispatched_at) > _QUIET,
            )
            .group_by(batches.c.queue, batches.c.handler)
        ).all()
    lanes = {Lane(row.queue, row.handler): row.dispatches for row in silent}
    try:
        lengths = publisher.lengths(lanes)
    except BrokerUnavailableError as error:
        yield _Finding(str(error))
        return
    for lane, dispatches in lanes.items():
        if dispatches > lengths[lane]:
            yield _Finding(
                f"lane {lane.queue}/{lane.handler}: {dispatches:,} profiles were dispatched over {_QUIET:g} s ago, and "
                f"{lengths[lane]:,} messages wait in the broker; a manager publishes the others again"
            )


def _repair(database: Database, finding: _Finding) -> bool:
    if finding.batch_id is not None:
        return _repair_batch(database, finding.batch_id)
    if finding.worker_id is not None:
        with database.begin() as connection:
            held: list[RunId] = [run for run, *_ in running_of(connection, finding.worker_id)]
            return sweep.give_back(connection, finding.worker_id, held) > 0
    return False


def _repair_batch(database: Database, batch_id: str) -> bool:
    """Bring the counters to what the rows say, under all locks of the batch, then conclude what waits for it."""
    with database.begin() as connection:
        queue_order.lock_queue_of(connection, batch_id)
        rows.lock_batch(connection, batch_id)
        counters.lock_all(connection, batch_id)
        counts = counters.read(connection, batch_id)
        counted = recount(connection, batch_id)
        counters.open_with(
            connection, batch_id, {state.value: number - counts.of(state) for state, number in counted.items()}
        )
        batch_moves.conclude(connection, batch_id)
    return True
