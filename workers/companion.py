"""The manager as this worker's subprocess: leader election, promotion, dispatch and sweep, away from a busy pool."""

from __future__ import annotations

import logging
import os
import subprocess
from typing import TYPE_CHECKING, Final

from workers.interpreter import environment as environment_with
from workers.interpreter import python

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.loops import Loop, Timer

logger = logging.getLogger(__name__)

_LOOK: Final = 0.5
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
#: Seconds of running after which an exit counts as the first again.
_SETTLED: Final = 60.0
#: Seconds that it gets to stop by itself, and again to obey a signal.
_PATIENCE: Final = 3.0
_LITTLE_PATIENCE: Final = 0.5


class Companion:
    """Starts `python -m workers.manager`, starts it again when it exits, stops it at the end.

    Its standard input is a pipe of ours: it ends when that closes, which the kernel does however this process ends. A
    session of its own keeps a Ctrl-C away from it: the manager has to outlive the drain.

    Args:
        loop: Where it is looked after.
        environment: Variables beside our own.
    """

    def __init__(self, loop: Loop, environment: Mapping[str, str]) -> None:
        self._loop = loop
        self._environment = environment_with(**environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._pause = 0.0
        self._age = 0.0
        self._timer: Timer | None = None
        os.register_at_fork(after_in_child=self._let_go)

    @property
    def pid(self) -> int | None:
        """Its process id; None while it does not run."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it, and look after it from the loop."""
        self._spawn()

    def stop(self, *, at_once: bool = False) -> None:
        """Stop it and wait for its end: bounded, repeatable. Call it when the loop does not turn any more.

        Args:
            at_once: Do not wait for its last word to the database, which does not answer.
        """
        if self._timer is not None:
            self._timer.cancel()
        process, self._process = self._process, None
        if process is None:
            return
        # The pipe first, and then signals: a pool child that was forked in a bad moment may hold a copy of the pipe.
        if process.stdin is not None:
            process.stdin.close()
        for end in (process.terminate, process.kill):
            try:
                process.wait(_LITTLE_PATIENCE if at_once else _PATIENCE)
            except subprocess.TimeoutExpired:
                end()
        process.wait()

    def _spawn(self) -> None:
        self._age = 0.0
        try:
            self._process = self._popen()
        except OSError as error:  # no process or memory left for the moment
            self._retry(f"could not be started: {error}")
            return
        self._timer = self._loop.call_later(_LOOK, self._look)

    def _popen(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own module
            python("workers.manager"),
            stdin=subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
            close_fds=True,
        )

    def _look(self) -> None:
        if self._process is None:
            return
        code = self._process.poll()
        if code is None:
            self._age += _LOOK
            self._timer = self._loop.call_later(_LOOK, self._look)
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None
        self._retry(f"exited with code {code}")

    def _retry(self, what: str) -> None:
        first = self._age >= _SETTLED or not self._pause
        self._pause = _FIRST_PAUSE if first else min(_LONGEST_PAUSE, 2 * self._pause)
        logger.error("The manager %s; starting it again in %g s", what, self._pause)
        self._timer = self._loop.call_later(self._pause, self._spawn)

    def _let_go(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
