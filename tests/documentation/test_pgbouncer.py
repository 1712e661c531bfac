"""PgBouncer in transaction mode, a real one: everything that workers and people do goes through it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from batching import BatchOptions
from batching.database import Database
from batching.doctor import examine
from batching.errors import ConfigurationError, DatabaseUnavailableError
from batching.queue_manager import QueueManager
from batching.settings import Settings
from tests.documentation.pages import blocks
from tests.nodes import worker_process
from tests.servers import as_nobody
from tests.support import eventually
from workers.tether import Tether

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import PostgresServer, ValkeyServer

_PORT = 6432  # names the socket's file; nothing listens on TCP


class PgBouncer:
    """A PgBouncer before a PostgreSQL, set up as the guide says.

    Args:
        server: What it stands before.
        database: The one that it leads to.
    """

    def __init__(self, server: PostgresServer, database: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="batching-pgb-", dir="/tmp"))
        self._database = database
        self.written = self._configuration(server)
        prefix = as_nobody(self.folder) if os.geteuid() == 0 else []
        self._tether = Tether(
            [*prefix, self._program(), str(self.folder / "pgbouncer.ini")], log=self.folder / "output"
        )
        eventually(lambda: self.ask("SHOW VERSION"), 30)

    def _program(self) -> str:
        """A copy of it, where somebody else than root may start it."""
        made = Path(sys.prefix) / "pgbouncer"
        assert (made / "run").exists(), f"there is no PgBouncer: `make {made}/run` brings one"
        if (made / "run").is_symlink():
            return str((made / "run").resolve())
        return str(shutil.copytree(made, self.folder / "program", symlinks=True) / "run")

    def url(self, options: str = "") -> str:
        """Of the database behind it."""
        return f"postgresql+psycopg://postgres@/{self._database}?host={self.folder}&port={_PORT}{options}"

    def ask(self, question: str) -> list[dict[str, Any]]:
        """Ask its console."""
        try:
            with psycopg.connect(
                host=str(self.folder), port=_PORT, user="postgres", dbname="pgbouncer", autocommit=True
            ) as connection:
                cursor = connection.execute(question.encode())
                names = [each.name for each in cursor.description or ()]
                return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        except psycopg.OperationalError as error:
            raise AssertionError(f"PgBouncer does not answer: {error}") from None

    def close(self) -> None:
        """Stop it."""
        self._tether.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _configuration(self, server: PostgresServer) -> ConfigParser:
        """The guide's, but for where things are and who is let in."""
        [text] = [block.text for block in blocks("docs/guide/pgbouncer.md") if block.language == "ini"]
        written = ConfigParser(interpolation=None)
        written.read_string(text)
        guide = written["databases"]["batching"]
        query = guide[guide.index("connect_query=") :]
        written["databases"] = {
            self._database: f"host={server.folder} dbname={self._database} user=postgres {query}",
        }
        ours = {
            "listen_port": str(_PORT),
            "unix_socket_dir": str(self.folder),
            "auth_type": "any",
            "admin_users": "postgres",
            "default_pool_size": "3",
            "logfile": str(self.folder / "log"),
            "pidfile": str(self.folder / "pid"),
        }
        written["pgbouncer"].update(ours)
        del written["pgbouncer"]["auth_file"]
        with (self.folder / "pgbouncer.ini").open("w") as file:
            written.write(file)
        return written


@pytest.fixture(scope="module")
def bouncer(postgres_server: PostgresServer, postgres_template: str) -> Iterator[PgBouncer]:
    made = PgBouncer(postgres_server, postgres_server.create_database(postgres_template))
    yield made
    made.close()


def test_the_guides_pool_is_in_transaction_mode(bouncer: PgBouncer) -> None:
    assert bouncer.written["pgbouncer"]["pool_mode"] == "transaction"
    database = Database(bouncer.url("&pgbouncer=true"))
    with database.read() as connection:
        shown = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar()
            for name in ("enable_seqscan", "jit", "statement_timeout", "timezone")
        }
    database.close()
    assert shown == {"enable_seqscan": "off", "jit": "off", "statement_timeout": "2s", "timezone": "UTC"}


def test_a_url_that_does_not_say_so_is_refused_with_what_to_do(bouncer: PgBouncer) -> None:
    database = Database(bouncer.url())
    with pytest.raises(DatabaseUnavailableError, match="add pgbouncer=true to the options"), database.read():
        pass
    with pytest.raises(ConfigurationError, match="takes true or false"):
        Database(bouncer.url("&pgbouncer=yes"))


def test_a_whole_life_through_it(
    bouncer: PgBouncer, valkey_server: ValkeyServer, key_prefix: str, tmp_path: Path
) -> None:
    # Given two workers and a manager that reach SQL through three connections, which they share
    url = bouncer.url("&pgbouncer=true")
    variables = {
        "BATCHING_DATABASE_URL": url,
        "BATCHING_BROKER_URL": valkey_server.url,
        "BATCHING_KEY_PREFIX": key_prefix,
        "BATCHING_HANDLERS": "tests.documentation.handlers",
    }
    nodes = [worker_process(tmp_path, variables, options=("--pool=prefork", "--concurrency=2")) for _ in range(2)]
    settings = Settings(database_url=url, broker_url=valkey_server.url, key_prefix=key_prefix)
    queue = QueueManager(Database(url), valkey_server.url, settings)
    for node in nodes:
        node.start()
    try:
        for node in nodes:
            node.ready()
        # When a small batch, one by COPY, one that fails and one in a transaction of its producer's are submitted
        texts = [(f"k{number}", {"text": "one two"}) for number in range(1_500)]
        options = BatchOptions(max_attempts=2, max_passes=2, retry_backoff=0.1, pass_backoff=0.1)
        small = queue.submit("words.count", texts[:50])
        large = queue.submit("words.count", iter(texts))
        failing = queue.submit("words.count", [*texts[:50], ("bad", {"text": None})], options=options)
        engine = create_engine(bouncer.url(), connect_args={"prepare_threshold": None})
        with Session(engine) as session:
            joined = queue.submit("words.count", texts[:50], session=session)
            session.commit()
        with Session(engine) as session:
            gone = queue.submit("words.count", texts[:50], session=session)
            session.rollback()
        # Then each ends as it would without a pooler
        views = [batch.wait(90) for batch in (small, large, failing, joined)]
        assert [view.state for view in views] == ["succeeded", "succeeded", "failed", "succeeded"], views
        assert views[1].succeeded == 1_500
        assert sum(1 for line in large.results() if line.result == {"words": 2}) == 1_500
        assert not [view for view in queue.statistics.batches() if view.id == gone.id]
        # And by few connections for many clients, none of which kept anything on the server
        pools = [pool for pool in bouncer.ask("SHOW POOLS") if pool["database"] != "pgbouncer"]
        assert sum(int(pool["cl_active"]) + int(pool["cl_waiting"]) for pool in pools) > 3
        assert sum(int(pool["sv_active"]) + int(pool["sv_idle"]) + int(pool["sv_used"]) for pool in pools) <= 3
        assert examine(queue.database).ok
        for node in nodes:
            assert "prepared statement" not in node.logs()
            assert "cannot reach the database" not in node.logs()
        engine.dispose()
    finally:
        for node in nodes:
            node.stop()
        queue.database.close()
