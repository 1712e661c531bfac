"""How a run can end with its worker: killed, stopped, or alive and forgetful."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from batching import BatchOptions, BatchState
from batching.interfaces import RunId
from batching.states import ProfileState
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.acceptance.stage import Stage

BOTH = pytest.mark.parametrize("engine", ["postgresql", "sqlite"])
GATED = {"gate": "gate"}
NEIGHBOURS = {f"n{number}": None for number in range(20)}


@BOTH
def test_the_whole_worker_is_killed(stage: Stage) -> None:
    # Given a worker that runs two profiles and leads, and a second worker beside it
    first = stage.worker()
    batch = stage.submit("work", {"a": GATED, "b": GATED} | NEIGHBOURS)
    stage.began("a", "b")
    leads, _ = stage.leader()
    lost = {key for key, row in stage.rows(batch).items() if row.state == ProfileState.RUNNING}
    second = stage.worker()
    # When the first is killed with everything in it: pool, manager
    first.kill()
    stage.open()
    # Then the other leads, and runs what was lost, uncharged; nobody else pays
    view = stage.finished(batch)
    assert (view.state, view.succeeded) == (BatchState.SUCCEEDED, 22)
    assert stage.endings(batch) == {key: ["lost"] for key in lost}
    assert {row.attempts for row in stage.rows(batch).values()} == {1}
    assert stage.leader()[0] != leads
    assert second.status == "running"
    stage.judge(batch, again={"lost"})


def test_a_profile_kills_its_worker_every_time(stage: Stage) -> None:
    # Given a profile that kills its worker, among others, and somebody who starts the worker again; and a manager
    stage.settings = {**stage.settings, "BATCHING_MAX_LOSSES": "1"}
    stage.manager()
    worker = stage.worker(BATCHING_MANAGER="false")
    slow = {f"n{number}": {"seconds": 0.3} for number in range(8)}
    neighbours = stage.submit("work", slow)
    batch = stage.submit("odd", {"poison": "kill worker", "good": "return"})
    stage.queue.process(batch.id)
    # When it has killed two of them
    for _ in range(2):
        worker.wait(30)
        worker.restart()
    # Then it is `failed` by WorkerLost, after it ran alone; its neighbours succeeded, whatever they lost
    view = stage.finished(batch)
    assert (view.failed, view.succeeded) == (1, 1), stage.report()
    poison = next(line for line in batch.results() if line.key == "poison")
    assert (poison.error or {})["type"] == "WorkerLost"
    assert stage.endings(batch)["poison"] == ["lost", "failed"]
    assert stage.finished(neighbours).succeeded == len(slow)
    stage.judge(batch, neighbours, again={"lost"})


def test_sigterm(stage: Stage) -> None:
    # Given a worker that runs a profile which will end in time and one which will not, and holds others
    worker = stage.worker(BATCHING_DRAIN_TIMEOUT="2")
    batch = stage.submit("work", {"short": {"gate": "short"}, "long": {"gate": "long"}} | NEIGHBOURS)
    stage.began("short", "long")
    # When it is told to stop
    worker.kill("SIGTERM")
    eventually(lambda: "Draining" in worker.logs())
    stage.open("short")
    # Then it finishes the first, gives the other back after its time, uncharged, and leaves
    assert worker.wait(15) == 0, worker.logs()
    eventually(stage.nothing_runs)
    rows = stage.rows(batch)
    assert (rows["short"].state, rows["long"].state) == ("succeeded", "pending")
    assert (rows["long"].attempts, rows["long"].losses) == (0, 0)
    assert stage.registered() == []
    assert not [row for row in rows.values() if row.state == "running"]
    # And another worker does the rest
    stage.open("long")
    stage.worker()
    assert stage.finished(batch).succeeded == 22
    assert stage.endings(batch)["long"] == ["given back"]
    stage.judge(batch, again={"given back"})


def test_sigquit(stage: Stage) -> None:
    # Given a worker that runs profiles which take longer than anybody waits
    worker = stage.worker()
    batch = stage.submit("work", {"a": GATED, "b": GATED} | NEIGHBOURS)
    stage.began("a", "b")
    # When it is told to stop at once
    started = time.monotonic()
    worker.kill("SIGQUIT")
    worker.wait(15)
    # Then it gave everything back before it left, uncharged
    assert time.monotonic() - started < 5
    eventually(stage.nothing_runs)
    rows = stage.rows(batch)
    assert not [key for key, row in rows.items() if row.state == "running"], worker.logs()
    assert {(row.attempts, row.losses) for row in rows.values()} == {(0, 0)}
    # And another worker does it all
    stage.open()
    stage.worker()
    assert stage.finished(batch).succeeded == 22
    stage.judge(batch, again={"given back"})


def test_the_worker_lives_but_forgot_a_run(stage: Stage) -> None:
    # Given a worker with its hands full, and dispatched profiles that it has not claimed
    stage.worker("--pool=prefork", "--concurrency=1")
    batch = stage.submit("work", {"busy": GATED} | NEIGHBOURS)
    stage.began("busy")

    def waits() -> tuple[str, RunId]:
        found = [(key, row) for key, row in stage.rows(batch).items() if row.state == "dispatched"]
        assert found, "nothing is dispatched and unclaimed"
        key, row = found[-1]
        return key, RunId(batch.id, row.number, row.run + 1)

    key, run = eventually(waits)
    # When a claim in its name is committed, and it never hears of it
    assert stage.queue.state_manager.claim(stage.registered()[0], [run]).claimed
    # Then its own heartbeat gives that run back, uncharged, and keeps what it really runs
    eventually(lambda: stage.endings(batch).get(key) == ["given back"])
    assert stage.rows(batch)["busy"].state == "running"
    stage.open()
    assert stage.finished(batch).succeeded == 21
    assert stage.endings(batch) == {key: ["given back"]}
    assert {row.attempts for row in stage.rows(batch).values()} == {1}
    stage.judge(batch, again={"given back"})


class TestWithTheDefaults:
    """What the README promises, with the settings that nobody changed."""

    @pytest.fixture
    def brisk(self) -> Mapping[str, str]:
        return {}

    def test_a_killed_worker_and_a_killed_leader(
        self, stage: Stage, record_property: Callable[[str, object], None]
    ) -> None:
        # Given a worker that runs a profile and leads, and another that stands by
        first = stage.worker()
        batch = stage.submit("work", {"a": GATED}, BatchOptions(max_attempts=1, max_passes=1))
        stage.began("a")
        leads, _ = stage.leader()
        stage.worker()
        # When the first is killed with its manager
        killed_at = time.monotonic()
        first.kill()
        # Then the other leads within 10 seconds, and runs the profile again within 20
        eventually(lambda: stage.leader()[0] not in {None, leads}, 30)
        record_property("leader_replaced_after_seconds", led := time.monotonic() - killed_at)
        stage.began("a", times=2)
        record_property("profile_ran_again_after_seconds", ran := time.monotonic() - killed_at)
        print(f"the leader was replaced after {led:.1f} s, the profile ran again after {ran:.1f} s")  # noqa: T201
        assert led < 10
        assert ran < 20
        stage.open()
        assert stage.finished(batch).succeeded == 1
        stage.judge(batch, again={"lost"})


def test_handlers_that_compute_keep_no_worker_from_its_signs_of_life(stage: Stage) -> None:
    # Given a worker of a hundred threads, each of which wants the interpreter all the time
    stage.settings = {**stage.settings, "BATCHING_WORKER_LEASE": "10", "BATCHING_HEARTBEAT_INTERVAL": "2.5"}
    stage.worker("--pool=threads", "--concurrency=100")
    (known,) = stage.registered()
    batch = stage.submit("work", {f"p{number}": {"computes": 0.1} for number in range(200)})
    # Then it is the same worker in the end, and ran each once
    assert stage.finished(batch, 90).succeeded == 200
    assert stage.registered() == [known]
    stage.judge(batch)
