"""Callbacks: what somebody asked to be told, as an outbox. A new table only; nothing that exists is touched."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from batching.dialects import Identifier, JSONText, Timestamp, now

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "callbacks",
        sa.Column("id", Identifier(), nullable=False),
        sa.Column("batch_id", Identifier(), nullable=False),
        sa.Column("event", sa.String(length=12), nullable=False),
        sa.Column("pass_number", sa.Integer(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("document", JSONText(), nullable=False),
        sa.Column("state", sa.String(length=12), server_default=sa.text("'waiting'"), nullable=False),
        sa.Column("run", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", Timestamp(), server_default=now(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", Timestamp(), server_default=now(), nullable=False),
        sa.Column("settled_at", Timestamp(), nullable=True),
        sa.CheckConstraint("event IN ('success', 'failure', 'finish')", name=op.f("callbacks_event_check")),
        sa.CheckConstraint("state IN ('waiting', 'delivered', 'dead')", name=op.f("callbacks_state_check")),
        sa.CheckConstraint("(state = 'waiting') = (settled_at IS NULL)", name=op.f("callbacks_settled_check")),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("callbacks_batch_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("callbacks_pkey")),
    )
    op.create_index("callbacks_once_key", "callbacks", ["batch_id", "event", "pass_number"], unique=True)
    op.create_index(
        "callbacks_due_idx",
        "callbacks",
        ["due_at"],
        unique=False,
        postgresql_where=sa.text("state = 'waiting'"),
        sqlite_where=sa.text("state = 'waiting'"),
    )


def downgrade() -> None:
    op.drop_table("callbacks")
