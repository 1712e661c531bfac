"""Keys and payloads at the border: what is accepted, how it is encoded, and how a refusal is worded. Pure."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from batching.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from batching.settings import Settings

#: Levels of objects and arrays inside one payload: far from where any JSON reader runs out of stack.
MAX_DEPTH: Final = 100

#: Columns of a CSV file: each is a field of every payload.
MAX_COLUMNS: Final = 10_000

_CONTAINERS: Final = (dict, list, tuple)
_TEXT: Final = frozenset({str})
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
#: More bits than this are more digits than Python turns into text (4,300: sys.int_info.default_max_str_digits).
_INTEGER_BITS: Final = 14_000
#: Characters of a value that an error quotes at most.
_QUOTED: Final = 60
_TOO_DEEP: Final = f"its payload is nested over {MAX_DEPTH} levels deep, or contains itself; flatten it"


def _json_encoder() -> Callable[[Any], str]:
    """Compact JSON text of a value.

    `JSONEncoder.encode` makes a C encoder anew for each value, which is half of its time
    (https://github.com/python/cpython/blob/3.11/Lib/json/encoder.py, `iterencode`). This makes one; a Python that has
    none, or makes it otherwise, goes the long way.
    """
    # Circles cannot reach the encoder: they are endless nesting, which is refused before.
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))
    module: Any = json.encoder
    try:
        options = (None, ":", ",", False, False, False)
        pieces = module.c_make_encoder(None, encoder.default, module.encode_basestring, *options)
    except (AttributeError, TypeError):
        return encoder.encode
    return lambda value: "".join(pieces(value, 0))


_encode = _json_encoder()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; use null or a string")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


@dataclass(frozen=True, slots=True)
class Limits:
    """What one profile, and one batch, may measure.

    Args:
        payload: Bytes of the payload, encoded as compact JSON in UTF-8.
        key: Characters of the key.
        profiles: Profiles of one batch.
    """

    payload: int
    key: int
    profiles: int = 100_000_000

    @classmethod
    def from_settings(cls, settings: Settings) -> Limits:
        """The limits that this process is configured with."""
        return cls(settings.payload_limit, settings.key_limit, settings.batch_limit)

    @property
    def line(self) -> int:
        """Bytes of one line, or of one CSV record: room for an encoding four times as long as the payload's."""
        return 4 * self.payload + 1_048_576


def encode_payload(value: Any, limits: Limits, where: str) -> str:
    """A payload as compact JSON text.

    A NUL character inside a string is kept: JSON writes it as an escape, which every TEXT column holds.

    Args:
        value: Anything that JSON can express; tuples become arrays.
        limits: The bound on its size.
        where: What an error calls the profile, as `line 17 of orders.csv`.

    Raises:
        InvalidInputError: It is too large, too deep, or not JSON; the message has the path to what is wrong.
    """
    _check_shape(value, where)
    try:
        text = _encode(value)
        size = len(text) if text.isascii() else len(text.encode())
    except (TypeError, ValueError) as error:
        raise not_acceptable(where, _first_flaw(value, "payload") or f"payload is not JSON: {error}") from None
    if size > limits.payload:
        raise not_acceptable(
            where,
            f"its payload has {size:,} bytes as JSON, the limit is {limits.payload:,}; keep large data elsewhere and "
            "pass a reference to it, or raise BATCHING_PAYLOAD_LIMIT",
        )
    return text


def check_key(key: Any, limits: Limits, where: str) -> str:
    """A profile's key as text.

    Args:
        key: Text, or a whole number.
        limits: The bound on its length.
        where: What an error calls the profile.

    Raises:
        InvalidInputError: It is neither, is empty or blank, is too long, or has characters that a key must not have.
    """
    text = key if type(key) is str else _key_text(key, limits, where)
    # Nearly every key ends here. What can be printed has no control character and no surrogate, and of white space only
    # the blank (https://docs.python.org/3/library/stdtypes.html#str.isprintable).
    if text.isprintable() and 0 < len(text) <= limits.key and not text.isspace():
        return text
    return examine_key(text, limits, where)


def _key_text(key: Any, limits: Limits, where: str) -> str:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise not_acceptable(where, f"its key is {kind(key)}; a key is text or a whole number")
    if isinstance(key, int) and key.bit_length() > _INTEGER_BITS:
        raise not_acceptable(
            where, f"its key is a number of {key.bit_length():,} bits; at most {limits.key} characters"
        )
    # Not str(key): an enum member that is a string would give its name, not its value.
    return str.__str__(key) if isinstance(key, str) else int.__repr__(key)


def examine_key(text: str, limits: Limits, where: str) -> str:
    """A key that is text, looked at character by character: `check_key` asks only about what is not plain.

    Raises:
        InvalidInputError: See `check_key`.
    """
    if not text.strip():
        raise not_acceptable(where, "its key is empty or blank; give every profile a key of its own")
    if len(text) > limits.key:
        raise not_acceptable(
            where, f"its key {short(text)} has {len(text):,} characters, the limit is {limits.key} (BATCHING_KEY_LIMIT)"
        )
    if found := _CONTROL.search(text):
        raise not_acceptable(where, f"its key {short(text)} has the control character U+{ord(found[0]):04X}; remove it")
    if found := _SURROGATE.search(text):
        raise not_acceptable(where, f"its key {short(text)} has {_surrogate(found[0])}")
    return text


def decode_json(text: str, where: str) -> Any:
    """The value of a JSON text.

    Raises:
        InvalidInputError: It is not JSON (NaN and Infinity are not), or is nested too deep to be read.
    """
    try:
        return _decode(text)
    except json.JSONDecodeError as error:
        raise unreadable(where, f"column {error.colno} is not JSON: {error.msg}") from None
    except RecursionError:
        raise not_acceptable(where, _TOO_DEEP) from None
    except ValueError as error:
        raise unreadable(where, str(error)) from None


def _check_shape(value: Any, where: str) -> None:
    """Refuse what the encoder would change silently (keys that are not text) or not survive (endless nesting)."""
    # Nearly every payload ends here, at the speed of C: an object of plain members.
    if type(value) is dict and _TEXT.issuperset(map(type, value)) and _PLAIN.issuperset(map(type, value.values())):
        return
    text_only = True
    level = [value] if isinstance(value, _CONTAINERS) else []
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise not_acceptable(where, _TOO_DEEP)
        # By identity: a list that holds itself twice would double at each level.
        below: dict[int, Any] = {}
        for each in level:
            if isinstance(each, dict):
                text_only = text_only and all(isinstance(name, str) for name in each)
            for member in each.values() if isinstance(each, dict) else each:
                if isinstance(member, _CONTAINERS):
                    below[id(member)] = member
        level = list(below.values())
    # Last, because the search for the path descends without a bound: it must not meet endless nesting.
    if not text_only:
        raise not_acceptable(where, _first_flaw(value, "payload") or "a field of its payload is not text")


def _first_flaw(value: Any, path: str) -> str | None:
    """What keeps a value from being JSON, with the path to it; None when this finds nothing."""
    if isinstance(value, dict):
        for name, member in value.items():
            if not isinstance(name, str):
                return f"{path} has the field {short(name)}, which is {kind(name)}; the names of fields are text"
            if found := _SURROGATE.search(name):
                return f"{path} has the field {short(name)} with {_surrogate(found[0])}"
            if flaw := _first_flaw(member, _step(path, name)):
                return flaw
        return None
    if isinstance(value, list | tuple):
        flaws = (_first_flaw(member, f"{path}[{index}]") for index, member in enumerate(value))
        return next((flaw for flaw in flaws if flaw), None)
    return _scalar_flaw(value, path)


def _step(path: str, name: str) -> str:
    return f"{path}.{name}" if name.isidentifier() and len(name) <= _QUOTED else f"{path}[{short(name)}]"


def _scalar_flaw(value: Any, path: str) -> str | None:
    if isinstance(value, str):
        found = _SURROGATE.search(value)
        return f"{path} has {_surrogate(found[0])}" if found else None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{path} is {value!r}, which JSON does not have; use null or a string"
    if isinstance(value, int):
        return f"{path} is too large a number; pass it as text" if value.bit_length() > _INTEGER_BITS else None
    return (
        None
        if value is None
        else f"{path} is {kind(value)}, which JSON cannot express; convert it to text, a number, true, false, null, "
        "a dict or a list"
    )


def _surrogate(character: str) -> str:
    return f"the lone surrogate U+{ord(character):04X}, which UTF-8 cannot express; remove it"


def kind(value: Any) -> str:
    """What a value is, for an error."""
    if value is None:
        return "null"
    name = type(value).__qualname__
    module = type(value).__module__
    return f"of type {name}" if module == "builtins" else f"of type {module}.{name}"


def short(value: Any) -> str:
    """A value as an error quotes it: safe to print, and no longer than a line."""
    try:
        text = ascii(value) if isinstance(value, str) and _SURROGATE.search(value) else repr(value)
    except Exception:  # noqa: BLE001 - the repr of a stranger's object must not hide the error that quotes it
        text = f"something {kind(value)}"
    return text if len(text) <= _QUOTED else f"{text[: _QUOTED - 1]}…"


def names(fields: Iterable[str]) -> str:
    """The names of columns or fields, for an error."""
    listed = [short(name) for name in fields]
    return ", ".join(listed[:20]) + (f" and {len(listed) - 20:,} more" if len(listed) > 20 else "") or "none"


def not_acceptable(where: str, why: str) -> InvalidInputError:
    """The error for a profile that was read and is refused."""
    return InvalidInputError(f"cannot take {where}: {why}")


def unreadable(where: str, why: str) -> InvalidInputError:
    """The error for a place in a file that cannot be read as its format."""
    return InvalidInputError(f"cannot read {where}: {why}")
