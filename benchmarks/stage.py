"""One measurement's stage: an empty place, the contender's producing children and workers, and what is seen of them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.contender import BIN
from benchmarks.environments import ROOT
from benchmarks.processes import Workers, by_role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    import psutil
    import psycopg

    from benchmarks.contender import Contender, Shape
    from benchmarks.servers import Servers

#: Seconds between two looks at the journal; and until all executing processes must have arrived at the gate.
LOOK: Final = 0.004
_BOOT: Final = 60.0
_WORDS: Final = 1500


class FailedError(Exception):
    """A measurement that cannot be used; the message is the reason that the table shows."""


@dataclass(frozen=True)
class Subject:
    """A contender in one of its shapes, and the folder of its programs."""

    contender: Contender
    shape: Shape
    programs: Path


class Stage:
    """Where one subject is measured once.

    Args:
        servers: What it runs on.
        subject: Who.
        database: A database that is there already, instead of an empty one.
    """

    def __init__(self, servers: Servers, subject: Subject, database: str | None = None) -> None:
        self.servers = servers
        self.subject = subject
        self._database = database
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.shape = self.subject.shape
            self.place = stack.enter_context(self.servers.place(self._database))
            self.journal = Path(self.place.journal)
            self.observer: psycopg.Connection[Any] = stack.enter_context(
                closing(self.servers.observe(self.place.postgres_url))
            )
            commands = [self._command(each) for each in self._contender.workers(self.shape, self.place)]
            self.workers = Workers(commands, self.environment, self.place.folder)
            stack.callback(self.workers.stop)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def _contender(self) -> Contender:
        return self.subject.contender

    @property
    def environment(self) -> dict[str, str]:
        """What every process of the contender gets: no setting of this shell's gets in."""
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ", "TMPDIR") if name in os.environ}
        own = self._contender.environment(self.shape, self.place)
        return {**inherited, "PYTHONPATH": str(ROOT), **self.place.environment(), **own}

    def _command(self, words: Sequence[str]) -> list[str]:
        # `env -C` changes the folder and then becomes the program: no process of its own stays.
        programs = str(self.subject.programs)
        return ["env", "-C", self.place.directory, *(word.replace(BIN, programs) for word in words)]

    # --- producing

    def produce(self, verb: str, *arguments: object, timeout: float = 300.0) -> dict[str, Any]:
        """Run a verb of `benchmarks.producer` in the contender's environment.

        Raises:
            FailedError: It ended with an error, or not in time.
        """
        words = [self._contender.name, self.shape.name, verb, *map(str, arguments)]
        command = self._command([f"{BIN}/python", "-m", "benchmarks.producer", *words])
        try:
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, check=False, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            raise FailedError(f"{verb} took longer than {timeout:g} s") from None
        if done.returncode:
            raise FailedError(f"{verb} failed: {done.stderr.strip()[-_WORDS:]}")
        values: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return values

    def preload(self, handler: str, count: int, size: int, timeout: float = 300.0) -> dict[str, Any]:
        """Schema and items, before any worker is there."""
        self.produce("prepare")
        return self.produce("enqueue", handler, count, size, timeout=timeout)

    # --- working

    def start(self) -> None:
        """Start the workers."""
        self.workers.start()

    def start_and_gather(self) -> int:
        """Start the workers and wait until all executing processes stand at the gate; returns how many do.

        Raises:
            FailedError: None came.
        """
        self.start()
        deadline = time.monotonic() + _BOOT
        while (arrived := self.arrived()) < self.shape.processes and time.monotonic() < deadline:
            if self.workers.ended:
                break
            time.sleep(0.02)
        if not arrived:
            raise FailedError(f"no worker took an item within {_BOOT:g} s: {self.workers.logs()}")
        # What arrived last has its neighbours' prefetching still to come.
        time.sleep(0.3)
        return arrived

    def arrived(self) -> int:
        """Executing processes that stand at the gate, or went through it."""
        with suppress(FileNotFoundError):
            return len(set(Path(f"{self.journal}.arrived").read_text(encoding="ascii").split()))
        return 0

    def open_gate(self) -> None:
        """Let handlers run."""
        Path(f"{self.journal}.gate").touch()

    def roles(self) -> dict[str, list[psutil.Process]]:
        """All processes that work for this contender, by role."""
        return by_role(self.workers, self.servers.postmaster, self.servers.valkey.pid)

    # --- looking

    def written(self) -> int:
        """Bytes in the journal."""
        with suppress(FileNotFoundError):
            return self.journal.stat().st_size
        return 0

    def wait_for(self, count: Callable[[], int], wanted: int, timeout: float, what: str) -> None:
        """Wait until a count has grown to so many.

        Raises:
            FailedError: It has not, in time.
        """
        deadline = time.monotonic() + timeout
        while (found := count()) < wanted:
            if time.monotonic() > deadline or self.workers.ended:
                ended = "a worker ended" if self.workers.ended else f"after {timeout:g} s"
                raise FailedError(f"{found:,} of {wanted:,} {what} {ended}: {self.workers.logs()}")
            time.sleep(LOOK)

    def question(self, statement: str) -> Callable[[], int]:
        """A function that asks one statement of the contender's store, through a connection of the controller's own."""
        file = self.shape.options.get("sqlite")
        if file is None:
            return lambda: int((self.observer.execute(statement).fetchone() or (0,))[0])
        path = self.place.folder / file

        def ask() -> int:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as connection:
                return int(connection.execute(statement).fetchone()[0])

        return ask

    @property
    def progress(self) -> Callable[[], int] | None:
        """Outcomes in the store; None for a contender that keeps none."""
        statement = self._contender.progress_sql(self.shape) if self.shape.durable else None
        return None if statement is None else self.question(statement)

    @property
    def exact(self) -> Callable[[], int] | None:
        """Rows of outcomes in the store, counted one by one."""
        statement = self._contender.exact_sql(self.shape) if self.shape.durable else None
        return None if statement is None else self.question(statement)

    def redis_counters(self) -> dict[str, int]:
        """Commands that Valkey has executed, and reads from its clients' sockets, without those of this call's kind."""
        with self.servers.valkey.client() as client:
            stats: Mapping[str, Any] = client.info("commandstats")
            reads = int(client.info("stats")["total_reads_processed"])
        # What a client says on connecting: here that is the controller's own, everybody else is connected.
        own = {"info", "hello", "client|setinfo"}
        calls = {name.removeprefix("cmdstat_"): int(each["calls"]) for name, each in stats.items()}
        return {**{name: count for name, count in calls.items() if name not in own}, "reads": reads}
