"""The two servers that everybody is measured on: PostgreSQL with fsync, Valkey with its append-only file."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from benchmarks.contender import Place
from tests.servers import PostgresServer, ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

#: The controller's own role, so that its questions can be told from the contender's.
OBSERVER = "observer"


class Servers:
    """PostgreSQL and Valkey for one run of the controller; every measurement gets an empty place on them."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._numbers = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder = Path(tempfile.mkdtemp(prefix="batching-bench-", dir="/var/tmp"))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.valkey = stack.enter_context(ValkeyServer(self.folder / "valkey"))
            self.postgres = stack.enter_context(PostgresServer(fsync=True))
            self._tune()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _tune(self) -> None:
        """Settings of any production server; the statement counter is loaded, and off until it is asked for."""
        with self.postgres.connect() as connection:
            connection.execute(f"CREATE ROLE {OBSERVER} SUPERUSER LOGIN")
            for name, value in {
                "shared_preload_libraries": "pg_stat_statements",
                "pg_stat_statements.track": "none",
                "max_wal_size": "4GB",
            }.items():
                connection.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.SQL(name), sql.Literal(value)))
        self.postgres.restart()
        with self.postgres.connect() as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")

    @contextmanager
    def place(self, database: str | None = None) -> Iterator[Place]:
        """An empty database (or the one that is named), an empty Valkey, an empty journal; all gone afterwards."""
        self._numbers += 1
        name = database or self.postgres.create_database()
        folder = self.folder / f"place-{self._numbers}"
        folder.mkdir()
        journals = Path(tempfile.mkdtemp(prefix="batching-bench-", dir=_memory()))
        self.empty_valkey()
        socket = self.valkey.socket
        try:
            yield Place(
                redis_url=f"unix://{socket}?db=0",
                kombu_url=self.valkey.url,
                postgres_url=f"postgresql://postgres@/{name}?host={self.postgres.folder}",
                journal=str(journals / "journal"),
                directory=str(folder),
            )
        finally:
            shutil.rmtree(journals, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            if database is None:
                self.postgres.drop_database(name)

    def empty_valkey(self) -> None:
        """Flush it, and let its counters start anew."""
        with self.valkey.client() as client:
            client.flushall()
            client.config_resetstat()

    def observe(self, postgres_url: str) -> psycopg.Connection[Any]:
        """A connection of the controller's own; the caller closes it."""
        return psycopg.connect(postgres_url.replace("postgres@", f"{OBSERVER}@", 1), autocommit=True)

    def checkpoint(self) -> None:
        """Write back what the preparation left, so that the measurement does not pay for it."""
        with self.postgres.connect() as connection:
            connection.execute("CHECKPOINT")

    def count_statements(self, *, on: bool) -> None:
        """Start counting statements from zero, or stop."""
        with self.postgres.connect() as connection:
            connection.execute(f"ALTER SYSTEM SET pg_stat_statements.track = '{'all' if on else 'none'}'")
            connection.execute("SELECT pg_reload_conf(), pg_stat_statements_reset()")

    @property
    def postmaster(self) -> int:
        """Process id of PostgreSQL's first process."""
        return int((self.postgres.folder / "data" / "postmaster.pid").read_text().split()[0])

    def versions(self) -> dict[str, str]:
        """What the servers call themselves."""
        with self.postgres.connect() as connection:
            version = str(connection.execute("SHOW server_version").fetchall()[0][0])
        with self.valkey.client() as client:
            info: Any = client.info("server")
        return {"PostgreSQL": version, "Valkey": str(info.get("valkey_version", info["redis_version"]))}


def _memory() -> str:
    shared = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    return str(shared) if shared.is_dir() else tempfile.gettempdir()
