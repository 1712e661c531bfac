"""Workers that are asked to drain, or say that they are stuck; the trace that a batch was submitted in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nullable, or with a constant default: no row is rewritten.
    op.add_column("workers", sa.Column("drain_asked", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("workers", sa.Column("stuck", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("traceparent", sa.String(55), nullable=True))


def downgrade() -> None:
    op.drop_column("batches", "traceparent")
    op.drop_column("workers", "stuck")
    op.drop_column("workers", "drain_asked")
