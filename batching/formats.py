"""Lines, JSONL and CSV: from a binary stream to (line, key, payload), in constant memory."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from batching.encoding import MAX_COLUMNS, decode_json, kind, names, not_acceptable, short, unreadable
from batching.errors import InvalidInputError

#: What `read_file` takes as a format.
FORMATS: Final = ("csv", "tsv", "jsonl", "lines")

_KEY_FIELDS: Final = ("key", "id")
_CLOSE_QUOTE: Final = "look for a quote that is never closed, or raise BATCHING_PAYLOAD_LIMIT"


class Lines(Iterator[str]):
    """The physical lines of a stream as text, with their line ends; never more than one of them in memory."""

    def __init__(self, stream: Any, name: str, bound: int) -> None:
        self._stream = stream
        self._offset = 0
        self._held: str | None = None
        self.name = name
        self.bound = bound
        self.number = 0

    def where(self, number: int | None = None) -> str:
        return f"line {number or self.number} of {self.name}"

    def hold(self, line: str) -> None:
        """Give a line back, for the next reader to see."""
        self._held = line

    def __next__(self) -> str:
        if self._held is not None:
            line, self._held = self._held, None
            return line
        raw, start = self._read(), self._offset
        self._offset += len(raw)
        if (at := raw.find(b"\0")) >= 0:
            raise unreadable(
                self.where(),
                f"it has a NUL byte at offset {start + at:,} of the file; remove it, or convert the file "
                "if it is UTF-16",
            )
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            wrong = f"byte 0x{raw[error.start]:02x} at offset {start + error.start:,} of the file is not UTF-8"
            raise unreadable(self.where(), f"{wrong}; convert the file, for example with iconv -t UTF-8") from None
        return text if start else text.removeprefix("\ufeff")

    def _read(self) -> bytes:
        self.number += 1
        try:
            raw = self._stream.readline(self.bound + 1)
        except (OSError, ValueError, EOFError) as error:
            raise unreadable(self.where(), str(error)) from None
        if not isinstance(raw, bytes):
            raise InvalidInputError(f"cannot read {self.name}: it is a text stream; open it in binary mode")
        if not raw:
            raise StopIteration
        if len(raw) > self.bound:
            raise unreadable(
                self.where(), f"it is longer than {self.bound:,} bytes; split it, or raise BATCHING_PAYLOAD_LIMIT"
            )
        return raw


def read_entries(
    lines: Lines, format_: str | None, key_column: str | None, field_limit: int
) -> Iterator[tuple[int, Any, Any]]:
    """The profiles of a file, unchecked: the line that each starts on, its key, its payload.

    Args:
        lines: The file.
        format_: One of `FORMATS`; None: see what the first line that is not blank looks like.
        key_column: Column or field that holds the keys.
        field_limit: Characters that one CSV field may have at least.

    Raises:
        InvalidInputError: A line cannot be read as its format.
    """
    format_ = format_ or _sniff(lines)
    if format_ == "jsonl":
        return _jsonl(lines, key_column)
    if format_ == "lines":
        if key_column is not None:
            raise no_columns(key_column)
        return _plain(lines)
    return _csv(_records(lines, "\t" if format_ == "tsv" else ",", field_limit), lines, key_column)


def no_columns(key_column: str) -> InvalidInputError:
    """The error for a key column where there are none."""
    return InvalidInputError(
        f"cannot take the keys from {key_column!r}: plain lines have no columns, their keys are the line numbers; "
        "leave the key column out, or give the format csv or jsonl"
    )


def _sniff(lines: Lines) -> str:
    for line in lines:
        if line.strip():
            lines.hold(line)
            return "jsonl" if line.lstrip().startswith("{") else "lines"
    return "lines"


def _plain(lines: Lines) -> Iterator[tuple[int, Any, Any]]:
    for line in lines:
        if line.strip():
            yield lines.number, lines.number, line.removesuffix("\n").removesuffix("\r")


def _jsonl(lines: Lines, key_column: str | None) -> Iterator[tuple[int, Any, Any]]:
    for line in lines:
        if line.strip():
            # Without the line end: json would count a second line and place the error there.
            value = decode_json(line.rstrip(" \t\r\n"), lines.where())
            yield lines.number, *_keyed(value, key_column, lines)


def _keyed(value: Any, key_column: str | None, lines: Lines) -> tuple[Any, Any]:
    """Key and payload of one JSON value."""
    if key_column is not None:
        if not isinstance(value, dict):
            raise not_acceptable(lines.where(), f"it is {kind(value)}, not an object with the field {key_column!r}")
        if key_column not in value:
            raise not_acceptable(lines.where(), f"it has no field {key_column!r}; its fields are {names(value)}")
        return value[key_column], value
    if not isinstance(value, dict):
        return lines.number, value
    if "key" in value and value.keys() <= {"key", "payload"}:
        return value["key"], value.get("payload")
    field = next((name for name in _KEY_FIELDS if name in value), None)
    return (lines.number if field is None else value[field]), value


def _csv(
    records: Iterator[tuple[int, list[str]]], lines: Lines, key_column: str | None
) -> Iterator[tuple[int, Any, Any]]:
    line, header = next(records, (1, []))
    if not header:
        return
    if len(header) > MAX_COLUMNS:
        raise unreadable(
            lines.where(line),
            f"the header has {len(header):,} columns, the limit is {MAX_COLUMNS:,}; is the separator the right one?",
        )
    if len(set(header)) < len(header):
        column = next(column for column, times in Counter(header).items() if times > 1)
        raise unreadable(lines.where(line), f"the header has the column {short(column)} twice; rename one")
    if key_column is not None and key_column not in header:
        raise unreadable(lines.where(line), f"there is no column {key_column!r}; the columns are {names(header)}")
    field = key_column or next((name for name in _KEY_FIELDS if name in header), None)
    for number, (line, fields) in enumerate(records, 1):
        if len(fields) != len(header):
            raise unreadable(
                lines.where(line),
                f"it has {len(fields)} fields, the header has {len(header)}; quote fields that contain the separator",
            )
        row = dict(zip(header, fields, strict=True))
        yield line, number if field is None else row[field], row


def _records(lines: Lines, separator: str, field_limit: int) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file that are not blank, each with the line that it starts on."""
    # A setting of the whole process, so it is only ever raised, and only for payloads larger than the default.
    if csv.field_size_limit() < field_limit:
        csv.field_size_limit(field_limit)
    start, size = 1, 0

    def measured() -> Iterator[str]:
        # A quote that is never closed would otherwise gather the rest of the file in memory.
        nonlocal size
        for line in lines:
            size += len(line)
            if size > lines.bound:
                raise unreadable(lines.where(start), f"its record is longer than {lines.bound:,} bytes; {_CLOSE_QUOTE}")
            yield line

    # Strict: without it, a file that was cut inside a quoted field gives a wrong last row instead of an error.
    reader = csv.reader(measured(), delimiter=separator, strict=True)
    while True:
        start, size = lines.number + 1, 0
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise unreadable(lines.where(start), f"{error}; {_CLOSE_QUOTE}") from None
        if fields is None:
            return
        if fields:
            yield start, fields
