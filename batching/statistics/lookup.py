"""Ids as people type them: a whole id, or the first eight characters or more of one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sqlalchemy import select

from batching.errors import InvalidInputError, UnknownBatchError
from batching.models import batches
from batching.states import BatchState

if TYPE_CHECKING:
    from sqlalchemy import Connection

_SHORTEST = 8
_LISTED = 10
_HEXADECIMAL = re.compile(r"[0-9a-f]{1,32}")


def resolve(connection: Connection, id_or_prefix: str) -> str:
    """The id of the one batch that this text names.

    Raises:
        UnknownBatchError: No batch's id starts so; a batch that is still loading is not there yet.
        InvalidInputError: The text is too short, or several ids start so; the message lists them.
    """
    text = id_or_prefix.strip().lower()
    digits = text.replace("-", "")
    if not _HEXADECIMAL.fullmatch(digits):
        raise UnknownBatchError(_unknown(id_or_prefix))
    if len(digits) < _SHORTEST:
        raise InvalidInputError(
            f"cannot look up batch {id_or_prefix!r}: it has {len(digits)} digits; give at least {_SHORTEST}, "
            "or the whole id; `batching list` shows them"
        )
    # A range of the primary key, not LIKE: a UUID column has no LIKE, and a range uses the index on both engines.
    low, high = (_as_uuid(digits.ljust(32, filler)) for filler in "0f")
    found = list(
        connection.scalars(
            select(batches.c.id)
            .where(batches.c.id.between(low, high), batches.c.state != BatchState.LOADING.value)
            .order_by(batches.c.id)
            .limit(_LISTED + 1)
        )
    )
    if not found:
        raise UnknownBatchError(_unknown(id_or_prefix))
    if len(found) > 1:
        listed = ", ".join(found[:_LISTED]) + (", …" if len(found) > _LISTED else "")
        raise InvalidInputError(
            f"cannot tell which batch {id_or_prefix!r} means: {listed} start so; give more of the id"
        )
    return str(found[0])


def _unknown(id_or_prefix: str) -> str:
    return f"there is no batch {id_or_prefix!r}; `batching list` shows those there are"


def _as_uuid(digits: str) -> str:
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
