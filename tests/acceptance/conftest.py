"""The stage of each test: PostgreSQL unless it asks for both engines, and a Valkey of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.acceptance.stage import BRISK, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.servers import PostgresServer, ValkeyServer


@pytest.fixture
def engine() -> str:
    """Parametrise a test over `engine` to run it on SQLite as well."""
    return "postgresql"


@pytest.fixture
def brisk() -> Mapping[str, str]:
    """Settings of the stage; override it for other leases."""
    return BRISK


@pytest.fixture
def stage(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    own_valkey: ValkeyServer,
    key_prefix: str,
    engine: str,
    brisk: Mapping[str, str],
) -> Iterator[Stage]:
    """A store with our schema, an empty broker, no process yet."""
    yield from _closing(Stage(tmp_path, request.getfixturevalue(f"{engine}_url"), own_valkey, key_prefix, brisk))


@pytest.fixture
def stage_with_own_sql(
    tmp_path: Path, own_valkey: ValkeyServer, key_prefix: str, own_postgres: PostgresServer
) -> Iterator[Stage]:
    """A stage whose PostgreSQL can be stopped."""
    from batching import migration

    stage = Stage(tmp_path, own_postgres.url(own_postgres.create_database()), own_valkey, key_prefix)
    migration.upgrade(stage.database)
    yield from _closing(stage)


def _closing(stage: Stage) -> Iterator[Stage]:
    try:
        yield stage
    finally:
        stage.close()
