"""Cancelled batches whose runs are interrupted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # With a constant default: no row is rewritten.
    op.add_column("batches", sa.Column("interrupt", sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    op.drop_column("batches", "interrupt")
