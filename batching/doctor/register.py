"""What must agree beside the batches: workers, the leader's lease, loading batches, rows that belong to no batch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sqlalchemy import Text, delete, exists, func, literal, select, type_coerce, update

from batching.dialects import age, later, now
from batching.doctor.findings import QUIET, Finding
from batching.models import batches, leases, profiles, workers
from batching.moves import leadership, sweep
from batching.moves.loading import LOADING_LEASE
from batching.moves.profile import running_of
from batching.moves.rows import LEADER
from batching.state_manager import BatchStateManager
from batching.states import BatchState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from sqlalchemy import Connection

    from batching.database import Database

    Repair = Callable[[Database], bool]

#: Seconds that a leader's lease may have at most; see `Settings.leader_lease`.
_LONGEST_LEASE = 3_600.0
#: Rows deleted in one transaction.
_DELETED = 5_000


def findings(database: Database) -> Iterator[Finding]:
    """Look at everything that belongs to no batch."""
    with database.read() as connection:
        found = [
            *_workers(connection),
            *_leader(connection),
            *_loading(connection),
            *_rows_of_nobody(connection),
        ]
    yield from found


# --- workers


def _workers(connection: Connection) -> Iterator[Finding]:
    for worker_id in sweep.orphaned_workers(connection):
        held = len(running_of(connection, worker_id))
        text = f"worker {worker_id}: it is not registered and holds {held:,} running profiles"
        # One that was declared dead may win a last claim before it notices; the sweep takes that back.
        yield Finding(text, _give_back(worker_id), passing=True, key=f"orphan {worker_id}")
    raw = [type_coerce(workers.c[name], Text).label(name) for name in ("handlers", "queues")]
    silence = age(workers.c.heartbeat_at).label("silence")
    for row in connection.execute(select(workers.c.id, workers.c.hostname, workers.c.heartbeat_at, silence, *raw)):
        name = f"worker {row.id} on {row.hostname}"
        repair = _unregister(row.id, row.heartbeat_at)
        if not all(_names(each) for each in (row.handlers, row.queues)):
            text = f"{name}: what it serves cannot be read; no manager can lead until it registers again"
            yield Finding(text, repair)
        elif abs(row.silence) > QUIET:
            how = f"no sign of life for over {QUIET:g} s" if row.silence > 0 else "its last sign of life is yet to come"
            text = f"{name}: {how}; a manager takes it back"
            yield Finding(text, repair, passing=True, key=f"silent {row.id} {row.heartbeat_at}")


def _names(stored: str) -> bool:
    """Whether a stored document is a list of names."""
    try:
        read = json.loads(stored)
    except ValueError:
        return False
    return isinstance(read, list) and all(isinstance(each, str) for each in read)


def _give_back(worker_id: str) -> Repair:
    def put_right(database: Database) -> bool:
        with database.begin() as connection:
            held = [run for run, *_ in running_of(connection, worker_id)]
            return sweep.give_back(connection, worker_id, held) > 0

    return put_right


def _unregister(worker_id: str, last_seen: datetime) -> Repair:
    """Its row goes while nobody has renewed it, and its runs are pending again, uncharged.

    A worker that lives after all is told so by its next heartbeat, and registers anew.
    """

    def put_right(database: Database) -> bool:
        with database.begin() as connection:
            if not leadership.unregister(connection, worker_id, last_seen):
                return False
            sweep.give_back(connection, worker_id, [run for run, *_ in running_of(connection, worker_id)])
        return True

    return put_right


# --- the leader


def _leader(connection: Connection) -> Iterator[Finding]:
    lease = connection.execute(
        select(leases.c.epoch, leases.c.expires_at, age(leases.c.expires_at).label("overdue")).where(
            leases.c.name == LEADER
        )
    ).one_or_none()
    if lease is not None and lease.overdue < -_LONGEST_LEASE:
        text = f"the leader's lease runs for another {-lease.overdue / 3600:,.1f} hours: nobody could follow it"
        yield Finding(text, _end_lease(lease.epoch, lease.expires_at), key=f"lease {lease.epoch}")
    waits = connection.scalar(
        select(func.count()).where(batches.c.state.in_([BatchState.QUEUED, BatchState.RUNNING, BatchState.STOPPING]))
    )
    if waits and (lease is None or lease.overdue > 0):
        text = f"no manager leads although {waits:,} batches wait or run; start one with `batching manager`"
        yield Finding(text, passing=True, key="nobody leads")


def _end_lease(epoch: int, expires_at: datetime) -> Repair:
    """A leader that lives finds its lease over, and takes it again."""

    def put_right(database: Database) -> bool:
        with database.begin() as connection:
            ended = connection.execute(
                update(leases)
                .where(leases.c.name == LEADER, leases.c.epoch == epoch, leases.c.expires_at == expires_at)
                .values(expires_at=now())
            )
        return ended.rowcount == 1

    return put_right


# --- loading batches


def _loading(connection: Connection) -> Iterator[Finding]:
    overdue = age(batches.c.loading_until)
    loading = select(batches.c.id, overdue.label("overdue")).where(
        batches.c.state == BatchState.LOADING, batches.c.loading_until.is_not(None)
    )
    for row in connection.execute(loading.where(overdue > QUIET)):
        text = f"batch {row.id}: its producer left while it loaded; a manager deletes it"
        yield Finding(text, _delete_abandoned(row.id), passing=True)
    for row in connection.execute(loading.where(overdue < -2 * LOADING_LEASE)):
        text = f"batch {row.id}: it may load longer than any producer asks for, so nobody would ever delete it"
        yield Finding(text, _shorten(row.id))


def _delete_abandoned(batch_id: str) -> Repair:
    def put_right(database: Database) -> bool:
        return batch_id in BatchStateManager(database).sweep_abandoned(limit=1_000)

    return put_right


def _shorten(batch_id: str) -> Repair:
    """A producer that lives renews it with its next chunk."""

    def put_right(database: Database) -> bool:
        with database.begin() as connection:
            shortened = connection.execute(
                update(batches)
                .where(batches.c.id == batch_id, batches.c.state == BatchState.LOADING)
                .where(batches.c.loading_until > later(literal(LOADING_LEASE)))
                .values(loading_until=later(literal(LOADING_LEASE)))
            )
        return shortened.rowcount == 1

    return put_right


# --- rows of no batch


def _rows_of_nobody(connection: Connection) -> Iterator[Finding]:
    """Profiles have no foreign key; whoever deletes a batch's row by hand leaves them behind, and nobody sees them."""
    after: str | None = None
    while True:
        chosen = select(profiles.c.batch_id).order_by(profiles.c.batch_id).limit(1)
        after = connection.scalar(chosen if after is None else chosen.where(profiles.c.batch_id > after))
        if after is None:
            return
        if not connection.scalar(select(exists().where(batches.c.id == after))):
            text = f"batch {after}: it is gone, and some of its profiles are still there; repaired, they go too"
            yield Finding(text, _delete_rows(after))


def _delete_rows(batch_id: str) -> Repair:
    """In bounded steps; the batch cannot come in between: nobody sees profiles before their batch."""

    def put_right(database: Database) -> bool:
        while True:
            with database.begin() as connection:
                some = select(profiles.c.number).where(profiles.c.batch_id == batch_id).limit(_DELETED)
                gone = connection.execute(
                    delete(profiles).where(
                        profiles.c.batch_id == batch_id,
                        profiles.c.number.in_(some),
                        ~exists().where(batches.c.id == batch_id),
                    )
                )
            if gone.rowcount < _DELETED:
                return True

    return put_right
