"""Results as CSV for spreadsheets, which take a cell that begins like a formula for one, and run it.

A cell that begins with `=`, `+`, `-`, `@`, a tab, a carriage return or a line feed gets an apostrophe before it
(https://owasp.org/www-community/attacks/CSV_Injection); so does one that begins with an apostrophe, so that dropping
one leading apostrophe gives every value back.
"""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batching.statistics import ResultLine

COLUMNS: Final = ("key", "state", "attempts", "result", "error")
#: The last four are the full-width forms of the first four, which some spreadsheets take for the same.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def inert(value: object) -> str:
    """A cell that no spreadsheet runs."""
    text = str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def write_csv(lines: Iterable[ResultLine], stream: BinaryIO) -> None:
    """Write a header and one record per profile, in UTF-8: results as JSON text, errors as `Type: message`."""
    # Whatever the terminal's encoding is: this goes into files. A lone surrogate has no UTF-8; it is escaped.
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="backslashreplace", newline="")
    try:
        # Lines end in CR LF (RFC 4180): the writer quotes a cell for the characters of its line end, so for both.
        writer = csv.writer(text, lineterminator="\r\n")
        writer.writerow(COLUMNS)
        for line in lines:
            writer.writerow([inert(cell) for cell in _cells(line)])
    finally:
        text.detach()  # flushes, and leaves the caller's stream open


def _cells(line: ResultLine) -> list[Any]:
    result = "" if line.result is None else json.dumps(line.result, ensure_ascii=False)
    error = "" if line.error is None else f"{line.error['type']}: {line.error['message']}"
    return [line.key, line.state.value, line.attempts, result, error]
