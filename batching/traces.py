"""Whether this process traces, and which trace a profile belongs to. Imports nothing of OpenTelemetry while it is off.

Messages carry ids alone, so no context travels with them. Each process derives what the others have: the trace of a
profile from the profile's id, the span of a dispatch from the run's. The trace that a batch was submitted in stands
with the batch in SQL, and the spans of its profiles link to it.

It is on where the environment names an exporter, as OTEL_TRACES_EXPORTER or OTEL_EXPORTER_OTLP_ENDPOINT do
(https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/), and for submissions also where the
program that submits has set OpenTelemetry up for itself.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batching.spans import Spans

logger = logging.getLogger(__name__)

#: https://www.w3.org/TR/trace-context/#traceparent-header-field-values; of version 00, which later ones extend.
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_EXPORTERS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_SAMPLED: Final = 1


class _State:
    """What this process has found out."""

    spans: Spans | None = None
    booted = False


def active() -> Spans | None:
    """What makes spans in this process; None while it does not trace. All that a run costs then is this call."""
    return _State.spans


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether the environment asks for traces."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    named = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    return named != "none" and bool(named or any(environment.get(name) for name in _EXPORTERS))


def boot(*, forks: bool = False) -> None:
    """Begin to trace in a process of ours, if that is wanted. Repeatable.

    Args:
        forks: This process forks children that run handlers. What exports its spans then never holds a lock while it
            does, and the children begin anew with `boot_child`.
    """
    if _State.booted or not (wanted(os.environ) or _hosted() is not None):
        return
    if not _is_installed():
        logger.warning("The environment asks for traces, and OpenTelemetry is missing: pip install 'batching[tracing]'")
        return
    from batching.spans import make  # noqa: PLC0415 - it imports OpenTelemetry

    _State.spans, _State.booted = make(forks=forks), True


def _is_installed() -> bool:
    try:
        return find_spec("opentelemetry.sdk") is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


def boot_child() -> Spans:
    """Begin to trace in a pool child; called by the first run that its parent wants traced.

    An exporter has threads and connections, and neither lives on in a fork.
    """
    if _State.spans is None:
        from batching.spans import make  # noqa: PLC0415 - as above

        _State.spans = make(forks=False)
    return _State.spans


def _forget() -> None:
    _State.spans = None


os.register_at_fork(after_in_child=_forget)


def producing() -> Spans | None:
    """What makes the span of a submission: this process's, or the one that the submitting program has set up."""
    if _State.spans is not None:
        return _State.spans
    provider = _hosted()
    if provider is None:
        return None
    from batching.spans import Spans  # noqa: PLC0415 - OpenTelemetry is loaded already

    return Spans(provider)


def _hosted() -> Any:
    """The tracer provider that somebody else has set up in this process; None when nobody has."""
    tracing: Any = sys.modules.get("opentelemetry.trace")
    if tracing is None:
        return None
    provider = tracing.get_tracer_provider()
    return None if isinstance(provider, tracing.ProxyTracerProvider | tracing.NoOpTracerProvider) else provider


def shutdown(seconds: float = 3.0) -> None:
    """Export what there is, for so many seconds at most: a collector that is away must hold nobody up."""
    spans, _State.spans = _State.spans, None
    if spans is not None:
        spans.close(seconds)


# --- identities


def trace_id(name: str) -> int:
    """The trace of a profile, by its id; or of a batch that was submitted outside any, by the batch's."""
    return _number(name, 16)


def span_id(name: str) -> int:
    """The span that dispatched a run, by the run's task id; or that started such a batch, by the batch's."""
    return _number(name, 8)


def _number(name: str, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=size).digest()) or 1


def parse(traceparent: str | None) -> tuple[int, int, bool] | None:
    """Trace, span and whether it was sampled, of a W3C traceparent; None for none, or nonsense."""
    found = _TRACEPARENT.match(traceparent or "")
    if found is None:
        return None
    trace, span, flags = found.groups()
    return int(trace, 16), int(span, 16), bool(int(flags, 16) & _SAMPLED)
