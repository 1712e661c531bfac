"""What is kept of an exception: bounded text, fit to be stored and shown. Pure; runs in pool children."""

from __future__ import annotations

import hashlib
import re
import sysconfig
import traceback
from typing import TYPE_CHECKING, Final

from batching.interfaces import ErrorInfo

if TYPE_CHECKING:
    from types import TracebackType

MESSAGE_LIMIT: Final = 2_000
TRACEBACK_LIMIT: Final = 4_000

#: What differs between two occurrences of one error: UUIDs, quoted values, paths, hexadecimal, numbers. In this order.
_VARIABLE = (
    (re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"), "<uuid>"),
    (re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`"), "<text>"),
    (re.compile(r"(?:(?<![\w/])|\b[A-Za-z][\w+.-]*:/|\b[A-Za-z]:|~)[/\\][^\s,;:)\]}>]+"), "<path>"),
    (re.compile(r"\b0x[0-9a-fA-F]+\b|\b[0-9a-fA-F]{8,}\b"), "<hex>"),
    (re.compile(r"\d+(?:\.\d+)?"), "<n>"),
)
_LIBRARIES = tuple(
    {path for name in ("stdlib", "platstdlib", "purelib", "platlib") if (path := sysconfig.get_path(name))}
)


def describe(error: BaseException, trace: TracebackType | None) -> ErrorInfo:
    """An exception as plain text.

    Args:
        error: The exception.
        trace: Its traceback from the handler's own frame on, without Celery's frames and ours.
    """
    name = type_name(error)
    message = storable(safe_text(error), MESSAGE_LIMIT)
    return ErrorInfo(name, message, fingerprint(name, message, _place(trace)), _formatted(error, trace))


def told(name: str, message: str) -> ErrorInfo:
    """An error that has no exception in this process: a killed child, a time limit."""
    return ErrorInfo(name, storable(message, MESSAGE_LIMIT), fingerprint(name, message, ""))


def type_name(error: BaseException) -> str:
    """`module.Class`; built-in exceptions by their bare name."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return name[:255]


def safe_text(error: BaseException) -> str:
    """`str(error)`, or a word about why there is none: it is the user's code, and it can fail."""
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - whatever a __str__ raises
        return f"<its message could not be made: {type(broken).__name__}>"


def storable(text: str, limit: int) -> str:
    """Text that every database takes: no NUL, no lone surrogates, at most `limit` characters."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")[:limit]


def fingerprint(name: str, message: str, place: str) -> str:
    """16 hexadecimal digits that are the same for two occurrences of one error."""
    for pattern, word in _VARIABLE:
        message = pattern.sub(word, message)
    return hashlib.sha256(f"{name}\x1f{message}\x1f{place}".encode("utf-8", "replace")).hexdigest()[:16]


def _place(trace: TracebackType | None) -> str:
    """`file:function` of the innermost frame of the user's own code, else of the innermost frame."""
    places = [(frame.f_code.co_filename, frame.f_code.co_name) for frame, _ in traceback.walk_tb(trace)]
    own = [place for place in places if not place[0].startswith(_LIBRARIES)]
    file, function = (own or places or [("", "")])[-1]
    # The folder differs from machine to machine.
    return f"{file.rsplit('/', 1)[-1]}:{function}"


def _formatted(error: BaseException, trace: TracebackType | None) -> str:
    try:
        text = "".join(traceback.format_exception(type(error), error, trace))
    except Exception as broken:  # noqa: BLE001 - it calls __str__ of the user's exceptions
        text = f"<the traceback could not be formatted: {type(broken).__name__}>"
    if len(text) > TRACEBACK_LIMIT:
        text = "…" + text[1 - TRACEBACK_LIMIT :]
    return storable(text, TRACEBACK_LIMIT)
