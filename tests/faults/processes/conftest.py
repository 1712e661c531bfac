"""Scenes for faults of whole processes and servers, as in the acceptance tests, with an oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batching import migration
from tests.acceptance.conftest import brisk, engine  # noqa: F401 - fixtures: pytest finds them here by name
from tests.faults.processes.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.servers import PostgresServer, ValkeyServer


@pytest.fixture
def acknowledge() -> str:
    """When messages are acknowledged; tests ask for the other way, too, by a parameter of this name."""
    return "pop"


@pytest.fixture
def scene(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    own_valkey: ValkeyServer,
    key_prefix: str,
    engine: str,  # noqa: F811 - the fixture
    brisk: Mapping[str, str],  # noqa: F811 - the fixture
    acknowledge: str,
) -> Iterator[Scene]:
    """A store with our schema, an empty broker, no process yet."""
    settings = {**brisk, "BATCHING_ACKNOWLEDGE": acknowledge}
    found = Scene(tmp_path, request.getfixturevalue(f"{engine}_url"), own_valkey, key_prefix, settings)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def scene_with_own_sql(
    tmp_path: Path,
    own_valkey: ValkeyServer,
    key_prefix: str,
    own_postgres: PostgresServer,
    brisk: Mapping[str, str],  # noqa: F811 - the fixture
) -> Iterator[Scene]:
    """A scene whose PostgreSQL is its own, to stop and to fill."""
    found = Scene(tmp_path, own_postgres.url(own_postgres.create_database()), own_valkey, key_prefix, brisk)
    migration.upgrade(found.database)
    try:
        yield found
    finally:
        found.close()
