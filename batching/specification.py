"""What a batch may be called and told: checks of a `BatchSpec` before anything is written. Pure."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from batching.encoding import Limits, check_key, encode_payload, short
from batching.errors import InvalidInputError
from batching.handlers import HANDLER_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from batching.options import BatchSpec

_NAME_LIMIT: Final = 255
_QUEUE_LIMIT: Final = 64
_PRIORITY_LIMIT: Final = 1_000_000
#: Seconds ahead that a start or a deadline may be: ten years. More is a mistake of units.
_FARTHEST: Final = 315_360_000.0
_TAGS: Final = 50
_TAG_LIMIT: Final = 255
_PROPERTIES: Final = 50
_PROPERTY_NAME_LIMIT: Final = 64
#: Bytes of all properties as JSON.
_PROPERTIES_LIMIT: Final = 8_192
#: Batches that one batch waits for.
_AFTER: Final = 100
#: Characters of a property's value that it can be found by.
_FOUND_BY: Final = 255


def check_spec(spec: BatchSpec, limits: Limits) -> None:
    """Refuse what no batch can be called.

    Raises:
        InvalidInputError: The message names the field, what was found, and what it may be.
    """
    if not HANDLER_NAME.fullmatch(str(spec.handler)):
        raise InvalidInputError(
            f"cannot submit to the handler {spec.handler!r}: a handler's name has letters, digits, '_', '-' and '.'"
        )
    if not HANDLER_NAME.fullmatch(str(spec.queue)) or len(spec.queue) > _QUEUE_LIMIT:
        raise InvalidInputError(
            f"cannot submit to the queue {spec.queue!r}: a queue's name has letters, digits, '_', '-' and '.', at most "
            f"{_QUEUE_LIMIT}"
        )
    if not spec.name or len(spec.name) > _NAME_LIMIT or not spec.name.isprintable():
        raise InvalidInputError(
            f"cannot submit a batch named {spec.name[:80]!r}: a name has 1 to {_NAME_LIMIT} printable characters"
        )
    if type(spec.priority) is not int or abs(spec.priority) > _PRIORITY_LIMIT:
        raise InvalidInputError(
            f"cannot submit with priority {spec.priority!r}: it is a whole number up to {_PRIORITY_LIMIT:,}"
        )
    if len(group := str(spec.group)) > _NAME_LIMIT or not group.isprintable():
        raise InvalidInputError(
            f"cannot submit with the group {group[:80]!r}: a group has up to {_NAME_LIMIT} printable characters"
        )
    if spec.key is not None:
        check_key(spec.key, limits, "the batch key")
    if len(spec.after) > _AFTER:
        raise InvalidInputError(f"cannot submit after {len(spec.after)} batches: at most {_AFTER}")
    check_moment("start_at", spec.start_at)
    check_moment("deadline", spec.deadline)
    _check_tags(spec.tags)
    _check_properties(spec.properties)


def check_moment(name: str, value: object) -> None:
    """Refuse what is neither an aware moment nor a number of seconds from now.

    Raises:
        InvalidInputError: The message says which of them it is not.
    """
    if value is None:
        return
    if isinstance(value, datetime):
        if value.tzinfo is None or value.utcoffset() is None:
            raise InvalidInputError(
                f"cannot take {name} {value.isoformat()}: it has no time zone; give an aware datetime, or seconds"
            )
        if not 2000 <= value.year < 8000:
            raise InvalidInputError(f"cannot take {name} {value.isoformat()}: expected a year from 2000 to 7999")
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _FARTHEST:
        raise InvalidInputError(
            f"cannot take {name} {short(value)}: expected an aware datetime, or 0 to {_FARTHEST:,.0f} seconds from now"
        )


def moment_parameters(name: str, value: datetime | float | None) -> dict[str, datetime | float | None]:
    """A moment as two parameters, `<name>_is` and `<name>_in`: it is the database's clock that counts seconds."""
    absolute = isinstance(value, datetime)
    return {f"{name}_is": value if absolute else None, f"{name}_in": None if absolute else value}


def _check_tags(tags: Sequence[Any]) -> None:
    if len(tags) > _TAGS:
        raise InvalidInputError(f"cannot take {len(tags)} tags: a batch has at most {_TAGS}")
    for tag in tags:
        check_tag(tag)


def check_tag(tag: Any) -> str:
    """A tag that a batch can have.

    Raises:
        InvalidInputError: It is no text, is blank or too long, or cannot be printed.
    """
    if not isinstance(tag, str) or not tag.strip() or len(tag) > _TAG_LIMIT or not tag.isprintable():
        raise InvalidInputError(f"cannot take the tag {short(tag)}: a tag has 1 to {_TAG_LIMIT} printable characters")
    return tag


def _check_properties(properties: Mapping[Any, Any]) -> None:
    if len(properties) > _PROPERTIES:
        raise InvalidInputError(f"cannot take {len(properties)} properties: a batch has at most {_PROPERTIES}")
    for name in properties:
        if not isinstance(name, str) or not 0 < len(name) <= _PROPERTY_NAME_LIMIT or not name.isprintable():
            raise InvalidInputError(
                f"cannot take the property {short(name)}: a name has 1 to {_PROPERTY_NAME_LIMIT} printable characters"
            )
    encode_payload(properties, Limits(_PROPERTIES_LIMIT, _PROPERTY_NAME_LIMIT), "the properties")


def labels_of(spec: BatchSpec) -> Iterator[tuple[str, str]]:
    """Names and values that a batch is found by; a tag's name is empty."""
    yield from (("", tag) for tag in dict.fromkeys(spec.tags))
    for name, value in spec.properties.items():
        text = property_text(value)
        if text is not None:
            yield name, text


def property_text(value: Any) -> str | None:
    """What a property's value is found by: a text itself, else its JSON; None for what is only kept."""
    if isinstance(value, dict | list | tuple):
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _FOUND_BY and text.isprintable() else None


__all__ = ["check_moment", "check_spec", "check_tag", "labels_of", "moment_parameters", "property_text"]
