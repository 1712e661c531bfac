"""Workers that differ, workers that must not start, and every pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.acceptance.stage import HANDLERS
from tests.support import eventually

if TYPE_CHECKING:
    from tests.acceptance.stage import Stage


def test_two_workers_with_different_handlers(stage: Stage) -> None:
    # Given a worker, and a batch for a handler that it does not have
    first = stage.worker()
    foreign = stage.submit("elsewhere", {f"e{number}": None for number in range(30)})
    own = stage.submit("work", 30)
    # When its turn comes, then it says why it does not move, and holds up nobody
    assert stage.finished(own).succeeded == 30
    reason = "no live worker serves handler acceptance.elsewhere in queue default"
    eventually(lambda: foreign.progress().reason == reason)
    assert foreign.progress().dispatched == 0
    # And a worker that has the handler gets it moving
    second = stage.worker(BATCHING_HANDLERS="tests.acceptance.elsewhere")
    assert stage.finished(foreign).succeeded == 30
    assert foreign.progress().reason == ""
    # Each ran only what it has
    where = {entry.key[0]: entry.pid for entry in stage.entries()}
    assert where["e"] != where["p"]
    assert "acceptance.elsewhere" not in first.logs()
    assert "Task acceptance.work" not in second.logs()
    stage.judge(own, foreign)


def test_workers_that_must_not_start(stage: Stage) -> None:
    # Given a module of handlers that raises, a database that is not there, and brokers that lanes cannot use
    nowhere = f"postgresql+psycopg://someone:secret@/nowhere?host={stage.folder}"
    broken = stage.worker(ready=False, BATCHING_HANDLERS=f"{HANDLERS},tests.acceptance.broken")
    unreachable = stage.worker(ready=False, BATCHING_DATABASE_URL=nowhere)
    rabbit = stage.worker("--pool=solo", ready=False, BATCHING_BROKER_URL="amqp://someone:secret@localhost//")
    sometimes = "rediss://:secret@localhost:1/0?ssl_cert_reqs=sometimes"
    careless = stage.worker(ready=False, BATCHING_BROKER_URL=sometimes)
    # Then each worker exits with an error of its own
    for worker in (broken, unreachable, rabbit, careless):
        assert worker.wait(30) != 0, worker.logs()
        assert "secret" not in worker.logs()
    # Which shows the handlers' traceback once
    assert broken.logs().count("RuntimeError: this module cannot be imported") == 1, broken.logs()
    assert broken.logs().count("Traceback") == 1
    assert "tests.acceptance.broken" in broken.logs()
    # Which says what cannot be reached or used, and which setting names it
    assert "cannot reach the database" in unreachable.logs()
    assert "BATCHING_DATABASE_URL" in unreachable.logs()
    assert "Traceback" not in unreachable.logs()
    assert "lanes need Redis or Valkey" in rabbit.logs()
    assert "Traceback" not in rabbit.logs()
    assert "ssl_cert_reqs is one of required, optional, none" in careless.logs()
    assert "Traceback" not in careless.logs()
    assert stage.registered() == []


def test_a_newer_schema_is_refused(stage: Stage) -> None:
    # Given a database that a later version has migrated
    with stage.database.begin() as connection:
        connection.exec_driver_sql("UPDATE batching_version SET version_num = '9999'")
    # Then a worker says so and exits, and does not touch it
    worker = stage.worker(ready=False)
    assert worker.wait(30) != 0
    assert "9999 is newer" in worker.logs()
    assert "Traceback" not in worker.logs()
    assert stage.registered() == []


def test_a_broker_that_cannot_be_reached_yet(stage: Stage) -> None:
    # Given no broker
    stage.valkey.stop()
    # When a worker starts all the same, then it says so and waits
    worker = stage.worker(ready=False)
    eventually(lambda: "cannot reach the broker" in worker.logs(), 30)
    batch = stage.submit("work", 20)
    eventually(stage.registered, 30)
    stage.valkey.start()
    # And works as soon as the broker is there
    assert stage.finished(batch).succeeded == 20
    stage.judge(batch)


@pytest.mark.parametrize(
    ("pool", "engine"),
    [("threads", "postgresql"), ("threads", "sqlite"), ("solo", "postgresql"), ("gevent", "postgresql")],
)
def test_pools_that_do_not_fork(stage: Stage, pool: str) -> None:
    # Given a worker with another pool
    worker = stage.worker(f"--pool={pool}", "--concurrency=4")
    # When it has 500 profiles to do
    batch = stage.submit("work", 500)
    assert stage.finished(batch).succeeded == 500
    # Then each ran exactly once, in the worker itself
    assert stage.endings(batch) == {}
    assert {entry.pid for entry in stage.entries()} == {worker.pid}
    stage.judge(batch)


def test_the_forking_pool(stage: Stage) -> None:
    worker = stage.worker()
    batch = stage.submit("work", 500)
    assert stage.finished(batch).succeeded == 500
    assert stage.endings(batch) == {}
    assert worker.pid not in {entry.pid for entry in stage.entries()}
    stage.judge(batch)
