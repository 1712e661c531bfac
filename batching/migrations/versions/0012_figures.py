"""What processes count for who watches: figures, durations and throughput."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from batching.dialects import BigNumber, Identifier, JSONText, Timestamp, now

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_ENDED = sa.text("finished_at IS NOT NULL")
_UNENDED = sa.text("finished_at IS NULL")
_DEAD = sa.text("state = 'dead'")
_TABLES = ("figure_news", "figures", "durations", "throughput", "batch_throughput", "gauges")


def upgrade() -> None:
    op.create_table(
        "figure_news",
        sa.Column("source", Identifier(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("document", JSONText(), nullable=True),
        sa.Column("written_at", Timestamp(), server_default=now(), nullable=False),
        sa.PrimaryKeyConstraint("source", name=op.f("figure_news_pkey")),
    )
    op.create_table(
        "figures",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("labels", sa.String(length=512), nullable=False),
        sa.Column("bucket", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("amount", sa.Double(), nullable=False),
        sa.Column("changed_at", Timestamp(), server_default=now(), nullable=False),
        sa.PrimaryKeyConstraint("name", "labels", "bucket", name=op.f("figures_pkey")),
    )
    op.create_table(
        "durations",
        sa.Column("batch_id", Identifier(), nullable=False),
        sa.Column("bucket", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("amount", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("durations_batch_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("batch_id", "bucket", name=op.f("durations_pkey")),
    )
    op.create_table(
        "throughput",
        sa.Column("seconds", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", BigNumber, autoincrement=False, nullable=False),
        *_ends(),
        sa.PrimaryKeyConstraint("seconds", "at", name=op.f("throughput_pkey")),
    )
    op.create_table(
        "batch_throughput",
        sa.Column("batch_id", Identifier(), nullable=False),
        sa.Column("seconds", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", BigNumber, autoincrement=False, nullable=False),
        *_ends(),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("batch_throughput_batch_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("batch_id", "seconds", "at", name=op.f("batch_throughput_pkey")),
    )
    op.create_table(
        "gauges",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("document", JSONText(), nullable=False),
        sa.Column("written_at", Timestamp(), server_default=now(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("gauges_pkey")),
    )
    op.add_column("workers", sa.Column("gauges", JSONText(), nullable=True))
    op.create_index("batches_ended_idx", "batches", ["queue", "state"], postgresql_where=_ENDED, sqlite_where=_ENDED)
    op.create_index(
        "batches_unended_idx", "batches", ["queue", "state"], postgresql_where=_UNENDED, sqlite_where=_UNENDED
    )
    op.create_index("callbacks_dead_idx", "callbacks", ["settled_at"], postgresql_where=_DEAD, sqlite_where=_DEAD)


def _ends() -> list[sa.Column[Any]]:
    return [
        sa.Column(name, BigNumber, server_default=sa.text("0"), nullable=False)
        for name in ("settled", "succeeded", "failed", "retried")
    ]


def downgrade() -> None:
    op.drop_index("callbacks_dead_idx", "callbacks")
    op.drop_index("batches_unended_idx", "batches")
    op.drop_index("batches_ended_idx", "batches")
    op.drop_column("workers", "gauges")
    for name in _TABLES:
        op.drop_table(name)
