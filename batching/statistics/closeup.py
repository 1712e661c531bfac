"""One profile from close by: its payload and its result as far as they fit on a page, and all that it went through."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from batching.errors import InvalidInputError, UnknownBatchError
from batching.models import batches, profiles
from batching.moves.bulk import younger_moves
from batching.states import ProfileState
from batching.statistics.browsing import PROFILE_COLUMNS, ProfileView, as_profile
from batching.statistics.profile_reads import read_attempts
from batching.statistics.views import AttemptView, _AsJSON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Connection

#: Characters of a payload, a result or a traceback that are shown.
MOST_SHOWN: Final = 16_384


@dataclass(frozen=True, slots=True)
class Excerpt(_AsJSON):
    """The beginning of a stored text."""

    text: str
    length: int
    """Characters of the whole."""

    @property
    def whole(self) -> bool:
        """Whether nothing was left out."""
        return len(self.text) == self.length


@dataclass(frozen=True, slots=True)
class ProfileDetail:
    """A profile with what a list leaves out."""

    profile: ProfileView
    result: Excerpt | None
    """The JSON text that the handler returned; None unless it succeeded with one."""
    traceback: str
    """Of what ended it; empty when nothing went wrong, or none was kept."""
    attempts: tuple[AttemptView, ...]
    """Every run in all passes, the first first."""


def read_profile(connection: Connection, batch_id: str, name: str, *, by_number: bool | None = None) -> ProfileDetail:
    """A profile by its key, or by its number when no key is so.

    Args:
        connection: In a read transaction.
        batch_id: The batch, by its whole id.
        name: The key or the number.
        by_number: True: only as a number; False: only as a key; None: as a key before it is tried as a number.

    Raises:
        UnknownBatchError: The batch was deleted meanwhile.
        InvalidInputError: The batch has no such profile.
    """
    present = connection.scalar(select(batches.c.pass_number).where(batches.c.id == batch_id))
    if present is None:
        raise UnknownBatchError(f"cannot read profile {name!r} of batch {batch_id}: it was deleted meanwhile")
    row = _find(connection, batch_id, name, by_number)
    view = as_profile(row, younger_moves(connection, batch_id), present)
    succeeded = view.state is ProfileState.SUCCEEDED and row.result_length is not None
    return ProfileDetail(
        profile=view,
        result=Excerpt(row.result_text, row.result_length) if succeeded else None,
        traceback=_traceback(row.error) if view.error else "",
        attempts=tuple(read_attempts(connection, batch_id, view.key)),
    )


def read_payload(connection: Connection, batch_id: str, number: int) -> Excerpt | None:
    """The beginning of what was submitted; None when the profile is gone.

    Apart from the rest, because a reader's role in the database may not see it.
    """
    row = connection.execute(
        select(*_excerpt(profiles.c.payload, "payload")).where(
            profiles.c.batch_id == batch_id, profiles.c.number == number
        )
    ).one_or_none()
    return None if row is None else Excerpt(row.payload_text, row.payload_length)


def _find(connection: Connection, batch_id: str, name: str, by_number: bool | None) -> Any:
    columns = (*PROFILE_COLUMNS, *_excerpt(profiles.c.result, "result"))
    own = select(*columns).where(profiles.c.batch_id == batch_id)
    row = None if by_number else connection.execute(own.where(profiles.c.key == name)).one_or_none()
    if row is None and by_number is not False and _is_number(name):
        row = connection.execute(own.where(profiles.c.number == int(name))).one_or_none()
    if row is None:
        what = "number" if by_number else "key" if by_number is False else "key or number"
        raise InvalidInputError(
            f"cannot show profile {name!r} of batch {batch_id}: the batch has none with this {what}"
        )
    return row


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) <= 10


def _excerpt(column: ColumnElement[Any], name: str) -> Sequence[ColumnElement[Any]]:
    return (func.substr(column, 1, MOST_SHOWN).label(f"{name}_text"), func.length(column).label(f"{name}_length"))


def _traceback(stored: str | None) -> str:
    return str(json.loads(stored).get("traceback", ""))[-MOST_SHOWN:] if stored else ""
