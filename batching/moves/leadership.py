"""The leader's lease and the register of workers: rights that expire unless they are renewed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import delete, insert, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from batching.dialects import age, later, now
from batching.interfaces import LeaderTerm, WorkerInfo
from batching.models import leases, queues, workers
from batching.moves.rows import LEADER, leads

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection


def acquire(connection: Connection, holder: str, lease: float) -> LeaderTerm | None:
    """Become the leader when there is none, or when the last one let its lease lapse.

    Settles the race of two candidates: one UPDATE matches the lapsed row, the other then finds it renewed. The epoch
    grows, so that everything the last leader still tries to write finds its epoch gone.
    """
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(leases).values(name=LEADER, expires_at=now()).on_conflict_do_nothing())
    epoch = connection.scalar(
        update(leases)
        .where(
            leases.c.name == LEADER,
            # Its own lease, when it lost sight of it: the answer to a COMMIT, or to anything else, did not come.
            or_(leases.c.holder.is_(None), leases.c.holder == holder, leases.c.expires_at <= now()),
        )
        .values(holder=holder, epoch=leases.c.epoch + 1, expires_at=later(literal(lease)))
        .returning(leases.c.epoch)
    )
    return None if epoch is None else LeaderTerm(holder, epoch)


def renew(connection: Connection, term: LeaderTerm, lease: float) -> bool:
    """Renew the lease while it is still this term's and has not lapsed."""
    renewed = connection.execute(
        update(leases)
        .where(
            leases.c.name == LEADER,
            leases.c.holder == term.holder,
            leases.c.epoch == term.epoch,
            leases.c.expires_at > now(),
        )
        .values(expires_at=later(literal(lease)))
    )
    return renewed.rowcount == 1


def resign(connection: Connection, term: LeaderTerm) -> None:
    """Hand the lease back, so that the next leader need not wait for it to lapse."""
    connection.execute(
        update(leases)
        .where(leases.c.name == LEADER, leases.c.holder == term.holder, leases.c.epoch == term.epoch)
        .values(holder=None, expires_at=now())
    )


def register(connection: Connection, info: WorkerInfo, *, drain: bool = False) -> None:
    """Announce a worker process under its fresh id; with `drain`, one that was asked to drain under an earlier id."""
    values = info._asdict() | {"handlers": list(info.handlers), "queues": list(info.queues)}
    connection.execute(insert(workers).values(values | {"drain_asked": drain, "draining": drain}))


def beat(
    connection: Connection,
    worker_id: str,
    *,
    draining: bool,
    stuck: str | None = None,
    gauges: dict[str, Any] | None = None,
) -> bool | None:
    """A sign of life; whether the worker is asked to drain, or None when it was declared dead and its row is gone.

    Settles the race with a sweep that is about to declare it dead: `unregister` deletes only a row whose last sign is
    the one that it knows. Whoever comes second finds nothing to write.
    """
    asked = connection.scalar(
        update(workers)
        .where(workers.c.id == worker_id)
        .values(heartbeat_at=now(), draining=draining, stuck=stuck, gauges=gauges)
        .returning(workers.c.drain_asked)
    )
    return None if asked is None else bool(asked)


def touch(connection: Connection, worker_id: str) -> None:
    """A sign of life that says nothing else; settles what `beat` settles, and changes nothing for the dead."""
    connection.execute(update(workers).where(workers.c.id == worker_id).values(heartbeat_at=now()))


def ask_to_drain(connection: Connection, worker_ids: Sequence[str], *, drain: bool) -> int:
    """Ask workers to drain, or to take work again; how many of them are registered."""
    asked = update(workers).where(workers.c.id.in_(list(worker_ids))).values(drain_asked=drain)
    return connection.execute(asked).rowcount


def heartbeats(connection: Connection) -> dict[str, datetime]:
    """The last sign of life of every registered worker."""
    return {row.id: row.heartbeat_at for row in connection.execute(select(workers.c.id, workers.c.heartbeat_at))}


def unregister(connection: Connection, worker_id: str, last_seen: datetime | None = None) -> bool:
    """Delete a worker's row: it left, or it was silent.

    Args:
        connection: In a write transaction.
        worker_id: The worker.
        last_seen: Its last sign of life as the sweep knows it. Settles the race with a heartbeat that comes at the last
            moment: then nothing is deleted.
    """
    condition = [workers.c.id == worker_id]
    if last_seen is not None:
        condition.append(workers.c.heartbeat_at == last_seen)
    return connection.execute(delete(workers).where(*condition)).rowcount == 1


def capabilities(connection: Connection, lease: float) -> list[WorkerInfo]:
    """The registered workers that take new work and have shown a sign of life within so many seconds."""
    names = [workers.c[name] for name in WorkerInfo._fields]
    rows = connection.execute(select(*names).where(workers.c.draining.is_(False), age(workers.c.heartbeat_at) < lease))
    return [
        WorkerInfo(**(dict(row._mapping) | {"handlers": tuple(row.handlers), "queues": tuple(row.queues)}))  # noqa: SLF001
        for row in rows
    ]


def queue_names(connection: Connection) -> list[str]:
    """Every queue there is."""
    return list(connection.scalars(select(queues.c.name).order_by(queues.c.name)))


#: The name of the row that says so; it lapses by itself, like any lease.
BROKER_AWAY: Final = "broker away"


def note_broker_away(connection: Connection, term: LeaderTerm, seconds: float) -> None:
    """Let people know, for so many seconds, that the leader cannot reach the broker; an old leader says nothing."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(leases).values(name=BROKER_AWAY, expires_at=now()).on_conflict_do_nothing())
    connection.execute(
        update(leases)
        .where(leases.c.name == BROKER_AWAY, leads(term))
        .values(holder=term.holder, expires_at=later(literal(seconds)))
    )
