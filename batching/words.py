"""What people type for moments, spans of time and properties, on the command line and in addresses. Pure."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from batching.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

_SPAN: Final = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)\s*([smhd]?)", re.ASCII)
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def read_span(text: str) -> float | None:
    """Seconds, from `90`, `90s`, `15m`, `2h` or `1d`; None when it is no span."""
    match = _SPAN.fullmatch(text.strip().lower())
    return None if match is None else float(match[1]) * _SECONDS[match[2]]


def read_moment(text: str) -> datetime:
    """An aware moment, from ISO 8601: `2026-11-26T02:00+01:00`.

    Raises:
        InvalidInputError: It is none, or has no time zone.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInputError(
            f"{text!r} is no moment; give one as 2026-11-26T02:00+01:00 or 2026-11-26T01:00Z"
        ) from None
    if moment.tzinfo is None:
        raise InvalidInputError(f"{text!r} has no time zone; add Z for UTC, or an offset as +01:00")
    return moment


def read_moment_or_span(text: str) -> datetime | float:
    """Either of them; a span counts from now.

    Raises:
        InvalidInputError: It is neither.
    """
    seconds = read_span(text)
    return read_moment(text) if seconds is None else seconds


def parse_properties(pairs: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` pairs; a value is JSON, or else a text.

    Raises:
        InvalidInputError: A pair has no `=`, or a name stands twice.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InvalidInputError(f"cannot read the property {pair!r}: expected NAME=VALUE, as in customer=17")
        if name.strip() in values:
            raise InvalidInputError(f"cannot read the property {pair!r}: {name.strip()!r} was given before")
        values[name.strip()] = value_of(text.strip())
    return values


def value_of(text: str) -> Any:
    """A value as typed: JSON, or else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
