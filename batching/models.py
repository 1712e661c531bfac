"""Tables, checks and indexes. No queries: those are in `moves/` (writes) and `statistics.py` (reads for people)."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    false,
    text,
)

from batching.database import BigNumber, Identifier, JSONText, Timestamp, never, now
from batching.states import (
    BatchState,
    BulkMove,
    CallbackEvent,
    CallbackState,
    DependsOn,
    LimitKind,
    ProfileState,
    StopTarget,
)

#: The worker id of writes that no worker makes: submission and verbs.
NOBODY: Final = "00000000-0000-0000-0000-000000000000"

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)


def _one_of(name: str, members: Any) -> str:
    values = ", ".join(f"'{member.value}'" for member in members)
    return f"{name} IN ({values})"


#: A line of batches and its settings. Its row lock orders the changes of positions.
queues = Table(
    "queues",
    metadata,
    Column("name", String(64), primary_key=True),
    # So many batches run at once at least; when they cannot fill the workers, the next is let in.
    Column("max_running", Integer, nullable=False, server_default=text("1")),
    # Nothing is promoted and nothing is dispatched.
    Column("paused", Boolean, nullable=False, server_default=false()),
    # Nothing is promoted; what runs is dispatched to its end.
    Column("draining", Boolean, nullable=False, server_default=false()),
    # So many profiles of its batches are dispatched or running at once, at most.
    Column("max_concurrency", Integer),
    # So many batches are in line or run at once, at most, and so many of their profiles are unsettled: asked at submit.
    Column("intake_batches", Integer),
    Column("intake_profiles", Integer),
    # Whether each group of the queue has that to itself.
    Column("intake_per_group", Boolean, nullable=False, server_default=false()),
    Column("created_at", Timestamp, nullable=False, server_default=now()),
    CheckConstraint("max_running >= 1", name="max_running"),
    CheckConstraint("max_concurrency >= 1", name="max_concurrency"),
    CheckConstraint("coalesce(intake_batches, 1) >= 1 AND coalesce(intake_profiles, 1) >= 1", name="intake"),
)

#: Token buckets, one per rate limit. The leader takes tokens in the transaction that dispatches (`moves/braking.py`).
rate_limits = Table(
    "rate_limits",
    metadata,
    Column("kind", String(8), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("per_second", Double, nullable=False),
    Column("burst", Integer, nullable=False),
    # As they were at `refilled_at`; since then, `per_second` came in every second, up to `burst`.
    Column("tokens", Double, nullable=False),
    Column("refilled_at", Timestamp, nullable=False, server_default=now()),
    CheckConstraint(_one_of("kind", LimitKind), name="kind"),
    CheckConstraint("per_second > 0 AND burst >= 1", name="rate"),
    CheckConstraint("tokens >= 0", name="tokens"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", Identifier, primary_key=True),
    Column("queue", String(64), ForeignKey("queues.name"), nullable=False),
    Column("key", String(255)),
    Column("name", String(255), nullable=False),
    Column("handler", String(255), nullable=False),
    Column("state", String(12), nullable=False),
    # Set exactly while `stopping`: what the batch becomes when none of its profiles runs.
    Column("target", String(12)),
    Column("reason", Text),
    # With `stopping`, for a cancel: what runs of it is not waited for but interrupted, where its pool can do so.
    Column("interrupt", Boolean, nullable=False, server_default=false()),
    Column("priority", Integer, nullable=False, server_default=text("0")),
    # Groups of one priority take turns; the empty text is a group too: that of the batches that name none.
    Column("group", String(255), nullable=False, server_default=text("''")),
    Column("position", BigNumber, nullable=False),
    # Grows with every bulk move; rows of an older generation are read as moved. See `bulk_moves`.
    Column("generation", Integer, nullable=False, server_default=text("0")),
    # Up to here the bulk moves are written into the rows; equal to `generation` when nothing is left to rewrite.
    Column("rewritten", Integer, nullable=False, server_default=text("0")),
    Column("pass_number", Integer, nullable=False, server_default=text("1")),
    # The pass in which automatic passes end; `retry` raises it.
    Column("last_pass", Integer, nullable=False, server_default=text("1")),
    # This pass runs only what a person chose; what else has failed stays so, and is judged with it at the end.
    Column("partial", Boolean, nullable=False, server_default=false()),
    Column("sealed", Boolean, nullable=False, server_default=false()),
    Column("total", Integer, nullable=False, server_default=text("0")),
    Column("options", JSONText, nullable=False),
    # A batch between passes waits until here; it is passed over, not waited for.
    Column("not_before", Timestamp),
    # How far the bulk move that is being rewritten has got, by profile number; for moves that no index leads.
    Column("rewrite_cursor", Integer, nullable=False, server_default=text("0")),
    # `execute_batch` asked for promotion ahead of the turn.
    Column("urgent", Boolean, nullable=False, server_default=false()),
    # It waits for other batches: see `dependencies`, of which this is the sum.
    Column("awaiting", Boolean, nullable=False, server_default=false()),
    # A scheduled start; `not_before` is what is waited for, this is what `resume` restores.
    Column("start_at", Timestamp),
    # The end of its completion window; `never()` for none, so that one index orders those with and without.
    Column("deadline", Timestamp, nullable=False, server_default=never()),
    # For people and programs to find it by; `labels` is their index. Null for none.
    Column("tags", JSONText),
    Column("properties", JSONText),
    # The trace that it was submitted in (https://www.w3.org/TR/trace-context/#traceparent-header); null for none.
    Column("traceparent", String(55)),
    # A loading batch whose lease lapsed is deleted: its producer is gone.
    Column("loading_until", Timestamp),
    Column("created_at", Timestamp, nullable=False, server_default=now()),
    Column("started_at", Timestamp),
    Column("finished_at", Timestamp),
    CheckConstraint(_one_of("state", BatchState), name="state"),
    CheckConstraint(f"target IS NULL OR {_one_of('target', StopTarget)}", name="target"),
    CheckConstraint("(state = 'stopping') = (target IS NOT NULL)", name="target_while_stopping"),
    CheckConstraint(
        "(state IN ('succeeded', 'failed', 'cancelled', 'expired')) = (finished_at IS NOT NULL)",
        name="finished_when_terminal",
    ),
    CheckConstraint("rewritten <= generation", name="rewritten"),
    CheckConstraint("pass_number >= 1 AND last_pass >= 1", name="passes"),
)
Index("batches_queue_key_key", batches.c.queue, batches.c.key, unique=True)
#: The order of a queue, for everybody who asks: who was asked to run at once, then priority, then the earliest deadline
#: (those without one come last), then position; ids, made in order, decide the rest. While batches with a group wait,
#: groups take turns inside a priority: `moves/turns.py`.
LINE_ORDER: Final = (
    batches.c.urgent.desc(),
    batches.c.priority.desc(),
    batches.c.deadline,
    batches.c.position,
    batches.c.id,
)
# The line itself: promotion, and every place in line.
Index(
    "batches_line_idx",
    batches.c.queue,
    *LINE_ORDER,
    postgresql_where=batches.c.state == BatchState.QUEUED.value,
    sqlite_where=batches.c.state == BatchState.QUEUED.value,
)
# The same by group, for the first of each; and whether groups have to take turns at all, empty where nobody names one.
Index(
    "batches_turns_idx",
    batches.c.queue,
    *LINE_ORDER[:2],
    batches.c.group,
    *LINE_ORDER[2:],
    postgresql_where=batches.c.state == BatchState.QUEUED.value,
    sqlite_where=batches.c.state == BatchState.QUEUED.value,
)
GROUPED: Final = text("state = 'queued' AND \"group\" <> ''")
Index("batches_grouped_idx", batches.c.queue, postgresql_where=GROUPED, sqlite_where=GROUPED)
# What the leader looks at in every tick; finished batches are not in it, however many are kept.
# Queries repeat it word for word: SQLite uses a partial index only for a condition that it finds in the query.
ACTIVE: Final = text("state IN ('loading', 'running', 'stopping')")
Index("batches_active_idx", batches.c.state, batches.c.id, postgresql_where=ACTIVE, sqlite_where=ACTIVE)
# Bulk moves that are not yet written into their rows.
_UNWRITTEN = text("rewritten < generation")
Index("batches_unwritten_idx", batches.c.id, postgresql_where=_UNWRITTEN, sqlite_where=_UNWRITTEN)
Index("batches_position_idx", batches.c.queue, batches.c.position)
# The clock's work: scheduled starts and deadlines, the earliest first.
SCHEDULED: Final = text("state = 'queued' AND not_before IS NOT NULL")
Index("batches_not_before_idx", batches.c.not_before, postgresql_where=SCHEDULED, sqlite_where=SCHEDULED)
HAS_DEADLINE: Final = text("finished_at IS NULL AND deadline < '8999-01-01'")
Index("batches_deadline_idx", batches.c.deadline, postgresql_where=HAS_DEADLINE, sqlite_where=HAS_DEADLINE)
# Retention: the oldest finished first.
_FINISHED = text("finished_at IS NOT NULL")
Index("batches_finished_idx", batches.c.finished_at, postgresql_where=_FINISHED, sqlite_where=_FINISHED)
# How many have ended, and how, for who watches: counted in this index alone.
ENDED: Final = _FINISHED
Index("batches_ended_idx", batches.c.queue, batches.c.state, postgresql_where=_FINISHED, sqlite_where=_FINISHED)
# And those that have not, which are few beside them.
UNENDED: Final = text("finished_at IS NULL")
Index("batches_unended_idx", batches.c.queue, batches.c.state, postgresql_where=UNENDED, sqlite_where=UNENDED)

#: Which batches a batch waits for before it may start. Written when it is submitted, of batches that exist by then: so
#: there is no cycle, since the last batch of one would have had to wait for a batch that was not there yet.
dependencies = Table(
    "dependencies",
    metadata,
    Column("batch_id", Identifier, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    # No batch is pruned while another waits for it (`moves/submission.py: condemn`).
    Column("on_batch_id", Identifier, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("wants", String(8), nullable=False),
    Column("met_at", Timestamp),
    CheckConstraint(_one_of("wants", DependsOn), name="wants"),
    CheckConstraint("batch_id <> on_batch_id", name="not_itself"),
)
UNMET: Final = text("met_at IS NULL")
Index("dependencies_unmet_idx", dependencies.c.on_batch_id, postgresql_where=UNMET, sqlite_where=UNMET)

#: When each group of a queue had its last turn, inside each priority: the memory of the round robin (`moves/turns.py`).
turns = Table(
    "turns",
    metadata,
    Column("queue", String(64), ForeignKey("queues.name"), primary_key=True),
    Column("priority", Integer, primary_key=True, autoincrement=False),
    Column("group", String(255), primary_key=True),
    # Counts the queue's promotions while groups wait: the smaller, the longer ago.
    Column("served", BigNumber, nullable=False),
)

#: What batches can be found by: a tag has the name '' and is the value; a property has its own name and its value.
labels = Table(
    "labels",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", String(255), primary_key=True),
    Column("batch_id", Identifier, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
)
Index("labels_batch_id_idx", labels.c.batch_id)

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
    CheckConstraint(_one_of("state", ProfileState), name="state"),
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
_IN_FLIGHT = text("dispatched_at IS NOT NULL")
Index(
    "profiles_in_flight_idx",
    profiles.c.batch_id,
    profiles.c.number,
    postgresql_where=_IN_FLIGHT,
    sqlite_where=_IN_FLIGHT,
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

#: Every transition of every batch.
history = Table(
    "history",
    metadata,
    Column("id", BigNumber, primary_key=True, autoincrement=True),
    Column("batch_id", Identifier, ForeignKey("batches.id", ondelete="CASCADE"), nullable=False),
    Column("at", Timestamp, nullable=False, server_default=now()),
    Column("from_state", String(12)),
    Column("to_state", String(12), nullable=False),
    Column("pass_number", Integer, nullable=False),
    Column("position", BigNumber, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("reason", Text, nullable=False),
)
Index("history_batch_id_id_idx", history.c.batch_id, history.c.id)

#: The bulk moves of a batch, one per generation.
bulk_moves = Table(
    "bulk_moves",
    metadata,
    Column("batch_id", Identifier, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("move", String(12), nullable=False),
    CheckConstraint(_one_of("move", BulkMove), name="move"),
)

#: What somebody asked to be told: the outbox. Rows are written in the transaction that causes them, and go with their
#: batch, which is not pruned while one waits.
callbacks = Table(
    "callbacks",
    metadata,
    # Made once: the receiver knows a repeated delivery by it.
    Column("id", Identifier, primary_key=True),
    Column("batch_id", Identifier, ForeignKey("batches.id", ondelete="CASCADE"), nullable=False),
    Column("event", String(12), nullable=False),
    Column("pass_number", Integer, nullable=False),
    # A URL, or the name of a Celery task.
    Column("target", Text, nullable=False),
    # What is told, as it was when it happened: every attempt says the same.
    Column("document", JSONText, nullable=False),
    Column("state", String(12), nullable=False, server_default=text("'waiting'")),
    # The fence of one delivery: + 1 whenever a manager takes it, never reset.
    Column("run", Integer, nullable=False, server_default=text("0")),
    # Deliveries that were tried, since a person last made it wait again.
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    # When it may be taken next; pushed ahead by whoever takes it, so that it is due again should that process end.
    Column("due_at", Timestamp, nullable=False, server_default=now()),
    Column("error", Text),
    Column("created_at", Timestamp, nullable=False, server_default=now()),
    Column("settled_at", Timestamp),
    CheckConstraint(_one_of("event", CallbackEvent), name="event"),
    CheckConstraint(_one_of("state", CallbackState), name="state"),
    CheckConstraint("(state = 'waiting') = (settled_at IS NULL)", name="settled"),
)
# A batch ends a pass once; whatever goes wrong, nobody is told so twice.
Index("callbacks_once_key", callbacks.c.batch_id, callbacks.c.event, callbacks.c.pass_number, unique=True)
#: Queries repeat it word for word, as `ACTIVE`.
UNDELIVERED: Final = text("state = 'waiting'")
Index("callbacks_due_idx", callbacks.c.due_at, postgresql_where=UNDELIVERED, sqlite_where=UNDELIVERED)
DEAD: Final = text("state = 'dead'")
Index("callbacks_dead_idx", callbacks.c.settled_at, postgresql_where=DEAD, sqlite_where=DEAD)

#: Worker processes. The identity is made at boot, not taken from the host name.
workers = Table(
    "workers",
    metadata,
    Column("id", Identifier, primary_key=True),
    Column("hostname", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("pool", String(32), nullable=False),
    Column("slots", Integer, nullable=False),
    Column("handlers", JSONText, nullable=False),
    Column("queues", JSONText, nullable=False),
    Column("version", String(32), nullable=False),
    Column("draining", Boolean, nullable=False, server_default=false()),
    # A person wants it to drain; the worker reads it with each heartbeat, and `draining` is what it does.
    Column("drain_asked", Boolean, nullable=False, server_default=false()),
    # Why it makes no progress, in its own words; null while it does.
    Column("stuck", Text),
    Column("started_at", Timestamp, nullable=False, server_default=now()),
    Column("heartbeat_at", Timestamp, nullable=False, server_default=now()),
    # What it held, and its connections, at its last heartbeat.
    Column("gauges", JSONText),
)

#: What payloads a handler takes, as its workers advertise it, for producers that do not have its code.
handler_schemas = Table(
    "handler_schemas",
    metadata,
    Column("handler", String(255), primary_key=True),
    Column("schema", JSONText, nullable=False),
    Column("advertised_at", Timestamp, nullable=False, server_default=now()),
)

#: The right to lead, one row per name; `epoch` grows with every change of hands and stands in the leader's writes.
leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", Identifier),
    Column("epoch", BigNumber, nullable=False, server_default=text("0")),
    Column("expires_at", Timestamp, nullable=False),
)

#: What the leader measured: profiles settled a second, smoothed. Apart from `batches`, so that measuring locks nothing.
rates = Table(
    "rates",
    metadata,
    Column("batch_id", Identifier, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("per_second", Double, nullable=False),
    Column("settled", Integer, nullable=False),
    # What an estimate rests on: so many settled within so many seconds, with the standard error of that rate.
    Column("counted", Integer, nullable=False, server_default=text("0")),
    Column("over_seconds", Double, nullable=False, server_default=text("0")),
    Column("deviation", Double, nullable=False, server_default=text("0")),
    Column("measured_at", Timestamp, nullable=False, server_default=now()),
)

#: What each process has counted since it last said so (`figures.Figures`): a letter box with room for one letter, which
#: the leader empties into the tables below. Only its own process writes a row, so none waits for another.
figure_news = Table(
    "figure_news",
    metadata,
    # Made at boot, by who counts; another one than the id of a worker, which may be declared dead and go on.
    Column("source", Identifier, primary_key=True),
    # Of the last letter. One that is repeated has the same: a COMMIT whose answer was lost counts once.
    Column("number", Integer, nullable=False),
    # Null once the leader has it.
    Column("document", JSONText),
    Column("written_at", Timestamp, nullable=False, server_default=now()),
)

#: All that was ever counted, of all processes: no process has a row of its own, so none takes its counts with it.
figures = Table(
    "figures",
    metadata,
    Column("name", String(64), primary_key=True),
    # A JSON array of values; the empty text for none.
    Column("labels", String(512), primary_key=True),
    # The bucket of a histogram, from 0; -1 is its sum, or the count itself where there are no buckets.
    Column("bucket", SmallInteger, primary_key=True, autoincrement=False),
    Column("amount", Double, nullable=False),
    Column("changed_at", Timestamp, nullable=False, server_default=now()),
)

#: How long the runs of a batch took; buckets as in `figures`.
durations = Table(
    "durations",
    metadata,
    Column("batch_id", Identifier, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("bucket", SmallInteger, primary_key=True, autoincrement=False),
    Column("amount", Double, nullable=False),
)


def _ends() -> list[Column[Any]]:
    """What became of the runs that ended in a span of time: so many profiles settled, and so many are tried again."""
    return [
        Column(name, BigNumber, nullable=False, server_default=text("0"))
        for name in ("settled", "succeeded", "failed", "retried")
    ]


#: What all batches together settled, in spans of some lengths; short ones are kept for an hour: see `moves/figures`.
throughput = Table(
    "throughput",
    metadata,
    Column("seconds", Integer, primary_key=True, autoincrement=False),
    # When it begins: seconds since 1970, a multiple of its length.
    Column("at", BigNumber, primary_key=True, autoincrement=False),
    *_ends(),
)

#: What each batch settled; all its spans are of one length, which grows with the time that it takes.
batch_throughput = Table(
    "batch_throughput",
    metadata,
    Column("batch_id", Identifier, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("seconds", Integer, primary_key=True, autoincrement=False),
    Column("at", BigNumber, primary_key=True, autoincrement=False),
    *_ends(),
)

#: What the leader last saw beside SQL, such as the lengths of the lanes' lists.
gauges = Table(
    "gauges",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("document", JSONText, nullable=False),
    Column("written_at", Timestamp, nullable=False, server_default=now()),
)

__all__ = [
    "ACTIVE",
    "DEAD",
    "ENDED",
    "GROUPED",
    "HAS_DEADLINE",
    "LINE_ORDER",
    "NOBODY",
    "SCHEDULED",
    "UNDELIVERED",
    "UNENDED",
    "UNMET",
    "attempts",
    "batch_throughput",
    "batches",
    "bulk_moves",
    "callbacks",
    "counters",
    "dependencies",
    "durations",
    "figure_news",
    "figures",
    "gauges",
    "handler_schemas",
    "history",
    "labels",
    "leases",
    "metadata",
    "profiles",
    "queues",
    "rate_limits",
    "rates",
    "throughput",
    "turns",
    "workers",
]
