"""Batches: what was handed over, how they stand in line, what moved them, and who is told."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    false,
    literal_column,
    text,
)

from batching.dialects import BigNumber, Identifier, JSONText, Timestamp, never, now
from batching.models.base import metadata, one_of
from batching.states import BatchState, BulkMove, CallbackEvent, CallbackState, DependsOn, StopTarget

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
    CheckConstraint(one_of("state", BatchState), name="state"),
    CheckConstraint(f"target IS NULL OR {one_of('target', StopTarget)}", name="target"),
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
#: Whether a batch is in line. Queries use this, and no parameter for the state: a plan that PostgreSQL makes once for
#: all parameters could not use the indexes of the line, and would walk over every batch that the queue ever had.
IN_LINE: Final = batches.c.state == literal_column(f"'{BatchState.QUEUED.value}'", String())
# The line itself: promotion, and every place in line.
Index(
    "batches_line_idx",
    batches.c.queue,
    *LINE_ORDER,
    postgresql_where=IN_LINE,
    sqlite_where=IN_LINE,
)
# The same by group, for the first of each; and whether groups have to take turns at all, empty where nobody names one.
Index(
    "batches_turns_idx",
    batches.c.queue,
    *LINE_ORDER[:2],
    batches.c.group,
    *LINE_ORDER[2:],
    postgresql_where=IN_LINE,
    sqlite_where=IN_LINE,
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
    CheckConstraint(one_of("wants", DependsOn), name="wants"),
    CheckConstraint("batch_id <> on_batch_id", name="not_itself"),
)
UNMET: Final = text("met_at IS NULL")
Index("dependencies_unmet_idx", dependencies.c.on_batch_id, postgresql_where=UNMET, sqlite_where=UNMET)

#: What batches can be found by: a tag has the name '' and is the value; a property has its own name and its value.
labels = Table(
    "labels",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", String(255), primary_key=True),
    Column("batch_id", Identifier, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
)
Index("labels_batch_id_idx", labels.c.batch_id)

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
    CheckConstraint(one_of("move", BulkMove), name="move"),
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
    CheckConstraint(one_of("event", CallbackEvent), name="event"),
    CheckConstraint(one_of("state", CallbackState), name="state"),
    CheckConstraint("(state = 'waiting') = (settled_at IS NULL)", name="settled"),
)
# A batch ends a pass once; whatever goes wrong, nobody is told so twice.
Index("callbacks_once_key", callbacks.c.batch_id, callbacks.c.event, callbacks.c.pass_number, unique=True)
#: Queries repeat it word for word, as `ACTIVE`.
UNDELIVERED: Final = text("state = 'waiting'")
Index("callbacks_due_idx", callbacks.c.due_at, postgresql_where=UNDELIVERED, sqlite_where=UNDELIVERED)
DEAD: Final = text("state = 'dead'")
Index("callbacks_dead_idx", callbacks.c.settled_at, postgresql_where=DEAD, sqlite_where=DEAD)
