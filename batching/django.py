"""For producers on Django: submit in the transaction of `transaction.atomic()`. Nothing else here knows Django."""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import NullPool, create_engine

from batching.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

#: Django's name of a kind of database, and what speaks to it on our side.
_DIALECTS: Final = {"postgresql": "postgresql+psycopg", "sqlite": "sqlite"}


@contextmanager
def joined(using: str = "default") -> Iterator[Connection]:
    """Django's own connection, as `session=` takes it: what is written through it is part of Django's transaction.

    The batch exists if, and only if, the `transaction.atomic()` around it commits.

    Args:
        using: The alias of the database, as Django's `using` has it; it must be the one that has the queue's tables.

    Raises:
        ConfigurationError: There is no transaction to join, or this database is neither PostgreSQL by psycopg 3 nor
            SQLite.
    """
    from django.db import connections  # noqa: PLC0415 - only here

    own = connections[using]
    if own.vendor not in _DIALECTS:
        raise ConfigurationError(
            f"cannot join the transaction of Django's database {using!r}: it is {own.vendor}; batches live in "
            "PostgreSQL or SQLite"
        )
    if not own.in_atomic_block:
        raise ConfigurationError(
            f"cannot join the transaction of Django's database {using!r}: there is none; call this inside of "
            "`with transaction.atomic():`"
        )
    own.ensure_connection()
    with _engine(using, own.vendor).connect() as connection:
        yield connection


@lru_cache
def _engine(using: str, vendor: str) -> Engine:
    """It opens nothing: its connection is Django's, of the thread that asks."""
    from django.db import connections  # noqa: PLC0415 - only here

    options: dict[str, Any] = {} if vendor == "sqlite" else {"use_native_hstore": False}
    return create_engine(
        f"{_DIALECTS[vendor]}://",
        creator=lambda: _Borrowed(connections[using].connection),
        poolclass=NullPool,
        pool_reset_on_return=None,
        hide_parameters=True,
        **options,
    )


class _Borrowed:
    """A driver's connection that somebody else commits, rolls back and closes.

    Args:
        connection: Django's, of psycopg 3 or sqlite3.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        """A plain cursor: Django's own would put the parameters into the statement by itself."""
        if type(self._connection).__module__.startswith("sqlite3"):
            return self._connection.cursor(*arguments, **options)
        from psycopg import Cursor  # noqa: PLC0415 - SQLite never loads the driver

        return Cursor(self._connection, *arguments, **options)

    def commit(self) -> None:
        """It is Django's to do."""

    def rollback(self) -> None:
        """It is Django's to do."""

    def close(self) -> None:
        """It is Django's to do."""

    def add_notice_handler(self, handler: Any) -> None:
        """Not one more for each batch, on a connection that stays open."""
