"""A contender's worker processes: in sessions of their own, looked at through /proc, all gone at the end."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import psutil

from workers.tether import Tether

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

#: Seconds that workers get to stop after SIGTERM.
_GRACE: Final = 8.0
_ROLES: Final = ("main", "child", "manager", "postgresql", "valkey")


class Workers:
    """The processes of one contender, started and stopped together. Each is tied to ours: it cannot outlive it."""

    def __init__(self, commands: Iterable[Sequence[str]], environment: Mapping[str, str], folder: Path) -> None:
        self._commands = [list(command) for command in commands]
        self._environment = dict(environment)
        self._folder = folder
        self._tethers: list[Tether] = []
        self._seen: set[psutil.Process] = set()

    def start(self) -> None:
        """Start them; nobody waits until they are ready."""
        for number, command in enumerate(self._commands):
            log = self._folder / f"worker-{number}.log"
            self._tethers.append(Tether(command, log=log, environment=self._environment, grace=_GRACE))

    def stop(self) -> None:
        """SIGTERM, then SIGKILL; whatever they started is gone too. Repeatable."""
        self._seen.update(process for tree in self.trees() for process in tree)
        for tether in self._tethers:
            tether.stop()
        self._tethers.clear()
        _, alive = psutil.wait_procs(list(self._seen), timeout=3)
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=3)
        self._seen.clear()

    @property
    def ended(self) -> bool:
        """Whether one of them has ended by itself."""
        return any(tether.ended for tether in self._tethers)

    def trees(self) -> list[list[psutil.Process]]:
        """Per command: its process, then all that it started."""
        found = []
        for tether in self._tethers:
            with suppress(psutil.NoSuchProcess):
                for main in psutil.Process(tether.watcher_pid).children():
                    found.append([main, *main.children(recursive=True)])  # noqa: PERF401 - suppressed one by one
        return found

    def logs(self, limit: int = 1500) -> str:
        """The last words of each."""
        logs = sorted(self._folder.glob("worker-*.log"))
        texts = {log.name: log.read_text(encoding="utf-8", errors="replace") for log in logs}
        return "\n".join(f"{name}: {text[-limit:].strip()}" for name, text in texts.items())


def by_role(workers: Workers, postmaster: int, valkey: int) -> dict[str, list[psutil.Process]]:
    """All that works for a contender: `main` processes (as started), their `child`ren, our `manager`, the servers."""
    roles: dict[str, list[psutil.Process]] = {role: [] for role in _ROLES}
    for main, *children in workers.trees():
        roles["main"].append(main)
        for child in children:
            roles["manager" if _is_manager(child) else "child"].append(child)
    with suppress(psutil.NoSuchProcess):
        server = psutil.Process(postmaster)
        roles["postgresql"] = [server, *server.children()]
        roles["valkey"] = [psutil.Process(valkey)]
    return roles


def processor_seconds(roles: Mapping[str, Sequence[psutil.Process]]) -> dict[str, dict[int, float]]:
    """Seconds of processor that each process has used so far, by role and process id."""
    found: dict[str, dict[int, float]] = {}
    for role, processes in roles.items():
        used = found.setdefault(role, {})
        for process in processes:
            with suppress(psutil.Error):
                times = process.cpu_times()
                used[process.pid] = times.user + times.system
    return found


def used_between(
    before: Mapping[str, Mapping[int, float]], after: Mapping[str, Mapping[int, float]]
) -> dict[str, float]:
    """Seconds of processor per role between two readings; a process that is new counts from its start."""
    return {
        role: sum(seconds - before.get(role, {}).get(pid, 0.0) for pid, seconds in used.items())
        for role, used in after.items()
        if used
    }


def resident(roles: Mapping[str, Sequence[psutil.Process]]) -> dict[str, int]:
    """Resident bytes per role."""
    found = {}
    for role, processes in roles.items():
        total = 0
        for process in processes:
            with suppress(psutil.Error):
                total += process.memory_info().rss
        if total:
            found[role] = total
    return found


def end(process: psutil.Popen, grace: float = 5.0) -> None:
    """End the process group of a child that leads one: SIGINT, then SIGKILL."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        deadline = time.monotonic() + grace
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)


def _is_manager(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "workers.manager" in process.cmdline()
    return False
