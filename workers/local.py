"""Server, worker and dashboard of one command on one machine: what `demo`, `run` and `up` start, watch and stop.

All are tied to this process (`workers/tether.py`), so that nothing stays behind after kill -9, and stand in
sessions of their own, so that a Ctrl-C in the terminal reaches only this process, which stops them in their order.
"""

from __future__ import annotations

import contextlib
import os
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final

from batching import migration
from batching.database import Database
from batching.errors import BatchingError, BrokerUnavailableError, ConfigurationError
from workers.embedded import EmbeddedServer, embedded_urls, find_running
from workers.interpreter import environment, python
from workers.publisher import RedisPublisher
from workers.tether import Tether

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from batching.settings import Settings

#: Seconds beyond the drain that a worker gets to settle, say goodbye and end, before it is killed.
_AFTER_DRAIN: Final = 10.0
#: Seconds for a configured broker to answer at the start.
_BROKER_ANSWERS: Final = 5.0
#: Seconds that a server shared with another command may be away, while that command starts it again.
_SHARED_GRACE: Final = 10.0
_TAIL_LINES: Final = 25
_TAIL_BYTES: Final = 16_384
#: Before the address, in what `batching dashboard` prints.
_ADDRESS: Final = "dashboard: "


class WorkerEndedError(BatchingError):
    """The worker that this command started is not running any more."""


class DashboardEndedError(BatchingError):
    """The dashboard that this command started is not running any more."""


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """The worker to start.

    Args:
        concurrency: Pool slots; None for one per processor.
        pool: Celery's name of the pool.
        handlers: Modules that it imports for their marks.
        queues: Queues that it serves; `*` for all.
        loglevel: Celery's log level, for the worker's log file.
    """

    concurrency: int | None = None
    pool: str = "prefork"
    handlers: tuple[str, ...] = ()
    queues: tuple[str, ...] = ("*",)
    loglevel: str = "WARNING"

    def command(self) -> list[str]:
        """Program and arguments, for this very interpreter."""
        words = python("workers", "--quiet", "worker", "--pool", self.pool)
        # Its own name: a second worker of the same name on this machine would make remote control ambiguous.
        words += ["--loglevel", self.loglevel, "--hostname", f"batching-{os.getpid()}@%h"]
        return words if self.concurrency is None else [*words, "--concurrency", str(self.concurrency)]


