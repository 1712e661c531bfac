"""Probes of real processes: a loop that stands still is not live, an outage is no reason to restart anybody."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.acceptance.stage import BRISK, HANDLERS
from tests.nodes import worker_process
from tests.support import eventually, free_port, listening_ports

if TYPE_CHECKING:
    from tests.acceptance.stage import Stage


def probe(port: int, path: str = "/livez", timeout: float = 5.0) -> tuple[int, dict[str, Any]]:
    """Status and document of a probe; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
    except OSError:
        return 0, {}


def health(stage: Stage, *words: str, **environment: str) -> tuple[int, dict[str, Any]]:
    """`batching health`, beside the processes."""
    node = worker_process(stage.folder, stage.environment(**environment))
    command = [sys.executable, "-m", "batching.cli.main", "health", *words, "--json"]
    done = subprocess.run(command, env=node.environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_is_live_and_ready_until_it_stops(stage: Stage, pool: str) -> None:
    port = free_port()
    worker = stage.worker(f"--pool={pool}", "--concurrency=2", BATCHING_HEALTH_ADDRESS=f"127.0.0.1:{port}")
    # Its manager is a process of its own, and does not take the address from it
    eventually(lambda: stage.leader()[0], 30)
    eventually(lambda: probe(port)[0] == 200, 20)
    eventually(lambda: probe(port, "/readyz")[0] == 200, 20)
    assert set(probe(port, "/readyz")[1]["checks"]) == {"loop", "progress", "database", "broker", "takes work"}
    assert probe(port, "/nothing")[0] == 404
    # With work in hand, too
    batch = stage.submit("work", {f"p{number}": {"gate": "gate"} for number in range(2)})
    stage.began("p0")
    assert probe(port)[0] == 200
    stage.open()
    stage.finished(batch)
    # And no child has its socket
    others = [pid for pid in worker.children if pid != worker.pid]
    assert port not in listening_ports(others)
    stage.judge(batch)


def test_a_loop_that_stands_still_is_not_live_though_its_process_answers(stage: Stage) -> None:
    port = free_port()
    modules = f"{HANDLERS},tests.acceptance.stalling"
    stage.worker(BATCHING_HEALTH_ADDRESS=f"127.0.0.1:{port}", BATCHING_HANDLERS=modules)
    eventually(lambda: probe(port)[0] == 200, 20)
    batch = stage.submit("stalled", {"p": None})

    def stalled() -> None:
        status, told = probe(port)
        assert status == 503, told
        assert "has not turned" in told["checks"]["loop"]["detail"]

    eventually(stalled, 40)
    assert probe(port, "/readyz")[0] == 503
    stage.open("go on")
    eventually(lambda: probe(port)[0] == 200, 30)
    stage.finished(batch)


def test_an_outage_of_sql_makes_nobody_restart_a_worker_or_a_manager(
    stage_with_own_sql: Stage, own_postgres: Any
) -> None:
    stage = stage_with_own_sql
    ports = {"worker": free_port(), "manager": free_port()}
    stage.settings = {**BRISK, "BATCHING_MANAGER": "0"}
    stage.worker(BATCHING_HEALTH_ADDRESS=f"127.0.0.1:{ports['worker']}")
    stage.settings = {**BRISK, "BATCHING_HEALTH_ADDRESS": f"127.0.0.1:{ports['manager']}"}
    stage.manager()
    eventually(lambda: all(probe(port, "/readyz")[0] == 200 for port in ports.values()), 40)
    own_postgres.stop()
    try:
        eventually(lambda: all(probe(port, "/readyz")[0] == 503 for port in ports.values()), 40)
        assert [probe(port)[0] for port in ports.values()] == [200, 200]
        assert "the database is away" in json.dumps(probe(ports["manager"])[1])
    finally:
        own_postgres.start()
    eventually(lambda: all(probe(port, "/readyz")[0] == 200 for port in ports.values()), 60)


def test_the_command_tells_a_container_of_its_own_process(stage: Stage) -> None:
    address = f"127.0.0.1:{free_port()}"
    # Nobody has booted: neither the address nor the database knows of a worker here
    assert health(stage, "--self", BATCHING_HEALTH_ADDRESS=address)[0] == 1
    code, told = health(stage, "--live", "--self")
    assert code == 1
    assert f"no worker {socket.gethostname()} is registered" in told["checks"]["worker"]["detail"]

    worker = stage.worker(BATCHING_HEALTH_ADDRESS=address)
    (worker_id,) = stage.registered()
    eventually(lambda: health(stage, "--live", "--self", BATCHING_HEALTH_ADDRESS=address)[0] == 0, 20)
    code, told = health(stage, "--self")
    assert (code, set(told["checks"])) == (0, {"heartbeat", "progress"})
    assert health(stage, "--worker", worker_id[:8])[0] == 0
    assert health(stage, "--live", "--ready", "--worker", f"{worker.name}@{socket.gethostname()}")[0] == 0
    assert health(stage, "--worker", "elsewhere")[0] == 1
    # And a frozen one is not live for either
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        code, told = health(stage, "--self", BATCHING_HEALTH_ADDRESS=address)
        assert code == 1, told
        eventually(lambda: health(stage, "--self")[0] == 1, 40)
    finally:
        os.kill(worker.pid, signal.SIGCONT)
