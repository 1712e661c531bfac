"""Limits on what a queue may hold: columns of a small table."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_CHECK = "coalesce(intake_batches, 1) >= 1 AND coalesce(intake_profiles, 1) >= 1"


def upgrade() -> None:
    with op.batch_alter_table("queues") as queues:
        queues.add_column(sa.Column("intake_batches", sa.Integer(), nullable=True))
        queues.add_column(sa.Column("intake_profiles", sa.Integer(), nullable=True))
        queues.add_column(sa.Column("intake_per_group", sa.Boolean(), server_default=sa.false(), nullable=False))
        queues.create_check_constraint(op.f("queues_intake_check"), _CHECK)


def downgrade() -> None:
    with op.batch_alter_table("queues") as queues:
        queues.drop_constraint(op.f("queues_intake_check"), type_="check")
        for column in ("intake_per_group", "intake_profiles", "intake_batches"):
            queues.drop_column(column)
