"""Scheduled starts, deadlines, tags and properties; the line is ordered by deadline inside a priority."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from batching.dialects import Identifier, JSONText, Timestamp, never

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nullable, or with a constant default: no row is rewritten.
    op.add_column("batches", sa.Column("start_at", Timestamp(), nullable=True))
    op.add_column("batches", sa.Column("deadline", Timestamp(), server_default=never(), nullable=False))
    op.add_column("batches", sa.Column("tags", JSONText(), nullable=True))
    op.add_column("batches", sa.Column("properties", JSONText(), nullable=True))
    # Partial: they hold what waits, whatever is kept.
    _order_lines(["deadline", "position", "id"])
    _partial_index("batches_not_before_idx", ["not_before"], "state = 'queued' AND not_before IS NOT NULL")
    _partial_index("batches_deadline_idx", ["deadline"], "finished_at IS NULL AND deadline < '8999-01-01'")
    op.create_table(
        "labels",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.String(length=255), nullable=False),
        sa.Column("batch_id", Identifier(), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("labels_batch_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("name", "value", "batch_id", name=op.f("labels_pkey")),
    )
    op.create_index("labels_batch_id_idx", "labels", ["batch_id"], unique=False)


def downgrade() -> None:
    op.drop_table("labels")
    for name in ("batches_deadline_idx", "batches_not_before_idx"):
        op.drop_index(name, "batches")
    _order_lines(["position", "id"])
    for column in ("properties", "tags", "deadline", "start_at"):
        op.drop_column("batches", column)


def _order_lines(inside: list[str]) -> None:
    first = ["queue", "urgent DESC", "priority DESC"]
    for name, columns in (("batches_line_idx", inside), ("batches_turns_idx", ["group", *inside])):
        op.drop_index(name, "batches")
        _partial_index(name, [*first, *columns], "state = 'queued'")


def _partial_index(name: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    keys: list[str | sa.ColumnElement[object]] = [sa.literal_column(each) if " " in each else each for each in columns]
    op.create_index(name, "batches", keys, unique=False, postgresql_where=where, sqlite_where=where)
