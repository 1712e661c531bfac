"""What an estimate rests on: three columns with constant defaults on a small table."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_COLUMNS = {"counted": sa.Integer, "over_seconds": sa.Double, "deviation": sa.Double}


def upgrade() -> None:
    for name, kind in _COLUMNS.items():
        op.add_column("rates", sa.Column(name, kind(), server_default=sa.text("0"), nullable=False))


def downgrade() -> None:
    for name in _COLUMNS:
        op.drop_column("rates", name)
