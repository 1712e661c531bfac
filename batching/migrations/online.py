"""Changes of large tables that hold up nobody who reads or writes them meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import op
from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement


def create_index(
    name: str,
    table: str,
    columns: Sequence[str | ColumnElement[object]],
    *,
    unique: bool = False,
    where: str | None = None,
) -> None:
    """Make an index while others write the table.

    On PostgreSQL that takes CREATE INDEX CONCURRENTLY, which stands outside of any transaction
    (https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY): what the migration did
    before is committed here. So such a migration does nothing else, and can be repeated when it was cut short; then an
    invalid index is left, which is dropped first. It waits for older transactions, without anybody waiting for it.

    Args:
        name: The index.
        table: Its table.
        columns: Names, or expressions.
        unique: Whether no two rows may be equal in them.
        where: Condition of a partial index, the same for both engines.
    """
    condition = None if where is None else text(where)
    if op.get_bind().dialect.name != "postgresql":
        op.create_index(name, table, list(columns), unique=unique, sqlite_where=condition)
        return
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        op.create_index(
            name, table, list(columns), unique=unique, postgresql_where=condition, postgresql_concurrently=True
        )
