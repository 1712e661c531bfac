"""A real headless Chromium, and a house to visit: both are shared by the tests of a module."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import sync_playwright

from batching.settings import get_settings
from tests.acceptance.stage import BRISK, Stage
from tests.browser.house import House, Visit
from tests.servers import PostgresServer, ValkeyServer
from tools import browser as finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from playwright.sync_api import Browser

#: What keeps it quiet and alone: it asks nobody for updates, sends nothing, and needs neither a GPU nor a sandbox of
#: its own, which it refuses to root.
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


# Not for the session: tests elsewhere look for processes that were left behind, and a browser has many.
@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = finding.find()
    if program is None:
        pytest.fail(finding.advice())
    home = tmp_path_factory.mktemp("browser")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=program,
            args=_FLAGS,
            env={**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_CACHE_HOME": str(home)},
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def house(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, postgres_template: str
) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    name = postgres_server.create_database(postgres_template)
    get_settings.cache_clear()
    with ValkeyServer(folder / "valkey") as valkey:
        stage = Stage(folder, postgres_server.url(name), valkey, f"test-{uuid.uuid4().hex[:8]}:", BRISK)
        made = House(stage)
        try:
            made.open()
            yield made
        finally:
            stage.close()
    postgres_server.drop_database(name)


@pytest.fixture
def visit(chromium: Browser, house: House) -> Iterator[Callable[..., Visit]]:
    """Begins a visit; at the end of the test, none may have had an error or have asked for anything from elsewhere."""
    visits: list[Visit] = []

    def begin(**options: Any) -> Visit:
        visits.append(Visit(chromium, house, **options))
        return visits[-1]

    yield begin
    for each in visits:
        each.close()
