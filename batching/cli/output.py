"""How the verbs print: tables for people, JSON for programs. Nothing that a batch carries can steer the terminal."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from rich.console import JustifyMethod

    from batching.statistics import BatchView

#: Digits of an id that people get to see: a version 7 UUID begins with its 12 digits of time.
_SHORT = 13

_STYLES = {
    "running": "cyan",
    "stopping": "yellow",
    "paused": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
    "expired": "magenta",
}

#: Columns between two cells of a table, and what the column that gives way keeps.
_GAP, _NARROWEST = 2, 6

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def json_flag(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json` to a verb; it arrives as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def print_json(document: Any) -> None:
    """Print one JSON document on one line. Not flushed: results come by the million."""
    # Where standard output cannot express every character (LANG=C), JSON's own escapes can.
    every = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    try:
        sys.stdout.write(json.dumps(document, ensure_ascii=not every) + "\n")
    except UnicodeEncodeError:  # a lone surrogate: JSON has an escape for it, no encoding has a character
        sys.stdout.write(json.dumps(document) + "\n")


def console(*, to_stderr: bool = False) -> Console:
    """A console on the present standard output. Colours and width follow the terminal, NO_COLOR and COLUMNS."""
    return Console(stderr=to_stderr, highlight=False, soft_wrap=False, emoji=False, markup=False)


def safe(text: object) -> str:
    """A text on one line without control characters: names and messages come from elsewhere."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(text))


def styled(state: str) -> Text:
    """A batch's state, coloured where colours are."""
    return Text(state, style=_STYLES.get(state, ""))


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    """A table that fits the terminal. The second column gives way when there is not enough room.

    Args:
        headers: One per column.
        rows: Cells are texts, numbers, or rich's own.
        right: Headers of the columns that hold numbers.
    """
    cells = [[cell if isinstance(cell, Text) else Text(safe(cell)) for cell in row] for row in rows]
    widths = [max(len(header), *(row[index].cell_len for row in cells), 1) for index, header in enumerate(headers)]
    # rich would take room from every column alike; here ids and numbers stay whole.
    others = sum(widths) - widths[1] + _GAP * len(widths)
    widths[1] = min(widths[1], max(_NARROWEST, console().width - others))
    made = Table(box=None, pad_edge=False, header_style="bold")
    for header, width in zip(headers, widths, strict=True):
        justify: JustifyMethod = "right" if header in right else "left"
        made.add_column(header, justify=justify, width=width, no_wrap=True, overflow="ellipsis")
    for row in cells:
        made.add_row(*row)
    return made


def short_ids(views: Sequence[BatchView]) -> dict[str, str]:
    """For each batch the shortest beginning of its id, all equally long, that tells it from the others listed."""
    length = _SHORT
    while length < 36 and len({view.id[:length] for view in views}) < len(views):
        length += 1
    return {view.id: view.id[:length].rstrip("-") for view in views}


def duration(seconds: float | None) -> str:
    """Seconds for people: `45 s`, `3 min 20 s`, `2 h 05 min`, `3 d 04 h`; `-` for None."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"
    return f"{whole // _DAY:,} d {whole % _DAY // _HOUR:02} h"


def rate(per_second: float | None) -> str:
    """A rate for people: `120/s`, `3.4/s`; `-` for None."""
    if per_second is None:
        return "-"
    return f"{per_second:,.0f}/s" if per_second >= 10 else f"{per_second:.2g}/s"


def when(at: datetime | None) -> str:
    """A moment for people, in UTC; `-` for None."""
    return "-" if at is None else f"{at:%Y-%m-%d %H:%M:%S} UTC"


def place(view: BatchView) -> str:
    """A place in line for people; `-` for a batch that is not in the queue."""
    return "-" if view.place is None else str(view.place)
