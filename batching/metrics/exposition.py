"""The text that Prometheus reads."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from batching.figures import WHOLE
from batching.metrics import reads
from batching.metrics.catalogue import COUNTER, HISTOGRAM, METRICS, PREFIX

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator

    from prometheus_client.metrics_core import Metric as Family

    from batching.database import Database
    from batching.metrics.catalogue import Metric
    from batching.settings import Settings

#: The format of `exposition`
#: (https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format).
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
#: Seconds for which an exposition is shown again: two Prometheus servers cost one read.
_FRESH: Final = 1.0
#: What has ended is counted anew after so many seconds, and after so many times the time that counting it took.
_RECOUNT: Final = 5.0
_SHARE: Final = 50.0


class Exporter:
    """Reads and renders, for any number of threads.

    Args:
        database: The store.
        lease: Seconds; a worker that is silent for two of them does not count as live.
        clock: Monotonic seconds.
    """

    def __init__(self, database: Database, lease: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._lease = lease
        self._clock = clock
        self._lock = threading.Lock()
        self._text = b""
        self._text_at: float | None = None
        self._ended: reads.Ended = {}
        self._recount_at: float | None = None

    def text(self) -> bytes:
        """The metrics as they are, or were a moment ago.

        Raises:
            DatabaseUnavailableError: The database cannot be reached; there is nothing to show then.
        """
        with self._lock:
            if self._text_at is None or self._clock() - self._text_at >= _FRESH:
                self._text = render(self._read())
                self._text_at = self._clock()
            return self._text

    def _read(self) -> reads.Sheet:
        began = self._clock()
        with self._database.read() as connection:
            if self._recount_at is None or began >= self._recount_at:
                self._ended = reads.count_ended(connection)
                counted = self._clock()
                self._recount_at = counted + max(_RECOUNT, _SHARE * (counted - began))
            sheet = reads.read(connection, self._lease, self._ended)
        sheet.put("read_duration_seconds", self._clock() - began)
        return sheet


def render(sheet: reads.Sheet) -> bytes:
    """A sheet as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(sheet))
    return generate_latest(registry)


class _Collected:
    """A sheet, as prometheus_client wants it."""

    def __init__(self, sheet: reads.Sheet) -> None:
        self._sheet = sheet

    def collect(self) -> Iterator[Family]:
        """Every metric of the catalogue, those without a value too."""
        for metric in METRICS:
            if metric.kind == HISTOGRAM:
                yield self._histogram(metric)
            else:
                yield self._single(metric)

    def _single(self, metric: Metric) -> Family:
        build = CounterMetricFamily if metric.kind == COUNTER else GaugeMetricFamily
        family = build(f"{PREFIX}{metric.name}", metric.help, labels=metric.labels)
        values = self._sheet.values[metric.name]
        if not metric.labels and metric.kind == COUNTER:
            values[()] += 0
        for labels, value in sorted(values.items()):
            family.add_metric(labels, value)
        return family

    def _histogram(self, metric: Metric) -> Family:
        family = HistogramMetricFamily(f"{PREFIX}{metric.name}", metric.help, labels=metric.labels)
        for labels, buckets in sorted(self._sheet.buckets[metric.name].items()):
            family.add_metric(labels, _cumulative(metric, buckets), buckets[WHOLE])
        return family


def _cumulative(metric: Metric, buckets: Counter[int]) -> list[tuple[str, float]]:
    found, below = [], 0.0
    for place, bound in enumerate(metric.bounds):
        below += buckets[place]
        found.append((floatToGoString(bound), below))  # type: ignore[no-untyped-call] # as prometheus_client itself does
    return found


_exporters: WeakKeyDictionary[Database, Exporter] = WeakKeyDictionary()
_making = threading.Lock()


def exposition(database: Database, settings: Settings) -> bytes:
    """All metrics of an installation, in the text format of Prometheus; its content type is `CONTENT_TYPE`.

    Whoever is asked tells of all: nothing is known of this process that is not in SQL. What was read is shown again for
    a second, for as long as `database` lives.

    Args:
        database: The store.
        settings: For the length of a worker's lease.

    Raises:
        DatabaseUnavailableError: It cannot be reached.
    """
    with _making:
        exporter = _exporters.setdefault(database, Exporter(database, settings.worker_lease))
    return exporter.text()
