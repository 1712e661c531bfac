"""A database with ten million settled rows: one real, finished batch, copied inside the server again and again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from benchmarks.drain import drain
from benchmarks.stage import Stage
from tests.support import eventually

if TYPE_CHECKING:
    import psycopg

    from benchmarks.servers import Servers
    from benchmarks.stage import Subject

#: Profiles of the batch that is copied, and bytes of their payloads: short, the rows' number is what matters.
_TEMPLATE: Final = 10_000
_SIZE: Final = 32
#: Seconds that older batches are apart.
_APART: Final = 60


class History:
    """Made once per run of the controller, when it is first asked for: that takes minutes.

    Args:
        servers: Where it is made.
        rows: Settled profiles, a multiple of 10,000.
    """

    def __init__(self, servers: Servers, rows: int) -> None:
        self.rows = rows
        self._servers = servers
        self._name: str | None = None

    def database(self, subject: Subject) -> str:
        """The name of the database."""
        if self._name is None:
            name = self._servers.postgres.create_database()
            self._fill(name, subject)
            self._name = name
        return self._name

    def _fill(self, name: str, subject: Subject) -> None:
        sys.stdout.write(f"making a history of {self.rows:,} settled profiles\n")
        sys.stdout.flush()
        count = min(_TEMPLATE, self.rows)
        with Stage(self._servers, subject, name) as stage:
            stage.preload("noop", count, _SIZE)
            drain(stage, count, 120)
        with self._servers.postgres.connect(name) as connection:
            # The finish of the batch may come a moment after its last profile.
            template = _finished(connection)
            copies = self.rows // count - 1
            _copy(connection, template, copies)
            # What autovacuum would do in the middle of a measurement.
            connection.execute("VACUUM (ANALYZE)")
            connection.execute("CHECKPOINT")


def _finished(connection: psycopg.Connection[Any]) -> str:
    def finished() -> str | None:
        row = connection.execute("SELECT id::text FROM batches WHERE finished_at IS NOT NULL").fetchone()
        return None if row is None else str(row[0])

    return str(eventually(finished, 15))


def _copy(connection: psycopg.Connection[Any], template: str, copies: int) -> None:
    """Copy a batch with all rows that belong to it, under ids that are older than those of the batches to come."""
    # Foreign keys and triggers need no proof of what was right before it was copied.
    connection.execute("SET session_replication_role = replica")
    tables = connection.execute(
        "SELECT c.table_name FROM information_schema.columns c JOIN information_schema.tables t USING (table_name) "
        "WHERE c.column_name = 'batch_id' AND c.table_schema = 'public' AND t.table_type = 'BASE TABLE'"
    ).fetchall()
    statements = [_statement(connection, "batches", "id")]
    statements += [_statement(connection, str(table), "batch_id") for (table,) in tables]
    for number in range(copies, 0, -1):
        identity = connection.execute("SELECT uuidv7(%s * interval '1 second')::text", (-_APART * number,)).fetchall()[
            0
        ][0]
        for statement in statements:
            connection.execute(statement, (identity, template))


def _statement(connection: psycopg.Connection[Any], table: str, reference: str) -> sql.Composed:
    """INSERT of all rows of one batch under another id, whatever columns the table has; the server numbers its own."""
    found = connection.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'public' AND table_name = %s "
        "AND column_name <> %s AND is_identity = 'NO' AND coalesce(column_default, '') NOT LIKE 'nextval%%' "
        "AND is_generated = 'NEVER' ORDER BY ordinal_position",
        (table, reference),
    ).fetchall()
    columns = sql.SQL(", ").join([sql.Identifier(str(name)) for (name,) in found])
    text = "INSERT INTO {table} ({reference}, {columns}) SELECT %s, {columns} FROM {table} WHERE {reference} = %s"
    return sql.SQL(text).format(table=sql.Identifier(table), reference=sql.Identifier(reference), columns=columns)
