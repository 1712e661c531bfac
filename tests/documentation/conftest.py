"""One installation for all tests of the pages and of the examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.documentation.installation import Installation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import PostgresServer, ValkeyServer


@pytest.fixture(scope="package")
def installation(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: PostgresServer,
    postgres_template: str,
    valkey_server: ValkeyServer,
) -> Iterator[Installation]:
    """PostgreSQL, Valkey, and a worker with the handlers of the pages and of the examples."""
    made = Installation(tmp_path_factory.mktemp("installation"), postgres_server, postgres_template, valkey_server)
    try:
        made.start()
        yield made
    finally:
        made.close()
