"""Binds `profile_handler` marks to Celery tasks. Thin: no SQL, no decisions."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from celery.backends.base import DisabledBackend

from batching.errors import ConfigurationError
from batching.schemas import parsing
from workers.awaiting import awaited, is_awaited
from workers.tracing import perform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from celery import Celery

    from batching.handlers import Handler, Profile

#: Task options that would act behind the queue's back, and what to use in their place.
_REFUSED: Final = {
    "autoretry_for": "a batch retries by itself; use BatchOptions(max_attempts=…)",
    "max_retries": "a batch retries by itself; use BatchOptions(max_attempts=…)",
    "retry_backoff": "use BatchOptions(retry_backoff=…)",
    "bind": "a handler takes a Profile",
    "rate_limit": "lanes are not rate limited by Celery",
    "expires": "messages are hints; cancel the batch to end it",
    "ignore_result": "results are kept in SQL",
}


def bind(app: Celery, handlers: Iterable[Handler]) -> dict[str, Any]:
    """Register handlers as tasks of an app; those that it has already stay.

    Returns:
        The tasks by name.

    Raises:
        ConfigurationError: An option cannot pass through, or a task of the app's own has the name.
    """
    return {handler.name: _bound(app, handler) for handler in handlers}


def check_pool(handlers: Iterable[Handler], pool: str) -> None:
    """Time limits need a child process that can be killed; coroutine functions a thread for their event loop.

    Raises:
        ConfigurationError: A handler has what the pool cannot give; names both.
    """
    for handler in handlers:
        if pool == "gevent" and is_awaited(handler.function):
            raise ConfigurationError(
                f"cannot serve handler {handler.name} in the gevent pool: it is a coroutine function, and greenlets "
                "share one thread, which can run one event loop; start the worker with another pool, or drop the async"
            )
        for option in ("time_limit", "soft_time_limit"):
            if pool != "prefork" and handler.options.get(option) is not None:
                raise ConfigurationError(
                    f"cannot serve handler {handler.name} in the {pool} pool: its {option} needs child processes that "
                    "can be interrupted; start the worker with --pool=prefork, or drop the option"
                )


def _bound(app: Celery, handler: Handler) -> Any:
    known: Any = app.tasks.get(handler.name)
    if known is not None:
        if getattr(known, "batching_handler", None) is None:
            raise ConfigurationError(
                f"cannot bind handler {handler.name}: the application has a task of that name; "
                "give the handler another with @profile_handler(name=…)"
            )
        return known
    for option, remedy in _REFUSED.items():
        if option in handler.options:
            raise ConfigurationError(f"cannot bind handler {handler.name}: option {option!r} has no use here; {remedy}")
    options = dict(handler.options) | {
        "name": handler.name,
        # Or Celery would add it to every other application of this process as well.
        "shared": False,
        # The outcome goes to SQL; whatever backend the application has is not ours to fill.
        "ignore_result": True,
        "store_errors_even_if_ignored": False,
        # A message was popped for good when the run was claimed; there is nothing to acknowledge.
        "acks_late": False,
        "reject_on_worker_lost": False,
        "max_retries": 0,
        "batching_handler": handler.name,
    }
    task = app.task(**options)(_body(handler))
    _quicken(app, task)
    return task


class RequestStack(threading.local):
    """What a thread, or greenlet, is at: `current_task.request`.

    Celery's own (`_LocalStack` in celery/utils/threads.py) looks a thread up in a dictionary for each of its steps,
    several times a run. Its quicker one hands out the list of whoever asks first, which tracers keep: so it serves one
    thread.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []

    def push(self, request: Any) -> None:
        """Begin with a request."""
        self.stack.append(request)

    def pop(self) -> Any:
        """Be through with it; None when there was none."""
        return self.stack.pop() if self.stack else None

    @property
    def top(self) -> Any:
        """The one that the thread is at; None for none."""
        return self.stack[-1] if self.stack else None

    def __len__(self) -> int:
        return len(self.stack)


def _quicken(app: Celery, task: Any) -> None:
    """Spare each run what its tracer would look up anew; before the tracer is built."""
    task.request_stack = RequestStack()
    if not app.conf.result_backend and isinstance(app.backend, DisabledBackend):
        # Asked twice a run, to do nothing: found here, and not by way of the application.
        task.backend = app.backend


def _parsed(handler: Handler) -> Callable[[Profile], Any]:
    """The handler's function, with payloads of the type that it names; itself, when it names none.

    One that makes a coroutine is run to its end.
    """
    function, parse = handler.function, parsing(handler)
    if is_awaited(function):
        function = awaited(function)
    if parse is None:
        return function
    # Read now, in the main process: children find it ready.
    return lambda profile: function(replace(profile, payload=parse(profile.payload)))


def _body(handler: Handler) -> Callable[..., Any]:
    function = handler.function
    run = partial(perform, handler.name, _parsed(handler))

    def body(**ids: Any) -> Any:
        del ids  # they name the run for people; what runs is what was claimed
        return run()

    body.__doc__ = getattr(function, "__doc__", None)
    body.__module__ = getattr(function, "__module__", __name__)
    return body
