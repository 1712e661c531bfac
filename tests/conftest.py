"""Servers, fresh stores and clean settings for every test."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from typing import TYPE_CHECKING

import pytest

from batching import migration
from batching.database import Database
from batching.settings import get_settings
from tests.command_line import manager, run  # noqa: F401 - fixtures, as those below
from tests.nodes import (  # noqa: F401 - fixtures: pytest finds them here by name
    celery_backend_cluster,
    celery_broker,
    celery_setup_cls,
    celery_worker_cluster,
    default_redis_broker,
    default_worker_container,
    worker_app,
    worker_environment,
    worker_options,
)
from tests.servers import PostgresServer, ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: The database that fresh PostgreSQL stores are copied from.
_TEMPLATE = "batching_template"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--exhaustive` runs what `make test` leaves to `make faults`."""
    parser.addoption("--exhaustive", action="store_true", help="run the tests that are marked exhaustive, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless it was asked for."""
    if not config.getoption("--exhaustive"):
        left_out = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]


@pytest.fixture(autouse=True)
def settings_env(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No `BATCHING_*` variable from outside, and no settings remembered from another test."""
    for name in tuple(os.environ):
        if name.startswith("BATCHING_"):
            monkeypatch.delenv(name)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell starts background jobs with SIGINT ignored, and children inherit that; tests of Ctrl-C need it back."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL for the session; a test that kills or restarts one makes its own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """A database with our schema, to copy from: 30 ms a copy; creating the tables takes longer."""
    with postgres_server.connect() as connection:
        connection.execute(f"CREATE DATABASE {_TEMPLATE}")
    _create_schema(postgres_server.url(_TEMPLATE))
    return _TEMPLATE


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """One Valkey for the session; a test that kills or freezes one makes its own."""
    with ValkeyServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Valkey of the test's own, to kill, freeze and restart."""
    with ValkeyServer(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL of the test's own, to kill and restart."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with our schema, to copy from."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    _create_schema(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """A fresh SQLite store with our schema."""
    path = tmp_path / "batching.db"
    shutil.copyfile(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgresql_url(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    """A fresh PostgreSQL store with our schema."""
    name = postgres_server.create_database(postgres_template)
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh store with our schema, on each engine in turn."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store without any table, on each engine in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create_database()
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A `Database` on a fresh store, on each engine in turn."""
    store = Database(database_url)
    yield store
    store.close()


@pytest.fixture
def key_prefix(monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of the test's own for every Redis key, in the settings of this process and of those it starts."""
    prefix = f"test-{uuid.uuid4().hex[:8]}:"
    monkeypatch.setenv("BATCHING_KEY_PREFIX", prefix)
    get_settings.cache_clear()
    return prefix


@pytest.fixture
def broker_url(valkey_server: ValkeyServer, key_prefix: str) -> str:
    """An empty Valkey, with a key prefix of the test's own."""
    valkey_server.flush()
    return valkey_server.url


def _create_schema(url: str) -> None:
    # By the migrations, as users do: a worker refuses a store without a version.
    store = Database(url)
    migration.upgrade(store)
    store.close()
