"""COPY: rows in PostgreSQL's binary format, streamed into a table while they are made."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Connection

# https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format": no flags, no extension; -1 fields end it.
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
#: Bytes that are sent at once: few calls, and the server has always something to do.
_BLOCK = 65_536

#: The length of a field, which stands before it.
length = Struct(">i").pack


def can_copy(connection: Connection) -> bool:
    """Whether rows can be copied over this connection.

    Others (psycopg2, another encoding of the client) take statements with parameters.
    """
    if connection.dialect.driver != "psycopg" or connection.dialect.is_async:
        return False
    driver: Any = connection.connection.driver_connection
    return bool(driver.info.encoding == "utf-8")


def copy_rows(connection: Connection, table: str, columns: Sequence[str], rows: Iterable[bytes]) -> None:
    """Append rows to a table; what is yet to come is asked for while the server works on what came.

    Args:
        connection: One that can copy.
        table: Its name.
        columns: Their names, in the order of the fields.
        rows: Each the number of its fields (two bytes), then for each field `length` and content, as the type's binary
            input has it; text in UTF-8.

    Raises:
        DBAPIError: As SQLAlchemy raises it for a statement. What `rows` raises passes as it is.
    """
    import psycopg  # noqa: PLC0415 - SQLite never loads the driver

    statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN (FORMAT binary)"
    driver: Any = connection.connection.driver_connection
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for block in _blocks(rows):
                copy.write(block)
    except psycopg.Error as error:
        if driver.closed:
            connection.invalidate(error)  # or the pool would hand it out again
        raise DBAPIError.instance(
            statement, None, error, psycopg.Error, connection_invalidated=driver.closed, dialect=connection.dialect
        ) from error


def _blocks(rows: Iterable[bytes]) -> Iterator[bytes]:
    block = bytearray(_HEADER)
    for row in rows:
        block += row
        if len(block) >= _BLOCK:
            yield bytes(block)
            block.clear()
    yield bytes(block + _TRAILER)
