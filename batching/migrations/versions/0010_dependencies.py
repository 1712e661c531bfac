"""Batches that wait for others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from batching.dialects import Identifier, Timestamp

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_UNMET = sa.text("met_at IS NULL")


def upgrade() -> None:
    # With a constant default: no row is rewritten.
    op.add_column("batches", sa.Column("awaiting", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_table(
        "dependencies",
        sa.Column("batch_id", Identifier(), nullable=False),
        sa.Column("on_batch_id", Identifier(), nullable=False),
        sa.Column("wants", sa.String(length=8), nullable=False),
        sa.Column("met_at", Timestamp(), nullable=True),
        sa.CheckConstraint("wants IN ('success', 'any')", name=op.f("dependencies_wants_check")),
        sa.CheckConstraint("batch_id <> on_batch_id", name=op.f("dependencies_not_itself_check")),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("dependencies_batch_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["on_batch_id"], ["batches.id"], name=op.f("dependencies_on_batch_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("batch_id", "on_batch_id", name=op.f("dependencies_pkey")),
    )
    op.create_index(
        "dependencies_unmet_idx", "dependencies", ["on_batch_id"], postgresql_where=_UNMET, sqlite_where=_UNMET
    )


def downgrade() -> None:
    op.drop_table("dependencies")
    op.drop_column("batches", "awaiting")
