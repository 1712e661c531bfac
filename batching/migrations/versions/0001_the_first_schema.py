"""The first schema."""

# ruff: noqa: E501 - indexes read best on one line each

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from batching.dialects import BigNumber, Identifier, JSONText, Timestamp, now

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("holder", Identifier(), nullable=True),
        sa.Column("epoch", BigNumber, server_default=sa.text("0"), nullable=False),
        sa.Column("expires_at", Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("leases_pkey")),
    )
    op.create_table(
        "queues",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("max_running", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("paused", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", Timestamp(), server_default=now(), nullable=False),
        sa.CheckConstraint("max_running >= 1", name=op.f("queues_max_running_check")),
        sa.PrimaryKeyConstraint("name", name=op.f("queues_pkey")),
    )
    op.create_table(
        "workers",
        sa.Column("id", Identifier(), nullable=False),
        sa.Column("hostname", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("pool", sa.String(length=32), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("handlers", JSONText(), nullable=False),
        sa.Column("queues", JSONText(), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("draining", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("started_at", Timestamp(), server_default=now(), nullable=False),
        sa.Column("heartbeat_at", Timestamp(), server_default=now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("workers_pkey")),
    )
    op.create_table(
        "batches",
        sa.Column("id", Identifier(), nullable=False),
        sa.Column("queue", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=True),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("handler", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("target", sa.String(length=12), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("priority", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("position", BigNumber, nullable=False),
        sa.Column("generation", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("rewritten", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("pass_number", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("last_pass", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("sealed", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("total", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("options", JSONText(), nullable=False),
        sa.Column("not_before", Timestamp(), nullable=True),
        sa.Column("rewrite_cursor", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("urgent", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("loading_until", Timestamp(), nullable=True),
        sa.Column("created_at", Timestamp(), server_default=now(), nullable=False),
        sa.Column("started_at", Timestamp(), nullable=True),
        sa.Column("finished_at", Timestamp(), nullable=True),
        sa.CheckConstraint(
            "(state = 'stopping') = (target IS NOT NULL)", name=op.f("batches_target_while_stopping_check")
        ),
        sa.CheckConstraint(
            "(state IN ('succeeded', 'failed', 'cancelled', 'expired')) = (finished_at IS NOT NULL)",
            name=op.f("batches_finished_when_terminal_check"),
        ),
        sa.CheckConstraint(
            "state IN ('loading', 'queued', 'running', 'stopping', 'paused', 'succeeded', 'failed', 'cancelled', 'expired')",
            name=op.f("batches_state_check"),
        ),
        sa.CheckConstraint(
            "target IS NULL OR target IN ('paused', 'requeue', 'failed', 'expired', 'cancelled')",
            name=op.f("batches_target_check"),
        ),
        sa.CheckConstraint("pass_number >= 1 AND last_pass >= 1", name=op.f("batches_passes_check")),
        sa.CheckConstraint("rewritten <= generation", name=op.f("batches_rewritten_check")),
        sa.ForeignKeyConstraint(["queue"], ["queues.name"], name=op.f("batches_queue_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("batches_pkey")),
    )
    op.create_index(
        "batches_active_idx",
        "batches",
        ["state", "id"],
        unique=False,
        postgresql_where=sa.text("state IN ('loading', 'running', 'stopping')"),
        sqlite_where=sa.text("state IN ('loading', 'running', 'stopping')"),
    )
    op.create_index(
        "batches_finished_idx",
        "batches",
        ["finished_at"],
        unique=False,
        postgresql_where=sa.text("finished_at IS NOT NULL"),
        sqlite_where=sa.text("finished_at IS NOT NULL"),
    )
    op.create_index(
        "batches_line_idx",
        "batches",
        ["queue", sa.literal_column("priority DESC"), "position", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
        sqlite_where=sa.text("state = 'queued'"),
    )
    op.create_index("batches_position_idx", "batches", ["queue", "position"], unique=False)
    op.create_index("batches_queue_key_key", "batches", ["queue", "key"], unique=True)
    op.create_index(
        "batches_unwritten_idx",
        "batches",
        ["id"],
        unique=False,
        postgresql_where=sa.text("rewritten < generation"),
        sqlite_where=sa.text("rewritten < generation"),
    )

    op.create_table(
        "attempts",
        sa.Column("batch_id", Identifier(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("pass_number", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.Column("outcome", sa.String(length=12), nullable=False),
        sa.Column("worker_id", Identifier(), nullable=True),
        sa.Column("started_at", Timestamp(), nullable=True),
        sa.Column("ended_at", Timestamp(), server_default=now(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("fingerprint", sa.String(length=16), nullable=True),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("attempts_batch_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("batch_id", "number", "run", name=op.f("attempts_pkey")),
    )
    op.create_table(
        "bulk_moves",
        sa.Column("batch_id", Identifier(), nullable=False),
        sa.Column("generation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("move", sa.String(length=12), nullable=False),
        sa.CheckConstraint(
            "move IN ('hold', 'next_pass', 'reopen', 'cancel', 'expire')", name=op.f("bulk_moves_move_check")
        ),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("bulk_moves_batch_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("batch_id", "generation", name=op.f("bulk_moves_pkey")),
    )
    op.create_table(
        "counters",
        sa.Column("batch_id", Identifier(), nullable=False),
        sa.Column("worker_id", Identifier(), nullable=False),
        sa.Column("pending", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("dispatched", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("running", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("succeeded", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("skipped", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("cancelled", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("expired", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("aborts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("duplicates", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("late", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("counters_batch_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("batch_id", "worker_id", name=op.f("counters_pkey")),
    )
    op.create_table(
        "history",
        sa.Column("id", BigNumber, autoincrement=True, nullable=False),
        sa.Column("batch_id", Identifier(), nullable=False),
        sa.Column("at", Timestamp(), server_default=now(), nullable=False),
        sa.Column("from_state", sa.String(length=12), nullable=True),
        sa.Column("to_state", sa.String(length=12), nullable=False),
        sa.Column("pass_number", sa.Integer(), nullable=False),
        sa.Column("position", BigNumber, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("history_batch_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("history_pkey")),
    )
    op.create_index("history_batch_id_id_idx", "history", ["batch_id", "id"], unique=False)

    op.create_table(
        "profiles",
        sa.Column("batch_id", Identifier(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=12), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("generation", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("run", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("pass_number", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempts", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("losses", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("republished", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("worker_id", Identifier(), nullable=True),
        sa.Column("not_before", Timestamp(), nullable=True),
        sa.Column("dispatched_at", Timestamp(), nullable=True),
        sa.Column("started_at", Timestamp(), nullable=True),
        sa.Column("finished_at", Timestamp(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("fingerprint", sa.String(length=16), nullable=True),
        sa.CheckConstraint(
            "(state = 'failed') = (fingerprint IS NOT NULL)", name=op.f("profiles_failed_has_fingerprint_check")
        ),
        sa.CheckConstraint(
            "(state = 'running') <= (worker_id IS NOT NULL)", name=op.f("profiles_running_has_worker_check")
        ),
        sa.CheckConstraint(
            "(state IN ('dispatched', 'running')) = (dispatched_at IS NOT NULL)", name=op.f("profiles_in_flight_check")
        ),
        sa.CheckConstraint(
            "(state NOT IN ('pending', 'dispatched', 'running')) = (finished_at IS NOT NULL)",
            name=op.f("profiles_settled_check"),
        ),
        sa.CheckConstraint(
            "state IN ('pending', 'dispatched', 'running', 'succeeded', 'failed', 'skipped', 'cancelled', 'expired')",
            name=op.f("profiles_state_check"),
        ),
        sa.CheckConstraint("run >= 0 AND attempts >= 0 AND losses >= 0", name=op.f("profiles_counts_check")),
        sa.PrimaryKeyConstraint("batch_id", "number", name=op.f("profiles_pkey")),
        postgresql_with={"fillfactor": 70},
    )
    op.create_index("profiles_batch_id_key_key", "profiles", ["batch_id", "key"], unique=True)
    op.create_index(
        "profiles_failures_idx",
        "profiles",
        ["batch_id", "fingerprint", "number"],
        unique=False,
        postgresql_where=sa.text("fingerprint IS NOT NULL"),
        sqlite_where=sa.text("fingerprint IS NOT NULL"),
    )
    op.create_index(
        "profiles_in_flight_idx",
        "profiles",
        ["batch_id", "number"],
        unique=False,
        postgresql_where=sa.text("dispatched_at IS NOT NULL"),
        sqlite_where=sa.text("dispatched_at IS NOT NULL"),
    )
    op.create_index(
        "profiles_waiting_idx",
        "profiles",
        ["batch_id", "number"],
        unique=False,
        postgresql_where=sa.text("dispatched_at IS NULL AND finished_at IS NULL"),
        sqlite_where=sa.text("dispatched_at IS NULL AND finished_at IS NULL"),
    )

    op.create_table(
        "rates",
        sa.Column("batch_id", Identifier(), nullable=False),
        sa.Column("per_second", sa.Double(), nullable=False),
        sa.Column("settled", sa.Integer(), nullable=False),
        sa.Column("measured_at", Timestamp(), server_default=now(), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("rates_batch_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("rates_pkey")),
    )


def downgrade() -> None:
    tables = "rates profiles history counters bulk_moves attempts batches workers queues leases"
    for table in tables.split():
        op.drop_table(table)
