"""Where the time goes: py-spy on the worker's main process and on the manager, from the clock's start to its end."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from benchmarks.processes import end
from benchmarks.stage import FailedError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from benchmarks.stage import Stage

_ROLES: Final = ("main", "manager")
_SAMPLES_A_SECOND: Final = 200
_SHOWN: Final = 20
_LONGEST: Final = 600
#: Share of the samples from which on a function that only calls others is left out.
_STEM: Final = 0.95
_FRAME: Final = re.compile(r"^(?P<function>.*) \((?P<file>.*?)(?::\d+)?\)$")


class Recorder:
    """One py-spy per process that is looked at; the first `toggle` starts them, the second stops them."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._running: dict[str, psutil.Popen] = {}
        self._done = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def toggle(self) -> None:
        """Start, then stop."""
        if self._running or self._done:
            self._stop()
        else:
            self._start()

    def profiles(self) -> dict[str, Any]:
        """Per role: samples, and the functions with the largest shares, by themselves and with what they call.

        Raises:
            FailedError: py-spy wrote nothing; its own words are in the message.
        """
        found = {}
        for role in _ROLES:
            raw = self._file(role, "raw")
            if not raw.exists():
                continue
            found[role] = summary(raw.read_text(encoding="utf-8", errors="replace"))
        if not found:
            words = "; ".join(self._file(role, "log").read_text(errors="replace")[-500:] for role in _ROLES[:1])
            raise FailedError(f"py-spy wrote no profile: {words}")
        return found

    def _start(self) -> None:
        program = Path(sys.executable).parent / "py-spy"
        for role, processes in self._stage.roles().items():
            if role not in _ROLES or not processes:
                continue
            busiest = max(processes, key=_busy)
            output = ["--format", "raw", "--output", str(self._file(role, "raw"))]
            rate = ["--rate", str(_SAMPLES_A_SECOND), "--duration", str(_LONGEST)]
            with self._file(role, "log").open("wb") as log:
                self._running[role] = psutil.Popen(
                    [str(program), "record", "--pid", str(busiest.pid), *output, *rate],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    def _stop(self) -> None:
        for process in self._running.values():
            end(process)
        self._running.clear()
        self._done = True

    def _file(self, role: str, kind: str) -> Path:
        return self._stage.place.folder / f"profile-{role}.{kind}"


def _busy(process: psutil.Process) -> float:
    """Seconds of processor: of two managers one leads, and of two workers either will do."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def summary(raw: str) -> dict[str, Any]:
    """Shares of functions in py-spy's raw format: one line per stack, frames separated by `;`, then its samples."""
    alone: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    total = 0
    for line in raw.splitlines():
        stack, _, samples = line.rpartition(" ")
        if not stack or not samples.isdigit():
            continue
        frames = [shorten(frame) for frame in stack.split(";")]
        total += int(samples)
        alone[frames[-1]] += int(samples)
        for frame in set(frames):
            inclusive[frame] += int(samples)
    # What is in nearly every stack is the way to the work, not the work.
    stem = {frame for frame, samples in inclusive.items() if samples >= _STEM * total and not alone[frame]}
    branches = Counter({frame: samples for frame, samples in inclusive.items() if frame not in stem})
    return {"samples": total, "self": _shares(alone, total), "inclusive": _shares(branches, total)}


def shorten(frame: str) -> str:
    """`function (package/module.py)`: without lines, and without the folders that every path begins with."""
    found = _FRAME.match(frame)
    if found is None:
        return frame
    file = re.sub(r"^.*/(?:site-packages|python3\.\d+)/", "", found["file"])
    parts = file.split("/")
    return f"{found['function']} ({'/'.join(parts[-3:])})"


def _shares(counter: Counter[str], total: int) -> list[list[Any]]:
    return [[name, round(100 * samples / total, 1)] for name, samples in counter.most_common(_SHOWN)]
