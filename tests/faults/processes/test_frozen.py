"""Workers that stop for a while: what comes too late changes nothing."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from sqlalchemy import func, select

from batching.models import profiles
from tests.faults.processes.scene import BOTH_WAYS
from tests.support import eventually

if TYPE_CHECKING:
    from tests.faults.processes.scene import Scene

GATED = {"gate": "gate"}


@BOTH_WAYS
def test_a_worker_that_is_stopped_pops_and_dies(scene: Scene) -> None:
    # Given a manager, and an idle worker that is stopped while it waits for messages
    scene.manager()
    worker = scene.worker(BATCHING_MANAGER="false")
    scene.finished(scene.submit("work", 5))
    os.kill(worker.pid, signal.SIGSTOP)
    # When messages are published: the broker hands some to its socket, and nobody else has them
    batch = scene.submit("work", 50)
    client: Any = scene.publisher.client

    def popped() -> None:
        with scene.database.read() as reading:
            dispatched = reading.scalar(select(func.count()).where(profiles.c.state == "dispatched"))
        waiting = sum(client.llen(key) for key in client.scan_iter(f"{scene.prefix}lane:*"))
        assert dispatched > waiting, f"{dispatched} dispatched, {waiting} in the broker"

    eventually(popped)
    # And it is killed
    worker.kill()
    # Then another one gets all of them
    scene.worker(BATCHING_MANAGER="false")
    assert scene.finished(batch).succeeded == 50
    assert scene.endings(batch) == {}
    scene.verdict(again=(), late=False)


@pytest.mark.parametrize("end", ["killed", "thawed"])
def test_what_a_worker_has_popped_and_not_claimed_comes_back_from_its_copies(scene: Scene, end: str) -> None:
    # Given that the leader is slow to miss a message, and a worker that is frozen between its third pop and the claim
    scene.settings = {**scene.settings, "BATCHING_SUSPECT_AFTER": "20", "BATCHING_ACKNOWLEDGE": "claim"}
    scene.manager()
    first = scene.worker(BATCHING_MANAGER="false", BATCHING_FAULTS="claim.begun=hang@3")
    batch = scene.submit("work", {f"p{number}": {"seconds": 0.05} for number in range(60)})
    eventually(lambda: psutil.Process(first.pid).status() == psutil.STATUS_STOPPED, 30)
    assert scene.copies() > 0
    # When another one comes, and the first dies or goes on
    second = scene.worker(BATCHING_MANAGER="false")
    if end == "killed":
        first.kill()
    eventually(lambda: "messages again that a worker popped and did not claim" in second.logs(), 30)
    if end == "thawed":
        os.kill(first.pid, signal.SIGCONT)
    # Then everything runs, once but for what the first ran when it died or fell silent
    assert scene.finished(batch).succeeded == 60
    scene.verdict(again={"lost", "given back"})
    eventually(lambda: scene.copies() == 0)


@pytest.mark.parametrize(("engine", "acknowledge"), [("postgresql", "pop"), ("sqlite", "pop"), ("postgresql", "claim")])
def test_a_worker_that_is_frozen_beyond_its_lease_comes_late(scene: Scene) -> None:
    # Given a worker that runs two profiles, and another one with a manager
    scene.manager()
    first = scene.worker(BATCHING_MANAGER="false")
    batch = scene.submit("work", {"a": GATED, "b": GATED})
    scene.began("a", "b")
    victims = [psutil.Process(pid) for pid in (first.pid, *first.children)]
    scene.worker(BATCHING_MANAGER="false")
    # When the first is frozen until its runs are somebody else's, and goes on then
    with scene.database.begin():  # frozen with SQLite's one write lock in its hands, it would keep everybody out
        for victim in victims:
            victim.suspend()
    scene.began("a", "b", times=2)
    for victim in victims:
        victim.resume()
    eventually(lambda: "was declared dead" in first.logs(), 30)
    scene.open()
    # Then each profile is settled once, by the later run; the earlier outcomes are counted, and change nothing
    assert scene.finished(batch).succeeded == 2
    assert {row.run for row in scene.rows(batch).values()} == {2}
    eventually(lambda: batch.progress().late == 2)
    found = scene.verdict(again={"lost"})
    assert (found.executed, found.late, found.repeated) == (4, 2, {"lost": 2})
    # And it works on, under a new identity
    assert scene.finished(scene.submit("work", 50)).succeeded == 50
    assert first.status == "running"
