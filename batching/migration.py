"""The schema's version: bring a database up to date, ask which version it has, refuse one that does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from batching.errors import SchemaVersionError
from batching.settings import mask_url

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from batching.database import Database

#: Not alembic's default name: the tables may live beside an application that has migrations of its own.
VERSION_TABLE = "batching_version"


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
    """Bring the schema up to date, all in one transaction; repeatable.

    Returns:
        The revision before and after.

    Raises:
        SchemaVersionError: The database is newer than this version of the library.
    """
    before = current(database)
    _refuse_newer(database, before)
    with database.begin() as connection:
        command.upgrade(_config(connection), "head")
    return before, latest()


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
