"""What a process counts for who watches: added in memory, told to SQL with its heartbeat. No clock and no I/O.

Nothing here is locked: a process counts in one thread, that of its loop. What is not told yet when a process is killed
is lost, so a figure may be too small by what happened in one heartbeat; it is never too large.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import uuid_utils

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Seconds that runs of profiles take: from those that only compute a little to those that wait for others.
RUN_BOUNDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, math.inf
)  # fmt: skip
#: Seconds that a statement for a group takes, or a turn of the leader.
STEP_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, math.inf)
#: Rows in one group.
SIZE_BOUNDS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, math.inf)

RUN_DURATION: Final = "run_duration_seconds"
STEP_DURATION: Final = "step_duration_seconds"
STEP_ROWS: Final = "step_rows"
TURN_DURATION: Final = "leader_turn_duration_seconds"
#: The histograms, with their upper bounds. Those of a name never change: stored counts would mean something else.
BOUNDS: Final[dict[str, tuple[float, ...]]] = {
    RUN_DURATION: RUN_BOUNDS,
    STEP_DURATION: STEP_BOUNDS,
    STEP_ROWS: SIZE_BOUNDS,
    TURN_DURATION: STEP_BOUNDS,
}
#: The bucket of a count, and of a histogram's sum.
WHOLE: Final = -1

#: In the place of handlers, or queues, beyond so many: whoever stores the figures has room for that many series.
OTHER: Final = "other"
MOST_HANDLERS: Final = 100
#: Batches that a process counts by themselves between two heartbeats; of those beyond, only the handler is known.
MOST_BATCHES: Final = 5_000
#: Characters of one label's value.
_LABEL: Final = 200

#: The figures whose first label is a handler.
BY_HANDLER: Final = frozenset(
    {RUN_DURATION, "profiles_settled", "profiles_dispatched", "retries", "losses", "given_back"}
)

#: Ends after which a profile is settled; and the others, with the names of their counts.
_SETTLED: Final = frozenset({"succeeded", "failed", "skipped", "cancelled", "expired"})
_UNSETTLED: Final = {"retried": "retries", "lost": "losses", "given back": "given_back"}


class News(NamedTuple):
    """What a process has counted since the last one of these that was heard."""

    source: str
    number: int
    """Counts up from 1 for each source."""
    document: dict[str, Any]


class _OfBatch:
    """What one batch did lately."""

    __slots__ = ("buckets", "ends", "handler")

    def __init__(self, handler: str) -> None:
        self.handler = handler
        self.buckets = [0.0] * (len(RUN_BOUNDS) + 1)  # the last is their sum
        self.ends: Counter[str] = Counter()


class Figures:
    """Counters and histograms of one process. Adding takes less than a microsecond, and never waits."""

    def __init__(self) -> None:
        self.source = str(uuid_utils.uuid7())
        self._number = 0
        self._untold: News | None = None
        self._counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self._histograms: dict[tuple[str, tuple[str, ...]], list[float]] = {}
        self._batches: dict[str, _OfBatch] = {}
        self._beyond: dict[str, _OfBatch] = {}
        self._handlers: set[str] = set()
        self._totals: dict[tuple[str, tuple[str, ...]], int] = {}

    def count(self, name: str, *labels: str, amount: int = 1) -> None:
        """Add to a counter."""
        if amount:
            self._counts[name, labels] += amount

    def grown(self, name: str, *labels: str, total: int) -> None:
        """Add to a counter what a number that somebody else counts has grown by, since it was last shown here."""
        before = self._totals.get((name, labels), 0)
        self._totals[name, labels] = total
        self.count(name, *labels, amount=max(0, total - before))

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Add to a histogram."""
        bounds = BOUNDS[name]
        buckets = self._histograms.get((name, labels))
        if buckets is None:
            buckets = self._histograms[name, labels] = [0.0] * (len(bounds) + 1)
        buckets[bisect_left(bounds, value)] += 1
        buckets[-1] += value

    def step(self, name: str, rows: int, seconds: float) -> None:
        """Note a statement, or a publication, for so many rows at once."""
        self.observe(STEP_ROWS, rows, name)
        self.observe(STEP_DURATION, seconds, name)

    def ran(self, handler: str, batch_id: str, seconds: float) -> None:
        """Note that a run came to an end by itself, after so many seconds."""
        buckets = (self._batches.get(batch_id) or self._of(handler, batch_id)).buckets
        buckets[bisect_left(RUN_BOUNDS, seconds)] += 1
        buckets[-1] += seconds

    def ended(self, handler: str, batch_id: str, ends: Mapping[str, int]) -> None:
        """Note what became of runs of one batch: so many of each ending, in the words of `Settlement.label`."""
        (self._batches.get(batch_id) or self._of(handler, batch_id)).ends.update(ends)

    def handler(self, name: str) -> str:
        """The label of a handler: its name, unless there are too many of them."""
        name = name[:_LABEL]
        if name not in self._handlers:
            if len(self._handlers) >= MOST_HANDLERS:
                return OTHER
            self._handlers.add(name)
        return name

    def _of(self, handler: str, batch_id: str) -> _OfBatch:
        if len(self._batches) < MOST_BATCHES:
            of_batch = self._batches[batch_id] = _OfBatch(handler)
            return of_batch
        return self._beyond.setdefault(handler, _OfBatch(handler))

    def news(self) -> News | None:
        """What has to be told now; the same again until it is `told`. None: nothing happened."""
        if self._untold is None and (self._counts or self._histograms or self._batches or self._beyond):
            self._number += 1
            self._untold = News(self.source, self._number, self._take())
        return self._untold

    def told(self, news: News) -> None:
        """It was heard: a COMMIT was answered."""
        if self._untold is not None and news.number >= self._untold.number:
            self._untold = None

    def _take(self) -> dict[str, Any]:
        batches, beyond, self._batches, self._beyond = self._batches, self._beyond, {}, {}
        for each in (*batches.values(), *beyond.values()):
            self._add_up(each)
        counts, histograms, self._counts, self._histograms = self._counts, self._histograms, Counter(), {}
        figures = [[name, as_text(labels), WHOLE, amount] for (name, labels), amount in counts.items()]
        for (name, labels), buckets in histograms.items():
            text = as_text(labels)
            figures += [[name, text, bucket, amount] for bucket, amount in _filled(buckets)]
        return {
            "figures": figures,
            "ends": [[batch_id, *_ends(each.ends)] for batch_id, each in batches.items() if each.ends]
            + [[None, *_ends(each.ends)] for each in beyond.values() if each.ends],
            "durations": [
                [batch_id, bucket, amount]
                for batch_id, each in batches.items()
                for bucket, amount in _filled(each.buckets)
            ],
        }

    def _add_up(self, each: _OfBatch) -> None:
        """To what is known of its handler."""
        handler = self.handler(each.handler)
        if any(each.buckets):
            whole = self._histograms.setdefault((RUN_DURATION, (handler,)), [0.0] * len(each.buckets))
            for place, amount in enumerate(each.buckets):
                whole[place] += amount
        for label, number in each.ends.items():
            if label in _SETTLED:
                self.count("profiles_settled", handler, label, amount=number)
            else:
                self.count(_UNSETTLED[label], handler, amount=number)


def as_text(labels: Sequence[str]) -> str:
    """Values of labels as they are stored."""
    cut = [each[:_LABEL] for each in labels]
    return json.dumps(cut, ensure_ascii=False, separators=(",", ":")) if cut else ""


def _filled(buckets: Sequence[float]) -> list[tuple[int, float]]:
    """The buckets that have something, and the sum in its own place."""
    filled = [(bucket, amount) for bucket, amount in enumerate(buckets[:-1]) if amount]
    return [*filled, (WHOLE, buckets[-1])] if filled else []


def _ends(ends: Counter[str]) -> tuple[int, int, int, int]:
    """Settled, succeeded, failed and retried."""
    settled = sum(number for label, number in ends.items() if label in _SETTLED)
    return settled, ends["succeeded"], ends["failed"], ends["retried"]


__all__ = [
    "BOUNDS",
    "BY_HANDLER",
    "MOST_HANDLERS",
    "OTHER",
    "RUN_BOUNDS",
    "RUN_DURATION",
    "STEP_DURATION",
    "STEP_ROWS",
    "TURN_DURATION",
    "WHOLE",
    "Figures",
    "News",
    "as_text",
]
