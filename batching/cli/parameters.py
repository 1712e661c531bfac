"""What people type on the command line for moments, spans of time and properties."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from batching.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def _seconds(text: str) -> float | None:
    match = _SPAN.fullmatch(text.strip().lower())
    return None if match is None else float(match[1]) * _SECONDS[match[2]]


class Span(click.ParamType[Any]):
    """Seconds, or a number with s, m, h or d behind it."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = value if isinstance(value, float) else _seconds(str(value))
        if seconds is None:
            self.fail(f"{value!r} is no span of time; give seconds, or a number with s, m, h or d, as 90m", param, ctx)
        return seconds


class Moment(click.ParamType[Any]):
    """An ISO 8601 moment with a time zone."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no moment; give one as 2026-11-26T02:00+01:00 or 2026-11-26T01:00Z", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{value!r} has no time zone; add Z for UTC, or an offset as +01:00", param, ctx)
        return moment


class MomentOrSpan(click.ParamType[Any]):
    """Either of them; a span counts from now."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime | float:
        seconds = value if isinstance(value, float) else _seconds(str(value))
        return Moment().convert(value, param, ctx) if seconds is None else seconds


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
    except ValueError:
        return text
