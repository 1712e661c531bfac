"""How documents leave: JSON that every reader can take, and streams of lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from batching.web.context import Context


class JSON(JSONResponse):
    """A JSON document."""

    def render(self, content: Any) -> bytes:
        """As UTF-8; a lone surrogate, which a handler may have returned, has an escape and no encoding."""
        return encode(content)


def encode(document: Any) -> bytes:
    """One document on one line, without its line end."""
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


async def in_pieces(context: Context, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """What SQL is asked for as it is sent: each piece in a thread, and none after the reader has left.

    Args:
        context: The application's.
        pieces: Empty ones are passed over: they are there so that the reader's leaving is noticed.
    """
    while (piece := await context.run(next, pieces, None)) is not None:
        if piece:
            yield piece
