"""Handlers that are coroutine functions: each thread that runs them keeps an event loop of its own."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.handlers import Profile


class _Here(threading.local):
    """What this thread keeps between runs; a process that was forked before its first run makes its own."""

    runner: asyncio.Runner | None = None


_here = _Here()


def is_awaited(function: Callable[..., Any]) -> bool:
    """Whether calling it makes a coroutine: `async def`, also as the `__call__` of an object."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - it is looked at, not asked for


def awaited(function: Callable[[Profile], Any]) -> Callable[[Profile], Any]:
    """A plain function that runs a coroutine function to its end.

    The loop stays for the thread's next run, so that clients which belong to a loop can stay open. Tasks that a run
    leaves behind are cancelled, as `asyncio.run` does, and the loop with them: they belong to that profile, and a loop
    which a time limit broke off amid its turn is not to be trusted.
    """

    @wraps(function)
    def run(profile: Profile) -> Any:
        runner = _here.runner
        if runner is None:
            runner = _here.runner = asyncio.Runner()
        try:
            # In the context of this run, not in that of the thread's first one.
            return runner.run(function(profile), context=contextvars.copy_context())
        finally:
            if asyncio.all_tasks(runner.get_loop()):
                _here.runner = None
                runner.close()

    return run
