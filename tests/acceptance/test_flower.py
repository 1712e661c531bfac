"""Flower beside a worker: it lists the profiles as tasks, and shows neither payloads nor results."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from batching.options import BatchOptions
from tests.nodes import LocalProcess, worker_process
from tests.support import eventually, free_port

if TYPE_CHECKING:
    from tests.acceptance.stage import Stage

CANARY = "canary-5e81b7"


class Flower:
    """A real `celery -A workers flower`, on a free port of the loopback interface."""

    def __init__(self, stage: Stage) -> None:
        self._url = f"http://127.0.0.1:{(port := free_port())}"
        environment = worker_process(stage.folder, stage.environment()).environment
        command = [sys.executable, "-m", "celery", "-A", "workers", "flower", "--address=127.0.0.1", f"--port={port}"]
        environment["FLOWER_UNAUTHENTICATED_API"] = "true"
        self.node = LocalProcess(
            "flower", command, log=stage.folder / "flower.log", environment=environment, ready_prompt="Connected to"
        )
        stage.nodes.append(self.node)
        self.node.start()
        eventually(self.answers, 30)

    def get(self, path: str) -> str:
        """The text of a page."""
        with urllib.request.urlopen(f"{self._url}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def tasks(self, search: str = "") -> dict[str, Any]:
        """The tasks that a search finds, by id."""
        found: dict[str, Any] = json.loads(self.get(f"/api/tasks?search={urllib.parse.quote(search)}"))
        return found

    def answers(self) -> None:
        """Assert that it serves."""
        try:
            assert self.get("/healthcheck") == "OK"
        except urllib.error.URLError as error:
            raise AssertionError(f"{error}\n{self.node.logs()}") from None


@pytest.fixture
def flower(stage: Stage) -> Flower:
    stage.worker("--pool=prefork", "--concurrency=2", "-E")
    return Flower(stage)


def test_flower_lists_profiles_and_shows_no_payload(stage: Stage, flower: Flower) -> None:
    # Given Flower beside a worker that sends events
    eventually(lambda: len(json.loads(flower.get("/api/workers"))) == 1, 20)
    # When two batches ran, whose payloads and results must not be seen
    answer = {"answer": f"{CANARY}-result", "note": f"{CANARY}-payload"}
    batch = stage.submit("work", {"key-one": answer, "key-two": answer})
    other = stage.submit("odd", {"key-three": "return", "key-four": "skip"})
    stage.finished(batch)
    stage.finished(other)
    # Then a search by batch, and by profile, finds exactly those tasks
    eventually(lambda: len(flower.tasks(f"kwargs:batch={batch.id}")) == 2)
    tasks = flower.tasks(f"kwargs:batch={batch.id}")
    assert {task["name"] for task in tasks.values()} == {"acceptance.work"}
    eventually(lambda: {task["state"] for task in flower.tasks(f"kwargs:batch={batch.id}").values()} == {"SUCCESS"})
    one = flower.tasks("kwargs:profile=key-one")
    assert list(one) == [f"{batch.id}.1.1"]
    assert len(flower.tasks(f"kwargs:batch={other.id}")) == 2
    # Conditions add up, and both sides of `=` are compared whole
    found = {
        search: {task_id.rpartition(".")[0].rpartition(".")[2] for task_id in flower.tasks(search)}
        for search in (
            f"kwargs:batch={batch.id} kwargs:profile=key-two",
            f"kwargs:batch={batch.id} state:SUCCESS",
            f"kwargs:batch={batch.id} kwargs:attempt=1",
            f"kwargs:batch={batch.id} kwargs:pass=2",
            f"kwargs:batch={batch.id} state:FAILURE",
            f"kwargs:batch={batch.id[:13]}",
            f"{batch.id} name:acceptance.work",
        )
    }
    assert list(found.values()) == [{"2"}, {"1", "2"}, {"1", "2"}, set(), set(), set(), {"1", "2"}], found
    # And no page of theirs has any of it
    worker = next(iter(json.loads(flower.get("/api/workers"))))
    pages = ["/", "/tasks", "/broker", "/metrics", f"/worker/{worker}", "/api/tasks", "/api/workers?refresh=1"]
    pages += [f"/task/{task_id}" for task_id in flower.tasks()]
    pages += [f"/api/task/info/{task_id}" for task_id in flower.tasks()]
    shown = {page: flower.get(page) for page in pages}
    assert batch.id in shown[f"/task/{batch.id}.1.1"]
    assert not [page for page, text in shown.items() if CANARY in text]
    assert CANARY not in stage.report()
    stage.judge(batch, other)
    # A restart forgets; SQL does not
    flower.node.restart()
    eventually(flower.answers, 30)
    assert flower.tasks() == {}
    assert batch.progress().succeeded == 2


def test_flower_keeps_a_failed_attempt_beside_the_one_that_followed(stage: Stage, flower: Flower) -> None:
    eventually(lambda: len(json.loads(flower.get("/api/workers"))) == 1, 20)
    twice = BatchOptions(max_attempts=2, max_passes=1, retry_backoff=0)
    batch = stage.submit("odd", {"key one": ["raise", "return"]}, twice)
    stage.finished(batch)
    states = {
        f"kwargs:batch={batch.id} kwargs:attempt=1": "FAILURE",
        f"kwargs:batch={batch.id} kwargs:attempt=2": "SUCCESS",
    }

    def told() -> None:
        found = {search: [task["state"] for task in flower.tasks(search).values()] for search in states}
        assert found == {search: [state] for search, state in states.items()}

    eventually(told, 20)
    assert len(flower.tasks('"kwargs:profile=key one"')) == 2
