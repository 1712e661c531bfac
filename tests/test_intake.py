from __future__ import annotations

import csv
import enum
import io
import json
import math
import socket
import sys
import tracemalloc
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batching import encoding
from batching.encoding import examine_key
from batching.errors import InvalidInputError
from batching.intake import Limits, Positions, check_key, encode_payload, from_iterable, read_file
from batching.options import ProfileInput
from batching.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

LIMITS = Limits(payload=200, key=20)
ROOMY = Limits(payload=65_536, key=255)


def refusal(act: Callable[[], Any]) -> str:
    with pytest.raises(InvalidInputError) as caught:
        act()
    return str(caught.value)


def profiles(data: bytes | str, **options: Any) -> list[tuple[str, Any]]:
    """Key and decoded payload of everything in a file with this content."""
    stream = io.BytesIO(data.encode() if isinstance(data, str) else data)
    options.setdefault("limits", LIMITS)
    return [(key, json.loads(payload)) for key, payload in read_file(stream, **options)]


def refused(data: bytes | str, **options: Any) -> str:
    return refusal(lambda: profiles(data, **options))


# --- limits -----------------------------------------------------------------------------------------------------------


def test_limits_come_from_the_settings() -> None:
    settings = get_settings().model_copy(update={"payload_limit": 1000, "key_limit": 99})
    assert Limits.from_settings(settings) == Limits(payload=1000, key=99)


# --- payloads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ({"b": 1, "a": [1.5, "x"]}, '{"b":1,"a":[1.5,"x"]}'),
        ("é €", '"é €"'),
        ((1, 2), "[1,2]"),
        ("a\0b", '"a\\u0000b"'),
        (2**80, str(2**80)),
    ],
)
def test_a_payload_is_compact_json_in_its_own_order(value: Any, text: str) -> None:
    assert encode_payload(value, LIMITS, "item 1") == text


def test_a_payload_is_measured_in_bytes_not_characters() -> None:
    assert encode_payload("é" * 99, LIMITS, "item 1") == '"' + "é" * 99 + '"'
    assert refusal(lambda: encode_payload("é" * 100, LIMITS, "item 7")) == (
        "cannot take item 7: its payload has 202 bytes as JSON, the limit is 200; keep large data elsewhere and pass a "
        "reference to it, or raise BATCHING_PAYLOAD_LIMIT"
    )


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ({"user": [1, {"born": date(2000, 1, 1)}]}, ["payload.user[1].born is of type datetime.date", "convert it"]),
        (Decimal(1), ["payload is of type decimal.Decimal, which JSON cannot express"]),
        (b"x", ["payload is of type bytes"]),
        ({1, 2}, ["payload is of type set"]),
        ({"a b": object()}, ["payload['a b'] is of type object"]),
        ({"a": float("nan")}, ["payload.a is nan, which JSON does not have; use null or a string"]),
        ([float("-inf")], ["payload[0] is -inf"]),
        ({"a": {1: "x"}}, ["payload.a has the field 1, which is of type int; the names of fields are text"]),
        pytest.param({10**5000: 1}, ["has the field something of type int"], id="huge field"),
        ({"a": "x\ud800"}, ["payload.a has the lone surrogate U+D800, which UTF-8 cannot express"]),
        ({"\udfff": 1}, ["payload has the field '\\udfff' with the lone surrogate U+DFFF"]),
        pytest.param([10**5000], ["payload[0] is too large a number; pass it as text"], id="huge number"),
    ],
)
def test_a_payload_that_is_not_json_is_refused_with_the_path(value: Any, parts: list[str]) -> None:
    message = refusal(lambda: encode_payload(value, LIMITS, "line 3 of a.csv"))
    assert message.startswith("cannot take line 3 of a.csv: ")
    for part in parts:
        assert part in message


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_nesting_is_bounded() -> None:
    assert encode_payload(nested(100), ROOMY, "item 1") == "[" * 100 + "]" * 100
    assert "nested over 100 levels deep" in refusal(lambda: encode_payload(nested(101), ROOMY, "item 1"))


