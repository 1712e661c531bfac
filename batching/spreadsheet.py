"""Results as CSV for spreadsheets, which take a cell that begins like a formula for one, and run it.

A cell that begins with `=`, `+`, `-`, `@`, a tab, a carriage return or a line feed gets an apostrophe before it
(https://owasp.org/www-community/attacks/CSV_Injection); so does one that begins with an apostrophe, so that dropping
one leading apostrophe gives every value back.
"""

from __future__ import annotations

import csv
import io
import json
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

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
    stream.writelines(csv_records(lines))
    stream.flush()


def csv_records(lines: Iterable[ResultLine], *, header: bool = True) -> Iterator[bytes]:
    """The same, one by one."""
    text = io.StringIO(newline="")
    # Lines end in CR LF (RFC 4180): the writer quotes a cell for the characters of its line end, so for both.
    writer = csv.writer(text, lineterminator="\r\n")
    for cells in chain([COLUMNS] if header else [], map(_cells, lines)):
        writer.writerow([inert(cell) for cell in cells])
        # Whatever the terminal's encoding is: this goes into files. A lone surrogate has no UTF-8; it is escaped.
        yield text.getvalue().encode("utf-8", "backslashreplace")
        text.seek(0)
        text.truncate()


def _cells(line: ResultLine) -> Sequence[Any]:
    result = "" if line.result is None else json.dumps(line.result, ensure_ascii=False)
    error = "" if line.error is None else f"{line.error['type']}: {line.error['message']}"
    return [line.key, line.state.value, line.attempts, result, error]
