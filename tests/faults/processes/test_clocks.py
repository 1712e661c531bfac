"""Clocks that are wrong, and clocks that jump: the database's is the only one that counts.

A process's clock is what Python tells it: `time.time` and all that is made of it, replaced before anything else is
imported. Monotonic time stays as it is, as it does when an operator or NTP sets a machine's clock.
"""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from batching import BatchOptions
from tests.faults.processes.scene import BOTH_WAYS
from tests.support import eventually

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from batching.queue_manager import Batch
    from tests.faults.processes.scene import Scene

pytestmark = pytest.mark.timeout(300)

HOUR, DAY = 3_600.0, 86_400.0
AGAIN = BatchOptions(max_attempts=3, max_passes=1)
#: Imported by Python itself at its start: all that asks for the time of day gets another one.
SHIFTED = """
import datetime, mmap, os, struct, time
shift = mmap.mmap(os.open(os.environ["CLOCK_FILE"], os.O_RDONLY), 8, prot=mmap.PROT_READ)
real = time.time
time.time = lambda: real() + struct.unpack_from("=d", shift)[0]
time.time_ns = lambda: int(time.time() * 1e9)
class datetime_(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(time.time(), tz)
    @classmethod
    def utcnow(cls):
        return datetime.datetime.fromtimestamp(time.time(), datetime.timezone.utc).replace(tzinfo=None)
datetime.datetime = datetime_
"""
#: What a producer says whose clock is wrong: by its options, in seconds from now, and never in a time of day.
PRODUCER = """
import sys
from batching import BatchOptions
from batching.queue_manager import queue_manager
profiles = [(f"d{number}", None) for number in range(20)]
batch = queue_manager.submit(
    "acceptance.work", profiles, key="later", start_at=2.0, deadline=120.0,
    options=BatchOptions(max_attempts=1, max_passes=1),
)
print(batch.id)
"""


class Clock:
    """The clock of some processes, which can be set while they run.

    Args:
        folder: Where it lies.
        shift: Seconds that it is ahead; behind when negative.
    """

    def __init__(self, folder: Path, shift: float) -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(SHIFTED)
        self._file = folder / "clock"
        self._file.write_bytes(struct.pack("=d", shift))
        paths = [str(folder), str(psutil.Process().cwd())]
        self.environment = {"PYTHONPATH": os.pathsep.join(paths), "CLOCK_FILE": str(self._file)}

    def set(self, shift: float) -> None:
        """Eight bytes, read whole: whoever looks sees the old time or the new one."""
        with self._file.open("r+b", buffering=0) as file:
            file.write(struct.pack("=d", shift))


class Restless:
    """Sets clocks again and again until the end.

    Args:
        *clocks: Of which one is a step ahead of the next.
    """

    #: Seconds ahead: of an hour, a day, a leap of a minute back and forth, none, and of years.
    STEPS = (HOUR, -DAY, 0.0, 61.0, -61.0, 400 * DAY, -HOUR, -400 * DAY)

    def __init__(self, *clocks: Clock) -> None:
        self.jumps = 0
        self._clocks = clocks
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._jump, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _jump(self) -> None:
        steps = itertools.cycle(self.STEPS)
        while not self._over.wait(0.4):
            for clock in self._clocks:
                clock.set(next(steps))
            next(steps)
            self.jumps += 1


def start(scene: Scene, what: str, clock: Clock) -> None:
    """Start a worker, or a manager, with a clock of its own."""
    usual, scene.settings = scene.settings, {**scene.settings, **clock.environment}
    if what == "worker":
        scene.worker(BATCHING_MANAGER="false")
    else:
        scene.manager()
    scene.settings = usual


@pytest.fixture
def ahead(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "ahead", HOUR)


@pytest.fixture
def behind(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "behind", -DAY)


@BOTH_WAYS
def test_clocks_that_are_wrong_and_jump_while_work_goes_on(scene: Scene, ahead: Clock, behind: Clock) -> None:
    # Given a worker an hour ahead and a manager a day behind, beside a worker whose clock is right
    start(scene, "manager", behind)
    start(scene, "worker", ahead)
    scene.worker(BATCHING_MANAGER="false")
    eventually(lambda: len(scene.registered()) == 2, 30)
    eventually(lambda: scene.leader()[0])
    known, leader = set(scene.registered()), scene.leader()
    # When a producer with either clock hands over, some profiles fail or ask for another run, and all clocks jump
    with Restless(ahead, behind) as clocks:
        later = produce(scene, behind)
        submitted = time.monotonic()
        retried = scene.submit("odd", {f"r{number}": ["retry", "return"] for number in range(20)}, AGAIN)
        slow = scene.submit("odd", {"s": ["retry in 3 s", "return"]}, AGAIN)
        failing = scene.submit("odd", {"f": ["raise", "return"]}, BatchOptions(max_attempts=1, pass_backoff=2))
        quick = scene.submit("work", {f"q{number}": {"seconds": 0.02} for number in range(300)})
        scene.began("s")
        began = time.monotonic()
        # Then what waits comes back in its time, neither at once nor when a clock has caught up
        scene.began("s", times=2)
        assert 2.9 < time.monotonic() - began < 15
        for batch, count in ((retried, 20), (slow, 1), (failing, 1), (quick, 300)):
            assert scene.finished(batch, 60).succeeded == count
        assert scene.finished(later, 60).succeeded == 20
        assert 1.9 < time.monotonic() - submitted < 60
        assert clocks.jumps > 3
    # And nobody lost a lease by it, or was declared dead, and nothing is lost, doubled or late
    assert scene.leader() == leader
    assert set(scene.registered()) == known
    found = scene.verdict(again={"retried", "failed"}, late=False)
    assert found.repeated == {"retried": 21}  # what failed came again in its next pass


def produce(scene: Scene, clock: Clock) -> Batch:
    """Submit in another process, by a clock of its own, a batch that shall start in two seconds."""
    environment = {**os.environ, **scene.environment(**clock.environment)}
    done = subprocess.run(
        [sys.executable, "-c", PRODUCER], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    scene.oracle.attempt("later", [f"d{number}" for number in range(20)])
    scene.oracle.acknowledge("later")
    return scene.queue.get(done.stdout.strip())


@pytest.mark.exhaustive
@pytest.mark.parametrize("who", ["worker", "manager"])
@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_is_an_hour_off(scene: Scene, tmp_path: Path, who: str, hours: int) -> None:
    # Given one process whose clock is wrong
    clock = Clock(tmp_path / "off", hours * HOUR)
    others: dict[str, Any] = {"worker": scene.manager, "manager": lambda: scene.worker(BATCHING_MANAGER="false")}
    start(scene, who, clock)
    others[who]()
    scene.worker(BATCHING_MANAGER="false")
    # When work is done, some of it in a second attempt after a delay
    batch = scene.submit("odd", {f"r{number}": ["retry", "return"] for number in range(20)}, AGAIN)
    quick = scene.submit("work", 200)
    # Then nothing of it is lost, doubled or late
    assert scene.finished(batch).succeeded == 20
    assert scene.finished(quick).succeeded == 200
    assert all("lost" not in how for how in scene.endings(quick).values())
    scene.verdict(again={"retried"}, late=False)
