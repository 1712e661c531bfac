"""Profiles, their counters, and how their runs ended."""

from __future__ import annotations

from typing import Final

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Integer, SmallInteger, String, Table, Text, text

from batching.dialects import Identifier, Timestamp, now
from batching.models.base import metadata, one_of
from batching.states import ProfileState

profiles = Table(
    "profiles",
    metadata,
    # No foreign key: looking up one batch again for each of a million rows takes a third of the time of a COPY. Rows
    # come in under a guard on the batch's row that fails when the batch is gone (`moves/loading.py`), or with it in one
    # transaction, and they leave before it does (`moves/submission.py: delete_some`).
    Column("batch_id", Identifier, primary_key=True),
    # Counts from 1 in the order of submission; with the batch's id it names the profile for life.
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("key", String(255), nullable=False),
    Column("payload", Text, nullable=False),
    Column("state", String(12), nullable=False, server_default=text("'pending'")),
    Column("generation", Integer, nullable=False, server_default=text("0")),
    # The fencing number: + 1 at every claim, never reset.
    Column("run", Integer, nullable=False, server_default=text("0")),
    # The pass of its latest dispatch; `attempts` counts for that pass alone.
    Column("pass_number", Integer, nullable=False, server_default=text("0")),
    # Retry budget used in that pass.
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    # Workers or pool children that died under it, since it last ended by itself.
    Column("losses", SmallInteger, nullable=False, server_default=text("0")),
    # How often its present dispatch was published again.
    Column("republished", SmallInteger, nullable=False, server_default=text("0")),
    Column("worker_id", Identifier),
    Column("not_before", Timestamp),
    # Set while dispatched or running. These two, not `state`, stand in the index predicates below: PostgreSQL can then
    # make the claim a heap-only update, which touches no index at all
    # (https://www.postgresql.org/docs/current/storage-hot.html).
    Column("dispatched_at", Timestamp),
    Column("started_at", Timestamp),
    Column("finished_at", Timestamp),
    Column("result", Text),
    # JSON: type, message, fingerprint, traceback.
    Column("error", Text),
    Column("fingerprint", String(16)),
    CheckConstraint(one_of("state", ProfileState), name="state"),
    CheckConstraint("(state IN ('dispatched', 'running')) = (dispatched_at IS NOT NULL)", name="in_flight"),
    CheckConstraint("(state NOT IN ('pending', 'dispatched', 'running')) = (finished_at IS NOT NULL)", name="settled"),
    CheckConstraint("(state = 'running') <= (worker_id IS NOT NULL)", name="running_has_worker"),
    CheckConstraint("(state = 'failed') = (fingerprint IS NOT NULL)", name="failed_has_fingerprint"),
    CheckConstraint("run >= 0 AND attempts >= 0 AND losses >= 0", name="counts"),
    # Room for the versions of a row's life in its own page.
    postgresql_with={"fillfactor": 70},
)
Index("profiles_batch_id_key_key", profiles.c.batch_id, profiles.c.key, unique=True)
# Dispatch: what waits, in the order of submission.
_WAITING = text("dispatched_at IS NULL AND finished_at IS NULL")
Index(
    "profiles_waiting_idx",
    profiles.c.batch_id,
    profiles.c.number,
    postgresql_where=_WAITING,
    sqlite_where=_WAITING,
)
# The sweep, heartbeats and doctor: what is in flight, never more than the windows.
IN_FLIGHT: Final = profiles.c.dispatched_at.is_not(None)
Index(
    "profiles_in_flight_idx",
    profiles.c.batch_id,
    profiles.c.number,
    postgresql_where=IN_FLIGHT,
    sqlite_where=IN_FLIGHT,
)
# Failures by fingerprint, and the rows that a next pass rewrites.
_FAILED = text("fingerprint IS NOT NULL")
Index(
    "profiles_failures_idx",
    profiles.c.batch_id,
    profiles.c.fingerprint,
    profiles.c.number,
    postgresql_where=_FAILED,
    sqlite_where=_FAILED,
)

#: One row per (batch, writer): the deltas that this writer's guarded statements really moved. Summed when read. The row
#: is also the writer's ticket: it is locked before any profile of the batch is moved, and a bulk move locks them all.
counters = Table(
    "counters",
    metadata,
    Column("batch_id", Identifier, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("worker_id", Identifier, primary_key=True),
    *[Column(state.value, Integer, nullable=False, server_default=text("0")) for state in ProfileState],
    # Profiles of the present pass whose handler raised `FailBatch`.
    Column("aborts", Integer, nullable=False, server_default=text("0")),
    # Claims refused because the run was claimed, settled or withdrawn before; and outcomes of runs that were over.
    Column("duplicates", Integer, nullable=False, server_default=text("0")),
    Column("late", Integer, nullable=False, server_default=text("0")),
)

#: How every run ended that did not end in success: a success is the profile's own row. One row per (profile, run).
attempts = Table(
    "attempts",
    metadata,
    Column("batch_id", Identifier, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("run", Integer, primary_key=True, autoincrement=False),
    Column("pass_number", Integer, nullable=False),
    Column("attempt", SmallInteger, nullable=False),
    # `retried`, `lost`, `given back`, or the terminal state that it reached.
    Column("outcome", String(12), nullable=False),
    Column("worker_id", Identifier),
    Column("started_at", Timestamp),
    Column("ended_at", Timestamp, nullable=False, server_default=now()),
    Column("error", Text),
    Column("fingerprint", String(16)),
)
