"""Celery's remote control of the lanes, and the same verbs through SQL alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from batching.states import BatchState
from tests.acceptance.stage import BRISK
from tests.nodes import worker_process
from tests.support import eventually

if TYPE_CHECKING:
    from batching.statistics import WorkerView
    from tests.acceptance.stage import Stage


def command(stage: Stage, *words: str, module: str) -> subprocess.CompletedProcess[str]:
    environment = worker_process(stage.folder, stage.environment()).environment
    line = [sys.executable, "-m", module, *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)


def remote(stage: Stage, name: str, *targets: str) -> dict[str, Any]:
    """What the one worker answers to a command; as `celery inspect` and `control`, which wait for others as well."""
    with Celery("asks", broker=stage.valkey.url, set_as_current=False) as app:
        app.conf.broker_transport_options = {"global_keyprefix": stage.prefix}
        given = {"targets": list(targets)} if targets else {}
        replies: Any = app.control.broadcast(name, arguments=given, reply=True, timeout=20, limit=1)
    (answer,) = replies
    return only(answer)


def typed(stage: Stage, *words: str, app: str = "workers") -> dict[str, Any]:
    """The same by hand: `celery -A … inspect|control … --json`."""
    done = command(stage, "-A", app, words[0], "--timeout=3", "--json", *words[1:], module="celery")
    assert done.returncode == 0, done.stdout + done.stderr
    found: Any = json.loads(done.stdout)
    return only(found if isinstance(found, dict) else found[0])


def only(answers: dict[str, Any]) -> dict[str, Any]:
    """The answer of the one worker that there is."""
    (answer,) = answers.values()
    found: dict[str, Any] = answer
    return found


def verb(stage: Stage, *words: str) -> subprocess.CompletedProcess[str]:
    return command(stage, *words, module="batching.cli.main")


def view(stage: Stage) -> WorkerView:
    (found,) = stage.queue.workers.list()
    return found


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_remote_control_looks_into_lanes_and_lets_a_worker_rest(stage: Stage, pool: str) -> None:
    worker = stage.worker(f"--pool={pool}", "--concurrency=2", "--prefetch-multiplier=1")
    (worker_id,) = stage.registered()
    batch = stage.submit("work", {f"p{number}": {"gate": "gate"} for number in range(20)})
    stage.began("p0", "p1")
    # The window: two run, some are claimed beyond them, and the rest waits in the broker or in SQL
    told = typed(stage, "inspect", "batching_window") if pool == "prefork" else remote(stage, "batching_window")
    assert (told["worker"], told["draining"]) == (worker_id, False)
    lane = next(each for each in told["lanes"] if each["handler"] == "acceptance.work" and each["queue"] == "default")
    assert lane["active"] >= 2
    assert lane["in_broker"] >= 0
    assert lane.keys() == {"queue", "handler", "in_broker", "pending", "active", "ready", "outcomes"}
    about = remote(stage, "batching_worker")
    assert (about["worker"], about["pool"], about["slots"], about["stuck"]) == (worker_id, pool, 2, None)
    assert about["held"] >= 2
    assert (about["manager_pid"] in worker.children) is True
    # It rests: what runs may finish, everything else is given back, and nothing new begins
    assert "drains" in remote(stage, "batching_drain")["ok"]
    eventually(lambda: view(stage).draining)
    assert view(stage).drain_asked
    stage.open()
    eventually(lambda: view(stage).running == 0, 20)
    began = len(stage.entries())
    assert began < 20
    done = verb(stage, "workers")
    assert "drained" in done.stdout, done.stdout + done.stderr
    eventually(lambda: remote(stage, "batching_window")["credit"] >= 0)
    assert len(stage.entries()) == began
    # And goes on
    assert "takes work" in remote(stage, "batching_resume")["ok"]
    stage.finished(batch)
    assert not view(stage).draining
    stage.judge(batch)


def test_remote_control_goes_to_the_same_verbs_for_batches_and_queues(stage: Stage) -> None:
    stage.worker("--pool=prefork", "--concurrency=1")
    batch = stage.submit("work", {f"p{number}": {"gate": "gate"} for number in range(5)})
    stage.began("p0")
    assert "error" in remote(stage, "batching_pause")
    assert "there is no batch" in remote(stage, "batching_pause", "01234567-unknown")["error"]
    assert batch.id in remote(stage, "batching_pause", batch.id[:13])["ok"]
    stage.open()
    eventually(lambda: batch.progress().state is BatchState.PAUSED)
    assert "paused" in remote(stage, "batching_pause", batch.id)["ok"], "twice is harmless"
    assert stage.queue.statistics.history(batch.id)[-1].reason == "paused by remote control"
    assert "queue default is paused" in typed(stage, "control", "batching_pause", "queue:default")["ok"]
    assert stage.queue.queues.get("default").paused
    remote(stage, "batching_resume", batch.id, "queue:default")
    assert not stage.queue.queues.get("default").paused
    stage.finished(batch)
    stage.judge(batch)


def test_the_verb_drains_through_sql_alone_and_a_reborn_worker_rests_on(stage: Stage) -> None:
    # Hardened by hand: the profile itself wants TLS. No remote control reaches this worker.
    worker = stage.worker("--pool=prefork", "--concurrency=2", "--without-gossip", "--without-mingle")
    batch = stage.submit("work", {f"p{number}": {"gate": "gate"} for number in range(6)})
    stage.began("p0", "p1")
    name = view(stage).hostname
    assert verb(stage, "drain", "nobody").returncode == 1
    waiting = verb(stage, "drain", name, "--wait", "--timeout", "0.5")
    assert waiting.returncode == 1
    assert "drains: 2 of its profiles run" in waiting.stdout, waiting.stdout + waiting.stderr
    stage.open()
    done = verb(stage, "drain", view(stage).id[:8], "--wait", "--timeout", "30", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = json.loads(done.stdout)
    assert (told["draining"], told["running"], told["drain_asked"]) == (True, 0, True)
    before = view(stage).id
    # A worker that was declared dead comes back under another id, and still rests
    with stage.database.begin() as connection:
        from batching.moves import leadership

        assert leadership.unregister(connection, before)
    eventually(lambda: stage.registered() not in ([], [before]), 20)
    eventually(lambda: view(stage).draining, 20)
    assert view(stage).drain_asked
    assert len(stage.entries()) == 2
    assert verb(stage, "drain", name, "--off").returncode == 0
    stage.finished(batch)
    assert worker.status == "running"
    stage.judge(batch)


def test_a_worker_that_rests_still_stops_at_once(stage: Stage) -> None:
    stage.settings = {**BRISK, "BATCHING_MANAGER": "0"}
    worker = stage.worker("--pool=prefork", "--concurrency=1")
    assert verb(stage, "drain", view(stage).id[:8], "--wait").returncode == 0
    worker.kill("SIGTERM")
    assert worker.wait(30) == 0
    assert stage.registered() == []


def test_an_application_of_ones_own_has_the_commands_too_and_keeps_its_logging(stage: Stage) -> None:
    environment = {"HOST_BROKER_URL": stage.valkey.url, "BATCHING_HANDLERS": "", "BATCHING_LOG_FORMAT": "json"}
    node = worker_process(stage.folder, stage.environment(**environment), app="tests.host_app", options=["--pool=solo"])
    stage._started(node, ready=True)
    line = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "tests.host_app",
        "inspect",
        "--timeout=3",
        "--json",
        "batching_worker",
    ]
    done = subprocess.run(line, env=node.environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert only(json.loads(done.stdout))["worker"] == view(stage).id
    # BATCHING_LOG_FORMAT is for processes of our own; this one has Celery's format
    (ready,) = [text for text in node.logs().splitlines() if text.endswith(" ready.")]
    assert "INFO/MainProcess] " in ready
