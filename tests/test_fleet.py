"""`batching workers`, `drain`, and the verbs behind them, against real stores."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import literal, update

from batching.dialects import later
from batching.errors import UnknownWorkerError
from batching.models import workers
from batching.registry import WorkerRegistry
from batching.statistics.fleet import Occupation
from tests.command_line import call, document
from tests.test_statistics import Line

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from batching.database import Database
    from batching.queue_manager import QueueManager


@pytest.fixture
def line(database: Database) -> Line:
    found = Line(database)
    found.start_worker()
    return found


def test_what_is_asked_of_a_worker_is_heard_with_its_next_heartbeat(line: Line, manager: QueueManager) -> None:
    registry = WorkerRegistry(line.database)
    heard = registry.beat(line.worker)
    assert heard is not None
    assert not heard.drain
    (asked,) = manager.workers.drain("host")
    assert asked.id == line.worker
    heard = registry.beat(line.worker, stuck="nothing begins")
    assert heard is not None
    assert heard.drain
    (view,) = manager.workers.list()
    assert (view.drain_asked, view.draining, view.stuck) == (True, False, "nothing begins")
    registry.beat(line.worker, draining=True)
    (view,) = manager.workers.list()
    assert (view.drain_asked, view.draining, view.stuck) == (True, True, None)
    manager.workers.resume(line.worker[:8])
    heard = registry.beat(line.worker, draining=True)
    assert heard is not None
    assert not heard.drain
    # Others do not hear of it, and one that was declared dead hears nothing
    other = Line(line.database)
    other.start_worker(("other.handler",))
    manager.workers.drain(line.worker)
    heard = registry.beat(other.worker)
    assert heard is not None
    assert not heard.drain
    assert registry.beat(str(uuid.uuid4())) is None
    with pytest.raises(UnknownWorkerError, match="there is no worker gamma"):
        manager.workers.drain("gamma")


def test_workers_are_listed_for_people_and_programs(
    run: Callable[..., Result], manager: QueueManager, line: Line
) -> None:
    batch_id = line.submit(2)
    line.promote()
    line.claim(batch_id, 2)
    (told,) = document(run("workers", "--json"))
    assert (told["id"], told["running"], told["slots"], told["live"]) == (line.worker, 2, 4, True)
    assert {"hostname", "pool", "handlers", "queues", "version", "draining", "drain_asked", "stuck"} <= told.keys()
    text = run("workers").output
    assert line.worker[:8] in text
    assert "live" in text
    (occupation,) = manager.statistics.occupations()
    assert occupation[:4] == Occupation(line.worker, batch_id, "tests.handler", 2, 0.0)[:4]
    with line.database.begin() as connection:
        connection.execute(update(workers).values(heartbeat_at=later(literal(-900.0))))
    assert "silent" in run("workers").output


def test_drain_tells_what_it_asked_for_and_waits(run: Callable[..., Result], manager: QueueManager, line: Line) -> None:
    assert "was asked to drain: it runs nothing" in run("drain", line.worker).output
    given_up = run("drain", line.worker, "--wait", "--timeout", "0")
    assert given_up.exit_code == 1
    WorkerRegistry(line.database).beat(line.worker, draining=True)
    done = run("drain", line.worker, "--wait", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)[0]["draining"]
    assert "was asked to take work again" in run("drain", "host", "--off").output
    assert run("drain", "nobody").exit_code == 1
    for wrong in (["drain"], ["drain", "x", "--timeout", "1"], ["drain", "x", "--wait", "--off"]):
        assert run(*wrong).exit_code == 2
    del manager


def test_nobody_there_is_said(run: Callable[..., Result]) -> None:
    assert "no worker is registered" in run("workers").output
    assert call("workers", "--json").stdout.strip() == "[]"
