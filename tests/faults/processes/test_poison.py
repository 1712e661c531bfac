"""Handlers that leak, loop, crash or say too much: that profile fails with a clear reason, and nobody else pays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batching import BatchOptions
from tests.acceptance.stage import HANDLERS
from tests.faults.processes.poisons import WAYS

if TYPE_CHECKING:
    from tests.faults.processes.scene import Scene

ENDS_ITS_PROCESS = ("segfault", "os._exit", "killed", "abort")
#: What each failure is called; those that end their process are lost twice, and then `WorkerLost`.
CALLED = dict.fromkeys(ENDS_ITS_PROCESS, "WorkerLost") | {
    "MemoryError": "MemoryError",
    "leak": "MemoryError",
    "BaseException": "Basic",
    "SystemExit": "SystemExit",
    "KeyboardInterrupt": "KeyboardInterrupt",
    "GeneratorExit": "GeneratorExit",
    "RecursionError": "RecursionError",
    "unpicklable": "Unpicklable",
    "unprintable": "Unprintable",
    "long message": "ValueError",
    "100 MB": "ResultTooLargeError",
    "prints 100 MB": "OutputTooLargeError",
    "prints 100 MB in spite of it": "OutputTooLargeError",
    "deep": "ResultNotJSONError",
    "NaN": "ResultNotJSONError",
    "surrogate": "ResultNotJSONError",
}
WITH_POISONS = f"{HANDLERS},tests.faults.processes.poisons"
TOGETHER = BatchOptions(max_attempts=1, max_passes=1, failure_budget=1000)
NEIGHBOURS = {f"n{number}": None for number in range(200)}


def test_every_poison_fails_for_its_own_reason(scene: Scene) -> None:
    # Given a worker, and a poison of each kind among two hundred neighbours
    assert set(CALLED) == set(WAYS)
    worker = scene.worker(BATCHING_HANDLERS=WITH_POISONS, BATCHING_MAX_LOSSES="1")
    pid = worker.pid
    batch = scene.queue.submit("faults.poison", [*NEIGHBOURS.items(), *((way, way) for way in WAYS)], options=TOGETHER)
    scene.oracle.acknowledge(batch.id, [*NEIGHBOURS, *WAYS])
    # When they all ran
    view = scene.finished(batch, 120)
    # Then each failed with a reason that says what it was, and the neighbours succeeded
    assert (view.succeeded, view.failed) == (len(NEIGHBOURS), len(WAYS)), scene.report()
    lines = {line.key: line for line in batch.results()}
    called = {way: ((lines[way].error or {})["type"] or "").rsplit(".", 1)[-1] for way in WAYS}
    assert called == CALLED
    # And what is kept of a failure is short, however much it said, and so is the log
    assert max(len(str(line.error)) for line in lines.values()) < 20_000
    assert worker.log.stat().st_size < 120_000_000
    # And the worker lives, and only those who ended their process were run again
    assert (worker.status, worker.pid) == ("running", pid)
    endings = scene.endings(batch)
    assert {way for way, how in endings.items() if "lost" in how} <= {*ENDS_ITS_PROCESS}
    scene.verdict(again={"lost"}, late=False)


def test_a_loop_ends_at_its_time_limit(scene: Scene) -> None:
    worker = scene.worker(BATCHING_HANDLERS=WITH_POISONS)
    payloads = {"loop": "loop"} | NEIGHBOURS
    batch = scene.queue.submit("faults.loop", list(payloads.items()), options=TOGETHER)
    scene.oracle.acknowledge(batch.id, payloads)
    view = scene.finished(batch)
    assert (view.succeeded, view.failed) == (len(NEIGHBOURS), 1)
    (failed,) = [line for line in batch.results() if line.key == "loop"]
    assert failed.error is not None
    assert (failed.error["type"], failed.error["message"]) == (
        "TimeLimitExceeded",
        "ran over its time limit of 2 seconds",
    )
    assert worker.status == "running"
    scene.verdict(again=(), late=False)
