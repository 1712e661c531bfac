"""`make soak MINUTES=n`: faults at random, for as long as one likes; what grows is seen, and the oracle judges.

It keeps two workers, a manager, PostgreSQL and Valkey of its own busy with batches of every kind, strikes at one of
them every few seconds, samples memory, descriptors, connections and keys, and prints a line a minute. At the end it
lets everything come to rest, judges, and fits a line to each series: a slope is told, and a steep one fails the soak.
The dice are seeded; the seed is printed first, and `SEED=n` repeats it.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from statistics import linear_regression, mean
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import psycopg
import redis
from sqlalchemy import select

from batching import BatchOptions, migration
from batching.errors import BatchingError
from batching.models import batches
from batching.states import TERMINAL_BATCH_STATES, BatchState
from tests.faults.processes.scene import Scene
from tests.servers import PostgresServer, ValkeyServer
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.queue_manager import Batch
    from tests.nodes import LocalProcess

#: Batches that are not finished, at most; each has some hundred profiles.
_LOAD = 6
#: Seconds between two strikes, at least and at most.
_CALM = (2.0, 6.0)
#: Seconds between two samples.
_SAMPLED = 2.0
#: Growth over an hour, as a share of the mean, that is too much once the first third is over; and what may always grow.
_STEEP = 1.0
_FREE = {"rss_mb": 40.0, "descriptors": 40.0, "connections": 12.0, "keys": 12.0}
#: What the soak itself meets while a server is away; it goes on then.
_OUTAGE = (BatchingError, psycopg.Error, redis.RedisError, OSError)
#: Minutes below which a slope says nothing: processes that were just started grow.
_TELLING = 10.0


class Sample(NamedTuple):
    """What may leak: of all processes together, and of the servers."""

    minute: float
    rss_mb: float
    descriptors: float
    connections: float
    keys: float


class Soak:
    """See the module.

    Args:
        folder: For journals and logs.
        seed: Of the dice.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        self.postgres = PostgresServer()
        self.postgres.start()
        self.valkey = ValkeyServer(folder / "valkey")
        self.valkey.start()
        self.name = self.postgres.create_database()
        self.scene = Scene(folder, self.postgres.url(self.name), self.valkey, f"soak-{uuid.uuid4().hex[:6]}:")
        self.scene.settings = {**self.scene.settings, "BATCHING_MAX_LOSSES": "50"}
        migration.upgrade(self.scene.database)
        self.workers: list[LocalProcess] = []
        self.batches: list[Batch] = []
        self.open: list[Batch] = []
        self.samples: list[Sample] = []
        self.strikes: dict[str, int] = {}
        self.began = time.monotonic()
        self._over = threading.Event()

    @property
    def minute(self) -> float:
        """Since the beginning."""
        return (time.monotonic() - self.began) / 60

    # --- work

    def feed(self) -> None:
        """Keep some batches of every kind in line."""
        self.open = [batch for batch in self.open if not self._ended(batch)]
        while len(self.open) < _LOAD:
            batch = self._submit()
            self.open.append(batch)
            self.batches.append(batch)

    def _ended(self, batch: Batch) -> bool:
        return bool(batch.progress().terminal)

    def _submit(self) -> Batch:
        scene, count = self.scene, self.dice.randrange(20, 200)
        kind = self.dice.choice(["quick", "slow", "failing", "retried", "cancelled", "paused"])
        if kind in {"failing", "retried"}:
            ways: Any = ["raise", "return"] if kind == "failing" else ["retry", "return"]
            payloads = {f"{kind}{n}": ways if n % 10 == 0 else "return" for n in range(count)}
            options = BatchOptions(
                max_attempts=1 if kind == "failing" else 50, max_passes=50, pass_backoff=0.1, retry_backoff=0.1
            )
            return scene.submit("odd", payloads, options)
        seconds = 0.001 if kind == "quick" else 0.03
        patient = BatchOptions(max_attempts=50, max_passes=50, pass_backoff=0.1)
        batch = scene.submit("work", {f"{kind}{n}": {"seconds": seconds} for n in range(count)}, patient)
        if kind == "cancelled":
            scene.queue.cancel(batch.id)
        elif kind == "paused":
            scene.queue.pause(batch.id)
            eventually(lambda: self._resumed(batch), 60, 0.1)
        return batch

    def _resumed(self, batch: Batch) -> bool:
        state = batch.progress().state.value
        if state == "paused":
            self.scene.queue.resume(batch.id)
        return state != "stopping"

    # --- faults

    def strike(self) -> None:
        """One fault, at random."""
        name = self.dice.choice(sorted(self._faults()))
        self.strikes[name] = self.strikes.get(name, 0) + 1
        self._faults()[name]()

    def _faults(self) -> dict[str, Callable[[], object]]:
        return {
            "a worker is killed": lambda: self._end_worker("SIGKILL"),
            "a worker is stopped": lambda: self._end_worker("SIGTERM"),
            "a worker is stopped at once": lambda: self._end_worker("SIGQUIT"),
            "a pool child is killed": self._kill_child,
            "a manager is killed": self._kill_manager,
            "a manager is frozen": self._freeze_manager,
            "a worker is frozen": self._freeze_worker,
            "redis forgets": self.valkey.flush,
            "redis is killed": self._kill_redis,
            "redis is frozen": self._freeze_redis,
            "redis cuts its clients off": self._cut_redis,
            "postgresql ends its sessions": lambda: self.postgres.disconnect(self.name),
            "postgresql is killed": self._kill_postgres,
        }

    def _end_worker(self, how: str) -> None:
        worker = self.dice.choice(self.workers)
        worker.kill(how)
        worker.wait(60)
        worker.restart()

    def _kill_child(self) -> None:
        if children := self.scene.handler_processes(self.dice.choice(self.workers)):
            self._end(psutil.Process(self.dice.choice(children)))

    def _end(self, process: psutil.Process) -> None:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            return

    def _kill_manager(self) -> None:
        # Those of the workers alone: nobody starts the other one again.
        ours = [p for p in self.scene.managers().values() if "workers.manager" in (p.info["cmdline"] or ())]
        if ours:
            self._end(self.dice.choice(ours))

    def _freeze_manager(self) -> None:
        managers = sorted(self.scene.managers().values(), key=lambda each: each.pid)
        self._freeze(managers[:1] if self.dice.random() < 0.5 else managers[-1:])

    def _freeze_worker(self) -> None:
        worker = self.dice.choice(self.workers)
        self._freeze([psutil.Process(pid) for pid in (worker.pid, *worker.children)])

    def _freeze(self, processes: list[psutil.Process]) -> None:
        frozen = []
        for process in processes:
            try:
                process.suspend()
            except psutil.NoSuchProcess:
                continue
            frozen.append(process)
        self._over.wait(self.dice.uniform(0.5, 5))
        for process in frozen:
            process.resume()

    def _kill_redis(self) -> None:
        self.valkey.kill()
        self._over.wait(self.dice.uniform(0, 2))
        self.valkey.restart(empty=self.dice.random() < 0.5)

    def _freeze_redis(self) -> None:
        self.valkey.freeze()
        self._over.wait(self.dice.uniform(0.5, 3))
        self.valkey.thaw()

    def _cut_redis(self) -> None:
        with self.valkey.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def _kill_postgres(self) -> None:
        self.postgres.kill()
        self._over.wait(self.dice.uniform(0, 2))
        self.postgres.start()

    # --- what grows

    def sample(self) -> None:
        """Take note of what may leak."""
        processes = list(self.scene.processes())
        rss, descriptors = 0.0, 0
        for process in processes:
            try:
                rss += process.memory_info().rss
                descriptors += process.num_fds()
            except psutil.Error:
                continue
        with self.postgres.connect(self.name) as connection:
            sessions: Any = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = %s", (self.name,))
            connections = sessions.fetchone()[0]
        with self.valkey.client() as client:
            info: Any = client.info("clients")
            keys: Any = client.dbsize()
        total = connections + info["connected_clients"]
        self.samples.append(Sample(self.minute, rss / 1e6, float(descriptors), float(total), float(keys)))

    def slopes(self) -> dict[str, tuple[float, float]]:
        """Of each series, after the first third: its mean, and its growth in an hour."""
        told = [each for each in self.samples if each.minute > self.samples[-1].minute / 3]
        if len(told) < 3:
            return {}
        minutes = [each.minute for each in told]
        series = {name: [float(getattr(each, name)) for each in told] for name in _FREE}
        return {name: (mean(found), linear_regression(minutes, found).slope * 60) for name, found in series.items()}

    # --- the course of it

    def run(self, minutes: float) -> bool:
        """Go through it all.

        Returns:
            Whether nothing was lost, doubled or leaked.
        """
        self.scene.manager()
        # One of each kind, on the same lanes
        self.workers = [
            self.scene.worker("--pool=prefork", "--concurrency=2", BATCHING_ACKNOWLEDGE=when)
            for when in ("pop", "claim")
        ]
        self.began = time.monotonic()
        next_strike, next_sample, next_word = 0.0, 0.0, 60.0
        while (elapsed := time.monotonic() - self.began) < minutes * 60:
            try:
                self.feed()
                if elapsed >= next_strike:
                    self.strike()
                    next_strike = time.monotonic() - self.began + self.dice.uniform(*_CALM)
                if elapsed >= next_sample:
                    self.sample()
                    next_sample = elapsed + _SAMPLED
            except _OUTAGE:
                self.scene.database.close()  # our own sessions are cut off as well
            if elapsed >= next_word:
                self.say()
                next_word += 60
            self._over.wait(0.1)
        return self.conclude()

    def say(self) -> None:
        """A line of progress."""
        last = self.samples[-1] if self.samples else Sample(0, 0, 0, 0, 0)
        _print(
            f"minute {self.minute:5.1f}: {len(self.batches)} batches, {len(self.scene.entries()):,} executions, "
            f"{sum(self.strikes.values())} strikes; {last.rss_mb:.0f} MB, {last.descriptors:.0f} descriptors, "
            f"{last.connections:.0f} connections, {last.keys:.0f} keys"
        )

    def conclude(self) -> bool:
        """Let everything come to rest, and judge."""
        self.scene.database.close()
        eventually(self._at_rest, 240, 0.5)
        self.sample()
        verdict = self.scene.verdict(again={"lost", "given back", "retried", "failed"})
        _print("; ".join(f"{name} {number}" for name, number in sorted(self.strikes.items())))
        steep = []
        for name, (level, growth) in self.slopes().items():
            _print(f"{name}: {level:,.1f} on average, {growth:+,.1f} in an hour")
            if self.minute >= _TELLING and growth > level * _STEEP + _FREE[name]:
                steep.append(name)
        if self.minute < _TELLING:
            _print(f"under {_TELLING:g} minutes a slope says nothing, and is not judged")
        for name in steep:
            _print(f"{name} grows without end")
        return verdict.sound and not steep

    def _at_rest(self) -> None:
        """Assert that every batch there is has ended; a pause whose answer was lost is ended."""
        with self.scene.database.read() as reading:
            found = reading.execute(
                select(batches.c.id, batches.c.state).where(batches.c.state.not_in(TERMINAL_BATCH_STATES))
            ).all()
        for row in found:
            if row.state == BatchState.PAUSED:
                self.scene.queue.resume(row.id)
        assert not found, f"not at rest: {found}\n{self.scene.report()}"

    def close(self) -> None:
        """Stop and delete everything."""
        self.scene.close()
        self.valkey.stop()
        self.postgres.close()


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("minutes", type=float)
    parser.add_argument("seed", type=int, nargs="?", default=None)
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    _print(f"SEED={seed}")
    folder = Path(tempfile.mkdtemp(prefix="batching-soak-"))
    soak = Soak(folder, seed)
    sound = False
    try:
        sound = soak.run(asked.minutes)
    finally:
        soak.close()
        if sound:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            _print(f"the journal and all logs are in {folder}")
    return 0 if sound else 1


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
