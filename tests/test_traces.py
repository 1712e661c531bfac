"""Traces: whether they are wanted, whose they are, and what a program that traces already gets."""

from __future__ import annotations

import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from sqlalchemy import select

from batching import traces
from batching.interfaces import RunId
from batching.models import batches
from batching.queue_manager import QueueManager
from batching.settings import Settings

if TYPE_CHECKING:
    from batching.database import Database

BATCH = "01932f3c-5d5e-7a3b-9c4d-0123456789ab"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
    ],
)
def test_the_usual_variables_say_whether_it_is_on(environment: dict[str, str], wanted: bool) -> None:
    assert traces.wanted(environment) is wanted


def test_identities_follow_from_ids_alone() -> None:
    run = RunId(BATCH, 7, 2)
    assert traces.trace_id(run.profile_id) == traces.trace_id(run._replace(run=3).profile_id)
    assert traces.trace_id(run.profile_id) != traces.trace_id(run._replace(number=8).profile_id)
    assert traces.span_id(run.task_id) != traces.span_id(run._replace(run=3).task_id)
    assert 0 < traces.trace_id(run.profile_id) < 2**128
    assert 0 < traces.span_id(run.task_id) < 2**64


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"00-{'a' * 32}-{'b' * 16}-01", (int("a" * 32, 16), int("b" * 16, 16), True)),
        (f"00-{'a' * 32}-{'b' * 16}-00", (int("a" * 32, 16), int("b" * 16, 16), False)),
        (f"cc-{'a' * 32}-{'b' * 16}-09-more", (int("a" * 32, 16), int("b" * 16, 16), True)),
        (f"00-{'0' * 32}-{'b' * 16}-01", None),
        (f"00-{'a' * 32}-{'0' * 16}-01", None),
        ("nonsense", None),
        ("", None),
        (None, None),
    ],
)
def test_a_traceparent_is_read_as_the_standard_says(text: str | None, found: tuple[int, int, bool] | None) -> None:
    assert traces.parse(text) == found


def stored(database: Database, batch_id: str) -> str | None:
    with database.read() as connection:
        return connection.scalar(select(batches.c.traceparent).where(batches.c.id == batch_id))


def test_a_submission_stands_in_the_trace_of_who_submits(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    manager = QueueManager(database, settings=Settings())
    try:
        with provider.get_tracer("web").start_as_current_span("request") as request:
            small = manager.submit("h.one", ["a", "b"], key="once")
            again = manager.submit("h.one", ["a", "b"], key="once")
            large = manager.submit("h.one", (f"k{number}" for number in range(1_200)))
    finally:
        manager.close()
    spans = {span.attributes["messaging.batch.message_count"]: span for span in exporter.get_finished_spans()[:3:2]
             if span.attributes is not None}  # fmt: skip
    assert (again.id, again.created) == (small.id, False)
    for batch, total in ((small, 2), (large, 1_200)):
        span = spans[total]
        context = span.get_span_context()
        assert span.name == "submit default/h.one"
        assert context is not None
        assert span.parent == request.get_span_context()
        assert stored(database, batch.id) == f"00-{context.trace_id:032x}-{context.span_id:016x}-01"


def test_a_trace_that_is_not_sampled_is_kept_as_such(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    manager = QueueManager(database, settings=Settings())
    try:
        batch = manager.submit("h.one", ["a"])
    finally:
        manager.close()
    parsed = traces.parse(stored(database, batch.id))
    assert parsed is not None
    assert not parsed[2]


def test_without_a_tracer_nothing_is_stored(database: Database) -> None:
    assert traces.producing() is None
    manager = QueueManager(database, settings=Settings())
    try:
        assert stored(database, manager.submit("h.one", [str(uuid.uuid4())]).id) is None
    finally:
        manager.close()


def test_what_is_missing_is_said_once_and_stops_nobody() -> None:
    code = (
        "import importlib.util, logging, sys; logging.basicConfig(); find = importlib.util.find_spec\n"
        "import batching.traces as traces\n"
        "traces.find_spec = lambda name: None if name.startswith('opentelemetry') else find(name)\n"
        "traces.boot(); print(traces.active())"
    )
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr
    assert "pip install 'batching[tracing]'" in done.stderr
