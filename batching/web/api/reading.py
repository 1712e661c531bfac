"""Bodies of requests: a JSON document in memory, or JSON lines that a thread reads as they come."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar, cast

import anyio
import anyio.to_thread

from batching.encoding import decode_json
from batching.errors import InvalidInputError
from batching.intake import Source, read_amendments, read_file
from batching.web.guard import JSON_LINES
from batching.web.problems import Problem
from batching.web.uploads import Upload

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from batching.encoding import Limits
    from batching.web.context import Context

__all__ = ["JSON_LINES", "amendments_of", "json_body", "lines_of", "media_type", "streamed"]

_Result = TypeVar("_Result")
#: Seconds that an upload waits for another to end.
_TURN: Final = 10.0


def media_type(request: Request) -> str:
    """Of the body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def json_body(request: Request) -> Any:
    """The document that was sent.

    Raises:
        Problem: It is of another type.
        InvalidInputError: It is not JSON in UTF-8.
    """
    if media_type(request) != "application/json":
        raise Problem(415, "unsupported-media-type", "send application/json, or JSON lines as application/x-ndjson")
    try:
        text = (await request.body()).decode()
    except UnicodeDecodeError:
        raise InvalidInputError("cannot read the request: it is not UTF-8") from None
    return decode_json(text, "the request")


async def streamed(context: Context, request: Request, use: Callable[[BinaryIO], _Result]) -> _Result:
    """Read a body in a thread of the uploads' own, as it comes.

    Raises:
        Problem: Too many others are at it.
    """
    file = cast("BinaryIO", Upload(request, lambda: context.stopping))
    limiter = context.uploads
    try:
        with anyio.fail_after(_TURN):
            await limiter.acquire_on_behalf_of(file)
    except TimeoutError:
        raise Problem(
            503,
            "too-many-uploads",
            f"{limiter.total_tokens:g} others send profiles, as many as may at once (half of BATCHING_WEB_THREADS); "
            "try again",
        ) from None
    try:
        return await anyio.to_thread.run_sync(partial(use, file), limiter=anyio.CapacityLimiter(1))
    finally:
        limiter.release_on_behalf_of(file)


def lines_of(file: BinaryIO, limits: Limits, *, key_column: str | None = None) -> Source:
    """Profiles from JSON lines."""
    return read_file(file, format="jsonl", key_column=key_column, limits=limits)


def amendments_of(file: BinaryIO, limits: Limits) -> Source:
    """Profiles with other payloads, from JSON lines."""
    return read_amendments(file, limits=limits)
