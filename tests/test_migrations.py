"""The migrations make what the models say, on both engines; a schema that does not fit is refused with what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, insert, text

from batching import migration
from batching.database import Database
from batching.errors import SchemaVersionError
from batching.models import metadata, queues

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[Database]:
    database = Database(empty_database_url)
    yield database
    database.close()


def test_the_migrations_make_what_the_models_say(empty: Database) -> None:
    assert migration.upgrade(empty) == (None, migration.latest())

    with empty.begin() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": migration.VERSION_TABLE})
        assert compare_metadata(context, metadata) == []


def test_upgrading_again_changes_nothing_and_keeps_the_rows(empty: Database) -> None:
    migration.upgrade(empty)
    with empty.begin() as connection:
        connection.execute(insert(queues).values(name="kept"))

    assert migration.upgrade(empty) == (migration.latest(), migration.latest())

    with empty.read() as connection:
        assert connection.execute(text("SELECT name FROM queues")).scalars().all() == ["kept"]


def test_checks_of_the_models_are_in_the_migrated_schema(empty: Database) -> None:
    """Autogenerate compares no CHECK constraints, so they are compared by name here."""
    migration.upgrade(empty)
    names = {
        str(constraint.name)
        for table in metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }
    assert names
    with empty.read() as connection:
        if empty.dialect == "postgresql":
            found = connection.execute(text("SELECT conname FROM pg_constraint WHERE contype = 'c'")).scalars().all()
            assert names <= set(found)
        else:
            schema = "\n".join(
                connection.execute(text("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")).scalars()
            )
            assert [name for name in names if name not in schema] == []


def test_a_database_without_tables_is_refused_with_what_to_do(empty: Database) -> None:
    with pytest.raises(SchemaVersionError, match=r"has no batching tables.*run `batching db upgrade`"):
        migration.check(empty)


def test_an_older_schema_is_refused_with_what_to_do(empty: Database) -> None:
    migration.upgrade(empty)
    with empty.begin() as connection:
        connection.execute(text("DELETE FROM batching_version"))
    with pytest.raises(SchemaVersionError, match="run `batching db upgrade`"):
        migration.check(empty)


def test_a_newer_schema_is_refused_by_check_and_by_upgrade(empty: Database) -> None:
    migration.upgrade(empty)
    with empty.begin() as connection:
        connection.execute(text("UPDATE batching_version SET version_num = '9999'"))
    for refuse in (migration.check, migration.upgrade):
        with pytest.raises(SchemaVersionError, match=r"schema 9999 is newer than this version.*upgrade the batching"):
            refuse(empty)
