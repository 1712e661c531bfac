"""A server process that cannot outlive the process that asked for it.

Between the two stands a watcher: this very file, run as a script. It is the server's parent, and it reads a pipe whose
only write end, the *lifeline*, belongs to the process that asked. When that process ends, however it ends, the kernel
closes the lifeline, the watcher reads end-of-file, stops the server and tidies up. A clean stop closes the lifeline
too, so that the path which must work after `kill -9` is the path of every day.

Why a process in between, and not PR_SET_PDEATHSIG on the server alone: that signal is sent when the *thread* that
forked ends (man 2 PR_SET_PDEATHSIG), which kills a server that was started in a thread; it does not exist outside
Linux; and it tidies nothing. The watcher forks in its only thread, so there the signal is right, and it is set as a
second tie: `kill -9` of the watcher takes the server along.

The standard library alone is imported: the watcher runs with `-I -S`, without site-packages, in some 20 ms and 9 MB.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PR_SET_PDEATHSIG: Final = 1
#: Seconds that the watcher gets beyond the server's own, before both are killed.
_WATCHER_GRACE: Final = 5.0

#: Write ends of this process. A forked child closes its copies, or it would keep the servers of a dead parent alive;
#: close-on-exec alone covers only the children that exec.
_lifelines: set[int] = set()


def _let_go() -> None:
    for lifeline in tuple(_lifelines):
        with contextlib.suppress(OSError):
            os.close(lifeline)
    _lifelines.clear()


os.register_at_fork(after_in_child=_let_go)


class Tether:
    """A server that runs in its own session, and ends with this process at the latest.

    The session of its own keeps a Ctrl-C in the terminal away from the server, which has to be there until the
    processes that use it have stopped. Can be started from any thread.

    Args:
        command: Program and arguments of the server, which has to stay in the foreground.
        log: File that receives what it prints; emptied first.
        stop_signal: What asks this server to stop.
        grace: Seconds it gets to stop before it is killed.
        remove: Files and folders that the watcher deletes once the server is gone.
        inherit: File descriptors that watcher and server keep open as long as they live: a lock, for example.
        environment: Environment of the server; None for ours.

    Raises:
        OSError: The log or the watcher could not be opened. A server that does not start is no error here: `ended`
            says so, and the log says why.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace: float = 10.0,
        remove: Sequence[Path] = (),
        inherit: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._pid = os.getpid()
        self._grace = grace
        read_end, self._lifeline = os.pipe()
        _lifelines.add(self._lifeline)
        plan = {
            "lifeline": read_end,
            "command": list(command),
            "signal": int(stop_signal),
            "grace": grace,
            "remove": [str(path) for path in remove],
        }
        try:
            with log.open("wb") as output:
                self._watcher = subprocess.Popen(  # noqa: S603 - our own file, our own plan
                    [sys.executable, "-I", "-S", __file__, json.dumps(plan)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(read_end, *inherit),
                    start_new_session=True,
                    env=None if environment is None else dict(environment),
                )
        except BaseException:
            self._cut()
            raise
        finally:
            os.close(read_end)

    @property
    def ended(self) -> bool:
        """Whether the server has ended and the watcher has tidied up."""
        return self._watcher.poll() is not None

    @property
    def watcher_pid(self) -> int:
        """Process id of the watcher, which leads the session and process group of the server."""
        return self._watcher.pid

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the server has ended and the watcher has tidied up.

        Args:
            timeout: Seconds; None for ever.

        Returns:
            The server's exit code; 128 + n when signal n ended it.

        Raises:
            subprocess.TimeoutExpired: It still runs.
        """
        return self._watcher.wait(timeout)

    def stop(self) -> None:
        """Stop the server and wait until it is gone. Safe to call twice; does nothing in a forked child."""
        if self._pid != os.getpid():
            return
        self._cut()
        try:
            self._watcher.wait(self._grace + _WATCHER_GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(self._watcher.pid, signal.SIGKILL)
            self._watcher.wait()

    def _cut(self) -> None:
        if self._lifeline in _lifelines:
            _lifelines.discard(self._lifeline)
            os.close(self._lifeline)


# What follows runs in the watcher.


def _die_with(watcher: int) -> None:
    """In the server, before exec: ask the kernel for SIGTERM when the watcher dies."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != watcher:  # it died before the request was in place
        os._exit(1)


def _end(server: subprocess.Popen[bytes], stop_signal: int, grace: float) -> None:
    """Ask, wait, insist. A server that is stopped (SIGSTOP) is continued, so that it can hear the request."""
    with contextlib.suppress(ProcessLookupError):
        server.send_signal(stop_signal)
        server.send_signal(signal.SIGCONT)
    try:
        server.wait(grace)
    except subprocess.TimeoutExpired:
        server.kill()


def _end_after(lifeline: int, server: subprocess.Popen[bytes], stop_signal: int, grace: float) -> None:
    while os.read(lifeline, 1):  # nobody writes: this returns at end-of-file, when the last write end is closed
        pass
    _end(server, stop_signal, grace)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _spawn(command: list[str]) -> subprocess.Popen[bytes]:
    """Start the server, with every inherited descriptor but the lifeline (pipes are close-on-exec once set so)."""
    watcher = os.getpid()
    return subprocess.Popen(  # noqa: S603 - the plan comes from our own parent
        command,
        stdin=subprocess.DEVNULL,
        close_fds=False,
        preexec_fn=lambda: _die_with(watcher),  # noqa: PLW1509 - this process has no second thread yet
    )


def watch(plan: Mapping[str, Any]) -> int:
    """Run the server of a plan until it ends or the lifeline does, then tidy up.

    Returns:
        The server's exit code; 128 + n when signal n ended it; 127 when it could not be started.
    """
    os.set_inheritable(plan["lifeline"], False)
    # Handlers, not SIG_IGN: the server would inherit that. SIGTERM to the watcher stops the server, like the lifeline.
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, lambda *_: None)
    try:
        server = _spawn(plan["command"])
        signal.signal(signal.SIGTERM, lambda *_: server.send_signal(plan["signal"]))
        threading.Thread(
            target=_end_after, args=(plan["lifeline"], server, plan["signal"], plan["grace"]), daemon=True
        ).start()
        code = server.wait()
    except OSError as error:
        sys.stderr.write(f"cannot run {plan['command'][0]}: {error}\n")
        code = 127
    for path in plan["remove"]:
        _remove(Path(path))
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(watch(json.loads(sys.argv[1])))
