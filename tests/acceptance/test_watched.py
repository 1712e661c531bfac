"""What Prometheus is told while real workers run, fail, try again and are killed: true, and never going backwards."""

from __future__ import annotations

import itertools
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Self

from batching import BatchOptions, BatchState
from batching.database import Database
from batching.errors import DatabaseUnavailableError
from batching.metrics.exposition import Exporter
from batching.states import ProfileState
from tests.support import eventually, free_port
from tests.test_metrics import parsed, value

if TYPE_CHECKING:
    from types import TracebackType

    from tests.acceptance.stage import Stage
    from tests.test_metrics import Values

GATED = {"gate": "gate"}
TWICE = BatchOptions(max_attempts=2, max_passes=1, failure_budget=100, retry_backoff=0.05)
ODD = "acceptance.odd"


def is_counter(name: str) -> bool:
    return name.endswith(("_total", "_bucket", "_count", "_sum"))


class Watch:
    """Reads again and again, and remembers every counter that was smaller than before."""

    def __init__(self, url: str) -> None:
        self._database = Database(url, timeout=5.0)
        self._exporter = Exporter(self._database, 3.0, clock=itertools.count().__next__)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.last: Values = {}
        self.reads = 0
        self.backwards: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(20)
        self._database.close()

    def _run(self) -> None:
        while not self._over.wait(0.05):
            try:
                told = parsed(self._exporter.text())
            except DatabaseUnavailableError:
                continue
            for sample, before in self.last.items():
                # A series that is gone has gone backwards too.
                if is_counter(sample[0]) and told.get(sample, 0.0) < before:
                    self.backwards.append(f"{sample}: {before} -> {told.get(sample)}")
            self.last = told
            self.reads += 1


def scrape(port: int) -> Values:
    """By HTTP, from whoever has the port now."""

    def answered() -> Values:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                return parsed(answer.read())
        except urllib.error.URLError as error:
            raise AssertionError(f"nobody answers: {error}") from error

    return eventually(answered, 30, 0.1)


def test_what_is_told_is_what_happened_whoever_dies(stage: Stage) -> None:
    # Given a worker whose manager serves metrics, and somebody who watches
    port = free_port()
    address = f"127.0.0.1:{port}"
    first = stage.worker("--pool=prefork", "--concurrency=2", BATCHING_METRICS_ADDRESS=address)
    with Watch(stage.url) as watch:
        _succeed_fail_and_retry(stage, port)
        # When a second worker comes, and the first is killed with everything in it
        batch = stage.submit("work", {"a": GATED, "b": GATED} | {f"n{number}": None for number in range(20)})
        stage.began("a", "b")
        lost = sum(row.state == ProfileState.RUNNING for row in stage.rows(batch).values())
        second = stage.worker("--pool=prefork", "--concurrency=2", BATCHING_METRICS_ADDRESS=address)
        first.kill()
        stage.open()
        view = stage.finished(batch)
        assert (view.state, view.succeeded) == (BatchState.SUCCEEDED, 22)

        # Then the other one's manager serves at the same address, and tells of all of it
        def told() -> None:
            values = scrape(port)
            assert value(values, "losses_total", handler="acceptance.work") == lost
            assert value(values, "sweep_repairs_total", kind="run") == lost
            assert value(values, "sweep_repairs_total", kind="worker") >= 1
            assert value(values, "workers", state="live") == 1
            assert value(values, "leader_up") == 1
            assert value(values, "leader_changes_total") >= 2
            assert value(values, "batches", queue="default", state="succeeded") == 2
            done = value(values, "profiles_settled_total", handler="acceptance.work", state="succeeded")
            # What the first one settled since its last heartbeat has gone with it.
            assert lost <= done <= 22

        eventually(told, 40, 0.2)
        # And a worker that is stopped in order tells the rest on its way out
        last = stage.submit("work", 40)
        stage.finished(last)
        second.stop()
        assert value(scrape_sql(stage), "profiles_settled_total", handler="acceptance.work", state="succeeded") >= lost
        reads = watch.reads
        eventually(lambda: watch.reads > reads)
    assert watch.backwards == []
    assert watch.reads > 20


def scrape_sql(stage: Stage) -> Values:
    return parsed(Exporter(stage.database, 3.0).text())


def _succeed_fail_and_retry(stage: Stage, port: int) -> None:
    """A batch of all endings; what is told of it is exact, since nobody dies."""
    payloads: dict[str, Any] = {f"s{number}": "return" for number in range(30)}
    payloads |= {"f1": "raise", "f2": "raise", "skipped": "skip"}
    payloads |= {f"r{number}": ["raise", "return"] for number in range(3)}
    batch = stage.submit("odd", payloads, TWICE)
    view = stage.finished(batch)
    assert (view.succeeded, view.failed, view.skipped) == (33, 2, 1)

    def told() -> None:
        values = scrape(port)
        for state in ("succeeded", "failed", "skipped"):
            assert value(values, "profiles_settled_total", handler=ODD, state=state) == getattr(view, state)
        assert value(values, "retries_total", handler=ODD) == 5
        assert value(values, "run_duration_seconds_count", handler=ODD) == 36 + 5
        # A machine that stands still may cost a run, which is dispatched and claimed once more then.
        assert value(values, "profiles_dispatched_total", handler=ODD) >= 36 + 5
        assert value(values, "runs_claimed_total") >= 36 + 5
        assert value(values, "step_rows_sum", step="settle") >= 36 + 5
        assert value(values, "batches", queue="default", state="succeeded") == 1
        assert value(values, "database_connections", process="worker", state="idle") >= 1

    eventually(told, 30, 0.2)
    points = stage.queue.statistics.throughput(batch.id)
    assert sum(point.settled for point in points) == view.settled == 36
    assert sum(point.succeeded for point in points) == view.succeeded
    assert sum(point.failed for point in points) == view.failed
    assert sum(point.retried for point in points) == 5
    assert sum(point.settled for point in stage.queue.statistics.throughput()) == 36
    assert stage.queue.statistics.durations(batch.id).runs == 36 + 5
