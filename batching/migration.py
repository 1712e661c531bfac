"""The schema's version: bring a database up to date, ask which version it has, refuse one that does not fit."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from batching.errors import DatabaseUnavailableError, SchemaVersionError
from batching.settings import mask_url

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from batching.database import Database

#: Not alembic's default name: the tables may live beside an application that has migrations of its own.
VERSION_TABLE = "batching_version"
#: Milliseconds for which a migration waits for a table. Whoever comes after it waits behind it, so it gives up soon,
#: lets them pass, and tries again; and seconds between two tries, and for all of them.
_LOCK_TIMEOUT = 1_000
_PAUSE = 0.5
_PATIENCE = 120.0


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def latest() -> str:
    """The revision that this version of the library needs."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def current(database: Database) -> str | None:
    """The revision that the database has; None for a database without our tables."""
    with database.read() as connection:
        return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def upgrade(database: Database) -> tuple[str | None, str]:
    """Bring the schema up to date while others work; repeatable. Each migration is a transaction of its own.

    Returns:
        The revision before and after.

    Raises:
        SchemaVersionError: The database is newer than this version of the library.
        DatabaseUnavailableError: It cannot be reached, or a table was never free; the migrations so far are kept.
    """
    before = current(database)
    _refuse_newer(database, before)
    if database.dialect == "postgresql":
        _upgrade_beside_others(database)
    else:
        with database.begin() as connection:
            command.upgrade(_config(connection), "head")
    return before, latest()


def _upgrade_beside_others(database: Database) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            with database.connect() as connection:
                connection.exec_driver_sql(f"SET lock_timeout = {_LOCK_TIMEOUT}")
                connection.commit()
                command.upgrade(_config(connection), "head")
                connection.exec_driver_sql("RESET lock_timeout")
        except DatabaseUnavailableError as error:
            if not _waited_for_a_lock(error):
                raise
            if time.monotonic() > until:
                raise DatabaseUnavailableError(
                    f"cannot upgrade the database {mask_url(database.url)}: for {_PATIENCE:g} s, some transaction has "
                    "always held a lock on a table that has to change; end it (`pg_stat_activity` names it), and run "
                    "`batching db upgrade` again"
                ) from error
            threading.Event().wait(_PAUSE)
        else:
            return


def _waited_for_a_lock(error: DatabaseUnavailableError) -> bool:
    """SQLSTATE 55P03, lock not available."""
    return getattr(getattr(error.__cause__, "orig", None), "sqlstate", None) == "55P03"


def check(database: Database) -> None:
    """Refuse a database whose schema is missing, older or newer.

    Raises:
        SchemaVersionError: It does not fit; the message says which way, and what to do.
    """
    found = current(database)
    _refuse_newer(database, found)
    if found != latest():
        state = "has no batching tables" if found is None else f"has the older schema {found}"
        raise SchemaVersionError(
            f"cannot use the database {mask_url(database.url)}: it {state}, this version needs {latest()}; "
            "run `batching db upgrade`"
        )


def _refuse_newer(database: Database, found: str | None) -> None:
    if found is None:
        return
    try:
        ScriptDirectory.from_config(_config()).get_revision(found)
    except CommandError:
        raise SchemaVersionError(
            f"cannot use the database {mask_url(database.url)}: its schema {found} is newer than this version of "
            f"batching, which knows up to {latest()}; upgrade the batching package"
        ) from None
