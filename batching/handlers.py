"""Handlers: the user's functions that process one profile, marked without any Celery in them.

A worker binds each mark to a real Celery task. Producers never need the modules that hold them.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, overload

from typing_extensions import TypeVar

from batching.errors import ConfigurationError, HandlerImportError, UnknownHandlerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Payload = TypeVar("Payload", default=Any)
_Function = TypeVar("_Function", bound="Callable[[Profile], Any]")

#: Names end up in Redis keys, Flower and metrics: no spaces, no separators of ours.
HANDLER_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")


@dataclass(frozen=True, slots=True)
class Profile(Generic[Payload]):
    """What a handler gets: one unit of work. `Profile[Model]` names the type of its payload; a bare one takes any."""

    key: str
    """Unique in its batch; chosen by the producer."""
    payload: Payload
    """The JSON value that the producer submitted; an instance of the handler's type, when it names one."""
    batch_id: str
    attempt: int
    """Tries of this profile in this pass, counted from 1."""
    run: int
    """Grows with every execution, never reset; for logs, not for idempotency."""
    pass_number: int
    """The batch's turn at the head of the queue, counted from 1."""
    idempotency_key: str
    """Constant for the life of the profile, whatever run or pass: hand it to systems that must not act twice."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A marked function: its registered name, and the Celery task options that pass through to its task."""

    name: str
    function: Callable[[Profile], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    payload: Any = None
    """The type of its payloads; None: what its hint `Profile[…]` names, if anything. See `schemas`."""


_registry: dict[str, Handler] = {}


@overload
def profile_handler(function: _Function, /) -> _Function: ...
@overload
def profile_handler(
    *, name: str | None = None, payload: Any = None, **options: Any
) -> Callable[[_Function], _Function]: ...
def profile_handler(function: Any = None, /, *, name: str | None = None, payload: Any = None, **options: Any) -> Any:
    """Mark a function as the handler of profiles.

    Args:
        function: Takes a `Profile`, returns the profile's result (anything that JSON can express). May be `async def`,
            save in the gevent pool: each thread or pool process that runs profiles has an event loop.
        name: What producers submit to; by default `<module>.<function>`.
        payload: The type of its payloads, anything that pydantic knows; by default what its hint `Profile[…]` names.
            Workers parse payloads as it and advertise its JSON schema, which a preflight checks against.
        **options: Options of the Celery task, as `soft_time_limit=30` (seconds).

    Raises:
        ConfigurationError: The name is not fit for a handler, or another function has it.
    """

    def mark(function: Any) -> Any:
        chosen = name or f"{function.__module__}.{function.__qualname__}"
        register(Handler(chosen, function, dict(options), payload))
        return function

    return mark if function is None else mark(function)


def register(handler: Handler) -> None:
    """Add a handler to this process's registry; marking the same function twice is harmless."""
    if not HANDLER_NAME.fullmatch(handler.name):
        raise ConfigurationError(
            f"cannot register the handler {handler.name!r}: a name has letters, digits, '_', '-' and '.', at most 200; "
            "give one with @profile_handler(name=…)"
        )
    other = _registry.get(handler.name)
    if other is not None and _origin(other.function) != _origin(handler.function):
        raise ConfigurationError(
            f"cannot register {_origin(handler.function)} as handler {handler.name!r}: "
            f"{_origin(other.function)} has that name; rename one of them"
        )
    _registry[handler.name] = handler


def registered() -> dict[str, Handler]:
    """The handlers of this process, by name."""
    return dict(_registry)


def get(name: str) -> Handler:
    """The handler of this name.

    Raises:
        UnknownHandlerError: This process has none; the message lists those that it has.
    """
    try:
        return _registry[name]
    except KeyError:
        have = ", ".join(sorted(_registry)) or "none"
        raise UnknownHandlerError(
            f"there is no handler {name!r}; this process has: {have}. Name the module that marks it with "
            "--handlers MODULE or BATCHING_HANDLERS"
        ) from None


def load(modules: Iterable[str]) -> None:
    """Import modules so that their marks register.

    The current folder is added to the end of `sys.path`, and stays there: `celery -A` has it there only while it looks
    for the application, and handlers may import their neighbours later. At the end, so that it shadows nothing.

    Raises:
        HandlerImportError: A module failed; its traceback is in the message, once.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - a user's module may raise anything
            trace = "".join(traceback.format_exception(error, limit=-8)).rstrip()
            raise HandlerImportError(
                f"cannot import the handler module {module!r} (BATCHING_HANDLERS or --handlers):\n{trace}\n"
                f"fix the module, or its name (as in `import {module.removesuffix('.py')}`); it is looked for on "
                f"PYTHONPATH and in {here}"
            ) from None


def _origin(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
