"""Reads of a batch's profiles, over effective states: results, and the runs of one profile."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import select

from batching.errors import InvalidInputError, UnknownBatchError
from batching.models import attempts, batches, profiles
from batching.moves.bulk import younger_moves
from batching.states import TERMINAL_PROFILE_STATES, BulkMove, ProfileState, effective_state
from batching.statistics.views import AttemptView, ResultLine, short_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

_READ = ("number", "key", "state", "generation", "pass_number", "attempts", "result", "error")

_AT_REST = frozenset({ProfileState.SUCCEEDED, ProfileState.FAILED, ProfileState.SKIPPED})

#: Moves after which the rows that they moved start their attempts anew, with no error.
_NEW_PASS = frozenset({BulkMove.NEXT_PASS, BulkMove.REOPEN})


class Page(NamedTuple):
    """A stretch of results, and the number to go on from; None: that was the last."""

    lines: list[ResultLine]
    cursor: int | None


def read_page(connection: Connection, batch_id: str, after: int, size: int, *, payloads: bool = False) -> Page:
    """Up to `size` profiles with a number above `after`, with their payloads or without.

    Raises:
        UnknownBatchError: The batch was deleted meanwhile.
    """
    present = connection.scalar(select(batches.c.pass_number).where(batches.c.id == batch_id))
    if present is None:
        raise UnknownBatchError(f"cannot go on reading batch {batch_id}: it was deleted meanwhile")
    moves = younger_moves(connection, batch_id)
    rows = connection.execute(
        select(*(profiles.c[name] for name in (*_READ, *(["payload"] if payloads else []))))
        .where(profiles.c.batch_id == batch_id, profiles.c.number > after)
        .order_by(profiles.c.number)
        .limit(size)
    ).all()
    cursor = rows[-1].number if len(rows) == size else None
    lines = [as_result(row, moves, present) for row in rows]
    if payloads:
        lines = [replace(line, payload=json.loads(row.payload)) for line, row in zip(lines, rows, strict=True)]
    return Page(lines, cursor)


def as_result(row: Any, moves: Mapping[int, BulkMove], pass_number: int) -> ResultLine:
    """A stored row as it is read through the bulk moves that are younger than it, in the batch's present pass."""
    stored = ProfileState(row.state)
    younger = tuple(move for generation, move in moves.items() if generation > row.generation)
    state = effective_state(stored, younger)
    anew = _began_anew(stored, younger)
    # What came to rest in an earlier pass keeps its attempts; what still waits has used none in this one.
    used = not anew and (state in _AT_REST or row.pass_number == pass_number)
    return ResultLine(
        key=row.key,
        state=state,
        attempts=row.attempts if used else 0,
        result=json.loads(row.result) if state is ProfileState.SUCCEEDED and row.result is not None else None,
        error=None if anew or state not in TERMINAL_PROFILE_STATES else short_error(row.error),
    )


def _began_anew(stored: ProfileState, younger: tuple[BulkMove, ...]) -> bool:
    """Whether one of the moves took this row into a new pass, so that what it stores is of an older one."""
    state = stored
    for move in younger:
        moved = effective_state(state, (move,))
        if moved is not state and move in _NEW_PASS:
            return True
        state = moved
    return False


def read_attempts(connection: Connection, batch_id: str, key: str) -> list[AttemptView]:
    """Every run of one profile, the first first.

    Raises:
        InvalidInputError: The batch has no profile with this key.
    """
    own = connection.execute(
        # Without the payload: a reader's role in the database may not see it, nor does anything here show it.
        select(*(column for column in profiles.c if column is not profiles.c.payload)).where(
            profiles.c.batch_id == batch_id, profiles.c.key == key
        )
    ).one_or_none()
    if own is None:
        raise InvalidInputError(
            f"cannot show profile {key!r} of batch {batch_id}: the batch has none with this key; "
            "`batching results` lists its keys"
        )
    rows = connection.execute(
        select(attempts)
        .where(attempts.c.batch_id == batch_id, attempts.c.number == own.number)
        .order_by(attempts.c.run)
    )
    runs = [_as_attempt(row) for row in rows]
    # A success, and a run that goes on, are in the profile's own row alone.
    if own.state in {ProfileState.SUCCEEDED, ProfileState.RUNNING}:
        runs.append(_last_run(own))
    return runs


def _as_attempt(row: Any) -> AttemptView:
    return AttemptView(
        run=row.run,
        pass_number=row.pass_number,
        attempt=row.attempt,
        outcome=row.outcome,
        worker_id=row.worker_id,
        started_at=row.started_at,
        ended_at=row.ended_at,
        error=short_error(row.error),
    )


def _last_run(own: Any) -> AttemptView:
    ended = own.state == ProfileState.SUCCEEDED
    return AttemptView(
        run=own.run,
        pass_number=own.pass_number,
        attempt=own.attempts if ended else own.attempts + 1,
        outcome=own.state,
        worker_id=own.worker_id,
        started_at=own.started_at,
        ended_at=own.finished_at,
        error=None,
    )
