"""Moments and spans of time as types of the command line's options."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from batching.errors import InvalidInputError
from batching.words import read_moment, read_span


class Span(click.ParamType[Any]):
    """Seconds, or a number with s, m, h or d behind it."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = value if isinstance(value, float) else read_span(str(value))
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
            return read_moment(value)
        except InvalidInputError as error:
            self.fail(str(error), param, ctx)


class MomentOrSpan(click.ParamType[Any]):
    """Either of them; a span counts from now."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime | float:
        seconds = value if isinstance(value, float) else read_span(str(value))
        return Moment().convert(value, param, ctx) if seconds is None else seconds
