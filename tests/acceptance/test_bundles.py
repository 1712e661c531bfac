"""Runs that travel together, with real children: who dies, who hangs, and who has nothing to do with it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from batching import BatchState
from tests.acceptance.stage import HANDLERS
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_celery import CeleryTestSetup  # type: ignore[import-untyped]  # it ships no types

    from batching.queue_manager import Batch
    from tests.acceptance.stage import Stage
    from tests.nodes import LocalProcess

ONE = ("--pool=prefork", "--concurrency=1")
HANGS = {"gate": "gate"}
WITH_QUICK = f"{HANDLERS},tests.acceptance.bundled"


def a_worker(stage: Stage, *options: str, **environment: str) -> LocalProcess:
    """A worker that has learned that the handler is quick."""
    stage.settings = {**stage.settings, **environment, "BATCHING_HANDLERS": WITH_QUICK}
    worker = stage.worker(*options)
    stage.finished(stage.submit("quick", {f"w{number}": None for number in range(200)}))
    return worker


def among(count: int, odd: Mapping[int, Any]) -> dict[str, Any]:
    """So many quick profiles, of which some are odd."""
    return {f"p{number}": odd.get(number) for number in range(count)}


def executions(stage: Stage, batch: Batch) -> Counter[str]:
    return Counter(entry.key for entry in stage.entries() if entry.profile.startswith(batch.id))


def test_only_the_run_that_ends_its_child_is_lost(stage: Stage) -> None:
    # Given quick profiles, of which three end their child, and three raise what would end a process
    worker = a_worker(stage)
    kills = {40: "SIGKILL", 90: "os._exit", 140: "segfault"}
    raises = {30: "SystemExit", 85: "MemoryError", 130: "raise"}
    odd = {number: {"way": way, "always": number in raises} for number, way in (kills | raises).items()}
    batch = stage.submit("quick", among(180, odd))
    # When the batch is through
    view = stage.finished(batch)
    # Then those who raised failed, and whoever ended a child was lost once, and ran again
    assert (view.failed, view.succeeded) == (3, 177), stage.report()
    endings = stage.endings(batch)
    assert {key for key, how in endings.items() if "lost" in how} == {f"p{number}" for number in kills}
    assert {key for key, how in endings.items() if "failed" in how} == {f"p{number}" for number in raises}
    # And nobody else was executed twice: not those before them in their bundles, and not those behind
    assert {key for key, times in executions(stage, batch).items() if times > 1} == {f"p{n}" for n in kills}
    assert worker.status == "running"
    stage.judge(batch, again={"lost"})


def test_a_handler_that_ends_its_child_behind_its_bundle_is_not_run_for_ever(stage: Stage) -> None:
    # Given a profile whose child dies each time when its run has ended, and before anybody heard of it
    stage.worker(*ONE, BATCHING_HANDLERS=WITH_QUICK, BATCHING_MAX_LOSSES="1")
    batch = stage.submit("quick", {"bad": {"way": "die behind", "always": True}, "good": None})
    # When the batch is through, for it comes to an end
    view = stage.finished(batch)
    # Then it was lost as often as anybody may be
    assert (view.failed, view.succeeded) == (1, 1)
    assert stage.endings(batch) == {"bad": ["lost", "failed"]}
    stage.judge(batch, again={"lost"})


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_whoever_hangs_holds_up_nobody(stage: Stage, pool: str) -> None:
    # Given a quick profile that hangs for once, among others
    a_worker(stage, f"--pool={pool}", "--concurrency=2")
    batch = stage.submit("quick", among(200, {100: HANGS}))
    stage.began("p100")
    # Then all others succeed meanwhile, those of its own bundle too, each in one execution
    eventually(lambda: batch.progress().succeeded == 199)
    assert batch.progress().running == 1
    # And so does it, in its time
    stage.open()
    assert stage.finished(batch).succeeded == 200
    assert not stage.endings(batch)
    stage.judge(batch)


def test_a_pause_gives_back_what_is_behind_one_that_hangs(stage: Stage) -> None:
    # Given a worker with one child, in which a profile hangs
    a_worker(stage, *ONE)
    batch = stage.submit("quick", among(200, {100: HANGS}))
    stage.began("p100")
    # When its batch is paused
    begun = set(executions(stage, batch))
    stage.queue.pause(batch.id)
    # Then what has not begun is pending, while it still hangs; and nothing of it begins afterwards
    eventually(lambda: batch.progress().pending == 200 - len(begun))
    stage.open()
    eventually(lambda: batch.progress().state is BatchState.PAUSED)
    assert set(executions(stage, batch)) == begun
    # And it all ends when it is resumed
    stage.queue.resume(batch.id)
    assert stage.finished(batch).succeeded == 200
    assert set(executions(stage, batch).values()) == {1}
    stage.judge(batch)


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGQUIT"])
def test_a_worker_that_stops_settles_what_ended_and_gives_back_the_rest(stage: Stage, signal: str) -> None:
    # Given a worker with one child, in which a profile hangs
    worker = a_worker(stage, *ONE, BATCHING_DRAIN_TIMEOUT="1")
    batch = stage.submit("quick", among(200, {100: HANGS}))
    stage.began("p100")
    # When it is told to stop
    worker.kill(signal)
    worker.wait(15)
    eventually(stage.nothing_runs)
    # Then it has settled whatever had ended, and given back the others, uncharged
    rows = stage.rows(batch)
    ended = {key for key, row in rows.items() if row.state == "succeeded"}
    assert ended == set(executions(stage, batch)) - {"p100"}
    assert {row.state for key, row in rows.items() if key not in ended} <= {"pending", "dispatched"}
    assert {(row.attempts, row.losses) for key, row in rows.items() if key not in ended} == {(0, 0)}
    # And whoever hung was asked politely, and could clean up
    assert (stage.folder / "gate.left").exists()


def test_large_payloads_and_large_results_travel_in_small_bundles(stage: Stage) -> None:
    a_worker(stage, *ONE)
    batch = stage.submit("quick", among(60, {n: {"result": 65_000, "ballast": "y" * 65_000} for n in range(60)}))
    assert stage.finished(batch).succeeded == 60
    assert {len(line.result) for line in batch.results()} == {65_000}
    assert set(executions(stage, batch).values()) == {1}
    stage.judge(batch)


def test_a_child_that_is_replaced_after_each_job_costs_nobody_anything(stage: Stage) -> None:
    # Given a worker that finds after each job that its child has too much memory
    stage.worker("--pool=prefork", "--concurrency=2", "--max-memory-per-child=1", BATCHING_HANDLERS=WITH_QUICK)
    batch = stage.submit("quick", among(40, {}))
    # Then no run is done twice, and none is lost
    assert stage.finished(batch).succeeded == 40
    assert not stage.endings(batch)
    assert len({entry.pid for entry in stage.entries()}) > 1
    stage.judge(batch)


def test_a_broker_that_is_lost_in_between_costs_no_run(stage: Stage) -> None:
    # Given quick profiles under way
    a_worker(stage)
    batch = stage.submit("quick", among(3000, {}))
    stage.began("p100")
    # When the broker restarts, without its data: Celery makes its pool forget whatever has not begun
    stage.valkey.restart(empty=True)
    # Then each profile succeeds, in one execution
    assert stage.finished(batch).succeeded == 3000
    assert set(executions(stage, batch).values()) == {1}
    stage.judge(batch, again={"given back"})


class TestThroughCelery:
    """With pytest-celery's set-up: its app speaks to the worker as Flower and `celery control` do."""

    @pytest.fixture
    def worker_environment(self, stage: Stage) -> dict[str, str]:
        return stage.environment(BATCHING_HANDLERS=WITH_QUICK)

    @pytest.fixture
    def worker_options(self) -> list[str]:
        return [*ONE, "-E"]

    def test_one_that_waits_in_a_bundle_is_revoked_and_one_that_runs_terminated(
        self, stage: Stage, celery_setup: CeleryTestSetup
    ) -> None:
        # Given a profile that hangs, and others behind it
        stage.finished(stage.submit("quick", {f"w{number}": None for number in range(200)}))
        batch = stage.submit("quick", among(200, {100: HANGS}))
        stage.began("p100")
        rows = stage.rows(batch)
        waits = next(key for key, row in rows.items() if row.state == "running" and row.number > rows["p100"].number)
        # When one of those is terminated, and then the one that hangs
        control = celery_setup.app.control
        control.terminate(f"{batch.id}.{rows[waits].number}.1", reply=True, timeout=2)
        assert batch.progress().cancelled == 0
        control.terminate(f"{batch.id}.{rows['p100'].number}.1", reply=True, timeout=2)
        # Then both are cancelled, the first without having run, and every other profile succeeded in one execution
        view = stage.finished(batch)
        assert (view.cancelled, view.succeeded) == (2, 198)
        assert {key for key, row in stage.rows(batch).items() if row.state == "cancelled"} == {waits, "p100"}
        times = executions(stage, batch)
        assert waits not in times
        assert set(times.values()) == {1}
        stage.judge(batch)