def test_a_payload_that_contains_itself_is_refused_quickly() -> None:
    circle: list[Any] = []
    circle.extend([circle, circle, {1: circle}])
    assert "or contains itself" in refusal(lambda: encode_payload(circle, LIMITS, "item 1"))


# --- keys -------------------------------------------------------------------------------------------------------------


class Colour(str, enum.Enum):  # noqa: UP042 - the older spelling, whose str() is not its value
    RED = "red"


@pytest.mark.parametrize(
    ("key", "text"), [("a", "a"), (7, "7"), (-1, "-1"), (" a ", " a "), (Colour.RED, "red"), ("k" * 20, "k" * 20)]
)
def test_keys_are_text_or_whole_numbers(key: Any, text: str) -> None:
    found = check_key(key, LIMITS, "item 1")
    assert found == text
    assert type(found) is str


@pytest.mark.parametrize(
    ("key", "part"),
    [
        (True, "its key is of type bool; a key is text or a whole number"),
        (None, "its key is null"),
        (1.5, "its key is of type float"),
        ("", "its key is empty or blank"),
        (" \t", "its key is empty or blank"),
        ("k" * 21, f"its key '{'k' * 21}' has 21 characters, the limit is 20 (BATCHING_KEY_LIMIT)"),
        pytest.param(10**5000, "bits; at most 20 characters", id="huge number"),
        ("a\0b", "its key 'a\\x00b' has the control character U+0000; remove it"),
        ("a\nb", "control character U+000A"),
        ("a\x85b", "control character U+0085"),
        ("a\udc80", "its key 'a\\udc80' has the lone surrogate U+DC80"),
    ],
)
def test_other_keys_are_refused(key: Any, part: str) -> None:
    message = refusal(lambda: check_key(key, LIMITS, "item 4"))
    assert message.startswith("cannot take item 4: ")
    assert part in message


# The short cuts that nearly every key and payload takes must say what the long way says.


@given(st.text(max_size=25) | st.text(st.characters(codec=None, categories=["Cc", "Cs", "Cf", "Zs", "Lu"]), max_size=5))
def test_the_short_cut_of_keys_is_the_long_way(key: str) -> None:
    assert outcome(lambda: check_key(key, LIMITS, "item 1")) == outcome(lambda: examine_key(key, LIMITS, "item 1"))


class Name(str):
    """Not exactly a str."""

    __slots__ = ()


