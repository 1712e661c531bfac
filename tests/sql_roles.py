"""The shipped SQL roles on a real PostgreSQL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from batching import migration
from batching.database import Database

if TYPE_CHECKING:
    from tests.servers import PostgresServer

FILES = Path(__file__).parent.parent / "deploy" / "postgresql"
ROLES = ("batching_owner", "batching_worker", "batching_producer", "batching_reader")


def url_of(role: str, url: str, password: str = "") -> str:
    """The URL of a store for one of the roles."""
    login = f"{role}:{password}" if password else role
    return re.sub(r"://[^@/]*@", f"://{login}@", url)


def install(server: PostgresServer) -> str:
    """A new database, set up as the guide says: roles, migrations by the owner, grants.

    Returns:
        Its URL for the superuser.
    """
    name = server.create_database("template0")
    with server.connect(name) as connection:
        connection.execute((FILES / "roles.sql").read_bytes())
    upgrade(server, name)
    return server.url(name)


def upgrade(server: PostgresServer, name: str) -> None:
    """What the owner does at every upgrade."""
    database = Database(url_of("batching_owner", server.url(name)), pooled=False)
    migration.upgrade(database)
    database.close()
    with server.connect(name, user="batching_owner") as connection:
        connection.execute((FILES / "grants.sql").read_bytes())