class LocalServices:
    """An embedded server for whatever has no URL, one worker with its manager, and a dashboard if that is wanted.

    Args:
        settings: Where the URLs come from, and the home folder; a URL that is set is used, not replaced.
        plan: The worker to start.
    """

    def __init__(self, settings: Settings, plan: WorkerPlan) -> None:
        self.home = settings.home.absolute()
        self.database_url = settings.database_url or embedded_urls(self.home).database_url
        self._owns_database = settings.database_url is None
        self._settings = settings
        self._plan = plan
        self._broker_url = settings.broker_url
        self._server: EmbeddedServer | None = None
        self._worker: Tether | None = None
        self._dashboard: Tether | None = None
        self._shared_seen = monotonic()

    @property
    def broker_url(self) -> str:
        """URL of the broker that the worker uses.

        Raises:
            ConfigurationError: Nothing was started yet.
        """
        if self._broker_url is None:
            raise ConfigurationError(f"there is no broker in {self.home} yet: the local services are not started")
        return self._broker_url

    @property
    def log(self) -> Path:
        """What the worker printed. Whoever has the server has the folder to itself; others get a file of their own."""
        return self._file("worker")

    @property
    def dashboard_log(self) -> Path:
        """What the dashboard printed."""
        return self._file("dashboard")

    def _file(self, name: str) -> Path:
        return self.home / (f"{name}.log" if self._server is not None else f"{name}-{os.getpid()}.log")

    def __enter__(self) -> Self:
        self.prepare()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def prepare(self) -> None:
        """Start the server and prepare the store: from here on batches can be submitted.

        Raises:
            BatchingError: One of them cannot be had; what was started is stopped.
        """
        self._make_home()
        try:
            self._start_server()
            self._check_broker()
            self._prepare_store()
        except BaseException:
            self.stop()
            raise

    def start_worker(self) -> None:
        """Start the worker, which starts its manager. Returns while it still boots; `check` tells when that fails.

        Only after `prepare`: a worker checks the schema when it boots, and does not come up without it.
        """
        self._worker = Tether(
            self._plan.command(),
            log=self.log,
            grace=self._settings.drain_timeout + _AFTER_DRAIN,
            environment=self._environment(),
        )

    def start_dashboard(self, port: int) -> None:
        """Start the dashboard, on this machine alone; `dashboard_address` tells where, once it is there.

        Args:
            port: Where it listens; 0 takes a free one.
        """
        self._dashboard = Tether(
            python("batching.cli.main", "dashboard", "--port", str(port)),
            log=self.dashboard_log,
            environment=self._environment(),
        )

    def dashboard_address(self) -> str | None:
        """Where the dashboard is; None while it starts, or when nobody wants one.

        Raises:
            DashboardEndedError: It ended; the message has the end of its log.
        """
        ended = self._dashboard is not None and self._dashboard.ended
        said = _tail(self.dashboard_log)
        if self._dashboard is not None and ended:
            raise DashboardEndedError(f"the dashboard ended with code {self._dashboard.wait()}; it said:\n{said}")
        lines = [line for line in said.splitlines() if line.startswith(_ADDRESS)]
        return lines[0].removeprefix(_ADDRESS) if lines else None

    def check(self) -> None:
        """Look after what runs: a server that died is started again, under the same URL.

        Raises:
            WorkerEndedError: The worker ended; the message has the end of its log.
            BrokerUnavailableError: The server does not start again.
        """
        if self._server is not None:
            self._server.start()
        elif self._settings.broker_url is None:
            self._check_shared()
        if self._worker is not None and self._worker.ended:
            raise WorkerEndedError(
                f"the worker ended with code {self._worker.wait()}; its log {self.log} ends so:\n{self.log_tail()}"
            )

    def _check_shared(self) -> None:
        """The server of somebody else's `up`: it is started again when it dies, but not when that command ends."""
        if find_running(self.home) is not None:
            self._shared_seen = monotonic()
        elif monotonic() - self._shared_seen > _SHARED_GRACE:
            raise BrokerUnavailableError(
                f"the server in {self.home} belonged to another `batching` command, and ended with it; start this "
                "one again"
            )

    def stop(self) -> None:
        """Stop everything and wait until it is gone. Safe to call twice. A Ctrl-C meanwhile kills the worker.

        The worker goes first: while it drains it settles what it ran and gives back the rest, and it can end its own
        conversation with the server. People can watch that, so the dashboard follows. Nobody is then left who would
        miss the server.
        """
        with ExitStack() as ends:
            if self._server is not None:
                ends.callback(self._server.stop)
            if self._dashboard is not None:
                ends.callback(self._stop_tidily, self._dashboard, self.dashboard_log)
            if self._worker is not None:
                ends.callback(self._stop_tidily, self._worker, self.log)

    def log_tail(self) -> str:
        """The last lines of the worker's log."""
        return _tail(self.log)

    def _stop_tidily(self, process: Tether, log: Path) -> None:
        try:
            process.stop()
            if self._server is None and process.wait() == 0:
                log.unlink(missing_ok=True)
        except KeyboardInterrupt:
            # The whole group: watcher, worker and pool. The sweep finds what it ran, and gives it back.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.watcher_pid, signal.SIGKILL)
            process.wait()
            raise

    def _make_home(self) -> None:
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"cannot use {self.home} as home folder: {error}; set BATCHING_HOME to a folder that you can write"
            ) from None

    def _start_server(self) -> None:
        if self._broker_url is None:
            # `batching up` may run in this folder: then its server is the one to share.
            self._broker_url = find_running(self.home)
        if self._broker_url is None:
            self._server = EmbeddedServer(self.home)
            self._server.start()
            self._broker_url = self._server.url

    def _check_broker(self) -> None:
        """A worker would wait for it as long as it takes; whoever started this command wants to know now."""
        publisher = RedisPublisher(self.broker_url, self._settings.key_prefix, timeout=_BROKER_ANSWERS)
        try:
            publisher.check()
        finally:
            publisher.close()

    def _prepare_store(self) -> None:
        database = Database(self.database_url, pooled=False)
        try:
            # A database that somebody configured is migrated when they say so (`batching db upgrade`), not in passing.
            (migration.upgrade if self._owns_database else migration.check)(database)
        finally:
            database.close()

    def _environment(self) -> dict[str, str]:
        return environment(
            BATCHING_DATABASE_URL=self.database_url,
            BATCHING_BROKER_URL=self.broker_url,
            BATCHING_HANDLERS=",".join(self._plan.handlers),
            BATCHING_QUEUES=",".join(self._plan.queues),
            BATCHING_HOME=str(self.home),
            # One machine, one worker: without its manager nothing would move.
            BATCHING_MANAGER="1",
            PYTHONUNBUFFERED="1",
        )


def _tail(log: Path) -> str:
    """The last lines of a log."""
    with contextlib.suppress(OSError), log.open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL_BYTES))
        return "\n".join(stream.read().decode(errors="replace").splitlines()[-_TAIL_LINES:])
    return "(no log)"
