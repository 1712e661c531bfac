"""A stage for acceptance tests: a store, a broker, real workers on them, and the oracle that judges the end."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import psutil
from sqlalchemy import select

from batching import BatchOptions
from batching.database import Database
from batching.doctor import examine
from batching.models import attempts, leases, profiles, workers
from batching.queue_manager import QueueManager
from batching.settings import get_settings
from batching.states import TERMINAL_PROFILE_STATES
from tests.acceptance import journal
from tests.nodes import LocalProcess, worker_process
from tests.support import eventually
from workers.publisher import RedisPublisher

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from batching.queue_manager import Batch
    from batching.statistics import BatchView
    from tests.servers import ValkeyServer

#: Short leases, so that recovery is seen in seconds. Not shorter: a loaded machine makes a healthy worker silent too.
BRISK = {
    "BATCHING_HEARTBEAT_INTERVAL": "0.3",
    "BATCHING_WORKER_LEASE": "3",
    "BATCHING_LEADER_LEASE": "2",
    "BATCHING_SUSPECT_AFTER": "1",
    "BATCHING_DRAIN_TIMEOUT": "5",
}
#: One attempt and one pass: what fails stays failed, and an extra run can only be a lost one.
ONCE = BatchOptions(max_attempts=1, max_passes=1, failure_budget=1000)
HANDLERS = "tests.acceptance.handlers"


@dataclass
class Stage:
    """What a test acts on."""

    folder: Path
    url: str
    valkey: ValkeyServer
    prefix: str
    settings: Mapping[str, str] = field(default_factory=lambda: BRISK)
    nodes: list[LocalProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.database = Database(self.url)
        self.queue = QueueManager(self.database, settings=get_settings())

    @cached_property
    def publisher(self) -> RedisPublisher:
        """Our own border to the broker, to look at it and to play tricks on it."""
        return RedisPublisher(self.valkey.url, self.prefix)

    def environment(self, **more: str) -> dict[str, str]:
        """What every process on this stage gets."""
        return {
            journal.FOLDER: str(self.folder),
            "BATCHING_DATABASE_URL": self.url,
            "BATCHING_BROKER_URL": self.valkey.url,
            "BATCHING_KEY_PREFIX": self.prefix,
            "BATCHING_HANDLERS": HANDLERS,
            **self.settings,
            **more,
        }

    # --- processes

    def worker(self, *options: str, ready: bool = True, **environment: str) -> LocalProcess:
        """Start a worker: prefork with two children unless the options say otherwise."""
        given = options or ("--pool=prefork", "--concurrency=2")
        node = worker_process(self.folder, self.environment(**environment), options=given)
        return self._started(node, ready=ready)

    def manager(self) -> LocalProcess:
        """Start a manager of its own: `batching manager`."""
        number = len(self.nodes) + 1
        node = worker_process(self.folder, self.environment())
        command = [sys.executable, "-m", "batching.cli.main", "manager"]
        manager = LocalProcess(
            f"manager{number}",
            command,
            log=self.folder / f"manager{number}.log",
            environment=node.environment,
            ready_prompt="",
        )
        return self._started(manager, ready=False)

    def _started(self, node: LocalProcess, *, ready: bool) -> LocalProcess:
        self.nodes.append(node)
        node.start()
        if ready:
            node.ready()
            eventually(lambda: self.registered() or node.status == "exited")
        return node

    def close(self) -> None:
        """Kill everything that still runs, then assert that nothing of it is left, wherever it was started from.

        Killed, because a clean stop takes seconds, and has tests of its own.
        """
        for node in self.nodes:
            if node.status == "running":
                node.kill()
            node.stop()
        self.publisher.close()
        self.queue.close()
        self.database.close()
        eventually(self.nothing_runs)

    def nothing_runs(self) -> None:
        """Assert that no process of this stage is left."""
        left = [f"{process.pid} {process.info['cmdline']}" for process in self.processes()]
        assert not left, f"left behind: {left}"

    def processes(self) -> Iterable[psutil.Process]:
        """Every living process of this stage, whoever its parent is now: they all inherited its folder's name."""
        for process in psutil.process_iter(["environ", "status", "cmdline"]):
            ours = (process.info["environ"] or {}).get(journal.FOLDER) == str(self.folder)
            if ours and process.info["status"] not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}:
                yield process

    def managers(self) -> dict[int, psutil.Process]:
        """The managers that run, by process id: the workers' subprocesses, and those on their own."""
        return {
            process.pid: process
            for process in self.processes()
            if any(word in {"workers.manager", "manager"} for word in process.info["cmdline"] or ())
        }

    # --- what SQL says

    def registered(self) -> list[str]:
        """The ids of the registered workers, the oldest first."""
        with self.database.read() as reading:
            return list(reading.scalars(select(workers.c.id).order_by(workers.c.started_at)))

    def leader(self) -> tuple[str | None, int]:
        """Who holds the lease, and its epoch."""
        with self.database.read() as reading:
            row = reading.execute(select(leases.c.holder, leases.c.epoch)).one_or_none()
        return (None, 0) if row is None else (row.holder, row.epoch)

    def rows(self, batch: Batch) -> dict[str, Any]:
        """The stored profiles by key."""
        with self.database.read() as reading:
            found = reading.execute(select(profiles).where(profiles.c.batch_id == batch.id)).all()
        return {row.key: row for row in found}

    def endings(self, batch: Batch) -> dict[str, list[str]]:
        """How every run ended that did not end in success, by key, in the order of the runs."""
        found: dict[str, list[str]] = {}
        for (key, _), outcome in self._ended(batch).items():
            found.setdefault(key, []).append(outcome)
        return found

    def _ended(self, batch: Batch) -> dict[tuple[str, int], str]:
        names = {row.number: row.key for row in self.rows(batch).values()}
        with self.database.read() as reading:
            ended = reading.execute(
                select(attempts.c.number, attempts.c.run, attempts.c.outcome)
                .where(attempts.c.batch_id == batch.id)
                .order_by(attempts.c.number, attempts.c.run)
            ).all()
        return {(names[row.number], row.run): row.outcome for row in ended}

    # --- acting

    def submit(
        self, handler: str, payloads: Mapping[str, Any] | int, options: BatchOptions = ONCE, **more: Any
    ) -> Batch:
        """Submit profiles: payloads by key, or so many of `acceptance.work` that return at once."""
        given = {f"p{number}": None for number in range(payloads)} if isinstance(payloads, int) else payloads
        return self.queue.submit(f"acceptance.{handler}", list(given.items()), options=options, **more)

    def open(self, gate: str = "gate") -> None:
        """Let the handlers go on that wait for this gate."""
        (self.folder / gate).touch()

    def entries(self) -> list[journal.Entry]:
        """What handlers did so far."""
        return journal.read(self.folder)

    def began(self, *keys: str, times: int = 1) -> list[journal.Entry]:
        """Wait until handlers began with these profiles, so many times each; returns their last entries."""

        def written() -> list[journal.Entry]:
            entries = self.entries()
            found = [[entry for entry in entries if entry.key == key] for key in keys]
            missing = [key for key, mine in zip(keys, found, strict=True) if len(mine) < times]
            assert not missing, f"not begun {times} times: {missing}; {self.report()}"
            return [mine[-1] for mine in found]

        return eventually(written, 30)

    def finished(self, batch: Batch, timeout: float = 30) -> BatchView:
        """Wait until a batch has ended."""

        def ended() -> BatchView:
            view = batch.progress()
            assert view.terminal, f"still {view.state} ({view.reason}): {view.as_json()}\n{self.report()}"
            return view

        return eventually(ended, timeout, 0.05)

    def report(self) -> str:
        """The last words of every process, for a failing test."""
        return "\n".join(f"--- {node.name}\n{node.logs()[-3000:]}" for node in self.nodes)

    # --- judging

    def judge(self, *batches: Batch, again: Collection[str] = (), late: bool = False) -> None:
        """The oracle.

        Args:
            *batches: Finished batches.
            again: Endings that a run may have had before another run of the same profile: `lost`, `given back`, …
            late: Whether outcomes of lost runs may have come after all.
        """
        for batch in batches:
            self._one_final_state_each(batch)
            self._journal_agrees(batch, again)
            assert late or not batch.progress().late
        entries = self.entries()
        executed = Counter((entry.profile, entry.run) for entry in entries)
        twice = {each: [entry.pid for entry in entries if (entry.profile, entry.run) == each] for each in executed}
        assert {each: pids for each, pids in twice.items() if len(pids) > 1} == {}, "a run was executed twice"
        report = examine(self.database, self.publisher)
        assert report.ok, report.problems
        eventually(self._no_lane_is_left)

    def _one_final_state_each(self, batch: Batch) -> None:
        view, lines = batch.progress(), list(batch.results())
        assert view.terminal
        assert len({line.key for line in lines}) == len(lines) == batch.total == view.settled
        assert all(line.state in TERMINAL_PROFILE_STATES for line in lines)
        for state in TERMINAL_PROFILE_STATES:
            assert getattr(view, state.value) == sum(line.state is state for line in lines), state

    def _journal_agrees(self, batch: Batch, again: Collection[str]) -> None:
        done = {(entry.profile, entry.run) for entry in self.entries()}
        ended = self._ended(batch)
        for key, row in self.rows(batch).items():
            profile = f"{batch.id}.{row.number}"
            succeeded = row.state == "succeeded"
            if succeeded:
                assert (profile, row.run) in done, f"{key} succeeded in run {row.run}, which nobody executed"
            # Every run has one ending: in `attempts`, or, for a success, in the profile's row.
            endings = {run: outcome for (name, run), outcome in ended.items() if name == key}
            assert sorted(endings) == list(range(1, row.run + (not succeeded))), (key, row.run, endings)
            # What was given back before it began cost nothing; what was executed again needs a reason.
            repeated = {outcome for run, outcome in endings.items() if run < row.run and (profile, run) in done}
            assert repeated <= set(again), f"{key} ran again after {endings}\n{self.report()}"

    def _no_lane_is_left(self) -> None:
        keys = list(self.publisher.client.scan_iter(f"{self.prefix}lane:*"))
        assert not keys, f"left in the broker: {keys}"
