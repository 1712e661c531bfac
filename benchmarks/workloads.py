"""What is measured: one function per workload, each with a fresh stage, each returning plain values for the results."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from benchmarks.drain import check_exactness, drain
from benchmarks.events import flower, seen
from benchmarks.figures import quantile
from benchmarks.profiling import Recorder
from benchmarks.stage import FailedError, Stage
from benchmarks.statements import counted, per_thousand

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.drain import Watch
    from benchmarks.history import History
    from benchmarks.servers import Servers
    from benchmarks.stage import Subject

#: Bytes of one payload, everywhere.
SIZE: Final = 200
#: Seconds for a drain: by far more than the slowest contender needs for the items that it gets.
_TIMEOUT: Final = 120.0
_LONG_TIMEOUT: Final = 900.0
#: Items that wake an idle worker before the clock starts, and seconds of calm after them.
_WARM: Final = 40
_CALM: Final = 1.0
#: Seconds between two submissions of the latency run.
_GAP: Final = 0.02
_MEGABYTE: Final = 1_000_000
#: Items of a drain that is long enough to be weighed while it runs.
_LONG: Final = 50_000


class Workloads:
    """Every workload, on one pair of servers."""

    def __init__(self, servers: Servers, history: History) -> None:
        self._servers = servers
        self._history = history

    def run(self, workload: str, subject: Subject, count: int) -> dict[str, Any]:
        """Measure a subject once.

        Raises:
            FailedError: It cannot be measured; the message is the reason.
        """
        measure: Callable[[Subject, int], dict[str, Any]] = getattr(self, f"_{workload}")
        return measure(subject, count)

    def _drain(self, subject: Subject, count: int) -> dict[str, Any]:
        with Stage(self._servers, subject) as stage:
            stage.preload("noop", count, SIZE)
            return drain(stage, count, _TIMEOUT)[0]

    def _sleep(self, subject: Subject, count: int) -> dict[str, Any]:
        with Stage(self._servers, subject) as stage:
            stage.preload("sleep50", count, SIZE)
            return drain(stage, count, _TIMEOUT)[0]

    def _end_to_end(self, subject: Subject, count: int) -> dict[str, Any]:
        """Warm and idle workers; the clock runs from the first enqueue to the last execution (and outcome)."""
        with Stage(self._servers, subject) as stage:
            stage.produce("prepare")
            stage.open_gate()
            stage.start()
            stage.produce("enqueue", "noop", _WARM, SIZE)
            stage.wait_for(stage.written, _WARM, 60, "items executed to warm up")
            time.sleep(_CALM)
            with ThreadPoolExecutor(1) as aside:
                producing = aside.submit(stage.produce, "enqueue", "noop", count, SIZE)
                stage.wait_for(stage.written, _WARM + count, _TIMEOUT, "items executed")
                executed = time.monotonic()
                if stage.progress is not None:
                    stage.wait_for(stage.progress, _WARM + count, _TIMEOUT, "outcomes recorded")
                ended = time.monotonic()
                produced = producing.result()
            check_exactness(stage, _WARM + count)
        began = produced["began"] / 1e9
        values = {"executed_rate": count / (executed - began), "submit_seconds": _seconds(produced)}
        return {**values, "durable_rate": count / (ended - began)} if subject.shape.durable else values

    def _submit(self, subject: Subject, count: int) -> dict[str, Any]:
        with Stage(self._servers, subject) as stage:
            stage.produce("prepare")
            self._servers.checkpoint()
            produced = stage.produce("enqueue", "noop", count, SIZE, _WARM)
        _check_enqueued(produced, count)
        return {"rate": count / _seconds(produced), **_production(produced)}

    def _latency(self, subject: Subject, count: int) -> dict[str, Any]:
        with Stage(self._servers, subject) as stage:
            stage.produce("prepare")
            stage.open_gate()
            stage.start()
            found = sorted(stage.produce("latency", count, SIZE, _GAP, _WARM)["latencies"])
        points = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
        return {name: quantile(found, share) for name, share in points.items()}

    def _counts(self, subject: Subject, count: int) -> dict[str, Any]:
        with Stage(self._servers, subject) as stage, counted(self._servers) as statements:
            stage.preload("noop", count, SIZE)
            values, watch = drain(stage, count, _TIMEOUT, look=lambda: {"sql": statements(stage)})
        first, last = watch.snapshots
        return {**values, **per_thousand(first["sql"], last["sql"], last["done"] - first["done"])}

    def _events(self, subject: Subject, count: int) -> dict[str, Any]:
        with Stage(self._servers, subject) as stage, flower(stage) as page:
            stage.preload("noop", count, SIZE)
            values, _ = drain(stage, count, _TIMEOUT)
            if page is not None:
                ended = time.monotonic()
                values["events_at_the_end"] = seen(page) / count
                stage.wait_for(lambda: seen(page), count, _TIMEOUT, "events seen by Flower")
                values |= {"events_per_item": seen(page) / count, "events_lag": time.monotonic() - ended}
            return values

    def _profile(self, subject: Subject, count: int) -> dict[str, Any]:
        with Stage(self._servers, subject) as stage:
            stage.preload("noop", count, SIZE)
            recorder = Recorder(stage)

            def look() -> dict[str, Any]:
                recorder.toggle()
                return {}

            with recorder:
                values, _ = drain(stage, count, _TIMEOUT, look=look)
            return {**values, "profiles": recorder.profiles()}

    def _growth(self, subject: Subject, count: int) -> dict[str, Any]:
        with Stage(self._servers, subject) as stage:
            return self._submit_and_drain(stage, count)

    def _history_drain(self, subject: Subject, count: int) -> dict[str, Any]:
        database = self._history.database(subject)
        with Stage(self._servers, subject, database) as stage:
            before = 0 if stage.progress is None else stage.progress()
            return {**self._submit_and_drain(stage, count, before), "history": self._history.rows}

    def _submit_and_drain(self, stage: Stage, count: int, before: int = 0) -> dict[str, Any]:
        with self._servers.valkey.client() as client:
            empty = int(client.info("memory")["used_memory"])
        produced = stage.preload("noop", count, SIZE, _LONG_TIMEOUT)
        _check_enqueued(produced, count)
        long = count >= _LONG
        limit = _LONG_TIMEOUT if long else _TIMEOUT
        values, watch = drain(stage, count, limit, settled_before=before, weigh=long)
        seconds = _seconds(produced) + count / values["durable_rate"]
        values |= {"cost_us": seconds * 1e6 / count, "rate": count / _seconds(produced), **_production(produced)}
        return {**values, **_weights(watch, empty)} if long else values


def _seconds(produced: dict[str, Any]) -> float:
    return float(produced["ended"] - produced["began"]) / 1e9


def _production(produced: dict[str, Any]) -> dict[str, float]:
    grown = produced["rss_peak"] - produced["rss_before"]
    return {
        "submit_seconds": _seconds(produced),
        "submit_cpu": produced["cpu"],
        "producer_mb": produced["rss_peak"] / _MEGABYTE,
        "producer_growth_mb": grown / _MEGABYTE,
    }


def _check_enqueued(produced: dict[str, Any], count: int) -> None:
    if produced["enqueued"] not in {None, count}:
        raise FailedError(f"not exact: {produced['enqueued']:,} items wait of {count:,}")


def _weights(watch: Watch, empty: int) -> dict[str, Any]:
    """Megabytes by role: medians of the second and of the last quarter of the drain, and Valkey's growth."""
    found: dict[str, Any] = {}
    for name, low, high in (("second", 0.25, 0.5), ("last", 0.75, 1.0)):
        samples = [each for done, each in watch.memory if low * watch.total <= done < high * watch.total]
        roles = sorted({role for each in samples for role in each})
        found[name] = {
            role: quantile(sorted(each[role] for each in samples if role in each), 0.5) / _MEGABYTE for role in roles
        }
    top = max((each["valkey used"] for _, each in watch.memory), default=empty)
    return {"weights": found, "valkey_growth_mb": (top - empty) / _MEGABYTE}