class Number(enum.IntEnum):
    """Not exactly an int."""

    ONE = 1


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None))
    | st.sampled_from([Colour.RED, Number.ONE, Name("x"), b"x", Decimal(1), object()])
)
field_names = st.text(st.characters(codec=None), max_size=5) | st.sampled_from([Colour.RED, Name("x"), 1, True, None])
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(field_names, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(anything)
def test_a_payload_is_what_the_json_module_makes_of_it_or_refused(value: Any) -> None:
    found = outcome(lambda: encode_payload(value, ROOMY, "item 1"))
    if is_json(value):
        assert found == json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        assert f"[{found}]" == encode_payload([value], ROOMY, "item 1")  # which takes no short cut
    else:
        assert found.startswith("cannot take item 1: payload")


def is_json(value: Any) -> bool:
    """The definition, without any short cut."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and is_json(str.__str__(name)) and is_json(value[name]) for name in value)
    if isinstance(value, list | tuple):
        return all(is_json(member) for member in value)
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, int) and value.bit_length() < 10_000)


def outcome(act: Callable[[], str]) -> str:
    """What it returns, or how it refuses."""
    try:
        return act()
    except InvalidInputError as error:
        return str(error)


def test_a_python_without_the_fast_encoder_encodes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"a": [1, 1.5, 'é\0\n"', None, True, {"b": (2**70,)}]}
    fast = encoding._json_encoder()(value)
    monkeypatch.setattr("json.encoder.c_make_encoder", None)
    assert encoding._json_encoder()(value) == fast
    assert fast == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# --- iterables --------------------------------------------------------------------------------------------------------


def test_elements_are_mappings_pairs_or_keys() -> None:
    elements = [{"key": "a", "payload": [1]}, {"key": 2}, ("c", {"x": 1}), ["d", None], "e", 6]
    assert list(from_iterable(elements, LIMITS)) == [
        ProfileInput("a", "[1]"),
        ProfileInput("2", "null"),
        ProfileInput("c", '{"x":1}'),
        ProfileInput("d", "null"),
        ProfileInput("e", "null"),
        ProfileInput("6", "null"),
    ]


def test_encoded_profiles_and_sources_are_not_encoded_twice() -> None:
    source = from_iterable([("a", {"x": 1})], LIMITS)
    assert from_iterable(source, LIMITS) is source
    encoded = list(source)
    assert list(from_iterable(encoded, LIMITS)) == encoded
    assert "cannot read the payload of item 1: column 1 is not JSON" in refusal(
        lambda: list(from_iterable([ProfileInput("a", "oops")], LIMITS))
    )


@pytest.mark.parametrize(
    ("element", "part"),
    [
        ({"key": "a", "paylod": 1}, "item 2: it has the unknown field 'paylod'"),
        ({"payload": 1}, 'item 2: it has no field "key"'),
        (("a", 1, 2), "item 2: it has 3 members; a pair is (key, payload)"),
        (1.5, "item 2: it is of type float; expected a key, a pair (key, payload) or a mapping"),
        (b"ab", "item 2: it is of type bytes"),
        (True, "item 2: its key is of type bool"),
        (("a", float("inf")), "item 2: payload is inf"),
    ],
)
def test_other_elements_are_refused_with_their_index(element: Any, part: str) -> None:
    source = from_iterable(["first", element], LIMITS)
    assert next(source).key == "first"
    assert part in refusal(lambda: next(source))


@pytest.mark.parametrize(
    ("stream", "part"),
    [
        ("abc", "cannot take profiles from an object of type str"),
        (b"abc", "type bytes"),
        ({"a": 1}, "pass its .items()"),
        (None, "null"),
        (7, "type int"),
    ],
)
def test_what_is_no_stream_of_profiles_is_refused_at_once(stream: Any, part: str) -> None:
    assert part in refusal(lambda: from_iterable(stream, LIMITS))


def test_an_iterable_is_read_only_as_far_as_asked() -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            taken.append(len(taken))
            yield taken[-1]

    source = from_iterable(endless(), LIMITS)
    assert [next(source).key, next(source).key] == ["0", "1"]
    assert len(taken) == 2
    source.close()
    assert list(source) == []


# --- lines ------------------------------------------------------------------------------------------------------------


def test_lines_are_payloads_keyed_by_their_number() -> None:
    assert profiles("one\r\n\n  \ntwo \nthree") == [("1", "one"), ("4", "two "), ("5", "three")]


def test_lines_have_no_key_column() -> None:
    for options in ({"format": "lines"}, {}):
        message = refused("one\n", key_column="id", **options)
        assert "cannot take the keys from 'id': plain lines have no columns" in message


# --- JSONL ------------------------------------------------------------------------------------------------------------


def test_jsonl_has_profiles_objects_and_other_values() -> None:
    data = """
{"key": "a", "payload": {"x": 1}}
{"key": "b"}

{"key": "c", "x": 1}
{"id": 5, "x": 2}
{"x": 3}
[1, "é"]
"""
    assert profiles(data, format="jsonl") == [
        ("a", {"x": 1}),
        ("b", None),
        ("c", {"key": "c", "x": 1}),
        ("5", {"id": 5, "x": 2}),
        ("7", {"x": 3}),
        ("8", [1, "é"]),
    ]


def test_a_key_column_makes_every_object_a_payload() -> None:
    data = '{"key": "a", "payload": 1}\n{"key": 2, "mail": "m"}\n'
    assert profiles(data, format="jsonl", key_column="key") == [
        ("a", {"key": "a", "payload": 1}),
        ("2", {"key": 2, "mail": "m"}),
    ]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"a": }', "cannot read line 2 of the stream: column 7 is not JSON: Expecting value"),
        ('{"a": ', "cannot read line 2 of the stream: column 6 is not JSON"),
        ('{"a": NaN}', "cannot read line 2 of the stream: NaN is not JSON; use null or a string"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1e999}', "cannot take line 2 of the stream: payload.a is inf"),
        ('{"a": "\\ud800"}', "cannot take line 2 of the stream: payload.a has the lone surrogate U+D800"),
        ('{"a": 1' + "0" * 5000 + "}", "cannot read line 2 of the stream: Exceeds the limit"),
        ('{"id": null}', "cannot take line 2 of the stream: its key is null"),
        ("[" * 101 + "]" * 101, "cannot take line 2 of the stream: its payload is nested over 100 levels"),
        ("[" * 100_000, "cannot take line 2 of the stream: its payload is nested over 100 levels"),
    ],
)
def test_bad_jsonl_is_refused_with_its_line(line: str, part: str) -> None:
    assert part in refused("1\n" + line + "\n", format="jsonl")


def test_a_missing_field_is_refused_with_those_that_exist() -> None:
    assert "line 1 of the stream: it has no field 'mail'; its fields are 'key', 'x'" in refused(
        '{"key": 1, "x": 2}', format="jsonl", key_column="mail"
    )
    assert "line 1 of the stream: it is of type list, not an object with the field 'mail'" in refused(
        "[]", format="jsonl", key_column="mail"
    )


# --- CSV --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "column", "keys"),
    [
        ("key,id,mail", None, ["k1", "k2"]),
        ("other,id,mail", None, ["i1", "i2"]),
        ("a,b,mail", None, ["1", "2"]),
        ("key,id,mail", "mail", ["m1", "m2"]),
    ],
)
def test_the_key_of_a_row(header: str, column: str | None, keys: list[str]) -> None:
    found = profiles(f"{header}\r\nk1,i1,m1\r\n\r\nk2,i2,m2\r\n", format="csv", key_column=column)
    assert [key for key, _ in found] == keys
    assert found[1][1] == dict(zip(header.split(","), ["k2", "i2", "m2"], strict=True))


def test_quoted_fields_may_have_separators_quotes_and_newlines() -> None:
    data = '\ufeff"id",text\n1,"a,""b""\nc"\n2,d\n'
    assert profiles(data, format="csv") == [("1", {"id": "1", "text": 'a,"b"\nc'}), ("2", {"id": "2", "text": "d"})]


def test_a_tsv_file_is_separated_by_tabs(tmp_path: Path) -> None:
    path = tmp_path / "a.TSV"
    path.write_text("id\tx\n1\ta,b\n")
    assert list(read_file(path, limits=LIMITS)) == [ProfileInput("1", '{"id":"1","x":"a,b"}')]


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ("a,b,a\n", "cannot read line 1 of the stream: the header has the column 'a' twice; rename one"),
        ('id,b\n1,"x\ny"\n\n2\n', "cannot read line 5 of the stream: it has 1 fields, the header has 2"),
        ("id,b\n1,2,3\n", "cannot read line 2 of the stream: it has 3 fields, the header has 2; quote fields"),
        ('id,b\n1,"cut\noff\n', "cannot read line 2 of the stream: unexpected end of data; look for a quote"),
        ('id,b\n1,"x"y\n', "cannot read line 2 of the stream: ',' expected after '\"'"),
        ("id,b\r1,2\r", "cannot read line 1 of the stream: new-line character seen in unquoted field"),
        ("id,b\n,2\n", "cannot take line 2 of the stream: its key is empty or blank"),
        ('id,b\n"a\nb",2\n', "cannot take line 2 of the stream: its key 'a\\nb' has the control character U+000A"),
        ("id,b\n1," + "x" * 300, "cannot take line 2 of the stream: its payload has 317 bytes"),
    ],
)
def test_bad_csv_is_refused_with_its_line(data: str, part: str) -> None:
    assert part in refused(data, format="csv")


def test_a_missing_column_is_refused_with_those_that_exist() -> None:
    assert refused("id,mail\n1,2\n", format="csv", key_column="e-mail") == (
        "cannot read line 1 of the stream: there is no column 'e-mail'; the columns are 'id', 'mail'"
    )
    many = ",".join(f"c{number}" for number in range(25))
    assert "'c19' and 5 more" in refused(many, format="csv", key_column="x")


def test_a_quote_that_is_never_closed_does_not_gather_the_file() -> None:
    # Short fields and an endless record: the process's limit on one field does not see it.
    cells = '"a\nb",' * 400_000
    assert "cannot read line 2 of the stream: its record is longer than 1,049,376 bytes" in refused(
        "id,b\n" + cells, format="csv"
    )
    assert "field larger than field limit" in refused('id,b\n1,"' + "x\n" * 100_000, format="csv")


def test_the_field_limit_of_the_process_follows_a_larger_payload_limit() -> None:
    before = csv.field_size_limit()
    try:
        large = Limits(payload=1_000_000, key=20)
        assert len(profiles("id,b\n1," + "x" * 500_000, format="csv", limits=large)[0][1]["b"]) == 500_000
        assert profiles("id\n1\n", format="csv") == [("1", {"id": "1"})]
        assert csv.field_size_limit() == 1_000_000
    finally:
        csv.field_size_limit(before)


# --- bytes, formats and files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["csv", "tsv", "jsonl", "lines", None])
@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\n\r\n", b"\xef\xbb\xbf\n"])
def test_an_empty_file_gives_nothing(format_: str | None, data: bytes) -> None:
    assert profiles(data, format=format_) == []


def test_a_header_alone_gives_nothing() -> None:
    assert profiles("id,x\n", format="csv") == []


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_other_encodings_are_refused_with_offset_and_line(bom: bytes) -> None:
    assert refused(bom + b"id\n\xc3\xa9\nM\xfcller\n", format="csv") == (
        f"cannot read line 3 of the stream: byte 0xfc at offset {len(bom) + 7} of the file is not UTF-8; convert the "
        "file, for example with iconv -t UTF-8"
    )


def test_nul_bytes_are_refused_with_offset_and_line() -> None:
    assert "cannot read line 2 of the stream: it has a NUL byte at offset 5 of the file" in refused(b"abc\nd\0e\n")
    assert "NUL byte at offset 1 " in refused("id\n1\n".encode("utf-16-le"), format="csv")


def test_a_longer_line_is_refused_without_reading_it_whole() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            buffer[:] = b"x" * len(buffer)
            self.given += len(buffer)
            return len(buffer)

    endless = Endless()
    with io.BufferedReader(endless) as stream:
        source = read_file(stream, limits=LIMITS)
        assert refusal(lambda: next(source)) == (
            "cannot read line 1 of the stream: it is longer than 1,049,376 bytes; split it, or raise "
            "BATCHING_PAYLOAD_LIMIT"
        )
    assert endless.given < 2 * LIMITS.line


@pytest.mark.parametrize(
    ("name", "data", "payload"),
    [
        ("a.csv", "id\n1\n", {"id": "1"}),
        ("a.CSV", "id\n1\n", {"id": "1"}),
        ("a.jsonl", "[1]", [1]),
        ("a.ndjson", "[1]", [1]),
        ("a.json-lines", "[1]", [1]),
        ("a.json", "[1]", [1]),
        ("a.txt", "{}", "{}"),
        ("a.dat", '\n \n{"id": 1}\n', {"id": 1}),
        ("a.dat", "\nid,x\n", "id,x"),
        ("noname", ' {"id": 1}', {"id": 1}),
    ],
)
def test_the_format_follows_the_suffix_then_the_first_line(tmp_path: Path, name: str, data: str, payload: Any) -> None:
    path = tmp_path / name
    path.write_text(data)
    with read_file(str(path), limits=LIMITS) as source:
        assert json.loads(next(source).payload) == payload


def test_a_given_format_wins_over_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x\n")
    assert list(read_file(path, format="lines", limits=LIMITS)) == [ProfileInput("1", '"x"')]
    assert refusal(lambda: read_file(path, format="xml", limits=LIMITS)) == (
        "cannot read the format 'xml'; the formats are csv, tsv, jsonl, lines"
    )


def test_an_indented_json_document_is_not_taken_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[\n  1\n]\n")
    assert f"cannot read line 1 of {path}: column 2 is not JSON" in refusal(
        lambda: list(read_file(path, limits=LIMITS))
    )


def test_files_that_cannot_be_opened_are_refused_at_once(tmp_path: Path) -> None:
    missing = tmp_path / "missing.csv"
    assert refusal(lambda: read_file(missing, limits=LIMITS)) == (
        f"cannot read the file {missing}: No such file or directory; name a readable file of profiles, or - for "
        "standard input"
    )
    assert f"cannot read the file {tmp_path}: Is a directory" in refusal(lambda: read_file(tmp_path, limits=LIMITS))
    assert "embedded null" in refusal(lambda: read_file("a\0b", limits=LIMITS))
    assert "expected str, bytes or os.PathLike" in refusal(lambda: read_file(7, limits=LIMITS))  # type: ignore[arg-type]


def test_a_file_that_is_no_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert f"cannot read the file {path}: No such device" in refusal(lambda: read_file(path, limits=LIMITS))


def test_a_stream_that_breaks_is_refused_with_the_line() -> None:
    class Broken(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise OSError(5, "Input/output error")
            return super().readline(size)

    source = read_file(Broken(b"a\nb\n"), limits=LIMITS)
    assert next(source).key == "1"
    assert "cannot read line 2 of the stream: [Errno 5] Input/output error" in refusal(lambda: next(source))


def test_standard_input_is_read_and_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b'{"key": "a"}\n'))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert list(read_file("-", limits=LIMITS)) == [ProfileInput("a", "null")]
    assert not stdin.closed
    monkeypatch.setattr(sys, "stdin", None)
    assert "cannot read standard input: it is closed" in refusal(lambda: read_file("-", limits=LIMITS))


def test_text_streams_are_read_below_their_encoding_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("é\n".encode())
    with path.open(encoding="ascii") as stream:
        assert list(read_file(stream, limits=LIMITS)) == [ProfileInput("1", '"é"')]  # type: ignore[arg-type]
    assert "cannot read the stream: it is a text stream; open it in binary mode" in refusal(
        lambda: list(read_file(io.StringIO("a"), limits=LIMITS))  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("how", ["exhausted", "refused", "closed", "left", "abandoned"])
def test_a_file_that_was_opened_is_closed(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('1\n{"a"\n' if how == "refused" else "1\n2\n")
    source = read_file(path, limits=LIMITS)
    opened = source._owned
    assert opened is not None
    assert not opened.closed
    if how == "exhausted":
        list(source)
    elif how == "refused":
        with pytest.raises(InvalidInputError):
            list(source)
    elif how == "closed":
        source.close()
        source.close()
    elif how == "left":
        with source:
            next(source)
    del source
    assert opened.closed


# --- where a profile came from ----------------------------------------------------------------------------------------


def test_a_source_knows_the_line_of_each_number() -> None:
    source = read_file(io.BytesIO(b'\nid,x\n1,"a\n\nb"\n\n2,c\n3,"d\ne"\n4,f\n'), format="csv", limits=LIMITS)
    assert [profile.key for profile in source] == ["1", "2", "3", "4"]
    assert source.count == 4
    assert [source.describe(number) for number in range(1, 5)] == ["line 3", "line 7", "line 8", "line 10"]
    for number in (0, 5):
        with pytest.raises(ValueError, match="delivered 4 profiles; it has no number"):
            source.describe(number)


def test_an_iterable_counts_its_items() -> None:
    source = from_iterable(["a", "c"], LIMITS)
    list(source)
    assert [source.describe(1), source.describe(2)] == ["item 1", "item 2"]


def test_the_error_for_a_duplicate_names_both_places(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id\n7\n\n7\n")
    source = read_file(path, limits=LIMITS)
    assert [profile.key for profile in source] == ["7", "7"]
    assert str(source.duplicate("7", 2, 1)) == (
        f"cannot take line 4 of {path}: its key '7' was used before, line 2; keys are unique inside a batch: remove "
        "one, or take the keys from another column"
    )
    assert "its key '7' was used before, in this batch; " in str(source.duplicate("7", 1))


@given(st.lists(st.integers(1, 3), min_size=1, max_size=200))
def test_positions_are_exact_below_their_bound(steps: list[int]) -> None:
    positions, lines = noted(steps)
    assert [positions.find(number) for number in range(1, len(lines) + 1)] == [(line, line) for line in lines]


def test_positions_stay_small_and_right_above_their_bound() -> None:
    positions, lines = noted([2 + number % 2 for number in range(100_000)])
    assert len(positions._lines) <= Positions.BOUND
    for number, line in enumerate(lines, 1):
        low, high = positions.find(number)
        assert low <= line <= high <= low + 32


def noted(steps: Iterable[int]) -> tuple[Positions, list[int]]:
    positions, lines, line = Positions(), [], 0
    for number, step in enumerate(steps, 1):
        line += step
        lines.append(line)
        positions.note(number, line)
    return positions, lines


def test_a_range_of_lines_reads_as_one() -> None:
    source = read_file(io.BytesIO(b"\n".join([b"x\n"] * 40_000)), limits=LIMITS)
    assert sum(1 for _ in source) == 40_000
    low, high = source._positions.find(30_000)
    assert low <= 59_999 <= high
    assert str(source.duplicate("x", 30_000, 1)).startswith(f"cannot take a profile between lines {low} and {high} of ")


# --- round trips and memory -------------------------------------------------------------------------------------------

plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain_text, inner, max_size=4),
    max_leaves=10,
)


@given(st.lists(st.tuples(plain_text, plain_text)))
def test_csv_round_trip(rows: list[tuple[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["one", "two"])
    writer.writerows(rows)
    expected = [(str(number), {"one": one, "two": two}) for number, (one, two) in enumerate(rows, 1)]
    assert profiles(text.getvalue(), format="csv", limits=ROOMY) == expected


@given(st.lists(json_values))
def test_jsonl_round_trip(values: list[Any]) -> None:
    text = "".join(json.dumps({"key": number, "payload": value}) + "\n" for number, value in enumerate(values, 1))
    expected = [(str(number), value) for number, value in enumerate(values, 1)]
    assert profiles(text, format="jsonl", limits=ROOMY) == expected


@given(st.binary(max_size=60), st.sampled_from(["csv", "tsv", "jsonl", "lines", None]))
def test_no_bytes_raise_anything_but_a_refusal(data: bytes, format_: str | None) -> None:
    try:
        profiles(data, format=format_)
    except InvalidInputError as error:
        assert str(error).startswith("cannot ")  # noqa: PT017 - most inputs raise nothing


class Generated(io.RawIOBase):
    """A file that is made while it is read, so that only the reader's memory is measured."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        line = next(self._lines, b"")
        buffer[: len(line)] = line
        return len(line)


MAKERS: dict[str, Callable[[int], bytes]] = {
    "csv": lambda number: b"name,id\n" if number == 0 else b'"a\nb",%d\n' % number,
    "jsonl": lambda number: b'{"id": %d, "x": "some text"}\n%s' % (number, b"\n" * (number % 2)),
    "lines": lambda number: b"line %d\n" % number,
}


def peak(format_: str, count: int) -> int:
    """Bytes that reading so many profiles takes at most."""
    made = (MAKERS[format_](number) for number in range(count))
    with io.BufferedReader(Generated(made)) as stream:
        tracemalloc.start()
        try:
            delivered = sum(1 for _ in read_file(stream, format=format_, limits=LIMITS))
            assert delivered == count - (format_ == "csv")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("format_", sorted(MAKERS))
def test_memory_does_not_grow_with_the_file(format_: str) -> None:
    lines = {"csv": 2, "jsonl": 1.5, "lines": 1}[format_]
    assert peak(format_, int(200_000 / lines)) - peak(format_, int(2_000 / lines)) < 1_048_576


def test_memory_does_not_grow_with_the_iterable() -> None:
    def used(count: int) -> int:
        tracemalloc.start()
        try:
            for _ in from_iterable(({"key": number, "payload": "x"} for number in range(count)), LIMITS):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert used(50_000) - used(500) < 1_048_576
