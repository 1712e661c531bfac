"""The drain of a preloaded queue: rates, processor time, Redis commands, exactness. W1, W2 and W3 all are one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from benchmarks.processes import processor_seconds, resident, used_between
from benchmarks.stage import LOOK, FailedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.stage import Stage

#: Where the clock starts, as a share of the items: the ramp before it is nobody's rate.
START: Final = 0.1
#: Seconds between two questions to the store; between two looks at memory.
_ASK: Final = 0.02
_WEIGH: Final = 0.5


@dataclass
class Series:
    """A count over time."""

    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, at: float, count: int) -> None:
        """Note a count."""
        self.times.append(at)
        self.counts.append(count)

    @property
    def last(self) -> int:
        """The latest count."""
        return self.counts[-1] if self.counts else 0

    def reached(self, count: float) -> float:
        """When the count had reached so many: the first look that saw it.

        Raises:
            ValueError: It never did.
        """
        for at, found in zip(self.times, self.counts, strict=True):
            if found >= count:
                return at
        raise ValueError(f"the count ended at {self.last:,}, before {count:,.0f}")

    def rate(self, total: int) -> float:
        """Items a second between the start of the clock and the last item, both as they were seen."""
        first = next(index for index, count in enumerate(self.counts) if count >= START * total)
        end = next(index for index, count in enumerate(self.counts) if count >= total)
        seconds = self.times[end] - self.times[first]
        return (total - self.counts[first]) / seconds if seconds > 0 else float("nan")


@dataclass
class Watch:
    """What is seen while a stage's workers drain `total` items."""

    stage: Stage
    total: int
    timeout: float
    #: Outcomes that the store had before: of history.
    settled_before: int = 0
    #: Whether to look at memory too.
    weigh: bool = False
    executed: Series = field(default_factory=Series)
    settled: Series = field(default_factory=Series)
    memory: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    #: Called once when the clock starts and once at the end; what they return is kept.
    snapshots: list[dict[str, Any]] = field(default_factory=list)

    def run(self, snapshot: Callable[[], dict[str, Any]]) -> None:
        """Look until everything is executed and settled.

        Raises:
            FailedError: Not in time, or a worker ended.
        """
        progress = self.stage.progress
        deadline = time.monotonic() + self.timeout
        next_ask = next_weigh = 0.0
        while True:
            now = time.monotonic()
            self.executed.add(now, self.stage.written())
            if progress is not None and now >= next_ask:
                count = progress() - self.settled_before
                self.settled.add(time.monotonic(), count)
                next_ask = now + _ASK
            if not self.snapshots and self._share() >= START:
                self.snapshots.append({**snapshot(), "done": self._done()})
            if self.weigh and now >= next_weigh:
                self.memory.append((self.executed.last, self._weigh()))
                next_weigh = now + _WEIGH
            if self._share() >= 1:
                break
            if now > deadline or self.stage.workers.ended:
                self._give_up()
            time.sleep(LOOK)
        self.snapshots.append({**snapshot(), "done": self.total})

    def _done(self) -> int:
        return min(self.executed.last, self.settled.last) if self.stage.shape.durable else self.executed.last

    def _share(self) -> float:
        return self._done() / self.total

    def _weigh(self) -> dict[str, int]:
        with self.stage.servers.valkey.client() as client:
            used = int(client.info("memory")["used_memory"])
        return {**resident(self.stage.roles()), "valkey used": used}

    def _give_up(self) -> None:
        reason = "a worker ended" if self.stage.workers.ended else f"{self.timeout:g} s were over"
        settled = "" if self.stage.progress is None else f", {self.settled.last:,} settled"
        raise FailedError(
            f"{self.executed.last:,} of {self.total:,} executed{settled} when {reason}: {self.stage.workers.logs()}"
        )


def snapshot(stage: Stage) -> dict[str, Any]:
    """Processor seconds, Redis counters and the time, now."""
    return {
        "at": time.monotonic(),
        "cpu": processor_seconds(stage.roles()),
        "redis": stage.redis_counters(),
    }


def drain(
    stage: Stage,
    total: int,
    timeout: float,
    *,
    settled_before: int = 0,
    weigh: bool = False,
    look: Callable[[], dict[str, Any]] | None = None,
) -> tuple[dict[str, Any], Watch]:
    """Let the workers drain what is preloaded, and say how it went.

    Args:
        stage: With everything enqueued, and no worker started.
        total: How many items are enqueued.
        timeout: Seconds for the drain itself.
        settled_before: Outcomes that the store had before.
        weigh: Whether to look at memory while it runs.
        look: More to note when the clock starts and at the end, besides `snapshot`.

    Raises:
        FailedError: It did not end in time, or is not exact.
    """
    rows_before = stage.exact() if settled_before and stage.exact else 0
    arrived = stage.start_and_gather()
    stage.servers.checkpoint()
    watch = Watch(stage, total, timeout, settled_before, weigh=weigh)
    opened = time.monotonic()
    stage.open_gate()
    watch.run(lambda: {**snapshot(stage), **(look() if look else {})})
    values: dict[str, Any] = {
        "arrived": arrived,
        "executed_rate": watch.executed.rate(total),
        "whole": watch.executed.reached(total) - opened,
        "memory": resident(stage.roles()),
        **_per_item(watch),
    }
    if stage.progress is not None:
        values["durable_rate"] = watch.settled.rate(total)
        values["whole_durable"] = watch.settled.reached(total) - opened
    check_exactness(stage, total, settled_before, rows_before)
    return values, watch


def _per_item(watch: Watch) -> dict[str, Any]:
    """Milliseconds of processor per item and role, and Redis commands per 1,000 items, while the clock ran."""
    first, last = watch.snapshots
    items = max(1, last["done"] - first["done"])
    used = used_between(first["cpu"], last["cpu"])
    calls = {name: count - first["redis"].get(name, 0) for name, count in last["redis"].items()}
    # The controller's own client at the end needs one or two reads for its greeting, and one for each question.
    reads = max(0, calls.pop("reads") - 3)
    commands = {name: round(count * 1000 / items, 2) for name, count in calls.items() if count > 0}
    return {
        "cpu_ms": {role: round(seconds * 1000 / items, 4) for role, seconds in used.items()},
        "redis_commands": commands,
        "redis_commands_per_1000": round(sum(commands.values()), 2),
        # Reads of the server from its sockets. A pipeline is one round trip and one read; a command of more than 16 kB
        # is one round trip and several reads; so the round trips are no more than the smaller of the two counts.
        "redis_trips_per_1000": round(min(float(reads), sum(commands.values()) * items / 1000) * 1000 / items, 2),
        "redis_reads_per_1000": round(reads * 1000 / items, 2),
    }


def check_exactness(stage: Stage, total: int, settled_before: int = 0, rows_before: int = 0) -> None:
    """Every item was executed, once; and the store has one outcome of each.

    Raises:
        FailedError: Not so.
    """
    # A second execution would come after the last first one.
    time.sleep(0.1)
    written = stage.written()
    if written < total or (written > total and not stage.shape.at_least_once):
        raise FailedError(f"not exact: {written:,} executions of {total:,} items")
    for name, question, before in (("counter", stage.progress, settled_before), ("rows", stage.exact, rows_before)):
        if question is not None and (found := question() - before) != total:
            raise FailedError(f"not exact: the {name} say {found:,} outcomes of {total:,} items")
