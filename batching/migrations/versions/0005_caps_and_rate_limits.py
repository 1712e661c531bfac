"""Caps of concurrency, rate limits, and queues that drain."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from batching.dialects import Timestamp, now

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("queues") as queues:
        queues.add_column(sa.Column("draining", sa.Boolean(), server_default=sa.false(), nullable=False))
        queues.add_column(sa.Column("max_concurrency", sa.Integer(), nullable=True))
        queues.create_check_constraint(op.f("queues_max_concurrency_check"), "max_concurrency >= 1")
    op.create_table(
        "rate_limits",
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("per_second", sa.Double(), nullable=False),
        sa.Column("burst", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.Double(), nullable=False),
        sa.Column("refilled_at", Timestamp(), server_default=now(), nullable=False),
        sa.CheckConstraint("kind IN ('key', 'handler', 'queue', 'batch')", name=op.f("rate_limits_kind_check")),
        sa.CheckConstraint("per_second > 0 AND burst >= 1", name=op.f("rate_limits_rate_check")),
        sa.CheckConstraint("tokens >= 0", name=op.f("rate_limits_tokens_check")),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("rate_limits_pkey")),
    )


def downgrade() -> None:
    op.drop_table("rate_limits")
    with op.batch_alter_table("queues") as queues:
        queues.drop_constraint(op.f("queues_max_concurrency_check"), type_="check")
        queues.drop_column("max_concurrency")
        queues.drop_column("draining")
