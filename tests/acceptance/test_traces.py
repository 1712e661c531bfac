"""Traces across real processes: producer, manager, worker and pool children, into a collector."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from batching import traces
from tests.acceptance.stage import BRISK
from tests.collector import Collector, Kept
from tests.nodes import worker_process
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from batching.queue_manager import Batch
    from tests.acceptance.stage import Stage

SECRET = "canary-traces-91d0"
PRODUCER, CONSUMER, CLIENT = 4, 5, 3
HANDLER = "acceptance.traced"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def submitted(stage: Stage, profiles: Mapping[str, str], environment: Mapping[str, str], **options: Any) -> Batch:
    """A batch that `batching submit` has submitted, in a process of its own."""
    lines = [json.dumps({"key": key, "payload": {"how": how, "secret": SECRET}}) for key, how in profiles.items()]
    file: Path = stage.folder / "profiles.jsonl"
    file.write_text("\n".join(lines))
    node = worker_process(stage.folder, stage.environment(**environment))
    given = [f"--option={name}={value}" for name, value in ({"max_passes": 1, "retry_backoff": 0} | options).items()]
    line = [sys.executable, "-m", "batching.cli.main", "submit", HANDLER, str(file), "--json", *given]
    done = subprocess.run(line, env=node.environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return stage.queue.get(json.loads(done.stdout)["id"])


def by_profile(collector: Collector, batch: Batch) -> dict[str, list[Kept]]:
    """The spans of each profile's trace, by its number."""
    found: dict[str, list[Kept]] = {}
    spans: dict[str, list[Kept]] = defaultdict(list)
    for each in collector.spans():
        spans[each.trace].append(each)
    for number in range(1, batch.total + 1):
        trace = f"{traces.trace_id(f'{batch.id}.{number}'):032x}"
        if trace in spans:
            found[str(number)] = spans[trace]
    return found


def named(spans: list[Kept], name: str) -> list[Kept]:
    return [each for each in spans if each.name.startswith(name)]


def count(spans: list[Kept]) -> dict[str, int]:
    names = [each.name.partition(" ")[0] for each in spans]
    return {name: names.count(name) for name in sorted(set(names))}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_one_trace_per_profile_from_dispatch_to_settle_linked_to_the_batchs(
    stage: Stage, collector: Collector, pool: str
) -> None:
    tracing = collector.environment(BATCHING_HANDLERS="tests.acceptance.observed")
    stage.settings = {**BRISK, **tracing}
    stage.worker(f"--pool={pool}", "--concurrency=2")
    ways = {"p1": "well", "p2": "fails", "p3": "skips"}
    batch = submitted(stage, ways, tracing, max_attempts=2)
    stage.finished(batch)
    four = {"claim": 1, "dispatch": 1, "inner": 1, "process": 1, "settle": 1}
    twice = dict.fromkeys(four, 2)

    def complete() -> dict[str, list[Kept]]:
        found = by_profile(collector, batch)
        assert {number: count(spans) for number, spans in found.items()} == {"1": four, "2": twice, "3": four}
        return found

    found = eventually(complete, 30)
    # The batch's trace: the submission, and its start
    (submit,) = collector.spans("submit")
    assert (submit.parent, submit.kind, submit.attributes["messaging.batch.message_count"]) == ("", PRODUCER, 3)
    (start,) = collector.spans("start")
    assert (start.trace, start.parent) == (submit.trace, submit.id)
    # One profile's trace: everything stands below the dispatch of its run, and links lead to the submission
    spans = found["1"]
    (dispatch,), (claim,), (process,), (settle,), (inner,) = (
        named(spans, name) for name in ("dispatch", "claim", "process", "settle", "inner")
    )
    assert dispatch.parent == ""
    assert {each.parent for each in (claim, process, settle)} == {dispatch.id}
    assert (inner.parent, inner.scope) == (process.id, "user")
    assert dispatch.links == process.links == ((submit.trace, submit.id),)
    assert (dispatch.kind, claim.kind, process.kind, settle.kind) == (PRODUCER, CLIENT, CONSUMER, CLIENT)
    assert process.name == f"process default/{HANDLER}"
    assert process.attributes["messaging.message.id"] == f"{batch.id}.1.1"
    assert process.attributes["messaging.destination.name"] == f"default/{HANDLER}"
    assert process.attributes["batching.profile.key"] == "p1"
    assert (settle.attributes["batching.outcome"], process.attributes["batching.outcome"]) == ("succeeded",) * 2
    assert not process.failed
    assert dispatch.began <= claim.began <= process.began <= process.ended
    # A retry is another attempt: its own dispatch, below the first
    spans = found["2"]
    first, second = named(spans, "dispatch")
    assert (first.parent, second.parent) == ("", first.id)
    assert [(each.parent, each.attributes["batching.attempt"]) for each in named(spans, "process")] == [
        (first.id, 1), (second.id, 2),
    ]  # fmt: skip
    assert [each.attributes["batching.outcome"] for each in named(spans, "settle")] == ["retried", "succeeded"]
    failed, good = named(spans, "process")
    assert (failed.failed, failed.attributes["error.type"], good.failed) == (True, "ValueError", False)
    assert not named(found["3"], "process")[0].failed
    if pool == "prefork":
        killed_under(stage, collector, tracing)
    assert {each.resource["service.name"] for each in collector.spans()} == {"batching"}
    assert SECRET.encode() not in b"".join(collector.bodies)


