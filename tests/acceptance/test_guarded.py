"""A whole installation with the least rights: every profile is accounted for, and nobody was denied anything."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from batching.interfaces import Lane
from tests.acceptance.guarded_stage import GuardedStage
from tests.acceptance.stage import ONCE
from tests.acceptance.test_flower import Flower
from tests.guarded import GuardedValkey
from tests.sql_roles import install
from tests.support import eventually
from workers.publisher import lane_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import PostgresServer

LANE = Lane("default", "acceptance.work")


@pytest.fixture
def guarded(
    request: pytest.FixtureRequest, tmp_path: Path, key_prefix: str, postgres_server: PostgresServer
) -> Iterator[GuardedStage]:
    hardened = request.param == "users.acl"
    with GuardedValkey(tmp_path / "valkey") as valkey:
        valkey.guard(request.param, key_prefix)
        stage = GuardedStage(tmp_path, install(postgres_server), valkey, key_prefix, hardened=hardened)
        with stage.acting_as("manager"):
            stage.manager()
        yield stage
        stage.close()


def is_delivered(stage: GuardedStage) -> None:
    (told,) = document(stage, "viewer", "callbacks", "list")
    assert told["state"] == "delivered", f"{told}, denied: {stage.guarded.denied()}"


def document(stage: GuardedStage, part: str, *words: str) -> Any:
    done = stage.verb(part, *words, "--json")
    assert not done.stderr, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("guarded", ["users.acl"], indirect=True)
def test_a_hardened_installation_goes_through_a_whole_life(guarded: GuardedStage) -> None:
    stage = guarded
    worker = stage.worker("--pool=prefork", "--concurrency=2", "-E")
    # Given a batch whose first profiles run, while the messages of the others are lost
    payloads = {f"p{number}": {"gate": "gate"} for number in range(40)}
    options = replace(ONCE, on_finish="reports.mail")
    batch = stage.queue.get(stage.producer.submit("acceptance.work", list(payloads.items()), options=options).id)
    stage.began("p0")
    with stage.guarded.admin() as admin:
        key = lane_key(stage.prefix, LANE)
        eventually(lambda: admin.llen(key))
        admin.delete(key)
        # When the sweep has published them again
        eventually(lambda: admin.llen(key), 20)
    # And a worker is stopped in the middle, and another one takes over
    worker.kill("SIGTERM")
    stage.open()
    worker.wait()
    stage.worker("--pool=threads", "--concurrency=2")
    # Then everything is accounted for
    stage.finished(batch)
    stage.judge(batch, again={"given back"})
    for words in (["viewer", "doctor"], ["operator", "doctor", "--fix"]):
        assert document(stage, *words) == {"ok": True, "problems": [], "repaired": []}
    # And the callback was sent, which nobody knows; the queue of the workers' own application took it
    eventually(lambda: is_delivered(stage), 20)
    assert document(stage, "viewer", "health")["ok"]
    shown = document(stage, "viewer", "show", batch.id)
    assert (shown["state"], shown["succeeded"]) == ("succeeded", 40)
    assert len(stage.verb("viewer", "results", batch.id).stdout.splitlines()) == 40
    # And nobody was denied anything by Redis, and workers took no remote control and sent no event
    assert stage.guarded.denied() == []
    assert "events stay off" in worker.logs()
    assert "permission denied" not in stage.report()
    with stage.guarded.admin() as admin:
        assert admin.pubsub_channels() == []
        assert admin.pubsub_numpat() == 0
        left = {key.removeprefix(stage.prefix) for key in admin.keys(f"{stage.prefix}*")}
    assert left <= {"canary", "hint", "batching", "_kombu.binding.batching", "_kombu.binding_permanent.batching"}


@pytest.mark.parametrize("guarded", ["users.acl"], indirect=True)
def test_an_operator_lets_a_hardened_worker_rest(guarded: GuardedStage) -> None:
    stage = guarded
    stage.worker("--pool=prefork", "--concurrency=2")
    (worker,) = stage.registered()
    payloads = {f"p{number}": {"gate": "gate"} for number in range(6)}
    batch = stage.queue.get(stage.producer.submit("acceptance.work", list(payloads.items()), options=ONCE).id)
    stage.began("p0", "p1")
    # A viewer may not, and an operator may: through SQL alone, since no remote control reaches a hardened worker
    refused = stage.verb("viewer", "drain", worker)
    assert refused.returncode == 1
    assert "permission denied" in refused.stderr
    waiting = stage.verb("operator", "drain", worker, "--wait", "--timeout", "0.5")
    assert (waiting.returncode, "2 of its profiles run" in waiting.stdout) == (1, True), waiting.stdout + waiting.stderr
    stage.open()
    (told,) = document(stage, "operator", "drain", worker, "--wait", "--timeout", "30")
    assert (told["draining"], told["running"]) == (True, 0)
    assert len(stage.entries()) < 6
    assert "take work again" in stage.verb("operator", "drain", worker, "--off").stdout
    stage.finished(batch)
    stage.judge(batch)
    assert stage.guarded.denied() == []


@pytest.mark.parametrize("guarded", ["users-with-flower.acl"], indirect=True)
def test_flower_and_inspect_with_the_other_list(guarded: GuardedStage) -> None:
    stage = guarded
    stage.worker("--pool=prefork", "--concurrency=2", "-E")
    with stage.acting_as("flower"):
        flower = Flower(stage)
    eventually(lambda: len(json.loads(flower.get("/api/workers"))) == 1, 20)  # from then on it hears events

    batch = stage.queue.get(stage.producer.submit("acceptance.work", ["a", "b"], options=ONCE).id)
    stage.finished(batch)

    eventually(lambda: len(flower.tasks(f"kwargs:batch={batch.id}")) == 2, 20)
    assert "batching" in flower.get("/broker")
    stats = stage.verb("flower", "-A", "workers", "inspect", "stats", "--json", module="celery")
    assert '"lanes"' in stats.stdout, stats.stderr
    assert stage.guarded.denied() == []
    stage.judge(batch)
