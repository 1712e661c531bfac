"""How spans of OpenTelemetry leave this process: the provider, its exporters, and ids that can be chosen."""

from __future__ import annotations

import atexit
import os
import threading
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from batching import traces

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExportResult

_ENTRY_POINTS: Final = "opentelemetry_traces_exporter"
#: Seconds that a fork waits for an export: a collector that hangs must not keep a dead pool child from its successor.
_FORK_PATIENCE: Final = 2.0


def provide(*, forks: bool) -> tuple[Any, ChosenIds | None]:
    """The provider that the program has set up, else one of our own, with the ids that can be chosen there.

    Args:
        forks: See `traces.boot`.
    """
    provider = trace.get_tracer_provider()
    if not isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return provider, None
    ids = ChosenIds()
    own = TracerProvider(
        # `service.name` and the rest come from OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
        resource=Resource.create({} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "batching"}),
        id_generator=ids,
        shutdown_on_exit=False,
    )
    for exporter in _exporters():
        own.add_span_processor(BatchSpanProcessor(_Guarded(exporter) if forks else exporter))
    if not forks:
        # Handlers that make spans of their own find it there. Not where children would inherit it.
        trace.set_tracer_provider(own)
    atexit.register(traces.shutdown)
    return own, ids


def _exporters() -> Iterator[SpanExporter]:
    """What OTEL_TRACES_EXPORTER names, by the entry points that exporters declare; OTLP over HTTP by default."""
    for name in os.environ.get("OTEL_TRACES_EXPORTER", "").strip().split(",") or ["otlp"]:
        wanted = name.strip().lower() or "otlp"
        if wanted == "otlp":
            protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
                "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
            )
            wanted = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
        found = next(iter(entry_points(group=_ENTRY_POINTS, name=wanted)), None)
        if found is None:
            traces.logger.warning("OTEL_TRACES_EXPORTER names %s, and no package that is installed has it", wanted)
            continue
        yield found.load()()


class ChosenIds(RandomIdGenerator):
    """Random ids, and the next ones as somebody has chosen them."""

    def __init__(self) -> None:
        self._next = threading.local()

    @contextmanager
    def chosen(self, trace_id: int, span_id: int) -> Iterator[None]:
        """Give the next span, made in this thread, these ids."""
        self._next.ids = (trace_id, span_id)
        try:
            yield
        finally:
            self._next.ids = None

    def generate_trace_id(self) -> int:
        ids = getattr(self._next, "ids", None)
        return super().generate_trace_id() if ids is None else int(ids[0])

    def generate_span_id(self) -> int:
        ids = getattr(self._next, "ids", None)
        return super().generate_span_id() if ids is None else int(ids[1])


class _Guarded(SpanExporter):
    """Exports only while this process does not fork: whatever locks it takes, no child inherits one that is held.

    Args:
        exporter: What does the work.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._lock = threading.Lock()
        self._held = False
        os.register_at_fork(before=self._hold, after_in_parent=self._release, after_in_child=self._release)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See the exporter's."""
        with self._lock:
            return self._exporter.export(spans)

    def shutdown(self) -> None:
        """See the exporter's."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """See the exporter's."""
        return self._exporter.force_flush(timeout_millis)

    def _hold(self) -> None:
        self._held = self._lock.acquire(timeout=_FORK_PATIENCE)

    def _release(self) -> None:
        if self._held:
            self._held = False
            self._lock.release()
