"""Readiness and liveness as data, the probes' HTTP, and what a loop's note says about its worker."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import literal, update

from batching import health
from batching.database import Database
from batching.dialects import later
from batching.errors import ConfigurationError
from batching.health import Check, Health
from batching.interfaces import Lane, WorkerInfo
from batching.models import profiles, queues, workers
from batching.probes import Probe, parse_address, url_of
from batching.registry import WorkerRegistry
from batching.settings import Settings
from tests.support import eventually
from tests.test_statistics import HANDLER, Line
from workers.vitals import (
    STUCK_AFTER,
    Turn,
    Vitals,
    manager_liveness,
    manager_readiness,
    stuck,
    worker_liveness,
    worker_readiness,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def line(database: Database) -> Line:
    return Line(database)


def named(found: Health) -> dict[str, bool]:
    return {check.name: check.ok for check in found.checks}


def look(line: Line, **settings: Any) -> Health:
    return health.readiness(lambda: line.database, Settings(**settings))


# --- readiness


def test_an_installation_is_ready_with_a_leader_and_live_workers_for_what_waits(line: Line) -> None:
    assert named(look(line)) == {"database": True, "manager": False, "workers": False, "lanes": True}
    line.start_worker()
    assert line.term
    batch_id = line.submit(1)
    assert look(line).ok
    # One that nobody serves is named; it is not when it cannot run anyway
    other = line.submit(1, queue="night")
    with line.database.begin() as connection:
        connection.execute(update(workers).values(queues=["default"]))
    told = {check.name: check for check in look(line).checks}
    assert not told["lanes"].ok
    assert f"{HANDLER} in the queue night" in told["lanes"].why
    assert line.statistics.unserved() == [Lane("night", HANDLER)]
    with line.database.begin() as connection:
        connection.execute(update(queues).where(queues.c.name == "night").values(paused=True))
    assert look(line).ok
    assert {line.view(each).total for each in (batch_id, other)} == {1}


def test_a_store_that_is_away_is_one_check_and_no_error(tmp_path: Any) -> None:
    database = Database(f"sqlite:///{tmp_path}/no/such/folder/x.db")
    found = health.readiness(lambda: database, Settings(broker_url="redis+socket:///nowhere/v.sock?virtual_host=0"))
    assert named(found) == {"database": False, "broker": False}
    assert found.status == 503
    assert found.as_json()["checks"]["broker"]["detail"].startswith("cannot reach the broker")


# --- liveness by SQL


def register(database: Database, number: int, hostname: str, started: float) -> str:
    worker_id = f"{number:08d}-0000-4000-8000-000000000000"
    WorkerRegistry(database).register(WorkerInfo(worker_id, hostname, 1, "prefork", 2, (HANDLER,), ("*",), "0.1.0"))
    with database.begin() as connection:
        moment = later(literal(-started))
        connection.execute(update(workers).where(workers.c.id == worker_id).values(started_at=moment))
    return worker_id


def silence(database: Database, worker_id: str, seconds: float) -> None:
    with database.begin() as connection:
        moment = later(literal(-seconds))
        connection.execute(update(workers).where(workers.c.id == worker_id).values(heartbeat_at=moment))


def test_a_worker_is_named_by_id_name_or_host_and_its_successor_counts(line: Line) -> None:
    old = register(line.database, 10000001, "celery@alpha", 600)
    new = register(line.database, 10000002, "celery@alpha", 5)
    second = register(line.database, 10000003, "second@alpha", 5)
    register(line.database, 20000004, "celery@beta", 5)
    silence(line.database, old, 500)
    # The killed one stays registered until its lease is over: its successor answers for the name
    assert health.liveness_of(line.statistics, "alpha").ok
    assert set(named(health.liveness_of(line.statistics, "alpha"))) == {
        "heartbeat celery@alpha", "progress celery@alpha", "heartbeat second@alpha", "progress second@alpha",
    }  # fmt: skip
    assert new in health.liveness_of(line.statistics, "celery@alpha").checks[0].why
    assert not health.liveness_of(line.statistics, old).ok
    # One that is silent is not live, and neither is one that nobody knows
    silence(line.database, second, 500)
    assert not health.liveness_of(line.statistics, "alpha").ok
    assert health.liveness_of(line.statistics, "beta").ok
    assert named(health.liveness_of(line.statistics, "gamma")) == {"worker": False}
    assert named(health.liveness_of(line.statistics, "1000")) == {"worker": False}, "too short for an id"
    assert not health.liveness_of_all(line.statistics).ok


def test_a_worker_that_drains_is_live_and_not_ready(line: Line) -> None:
    worker_id = register(line.database, 10000001, "celery@alpha", 600)
    assert health.readiness_of(line.statistics, worker_id).ok
    with line.database.begin() as connection:
        connection.execute(update(workers).values(draining=True))
    assert health.liveness_of(line.statistics, worker_id).ok
    assert not health.readiness_of(line.statistics, worker_id).ok


@pytest.mark.parametrize(("limit", "age", "ok"), [(60.0, 5.0, True), (60.0, 200.0, False), (None, 90_000.0, True)])
def test_a_run_past_its_batchs_limit_is_no_progress(line: Line, limit: float | None, age: float, ok: bool) -> None:
    line.start_worker()
    batch_id = line.submit(1) if limit is None else line.submit(1, time_limit=limit)
    line.promote()
    (claimed,) = line.claim(batch_id, 1)
    with line.database.begin() as connection:
        connection.execute(update(profiles).values(started_at=later(literal(-age))))
    found = health.liveness_of(line.statistics, line.worker)
    assert named(found) == {"heartbeat": True, "progress": ok}
    assert ok or claimed.run.task_id in found.checks[1].why


# --- what a loop's note says


NOTE = Vitals(
    at=0.0,
    worker_id="w",
    registered=True,
    database=True,
    broker=True,
    draining=False,
    held=3,
    slots=2,
    stuck=None,
)


def noted(**changes: Any) -> Vitals:
    return replace(NOTE, at=time.monotonic(), **changes)


def test_a_worker_is_live_as_long_as_its_loop_turns_and_work_goes_on() -> None:
    assert worker_liveness(noted(), 20).ok
    assert not worker_liveness(None, 20).ok
    assert not worker_liveness(replace(NOTE, at=time.monotonic() - 30), 20).ok
    assert not worker_liveness(noted(stuck="3 runs wait"), 20).ok
    # An outage is waited out, and a drain is a wish
    assert worker_liveness(noted(database=False, broker=False, draining=True), 20).ok
    for change in ({"database": False}, {"broker": False}, {"draining": True}, {"registered": False}):
        assert not worker_readiness(noted(**change), 20).ok
    assert worker_readiness(noted(), 20).ok


def test_a_manager_is_live_as_long_as_its_turns_come_round() -> None:
    turn = Turn(time.monotonic(), "m", leads=True, trouble=None, broker=True)
    assert manager_liveness(turn, 10).ok
    assert manager_readiness(turn, 10).ok
    assert manager_liveness(replace(turn, leads=False, trouble="the database is away"), 10).ok
    assert not manager_readiness(replace(turn, trouble="the database is away"), 10).ok
    assert not manager_readiness(replace(turn, broker=False), 10).ok
    assert not manager_liveness(replace(turn, at=turn.at - 60), 10).ok
    assert not manager_liveness(None, 10).ok


def consumer(**parts: Any) -> Any:
    """As much of a consumer as is looked at."""
    given = {"bundles": set(), "outcomes": [], "ready": [], "progressed": 0.0, "gate": SimpleNamespace(open=True)}
    return SimpleNamespace(**(given | parts))


def bundle(*, started: bool, began: float = 0.0, limit: float | None = None) -> Any:
    request = SimpleNamespace(id="b.1.1", limits=(None, limit))
    return SimpleNamespace(requests=[request], started=started, began=began, __hash__=object.__hash__)


def test_a_worker_is_stuck_only_when_a_restart_would_help() -> None:
    later_than = STUCK_AFTER + 1
    assert stuck(consumer(), later_than) is None
    # A run without a limit may take days
    assert stuck(consumer(bundles=[bundle(started=True)]), 90_000) is None
    assert stuck(consumer(bundles=[bundle(started=True, began=100, limit=50)]), 160) is None
    assert "over its time limit" in str(stuck(consumer(bundles=[bundle(started=True, began=100, limit=50)]), 190))
    # Nothing begins, or nothing is settled
    assert "begun none of them" in str(stuck(consumer(ready=[1, 2]), later_than))
    assert "begun none of them" in str(stuck(consumer(bundles=[bundle(started=False)]), later_than))
    assert stuck(consumer(ready=[1], bundles=[bundle(started=True)]), later_than) is None
    assert "not settled" in str(stuck(consumer(outcomes=[1]), later_than))
    assert stuck(consumer(outcomes=[1], progressed=later_than - 1), later_than) is None
    # While the database is away, nothing can be
    assert stuck(consumer(outcomes=[1], gate=SimpleNamespace(open=False)), later_than) is None


# --- HTTP


def broken() -> Health:
    raise ValueError("nobody knows")


@pytest.fixture
def probe() -> Iterator[Probe]:
    pages = {
        "/livez": lambda: Health((Check("loop", ok=True, why="turns"),)),
        "/readyz": lambda: Health((Check("loop", ok=True, why="turns"), Check("database", ok=False, why="away"))),
        "/broken": broken,
    }
    made = Probe("127.0.0.1:0", pages)
    made.start()
    yield made
    made.close()
    made.close()


def ask(probe: Probe, method: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", probe.port, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


def test_probes_are_answered_as_http(probe: Probe) -> None:
    status, content = ask(probe, "GET", "/livez?verbose")
    assert (status, json.loads(content)) == (200, {"ok": True, "checks": {"loop": {"ok": True, "detail": "turns"}}})
    assert ask(probe, "HEAD", "/livez") == (200, b"")
    status, content = ask(probe, "GET", "/readyz")
    assert (status, json.loads(content)["checks"]["database"]["ok"]) == (503, False)
    assert ask(probe, "GET", "/")[0] == 404
    assert ask(probe, "POST", "/livez")[0] == 405
    assert ask(probe, "GET", "/broken")[0] == 503


def test_who_says_nothing_or_nonsense_holds_nobody_up(probe: Probe) -> None:
    with socket.create_connection(("127.0.0.1", probe.port)) as silent:
        assert ask(probe, "GET", "/livez")[0] == 200
        silent.sendall(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", probe.port)) as noise:
        noise.sendall(b"\0" * 100_000)
    assert ask(probe, "GET", "/livez")[0] == 200


def test_a_forked_child_does_not_hold_the_port(probe: Probe) -> None:
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # since Python 3.12: this process has threads, as it should
        child = os.fork()
    if child == 0:
        os.read(reader, 1)
        os._exit(0)
    try:
        port = probe.port
        probe.close()
        again = Probe(f"127.0.0.1:{port}", {})
        again.start()
        assert ask(again, "GET", "/")[0] == 404
        again.close()
    finally:
        os.write(writer, b"x")
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


def test_an_address_is_checked_at_once(probe: Probe) -> None:
    assert parse_address("127.0.0.1:8081") == ("127.0.0.1", 8081)
    assert parse_address("[::1]:80") == ("::1", 80)
    assert parse_address(":8081") == ("", 8081)
    assert url_of("0.0.0.0:8081", "/livez") == "http://127.0.0.1:8081/livez"
    assert url_of("[::]:8081", "/livez") == "http://[::1]:8081/livez"
    for wrong in ("8081", "host", "host:port", "host:70000", "a:b:1"):
        with pytest.raises(ConfigurationError, match="host:port"):
            parse_address(wrong)
    with pytest.raises(ConfigurationError, match="each process needs its own"):
        Probe(f"127.0.0.1:{probe.port}", {})


def test_a_closed_probe_answers_nobody(probe: Probe) -> None:
    probe.close()

    def refused() -> None:
        with pytest.raises(OSError, match="refused"):
            ask(probe, "GET", "/livez")

    eventually(refused)
