"""The troupe: forks the players of a story from a process that has everything imported, and knows how they end.

Run as a script, this module is that process: it reads scenes from standard input, one JSON object a line, and answers
each with the process id of a fresh player. It ends when its standard input does, and its players end with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.faults.story import Scene, perform, shrink
from tests.support import eventually

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

ROOT = Path(__file__).parent.parent.parent
_PR_SET_PDEATHSIG = 1


class Player:
    """A process that plays a scene."""

    def __init__(self, scene: Scene, pid: int) -> None:
        self.scene = scene
        self._process = psutil.Process(pid)
        self._started = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started

    @property
    def status(self) -> str:
        """`played` to the end, `dead`, `frozen`, or `playing`."""
        gone = not self._process.is_running()
        status = psutil.STATUS_DEAD if gone else self._process.status()
        if (self.scene.place / f"{self.scene.role}.ended").exists():
            return "played"
        if status in {psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE}:
            return "dead"
        return "frozen" if status == psutil.STATUS_STOPPED else "playing"

    @property
    def settled(self) -> bool:
        """Whether its story is over, and it lingers."""
        return (self.scene.place / f"{self.scene.role}.settled").exists()

    @property
    def reached(self) -> bool:
        """Whether a fault point at which something was armed was reached."""
        return (self.scene.place / f"{self.scene.role}.faults").exists()

    @property
    def log(self) -> str:
        """What it said."""
        path = self.scene.place / f"{self.scene.role}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it, whatever it does."""
        if self._process.is_running():
            self._process.kill()

    def wait(self, timeout: float = 90.0) -> str:
        """Until it has played, is dead, or is frozen; returns which."""

        def ended() -> str:
            status = self.status
            assert status != "playing", f"the {self.scene.role} still plays: {self.log[-3000:]}"
            return status

        return eventually(ended, timeout, 0.02)


class Troupe:
    """Starts players; any number of threads may."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._source = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.troupe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._source.stdin is not None
        assert self._source.stdout is not None
        self._source.stdin.close()
        self._source.wait(20)
        self._source.stdout.close()

    def start(self, scene: Scene) -> Player:
        """Start a player."""
        with self._lock:
            assert self._source.stdin is not None
            assert self._source.stdout is not None
            self._source.stdin.write(json.dumps(asdict(scene)) + "\n")
            self._source.stdin.flush()
            answer = self._source.stdout.readline()
        return Player(scene, int(answer))


def _play(scene: Scene) -> None:
    """The life of a player."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(scene.place / f"{scene.role}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(0)
    try:
        perform(scene)
    except BaseException:  # noqa: BLE001 - its last words, whatever it died of
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Fork a player for each line."""
    shrink()
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _play(Scene(**json.loads(line)))
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        # Those that are over; the others are asked for next time.
        while _reaped():
            pass


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


if __name__ == "__main__":
    main()
