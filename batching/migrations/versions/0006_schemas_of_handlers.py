"""The JSON schemas of handlers' payloads, as workers advertise them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from batching.dialects import JSONText, Timestamp, now

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "handler_schemas",
        sa.Column("handler", sa.String(length=255), nullable=False),
        sa.Column("schema", JSONText(), nullable=False),
        sa.Column("advertised_at", Timestamp(), server_default=now(), nullable=False),
        sa.PrimaryKeyConstraint("handler", name=op.f("handler_schemas_pkey")),
    )


def downgrade() -> None:
    op.drop_table("handler_schemas")
