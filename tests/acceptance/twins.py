"""A pool whose second child dies while the pool clears up after its first, before anybody heard that it had begun.

Both are made to do it here: the second child reads its job and waits before it says so, and the pool, which has found
the first one dead, waits for the second to die before it goes on.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from billiard.process import current_process
from celery.concurrency import asynpool as _asynpool

from batching import profile_handler
from tests.acceptance import journal

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching import Profile

_LONGEST_WAIT = 30.0
#: Patched below, as no stub allows.
asynpool: Any = _asynpool


@profile_handler(name="acceptance.twin")
def twin(profile: Profile) -> str:
    """End the child in the first run, and return in the next."""
    journal.write(profile)
    if profile.run > 1:
        return "done"
    if _is_first():
        _wait_for("second-has-its-job")
    os._exit(7)


def _is_first() -> bool:
    process: Any = current_process()
    return bool(process.index == 0)


def _path(name: str) -> Path:
    return Path(os.environ[journal.FOLDER]) / name


def _wait_for(name: str) -> None:
    until = time.monotonic() + _LONGEST_WAIT
    while not _path(name).exists() and time.monotonic() < until:
        time.sleep(0.01)


def _in_the_second_child() -> None:
    make = asynpool.Worker._make_child_methods

    def _make_child_methods(self: Any, *arguments: Any) -> None:
        make(self, *arguments)
        if _is_first():
            return
        wait_for_job: Callable[[], Any] = self.wait_for_job

        def wait() -> Any:
            job = wait_for_job()
            if job and not _path("second-has-its-job").exists():
                _path("second-has-its-job").touch()
                _wait_for("first-is-dead")
            return job

        self.wait_for_job = wait

    asynpool.Worker._make_child_methods = _make_child_methods


def _in_the_pool() -> None:
    flush = asynpool.AsynPool.process_flush_queues

    def process_flush_queues(self: Any, child: Any) -> None:
        flush(self, child)
        if child.index == 0 and not _path("first-is-dead").exists():
            _path("first-is-dead").touch()
            until = time.monotonic() + _LONGEST_WAIT
            while any(each._is_alive() for each in self._pool if each.index == 1) and time.monotonic() < until:
                time.sleep(0.01)

    asynpool.AsynPool.process_flush_queues = process_flush_queues


_in_the_second_child()
_in_the_pool()
