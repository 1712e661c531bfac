"""Verbs of the command line, called in this process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from click.testing import CliRunner

from batching import migration
from batching.cli.main import cli
from batching.queue_manager import QueueManager
from batching.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result

    from batching.database import Database


@pytest.fixture
def manager(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[QueueManager]:
    """A store with a schema of the right version, which the environment names."""
    with database.begin() as connection:
        command.stamp(migration._config(connection), "head")
    monkeypatch.setenv("BATCHING_DATABASE_URL", database.url)
    get_settings.cache_clear()
    manager = QueueManager(database)
    yield manager
    manager.close()


@pytest.fixture
def run(manager: QueueManager) -> Callable[..., Result]:
    """Call a verb in this process."""
    del manager
    return call


def call(*arguments: str, stdin: str | bytes | None = None, env: dict[str, str] | None = None) -> Result:
    get_settings.cache_clear()
    return CliRunner().invoke(cli, [str(each) for each in arguments], input=stdin, env=env)


def document(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
