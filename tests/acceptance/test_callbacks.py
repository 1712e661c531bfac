"""Somebody is told, whatever dies in between: by a webhook, or by a task of their own application."""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update

from batching import BatchOptions
from batching.callbacks import verify
from batching.models import callbacks
from batching.states import CallbackState
from tests.acceptance.stage import BRISK
from tests.nodes import worker_process
from tests.receiver import Receiver
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batching.statistics import CallbackView
    from tests.acceptance.stage import Stage
    from tests.nodes import LocalProcess

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
def brisk() -> Mapping[str, str]:
    return {
        **BRISK,
        "BATCHING_WEBHOOK_SECRETS": SECRET,
        "BATCHING_WEBHOOK_ALLOW_HTTP": "true",
        "BATCHING_WEBHOOK_ALLOW_PRIVATE": "true",
    }


def options(**more: Any) -> BatchOptions:
    return BatchOptions(max_attempts=1, max_passes=1, **more)


def callback(stage: Stage) -> CallbackView:
    [found] = stage.queue.statistics.callbacks()
    return found


def kill(node: LocalProcess) -> None:
    node.kill()
    node.wait()


def test_the_process_dies_between_completion_and_delivery(stage: Stage) -> None:
    with Receiver() as receiver:
        # Given a batch whose profiles run, and a manager that is killed before they end
        worker, manager = stage.worker(BATCHING_MANAGER="false"), stage.manager()
        assert worker.status == "running"
        batch = stage.submit("work", {"a": {"gate": "gate"}, "b": {"gate": "gate"}}, options(on_finish=receiver.url()))
        stage.began("a", "b")
        kill(manager)
        # When the batch completes with nobody there to tell of it
        stage.open()
        stage.finished(batch)
        assert callback(stage).state is CallbackState.WAITING
        assert stage.queue.prune(0) == 0
        # Then the next manager begins, and dies in the middle of the delivery
        receiver.gate.clear()
        second = stage.manager()
        eventually(lambda: receiver.requests, 30)
        kill(second)
        receiver.gate.set()
        assert callback(stage).state is CallbackState.WAITING
        # And the one after it delivers it once the lease is over: the same callback, known by its id
        with stage.database.begin() as connection:
            connection.execute(update(callbacks).values(due_at=callbacks.c.created_at))
        stage.manager()
        eventually(lambda: callback(stage).state is CallbackState.DELIVERED, 30)
        assert callback(stage).attempts == len(receiver.requests) == 2
        first, again = receiver.requests
        assert first.document == again.document
        assert first.document["id"] == callback(stage).id
        assert (first.document["event"], first.document["counts"]["succeeded"]) == ("finish", 2)
        assert verify([SECRET], again.headers, again.body, time.time())
    # And only now may the batch go
    stage.judge(batch)
    assert stage.queue.prune(0) == 1


def test_a_callback_is_a_task_of_the_users_own_application(stage: Stage) -> None:
    # Given a worker of somebody's application, with routes of its own, which serves its callbacks' queue too
    environment = stage.environment(HOST_BROKER_URL=stage.valkey.url)
    given = ("--pool=prefork", "--concurrency=2", "--queues=host,host-callbacks")
    node = worker_process(stage.folder, environment, app="tests.host_app", options=given)
    stage.nodes.append(node)
    node.start()
    node.ready()
    # When a batch fails that asked for its task
    batch = stage.submit("odd", {"a": "return", "b": "raise"}, options(on_failure="host.told", on_success="host.told"))
    stage.finished(batch)
    # Then its manager found the application, which routed the task, under the callback's id
    said = stage.folder / "told"
    eventually(lambda: said.exists() and said.read_text(), 10)  # its first moment is an empty file
    [line] = [json.loads(each) for each in said.read_text().splitlines()]
    assert line["queue"] == "host-callbacks"
    assert line["task_id"] == line["event"]["id"] == callback(stage).id
    assert (line["event"]["event"], line["event"]["batch_id"], line["event"]["state"]) == (
        "failure",
        batch.id,
        "failed",
    )
    eventually(lambda: callback(stage).state is CallbackState.DELIVERED)
    stage.judge(batch)
