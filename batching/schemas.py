"""What a handler takes: its payload's type, read from its mark, as a check for payloads and as a JSON schema.

The type is `@profile_handler(payload=Model)`, or the argument of the handler's `Profile[Model]`; anything that pydantic
knows. A check names the place in the payload and what is wrong there, never what was found: payloads stay out of logs.
"""

from __future__ import annotations

import importlib
import typing
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic_core import core_schema

from batching import handlers
from batching.errors import ConfigurationError, PayloadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Errors that pydantic words itself, without the input.
_OWN_WORDS: Final = frozenset(typing.get_args(core_schema.ErrorType)) - {"value_error", "assertion_error"}
#: Flaws of one payload that are told.
_TOLD = 5


class Check(NamedTuple):
    """How payloads are checked."""

    basis: str
    """What they are checked against, or why they are not; for people."""
    flaws: Callable[[Any], list[str]] | None
    """Each with its place, as `payload.age: …`; None: they are not checked."""


def adapter_of(handler: handlers.Handler) -> TypeAdapter[Any] | None:
    """What parses a handler's payloads; None for a handler that takes any.

    Raises:
        ConfigurationError: pydantic can do nothing with the type.
    """
    function = handler.function
    wanted = _hinted(function) if handler.payload is None else handler.payload
    if wanted is None or wanted is Any or isinstance(wanted, typing.TypeVar):
        return None
    try:
        return TypeAdapter(wanted)
    except Exception as error:
        raise ConfigurationError(
            f"cannot check payloads of {function.__module__}.{function.__qualname__} as {wanted!r}: "
            f"{type(error).__name__}; give a type that pydantic knows, or leave it out"
        ) from error


def _hinted(function: Callable[..., Any]) -> Any:
    """The argument of a handler's `Profile[…]`; None for a bare one, or when the hint names what cannot be found."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # noqa: BLE001 - a hint may name what is imported for type checkers alone
        return None
    found = [hint for name, hint in hints.items() if name != "return" and typing.get_origin(hint) is handlers.Profile]
    return typing.get_args(found[0])[0] if found else None


def parsing(handler: handlers.Handler) -> Callable[[Any], Any] | None:
    """What makes a payload an instance of the handler's type; None when it takes any.

    The function raises PayloadError, which says what is wrong where.
    """
    adapter = adapter_of(handler)
    if adapter is None:
        return None

    def parse(payload: Any) -> Any:
        try:
            return adapter.validate_python(payload)
        except ValidationError as error:
            raise PayloadError(
                f"the payload is not what handler {handler.name} takes: {'; '.join(_flaws(error))}"
            ) from None

    return parse


def local_check(name: str) -> Check | None:
    """The check of a handler that is marked in this process; None when none of this name is."""
    handler = handlers.registered().get(name)
    if handler is None:
        return None
    adapter = adapter_of(handler)
    if adapter is None:
        return Check(f"handler {name} takes any payload: its mark names no type", None)

    def flaws(payload: Any) -> list[str]:
        try:
            adapter.validate_python(payload)
        except ValidationError as error:
            return _flaws(error)
        return []

    return Check(f"the type that handler {name} names in this process", flaws)


def _flaws(error: ValidationError) -> list[str]:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    told = [f"{_place(each['loc'])}: {_quoteless(each)}" for each in found[:_TOLD]]
    return [*told, f"and {len(found) - _TOLD:,} more"] if len(found) > _TOLD else told


def _quoteless(flaw: Any) -> str:
    # A validator of the user's own words its errors itself, and may quote what it found.
    return str(flaw["msg"]) if flaw["type"] in _OWN_WORDS else "it is refused by a validator"


def _place(path: Iterable[Any]) -> str:
    return "payload" + "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in path)


def schema_check(name: str, schema: Any) -> Check:
    """The check against a JSON schema that workers advertise, by the package `jsonschema` if it is there."""
    try:
        module: Any = importlib.import_module("jsonschema")
    except ImportError:
        return Check(
            "payloads are not checked: the handler's code is not in this process, and for the schema that its workers "
            "advertise the package jsonschema is missing (pip install 'batching[schemas]')",
            None,
        )
    validator = module.validators.validator_for(schema, default=module.Draft202012Validator)(schema)

    def flaws(payload: Any) -> list[str]:
        found = sorted(validator.iter_errors(payload), key=lambda each: list(map(str, each.absolute_path)))
        told = [f"{_place(each.absolute_path)}: {_rule(each)}" for each in found[:_TOLD]]
        return [*told, f"and {len(found) - _TOLD:,} more"] if len(found) > _TOLD else told

    return Check(f"the JSON schema that workers advertise for handler {name}", flaws)


def _rule(error: Any) -> str:
    """Which rule is broken; the library's own message quotes what it found."""
    if error.validator == "required":
        missing = [each for each in error.validator_value if each not in error.instance]
        return f"the field {', '.join(map(repr, missing))} is missing"
    return f"it breaks the rule {error.validator} {str(error.validator_value)[:80]}"


def advertised(names: Iterable[str]) -> dict[str, dict[str, Any] | None]:
    """The JSON schemas of handlers that are marked in this process; None for those that take any payload."""
    marked = handlers.registered()
    found: dict[str, dict[str, Any] | None] = {}
    for name in names:
        if name in marked:
            adapter = adapter_of(marked[name])
            found[name] = None if adapter is None else adapter.json_schema()
    return found
