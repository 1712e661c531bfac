"""Groups of batches, which take turns; the line is kept with what was asked to run ahead of its turn."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from batching.dialects import BigNumber

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_FIRST: list[str | sa.ColumnClause[object]] = [
    "queue",
    sa.literal_column("urgent DESC"),
    sa.literal_column("priority DESC"),
]


def upgrade() -> None:
    # With a constant default: no row is rewritten. The indexes hold what waits, whatever is kept.
    op.add_column("batches", sa.Column("group", sa.String(length=255), server_default=sa.text("''"), nullable=False))
    op.drop_index("batches_line_idx", "batches")
    _partial_index("batches_line_idx", [*_FIRST, "position", "id"], "state = 'queued'")
    _partial_index("batches_turns_idx", [*_FIRST, "group", "position", "id"], "state = 'queued'")
    _partial_index("batches_grouped_idx", ["queue"], "state = 'queued' AND \"group\" <> ''")
    op.create_table(
        "turns",
        sa.Column("queue", sa.String(length=64), nullable=False),
        sa.Column("priority", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("group", sa.String(length=255), nullable=False),
        sa.Column("served", BigNumber, nullable=False),
        sa.ForeignKeyConstraint(["queue"], ["queues.name"], name=op.f("turns_queue_fkey")),
        sa.PrimaryKeyConstraint("queue", "priority", "group", name=op.f("turns_pkey")),
    )


def downgrade() -> None:
    op.drop_table("turns")
    for name in ("batches_grouped_idx", "batches_turns_idx", "batches_line_idx"):
        op.drop_index(name, "batches")
    _partial_index(
        "batches_line_idx", ["queue", sa.literal_column("priority DESC"), "position", "id"], "state = 'queued'"
    )
    op.drop_column("batches", "group")


def _partial_index(name: str, columns: list[str | sa.ColumnClause[object]], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, "batches", columns, unique=False, postgresql_where=where, sqlite_where=where)
