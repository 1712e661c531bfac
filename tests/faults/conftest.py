"""The theatre: one troupe, and servers that all stories share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.theatre import Theatre
from tests.faults.troupe import Troupe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import PostgresServer, ValkeyServer


@pytest.fixture(scope="module")
def theatre(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: PostgresServer,
    postgres_template: str,
    sqlite_template: Path,
    valkey_server: ValkeyServer,
) -> Iterator[Theatre]:
    """Plays stories, each on a store of its own."""
    with Troupe() as troupe:
        folder = tmp_path_factory.mktemp("theatre")
        yield Theatre(troupe, folder, postgres_server, postgres_template, sqlite_template, valkey_server)
