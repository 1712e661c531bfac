"""CSV, JSONL, lines and Python iterables become profiles: streamed, checked, in constant memory. Knows no SQL."""

from __future__ import annotations

import os
import stat
import sys
from array import array
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

from batching.encoding import Limits, check_key, decode_json, encode_payload, kind, not_acceptable, short
from batching.errors import InvalidInputError
from batching.formats import FORMATS, Lines, no_columns, read_entries
from batching.options import ProfileInput

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Limits", "Positions", "Source", "check_key", "encode_payload", "from_iterable", "read_file"]

_SUFFIXES: Final = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json-lines": "jsonl",
    # Often one value per line, too; an indented document is refused at its first line instead of taken line by line.
    ".json": "jsonl",
    ".txt": "lines",
}

_Entries = Generator[tuple[int, ProfileInput], None, None]


class Source(Iterator[ProfileInput]):
    """A stream of profiles that can say where each of them came from.

    An iterator, to be read once; a context manager that closes the file it opened. Made by `from_iterable` and
    `read_file`.
    """

    def __init__(
        self, entries: _Entries, unit: str, name: str, most: int = sys.maxsize, owned: BinaryIO | None = None
    ) -> None:
        self._entries = entries
        self._unit = unit
        self._name = name
        self._most = most
        self._owned = owned
        self._positions = Positions()
        self._held: ProfileInput | None = None
        self.inspect: Callable[[ProfileInput, str], None] | None = None
        """Called with each profile and where it came from; refuses it by raising."""
        self.count = 0
        """Profiles read so far: the number of the latest one, be it only peeked at."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ProfileInput:
        if self._held is not None:
            profile, self._held = self._held, None
            return profile
        try:
            position, profile = next(self._entries)
            self.count += 1
            self._positions.note(self.count, position)
            self._check_count()
            if self.inspect is not None:
                self.inspect(profile, self.describe(self.count))
        except BaseException:
            self.close()
            raise
        return profile

    def peek(self) -> ProfileInput | None:
        """The next profile, which stays the next one; None when nothing is left: tells an empty file early."""
        if self._held is None:
            self._held = next(self, None)
        return self._held

    def describe(self, number: int) -> str:
        """Where the profile with this number came from, as `line 17` or `item 17`.

        Args:
            number: Counts the delivered profiles from 1, as the store numbers them.
        """
        low, high = self._positions.find(number)
        return f"{self._unit} {low}" if low == high else f"between {self._unit}s {low} and {high}"

    def duplicate(self, key: str, second: int, first: int | None = None) -> InvalidInputError:
        """The error for a key that came twice, to be raised when the store's UNIQUE constraint refused it.

        Args:
            key: The key in question.
            second: Number, in this source, of the profile that was refused.
            first: Number, in this source, of the profile that has the key; None: the batch had it before.
        """
        here = self._where(second)
        there = "in this batch" if first is None else self.describe(first)
        return not_acceptable(
            f"a profile {here}" if here.startswith("between") else here,
            f"its key {short(key)} was used before, {there}; keys are unique inside a batch: remove one, "
            "or take the keys from another column",
        )

    def _check_count(self) -> None:
        if self.count > self._most:
            raise not_acceptable(
                self._where(self.count),
                f"a batch has at most {self._most:,} profiles; submit the rest as another one, or raise "
                "BATCHING_BATCH_LIMIT",
            )

    def _where(self, number: int) -> str:
        return self.describe(number) + (f" of {self._name}" if self._name else "")

    def close(self) -> None:
        """Close what this source opened. Safe to call twice; streams of the caller stay open."""
        self._entries.close()
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # An abandoned source must not leak its file; one whose constructor failed has none.
        if getattr(self, "_owned", None) is not None:
            self.close()


class Positions:
    """Profile number -> line, in bounded memory.

    Lines and numbers run in parallel but for blank lines and quoted newlines, so only the places where their distance
    changes are kept: one for a regular file. At the bound every second one is dropped, and answers become ranges.
    """

    BOUND: Final = 16_384

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._lines = array("Q")
        self._distance = -1
        self._stride = 1
        self._changes = 0
        self._latest_number = self._latest_line = 0

    def note(self, number: int, line: int) -> None:
        """The profile with this number came from this line; both grow with every call."""
        self._latest_number = number
        self._latest_line = line
        if line - number != self._distance:
            self._change(number, line)

    def _change(self, number: int, line: int) -> None:
        self._distance = line - number
        self._changes += 1
        if (self._changes - 1) % self._stride:
            return
        self._numbers.append(number)
        self._lines.append(line)
        if len(self._numbers) >= self.BOUND:
            del self._numbers[1::2], self._lines[1::2]
            self._stride *= 2

    def find(self, number: int) -> tuple[int, int]:
        """The first and last line where the profile with this number can be; equal when it is known exactly.

        Raises:
            ValueError: No profile with this number was noted.
        """
        if not 1 <= number <= self._latest_number:
            raise ValueError(f"this source delivered {self._latest_number:,} profiles; it has no number {number}")
        at = bisect_right(self._numbers, number) - 1
        low = self._lines[at] + number - self._numbers[at]
        if self._stride == 1:
            return low, low
        # The distance of line and number never shrinks: the next place that is known bounds it from above.
        ahead = at + 1
        if ahead == len(self._numbers):
            return low, self._latest_line - (self._latest_number - number)
        return low, self._lines[ahead] - (self._numbers[ahead] - number)


def from_iterable(profiles: Iterable[Any], limits: Limits) -> Source:
    """Profiles from Python objects, streamed.

    Args:
        profiles: Each element is a mapping with `key` and maybe `payload`, or a pair (key, payload), or a plain key.
            A payload that is left out is null. A `Source` is returned as it is.
        limits: Bounds on keys and payloads.

    Raises:
        InvalidInputError: At once: this is no stream of profiles. While iterating: an element is not acceptable; the
            message has its index, counted from 1.
    """
    if isinstance(profiles, Source):
        return profiles
    if isinstance(profiles, Mapping):
        raise InvalidInputError("cannot take profiles from a mapping: for {key: payload, …} pass its .items()")
    if isinstance(profiles, str | bytes | bytearray) or not isinstance(profiles, Iterable):
        raise InvalidInputError(
            f"cannot take profiles from an object {kind(profiles)}: expected an iterable of keys, of pairs "
            '(key, payload) or of mappings {"key": …, "payload": …}'
        )
    return Source(_elements(profiles, limits), "item", "", limits.profiles)


def _elements(profiles: Iterable[Any], limits: Limits) -> _Entries:
    for index, element in enumerate(profiles, 1):
        where = f"item {index}"
        key, payload = _key_and_payload(element, where)
        yield index, ProfileInput(check_key(key, limits, where), encode_payload(payload, limits, where))


def _key_and_payload(element: Any, where: str) -> tuple[Any, Any]:
    # What nearly every producer yields comes first: the tests below cost more than all else about its key.
    if type(element) is dict and len(element) == 2 and "key" in element and "payload" in element:
        return element["key"], element["payload"]
    if isinstance(element, ProfileInput):
        # Encoded before: taken as a plain pair, its JSON text would be encoded a second time.
        return element.key, decode_json(element.payload, f"the payload of {where}")
    if isinstance(element, str | int):
        return element, None
    if isinstance(element, Mapping):
        unknown = [name for name in element if name not in {"key", "payload"}]
        if unknown or "key" not in element:
            found = f"has the unknown field {short(unknown[0])}" if unknown else 'has no field "key"'
            raise not_acceptable(where, f'it {found}; a profile is {{"key": …, "payload": …}}')
        return element["key"], element.get("payload")
    if isinstance(element, Sequence) and not isinstance(element, bytes | bytearray):
        if len(element) != 2:
            raise not_acceptable(where, f"it has {len(element)} members; a pair is (key, payload)")
        return element[0], element[1]
    raise not_acceptable(
        where, f'it is {kind(element)}; expected a key, a pair (key, payload) or a mapping {{"key": …, "payload": …}}'
    )


def read_file(
    path_or_stream: str | os.PathLike[str] | BinaryIO,
    *,
    format: str | None = None,  # noqa: A002 - what it is called everywhere, the command line included
    key_column: str | None = None,
    limits: Limits,
) -> Source:
    """Profiles from a file in UTF-8 (a byte order mark is skipped), streamed.

    `csv` and `tsv` need a header; a payload is the row as an object of strings. The key is the row's `key_column`, or
    its column `key` or `id`, or the number of the row, counted from 1 below the header. Quoted fields may have
    newlines; the line of such a row is the one it starts on.

    `jsonl` has one JSON value per line. An object that has `key`, maybe `payload` and nothing else is a profile, unless
    `key_column` is given; of any other value the payload is all of it, and the key its `key_column`, or its field `key`
    or `id`, or the line number.

    `lines` makes each line a payload (a string, without its line end); its key is the line number.

    Blank lines are skipped, and counted. An empty file gives no profiles.

    Args:
        path_or_stream: A path, `-` for standard input, or an open binary stream, which stays open.
        format: `csv`, `tsv`, `jsonl` or `lines`. None: by the suffix (.csv .tsv .jsonl .ndjson .json-lines .json .txt);
            with another suffix, or none, `jsonl` if the first line that is not blank starts with `{`, else `lines`.
        key_column: Column or field that holds the keys.
        limits: Bounds on keys and payloads; lines and CSV records are bounded by `Limits.line`. If the payload limit
            exceeds the process's `csv.field_size_limit`, that is raised to it.

    Raises:
        InvalidInputError: At once: the file cannot be opened, or the arguments do not fit. While iterating: something
            in it is not acceptable; the message has the line number.
    """
    if format is not None and format not in FORMATS:
        raise InvalidInputError(f"cannot read the format {format!r}; the formats are {', '.join(FORMATS)}")
    if format == "lines" and key_column is not None:
        raise no_columns(key_column)
    stream, name, owned = _open(path_or_stream)
    suffix = PurePath(name).suffix.lower()
    lines = Lines(stream, name, limits.line)
    entries = _lines_entries(lines, format or _SUFFIXES.get(suffix), key_column, limits)
    return Source(entries, "line", name, limits.profiles, owned)


def read_amendments(path_or_stream: str | os.PathLike[str] | BinaryIO, *, limits: Limits) -> Source:
    """Profiles from lines that tell how profiles ended, edited: the errors of a run, or results with their payloads.

    Args:
        path_or_stream: As for `read_file`; JSON lines whatever its suffix.
        limits: As for `read_file`.

    Raises:
        InvalidInputError: As `read_file`, or a line is no object with the fields `key` and `payload`.
    """
    stream, name, owned = _open(path_or_stream)
    return Source(_amendments(Lines(stream, name, limits.line), limits), "line", name, owned=owned)


def _amendments(lines: Lines, limits: Limits) -> _Entries:
    for line in lines:
        if not line.strip():
            continue
        where = lines.where()
        value = decode_json(line.rstrip(" \t\r\n"), where)
        if not isinstance(value, dict) or "key" not in value or "payload" not in value:
            raise not_acceptable(
                where,
                "it is no object with the fields key and payload; `batching results ID --payload` and "
                "`batching run --errors` write such lines",
            )
        key = check_key(value["key"], limits, where)
        yield lines.number, ProfileInput(key, encode_payload(value["payload"], limits, where))


def _lines_entries(lines: Lines, format_: str | None, key_column: str | None, limits: Limits) -> _Entries:
    for line, key, payload in read_entries(lines, format_, key_column, limits.payload):
        where = lines.where(line)
        yield line, ProfileInput(check_key(key, limits, where), encode_payload(payload, limits, where))


def _open(path_or_stream: Any) -> tuple[BinaryIO, str, BinaryIO | None]:
    """The stream to read, what errors call it, and the stream to close in the end, if it is ours."""
    if path_or_stream == "-":
        if sys.stdin is None:
            raise InvalidInputError("cannot read standard input: it is closed; name a file")
        return sys.stdin.buffer, "standard input", None
    if hasattr(path_or_stream, "readline"):
        name = getattr(path_or_stream, "name", None)
        # Of a text stream, the bytes below it: offsets and encoding errors are ours to report.
        return getattr(path_or_stream, "buffer", path_or_stream), name if isinstance(name, str) else "the stream", None
    try:
        path = os.fspath(path_or_stream)
        opened = open(path, "rb")  # noqa: PTH123, SIM115 - the Source closes it; also takes str and PathLike
    except (OSError, ValueError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidInputError(
            f"cannot read the file {path_or_stream!s}: {why}; name a readable file of profiles, or - for standard input"
        ) from None
    _refuse_device(opened, path_or_stream)
    return opened, os.fsdecode(path), opened


def _refuse_device(opened: BinaryIO, path: object) -> None:
    """A disk or `/dev/zero` is no file of profiles. Links are followed: the path is the caller's own; pipes are fine.

    Asked of what was opened, so that nothing can take its place in between.
    """
    mode = os.fstat(opened.fileno()).st_mode
    if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not opened.isatty()):
        opened.close()
        raise InvalidInputError(
            f"cannot read the file {path!s}: it is a device; name a readable file of profiles, or - for standard input"
        )