def killed_under(stage: Stage, collector: Collector, tracing: Mapping[str, str]) -> None:
    """A pool child that is killed tells nothing; its parent says what became of the run."""
    batch = submitted(stage, {"p1": "dies"}, tracing)
    stage.finished(batch)

    def complete() -> list[Kept]:
        spans = by_profile(collector, batch).get("1", [])
        seen = {name: len(named(spans, name)) for name in ("dispatch", "settle", "process")}
        assert seen == {"dispatch": 2, "settle": 2, "process": 1}, spans
        return spans

    spans = eventually(complete, 30)
    lost, after = named(spans, "settle")
    assert (lost.attributes["batching.outcome"], lost.attributes["error.type"]) == ("lost", "WorkerLost")
    assert after.attributes["batching.outcome"] == "succeeded"
    assert named(spans, "process")[0].parent == named(spans, "dispatch")[1].id


def test_sampling_is_honoured_by_every_process_alike(stage: Stage, collector: Collector) -> None:
    half = collector.environment(
        BATCHING_HANDLERS="tests.acceptance.observed",
        OTEL_TRACES_SAMPLER="parentbased_traceidratio",
        OTEL_TRACES_SAMPLER_ARG="0.5",
        OTEL_SERVICE_NAME="words",
    )
    stage.settings = {**BRISK, **half}
    stage.worker("--pool=prefork", "--concurrency=2")
    stage.settings = BRISK
    # A batch that was submitted outside any trace: its start begins one, and half of its profiles are traced
    ways = {f"p{number}": "well" for number in range(30)}
    batch = submitted(stage, ways, {})
    # A batch whose trace is not sampled costs nothing
    unsampled = submitted(stage, ways, half | {"OTEL_TRACES_SAMPLER": "always_off"})
    stage.finished(batch)
    stage.finished(unsampled)
    four = {"claim": 1, "dispatch": 1, "inner": 1, "process": 1, "settle": 1}

    def complete() -> dict[str, list[Kept]]:
        found = by_profile(collector, batch)
        assert found
        assert all(count(spans) == four for spans in found.values()), {n: count(s) for n, s in found.items()}
        return found

    found = eventually(complete, 30)
    assert 0 < len(found) < 30
    assert by_profile(collector, unsampled) == {}
    # They link to the start of their batch, whose trace is sampled like any other
    start = (f"{traces.trace_id(batch.id):032x}", f"{traces.span_id(batch.id):016x}")
    assert {each.links for spans in found.values() for each in named(spans, "dispatch")} == {(start,)}
    assert {(each.trace, each.id, each.parent) for each in collector.spans("start")} <= {(*start, "")}
    assert {each.resource["service.name"] for each in collector.spans()} == {"words"}


def test_the_run_of_a_killed_worker_is_told_by_who_takes_it_back(stage: Stage, collector: Collector) -> None:
    tracing = collector.environment(BATCHING_HANDLERS="tests.acceptance.observed")
    stage.settings = {**BRISK, **tracing, "BATCHING_MANAGER": "0"}
    stage.manager()
    victim = stage.worker("--pool=prefork", "--concurrency=1")
    batch = submitted(stage, {"p1": "waits"}, tracing)
    stage.began("p1")
    os.kill(victim.pid, signal.SIGKILL)
    stage.worker("--pool=prefork", "--concurrency=1")
    stage.finished(batch, 60)

    def complete() -> list[Kept]:
        spans = by_profile(collector, batch).get("1", [])
        assert len(named(spans, "settle")) == 2, spans
        assert len(named(spans, "process")) == 1, spans
        return spans

    spans = eventually(complete, 30)
    lost, settled = named(spans, "settle")
    first, second = named(spans, "dispatch")
    assert (lost.parent, lost.attributes["batching.outcome"], lost.failed) == (first.id, "lost", True)
    assert (settled.parent, settled.attributes["batching.outcome"]) == (second.id, "succeeded")
    assert named(spans, "process")[0].parent == second.id


def test_nothing_of_it_is_loaded_while_it_is_off(stage: Stage) -> None:
    stage.worker("--pool=prefork", "--concurrency=1", BATCHING_HANDLERS="tests.acceptance.observed")
    batch = stage.queue.submit("acceptance.untraced", ["p1"])
    stage.finished(batch)
    (line,) = batch.results()
    assert line.result is False
