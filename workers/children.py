"""The children of Celery's prefork pool, where the pool would run a job twice, or wait for one of them for ever.

Celery's own pool is closed from the first moment of a stop on: it replaces nobody then, and looks after nobody either,
until it joins its children without a bound (celery/concurrency/prefork.py `on_stop`, billiard/pool.py `join`).
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from celery.worker import state as celery_state

from workers.bundles import Bundle
from workers.requests import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

#: Seconds that a child which was killed gets to be gone, and that a child with nothing to do gets to end by itself.
_GONE: Final = 1.0
PATIENCE: Final = 4.0
_LOOK: Final = 0.2


def hear_out(processes: Any) -> None:
    """Hear what a dead child has said before its job is given to another.

    A child says that it takes a job before it begins with it. When a second child dies while the pool clears up after
    a first, the pool finds it dead without having read that word, and hands its job to another child
    (billiard/pool.py `_join_exited_workers`, celery/concurrency/asynpool.py `on_partial_read`): the same run would be
    executed twice. Whoever has not said it has not begun.

    Args:
        processes: Celery's `AsynPool`.
    """
    clear_up = processes.on_partial_read

    def on_partial_read(job: Any, child: Any) -> None:
        if not job._accepted and not child.dead:  # noqa: SLF001 - the pool's own books have no other way in
            half_read = processes._result_handler._finish_partial_read(child.outqR_fd, child)  # noqa: SLF001
            if not half_read:
                processes.process_flush_queues(child)
        clear_up(job, child)

    processes.on_partial_read = on_partial_read


def bury(processes: Any) -> None:
    """Take note of children that have ended, and of what they were at: a pool that closes does not look."""
    processes._join_exited_workers()  # noqa: SLF001 - its own loop calls it, but only while it is open


def child_of(request: RunRequest) -> int | None:
    """The process id of the child that has a run, or its first bytes, and perhaps has not said that it began."""
    if request.worker_pid is not None:
        return int(request.worker_pid)
    job = None if request.bundle is None else request.bundle.handle
    child = None if job is None else job._write_to  # noqa: SLF001 - set when its first byte goes into a child's pipe
    return None if child is None or not child._is_alive() else int(child.pid)  # noqa: SLF001 - see billiard


def let_go(processes: Any) -> None:
    """After the drain: end the children that still have something of ours, which is given back, and forget their jobs.

    The pool would wait for their ends; and where a job is but half in the pipe of a child that does not read, it would
    read the rest of it, which nobody writes any more (celery/concurrency/asynpool.py `_help_stuff_finish`).
    """
    victims = []
    for job in list(processes._cache.values()):  # noqa: SLF001 - the pool's books
        if isinstance(getattr(job._callback, "__self__", None), Bundle):  # noqa: SLF001 - where our jobs call back
            job.discard()
            child = job._write_to  # noqa: SLF001 - see `child_of`
            if child is not None and child._is_alive():  # noqa: SLF001 - see billiard
                victims.append(child)
    for child in victims:
        _kill(child)
    for child in victims:
        child.join(_GONE)
    bury(processes)


def insist(processes: Any, at_once: Callable[[], bool]) -> None:
    """See to it that the pool comes to its end: what hangs is killed after a while.

    Only the application's own tasks are waited for as long as they take, unless the stop is a cold one: that is what
    Celery promises them.

    Args:
        processes: Celery's `AsynPool`, closed: this starts a thread, and nothing may fork any more.
        at_once: Whether the stop is a cold one, or has become one.
    """
    Thread(target=_insist, args=(processes, at_once), name="lanes-end", daemon=True).start()


def _insist(processes: Any, at_once: Callable[[], bool]) -> None:
    idle_until = monotonic() + PATIENCE
    busy_until: float | None = None
    killed: set[int] = set()
    never = Event()
    while not never.wait(_LOOK):
        now = monotonic()
        if busy_until is None and at_once():
            busy_until = now + PATIENCE
        spared = _at_work() if busy_until is None or now < busy_until else set()
        if now < idle_until:
            continue
        for child in _living(processes):
            if child.pid not in spared | killed:
                killed.add(child.pid)
                logger.warning("Pool child %d does not end; it is killed", child.pid)
                _kill(child)


def _living(processes: Any) -> Iterator[Any]:
    """Those that the main thread has not seen dead. It waits for them: nobody else may ask the kernel."""
    for child in list(processes._pool):  # noqa: SLF001 - the pool's books
        popen = child._popen  # noqa: SLF001 - see billiard
        if popen is not None and popen.returncode is None:
            yield child


def _at_work() -> set[int]:
    """The children that run the application's own tasks."""
    with suppress(RuntimeError):  # the set changed while it was read; the next look will do
        return {
            int(request.worker_pid)
            for request in list(celery_state.active_requests)
            if not isinstance(request, RunRequest) and request.worker_pid is not None
        }
    return set()


def _kill(child: Any) -> None:
    with suppress(OSError):
        os.kill(child.pid, signal.SIGKILL)
