"""pytest-celery's nodes as local processes, where it would start containers.

A test that asks for `celery_setup` gets a Valkey and a `celery -A workers worker` of its own, with pytest-celery's own
classes around them, so that the same test could run against containers. A test module changes a part by overriding one
of `worker_app`, `worker_options` and `worker_environment`.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from pytest_celery import (  # type: ignore[import-untyped]  # it ships no types
    CeleryBackendCluster,
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerCluster,
    RedisTestBroker,
)

from batching.settings import get_settings
from tests.support import eventually, wait_for_exit
from workers.embedded import embedded_urls
from workers.tether import Tether

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from celery import Celery

    from tests.servers import ValkeyServer

_ROOT = Path(__file__).parent.parent
_numbers = itertools.count(1)


class LocalProcess:
    """What pytest-celery's nodes ask of a container, answered for a process of this machine.

    Args:
        name: Name in messages.
        command: Program and arguments.
        log: File that receives its output, over all restarts.
        environment: Its whole environment.
        ready_prompt: What its log says once it is ready.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str], ready_prompt: str
    ) -> None:
        self.name = name
        self.id = f"{name}-{os.getpid()}-{next(_numbers)}"
        self.command = list(command)
        self.log = log
        self.environment = dict(environment)
        self.ready_prompt = ready_prompt
        self._tether: Tether | None = None
        self._earlier = ""

    @property
    def status(self) -> str:
        """`running` or `exited`, as Docker words it."""
        return "exited" if self._tether is None or self._tether.ended else "running"

    @property
    def celeryconfig(self) -> dict[str, Any]:
        """What this container adds to the configuration of the test's app."""
        return {}

    @property
    def pid(self) -> int:
        """Process id of the process itself."""
        return self._process().pid

    @property
    def children(self) -> list[int]:
        """Process ids of its descendants: pool children, the manager."""
        return [child.pid for child in self._process().children(recursive=True)]

    def start(self) -> None:
        """Start it; `ready` waits."""
        self._tether = Tether(self.command, log=self.log, environment=self.environment, grace=40.0)
        eventually(lambda: self.status == "exited" or self._processes())

    def logs(self) -> str:
        """Everything it printed since it was made, restarts included."""
        return self._earlier + self._current_log()

    def ready(self, timeout: float = 60.0) -> bool:
        """Wait until its log has the ready prompt."""

        def prompted() -> None:
            if self.status == "exited":
                raise RuntimeError(f"{self.name} ended before it was ready; its log:\n{self._current_log()}")
            assert self.ready_prompt in self._current_log(), f"{self.name} is not ready:\n{self._current_log()}"

        eventually(prompted, timeout)
        return True

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal. SIGKILL ends everything inside at once, as it does in a container; others go to process 1."""
        number = _signal_number(signal)
        if number == _signal_number("SIGKILL"):
            self._kill_all()
        else:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 60.0) -> int:
        """Wait until it has ended.

        Returns:
            Its exit code; 128 + n when signal n ended it.
        """
        assert self._tether is not None, f"{self.name} was never started"
        try:
            return self._tether.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {timeout:g} s:\n{self._cry()}") from None

    def restart(self, timeout: float = 60.0) -> None:
        """Stop what runs, start again, wait until it is ready."""
        self.stop()
        self.start()
        self.ready(timeout)

    def stop(self) -> None:
        """Stop it by SIGTERM and wait until it is gone. Safe to call twice."""
        if self._tether is not None:
            self._tether.stop()
            self._earlier += self._current_log()
            self.log.write_bytes(b"")
            self._tether = None

    def reload(self) -> None:
        """Docker would fetch the container's state here; ours is never stale."""

    def teardown(self) -> None:
        """Stop it at the end of a test."""
        self.stop()

    remove = teardown

    def exec_run(self, command: str | Sequence[str]) -> tuple[int, bytes]:
        """Run a command beside it, in its environment.

        Returns:
            Exit code, and its output with its errors.
        """
        done = subprocess.run(
            command,
            shell=isinstance(command, str),
            env=self.environment,
            cwd=_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return done.returncode, done.stdout

    def _cry(self) -> str:
        """Its log, with what each thread is at when it is a worker (celery/apps/worker.py `install_cry_handler`)."""
        before = self._current_log()
        with suppress(AssertionError, psutil.Error):
            self.kill("SIGUSR1")
            eventually(lambda: self._current_log() != before, 5.0)
        return self._current_log()

    def _current_log(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def _processes(self) -> list[psutil.Process]:
        if self._tether is None:
            return []
        try:
            return psutil.Process(self._tether.watcher_pid).children()
        except psutil.NoSuchProcess:
            return []

    def _process(self) -> psutil.Process:
        found = self._processes()
        assert found, f"{self.name} does not run:\n{self._current_log()}"
        return found[0]

    def _kill_all(self) -> None:
        process = self._process()
        # The whole tree is collected first: what a dead parent leaves behind is found by nobody.
        victims = [process, *process.children(recursive=True)]
        process.suspend()
        victims += [child for child in process.children(recursive=True) if child not in victims]
        for victim in victims:
            victim.kill()
        for victim in victims:
            wait_for_exit(victim.pid)
        self.wait()


class LocalValkey:
    """A `ValkeyServer` with a container's manners.

    Args:
        server: The server, started.
    """

    ready_prompt = "Ready to accept connections"

    def __init__(self, server: ValkeyServer) -> None:
        self.server = server
        self.name = "valkey"
        self.id = f"valkey-{os.getpid()}-{next(_numbers)}"

    @property
    def status(self) -> str:
        """`running` or `exited`, as Docker words it."""
        return "running" if self.server.running else "exited"

    @property
    def celeryconfig(self) -> dict[str, Any]:
        """Its URL, the same from inside and outside."""
        return {"url": self.server.url, "host_url": self.server.url, "vhost": "0"}

    def ready(self) -> bool:
        """Whether it answers."""
        with self.server.client() as client:
            return bool(client.ping())

    def logs(self) -> str:
        """What it printed since its last start."""
        return self.server.log.read_text(encoding="utf-8", errors="replace")

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal; SIGKILL and SIGTERM are waited for."""
        number = _signal_number(signal)
        if number == _signal_number("SIGKILL"):
            self.server.kill()
        elif number == _signal_number("SIGTERM"):
            self.server.stop()
        else:
            os.kill(self.server.pid, number)

    def restart(self, timeout: float = 60.0) -> None:
        """Stop and start at the same URL."""
        del timeout
        self.server.restart()

    def reload(self) -> None:
        """Docker would fetch the container's state here; ours is never stale."""

    def teardown(self) -> None:
        """Stop it at the end of a test."""
        self.server.stop()

    remove = teardown


class LocalSetup(CeleryTestSetup):  # type: ignore[misc]  # its base is untyped
    """pytest-celery's set-up; its app finds the workers behind the key prefix that they use."""

    @classmethod
    def update_app_config(cls, app: Celery) -> None:
        """Let the test's app talk to workers that put a prefix before their keys."""
        app.conf.broker_transport_options = {"global_keyprefix": get_settings().key_prefix}
        app.conf.task_ignore_result = True


def worker_process(
    folder: Path, environment: Mapping[str, str], *, app: str = "workers", options: Sequence[str] = ()
) -> LocalProcess:
    """A `celery -A APP worker`, not started.

    Args:
        folder: Where its log goes.
        environment: What it gets beside our own environment: the URLs, mostly.
        app: The application, as `celery -A` reads it.
        options: Further options of `celery worker`.
    """
    number = next(_numbers)
    name = f"worker{number}"
    command = [sys.executable, "-m", "celery", "-A", app, "worker", "--loglevel=INFO", f"--hostname={name}@%h"]
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    return LocalProcess(
        name,
        [*command, *options],
        log=folder / f"{name}.log",
        environment={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
            **environment,
        },
        ready_prompt=" ready.",
    )


@pytest.fixture
def worker_app() -> str:
    """The application of `celery -A`."""
    return "workers"


@pytest.fixture
def worker_options() -> list[str]:
    """Options of `celery worker`."""
    return ["--pool=prefork", "--concurrency=2"]


@pytest.fixture
def worker_environment(tmp_path: Path, key_prefix: str, default_redis_broker: LocalValkey) -> dict[str, str]:
    """What the workers of a test get beside our own environment."""
    return {
        "BATCHING_BROKER_URL": default_redis_broker.server.url,
        "BATCHING_DATABASE_URL": embedded_urls(tmp_path).database_url,
        "BATCHING_KEY_PREFIX": key_prefix,
    }


@pytest.fixture
def default_redis_broker(own_valkey: ValkeyServer) -> LocalValkey:
    """pytest-celery's name for the container of the broker."""
    return LocalValkey(own_valkey)


@pytest.fixture
def celery_broker(default_redis_broker: LocalValkey) -> Iterator[RedisTestBroker]:
    """The one broker; pytest-celery would run each test once more with RabbitMQ."""
    broker = RedisTestBroker(default_redis_broker)
    yield broker
    broker.teardown()


@pytest.fixture
def celery_backend_cluster() -> CeleryBackendCluster | None:
    """None: there is no result backend."""
    return None


@pytest.fixture
def default_worker_container(
    tmp_path: Path, worker_app: str, worker_options: list[str], worker_environment: dict[str, str]
) -> Iterator[LocalProcess]:
    """pytest-celery's name for the container of the worker; started and ready."""
    process = worker_process(tmp_path, worker_environment, app=worker_app, options=worker_options)
    process.start()
    process.ready()
    yield process
    process.stop()


@pytest.fixture
def celery_worker_cluster(celery_worker: CeleryTestWorker) -> CeleryWorkerCluster:
    """One worker; override it for more, with `worker_process` and `CeleryTestWorker`."""
    return CeleryWorkerCluster(celery_worker)


@pytest.fixture
def celery_setup_cls() -> type[CeleryTestSetup]:
    """pytest-celery's set-up, with our key prefix."""
    return LocalSetup


def _signal_number(name: str | int) -> int:
    return int(signal.Signals[name] if isinstance(name, str) else name)
