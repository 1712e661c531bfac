"""Amending: other payloads for profiles of a batch that are not done, under their old keys; what they tried is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Integer, Text, select, update

from batching.errors import IllegalMoveError, InvalidInputError
from batching.models import profiles
from batching.moves import batch as batch_moves
from batching.moves import bulk, queue_order
from batching.moves.appending import look_up, says_the_same
from batching.moves.loading import numbers_by_key
from batching.moves.rows import lock_batch, read_batches, remember
from batching.options import Amended
from batching.parameters import encode_rows, is_among, parameter_rows
from batching.states import TERMINAL_BATCH_STATES, BatchState, ProfileState, effective_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.types import TypeEngine

    from batching.options import ProfileInput
    from batching.states import BulkMove

_AMENDED: dict[str, TypeEngine[Any]] = {"number": Integer(), "payload": Text()}
_DONE = frozenset({ProfileState.SUCCEEDED, ProfileState.SKIPPED})
#: Profiles in one statement.
STEP = 500


class _Step(NamedTuple):
    changed: list[tuple[int, str]]
    same: int


def amend(connection: Connection, batch_id: str, chunks: Iterable[Sequence[ProfileInput]]) -> Amended:
    """Write other payloads, and open a new pass over whatever is not done when the batch has ended.

    All of it or nothing. Settles the race with a retry, a promotion or another amendment: the locks of the queue and of
    the batch make one the first; whoever promotes looks again afterwards, and a batch that runs is refused.

    Args:
        connection: In a write transaction.
        batch_id: The batch.
        chunks: Keys that it has, with their payloads, up to `STEP` at once.

    Raises:
        IllegalMoveError: The batch runs, or is stopping, or all of it is done.
        InvalidInputError: A key is not the batch's, or its profile is done and had another payload.
    """
    queue_order.lock_queue_of(connection, batch_id)
    batch = lock_batch(connection, batch_id)
    if batch.state in {BatchState.RUNNING, BatchState.STOPPING}:
        raise IllegalMoveError(f"cannot amend batch {batch_id}: it is {batch.state}; pause it, or wait for its end")
    opened = None
    if batch.state in TERMINAL_BATCH_STATES:
        # First, so that counters are locked before profiles, and what may be amended is what is pending.
        opened = batch_moves.reopen(connection, batch_id, "amended by a person", verb="amend")
    moves = bulk.younger_moves(connection, batch_id)
    changed = same = 0
    for chunk in chunks:
        step = _look_at(connection, batch_id, chunk, moves)
        changed, same = changed + len(step.changed), same + step.same
        _write(connection, batch_id, step.changed)
    batch = read_batches(connection, [batch_id])[batch_id]
    remember(connection, batch, batch.state, batch.state, f"amended {changed:,} of its profiles")
    return Amended(changed, same, opened)


def _look_at(
    connection: Connection, batch_id: str, chunk: Sequence[ProfileInput], moves: Mapping[int, BulkMove]
) -> _Step:
    numbers_by_key((each.key for each in chunk), 1)
    numbers = look_up(connection, batch_id, [each.key for each in chunk], profiles.c.number)
    rows = connection.execute(
        select(profiles.c.key, profiles.c.number, profiles.c.state, profiles.c.generation, profiles.c.payload).where(
            profiles.c.batch_id == batch_id, is_among(connection.dialect.name, profiles.c.number, "numbers")
        ),
        {"numbers": list(numbers.values())},
    )
    stored = {row.key: row for row in rows}
    changed = []
    for each in chunk:
        row = stored.get(each.key)
        if row is None:
            raise _refused(batch_id, each.key, "the batch has no such profile; `batching results` lists its keys")
        if says_the_same(each.payload, row.payload):
            continue
        younger = tuple(move for generation, move in moves.items() if generation > row.generation)
        state = effective_state(ProfileState(row.state), younger)
        if state in _DONE:
            raise _refused(batch_id, each.key, f"it is {state} for good; submit it in another batch to run it again")
        if state is not ProfileState.PENDING:
            raise _refused(batch_id, each.key, f"it is {state} in this pass; amend it when the batch has ended")
        changed.append((row.number, each.payload))
    return _Step(changed, len(chunk) - len(changed))


def _refused(batch_id: str, key: str, why: str) -> InvalidInputError:
    return InvalidInputError(f"cannot amend profile {key!r} of batch {batch_id}: {why}; nothing was amended")


def _write(connection: Connection, batch_id: str, changed: list[tuple[int, str]]) -> None:
    if not changed:
        return
    dialect = connection.dialect.name
    given = parameter_rows(dialect, "amended", _AMENDED)
    written = connection.execute(
        update(profiles)
        .where(
            profiles.c.batch_id == batch_id,
            profiles.c.number == given.c.number,
            profiles.c.state.not_in([*_DONE, ProfileState.DISPATCHED, ProfileState.RUNNING]),
        )
        .values(payload=given.c.payload),
        encode_rows(dialect, "amended", _AMENDED, changed),
    )
    if written.rowcount != len(changed):
        raise IllegalMoveError(f"cannot amend batch {batch_id}: some of its profiles moved meanwhile; try again")
