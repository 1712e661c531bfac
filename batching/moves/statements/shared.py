"""What the statements of the hot path share."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import CTE, Select, bindparam, exists, func, select

from batching.dialects import Identifier, now
from batching.models import counters, leases
from batching.moves.rows import LEADER
from batching.parameters import is_among

#: The fingerprint of a failure that came without an error.
UNKNOWN: Final = "unknown"

#: The clock, read once for the whole statement: rows that are published together must not seem to overtake each other,
#: in whatever order the statement meets them.
AT_ONCE = select(now()).scalar_subquery()

WRITER = bindparam("writer", type_=Identifier())
HOLDER = bindparam("holder", type_=Identifier())
BATCH = bindparam("batch", type_=Identifier())

#: True while the lease's epoch is still this one: a leader that was replaced writes nothing.
LEADS = exists().where(
    leases.c.name == LEADER, leases.c.holder == WRITER, leases.c.epoch == bindparam("epoch", type_=leases.c.epoch.type)
)

#: The writer's rows of the batches that are `wanted`; only PostgreSQL counts in the same statement.
OURS = (counters.c.worker_id == WRITER) & is_among("postgresql", counters.c.batch_id, "wanted")

#: True, and with an effect on PostgreSQL: the COMMIT of this transaction does not wait for the disk. It costs a
#: dispatch nothing: should the server crash within that moment, the profiles are pending again, and their messages are
#: refused. The log is written in order, so a claim flushes the dispatch that it claims
#: (https://www.postgresql.org/docs/current/wal-async-commit.html). Not for a claim or a settlement: on their COMMIT
#: everybody relies.
UNFLUSHED = func.set_config("synchronous_commit", "off", True) == "off"


def materialized(rows: Select[Any], name: str) -> CTE:
    """A part that is made once, in the order of its rows."""
    return rows.cte(name).prefix_with("MATERIALIZED", dialect="postgresql")
