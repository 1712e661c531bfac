"""Open batches: profiles that any process appends, each once by its key; the seal; and the report on what was there."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import String, bindparam, select, update

from batching.dialects import Identifier
from batching.errors import IllegalMoveError
from batching.models import batches, profiles
from batching.moves import counters, room
from batching.moves.loading import insert_profiles, numbers_by_key
from batching.moves.rows import lock_batch, remember
from batching.options import Difference, ProfileInput
from batching.parameters import encode_rows, parameter_rows
from batching.states import TERMINAL_BATCH_STATES, BatchState, StopTarget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Column, Connection, Select
    from sqlalchemy.types import TypeEngine

    from batching.moves.rows import BatchRow

_KEYS: dict[str, TypeEngine[Any]] = {"key": String(255)}
#: Targets of a stop after which a batch goes on.
_PASSING = frozenset({None, StopTarget.PAUSED, StopTarget.REQUEUE})


class _Compared(NamedTuple):
    new: list[ProfileInput]
    same: int
    changed: int


def compare(connection: Connection, batch_id: str, chunk: Sequence[ProfileInput], first: int) -> Difference:
    """How a chunk differs from what the batch has; nothing is written.

    Args:
        connection: In a transaction.
        batch_id: The batch.
        chunk: A part of what was submitted again.
        first: What the source calls the first of them: its number.

    Raises:
        DuplicateKeyError: A key stands twice in the chunk.
    """
    found = _compare(connection, batch_id, chunk, first)
    return Difference(len(found.new), found.same, found.changed)


def _compare(connection: Connection, batch_id: str, chunk: Sequence[ProfileInput], first: int) -> _Compared:
    numbers_by_key((each.key for each in chunk), first)
    stored = payloads(connection, batch_id, [each.key for each in chunk])
    new = [each for each in chunk if each.key not in stored]
    same = sum(each.key in stored and says_the_same(each.payload, stored[each.key]) for each in chunk)
    return _Compared(new, same, len(chunk) - len(new) - same)


def payloads(connection: Connection, batch_id: str, keys: Sequence[str]) -> dict[str, str]:
    """The payloads, as stored, of those of these keys that the batch has."""
    return look_up(connection, batch_id, keys, profiles.c.payload)


def look_up(connection: Connection, batch_id: str, keys: Sequence[str], column: Column[Any]) -> dict[str, Any]:
    """What a column says of those of these keys that the batch has; each key through the index of keys."""
    if not keys:
        return {}
    dialect = connection.dialect.name
    parameters = encode_rows(dialect, "wanted", _KEYS, [(key,) for key in keys])
    rows = connection.execute(_look_up(dialect, column.name), {**parameters, "batch": batch_id})
    return {key: value for key, value in rows if value is not None}


@lru_cache
def _look_up(dialect: str, column: str) -> Select[Any]:
    """A subquery for each key: joined, or in a list, they would have PostgreSQL read all of a batch that is new to it.

    It has no statistics yet, and believes that a batch is a few rows, whatever index leads to them.
    """
    wanted = parameter_rows(dialect, "wanted", _KEYS)
    batch = bindparam("batch", type_=Identifier())
    found = select(profiles.c[column]).where(profiles.c.batch_id == batch, profiles.c.key == wanted.c.key)
    return select(wanted.c.key, found.scalar_subquery())


def says_the_same(one: str, other: str) -> bool:
    """Whether two JSON texts are one document: the order of fields says nothing; 1, 1.0 and true are three things."""
    return one == other or _canonical(one) == _canonical(other)


def _canonical(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True)


def append(connection: Connection, batch_id: str, chunk: Sequence[ProfileInput], first: int) -> Difference:
    """Append those of a chunk whose keys the open batch does not have; they wait for their first dispatch.

    Settles the race of several producers, of a producer with the seal, and of a producer with a stop: the batch's lock
    puts them one after the other. So numbers are unique and without a gap, a key that two producers bring is written
    once, and the second is told that it was there. A batch that is open cannot finish, so the race with the last
    settlement is none.

    Raises:
        DuplicateKeyError: A key stands twice in the chunk; it is not written.
        IllegalMoveError: The batch is sealed, or over, or on its way there.
        QueueFullError: The queue has no room for them.
    """
    batch = lock_batch(connection, batch_id)
    _check_open(batch, "append to")
    found = _compare(connection, batch_id, chunk, first)
    if found.new:
        room.admit(connection, batch.queue, batch.group, len(found.new), appended=True)
        total = batch.total + len(found.new)
        grown = connection.execute(
            update(batches)
            .where(batches.c.id == batch_id, batches.c.sealed.is_(False), batches.c.total == batch.total)
            .values(total=total)
        )
        if grown.rowcount != 1:  # only without the lock
            raise IllegalMoveError(f"cannot append to batch {batch_id}: it changed meanwhile; append again")
        counters.open_with(connection, batch_id, {"pending": len(found.new)})
        insert_profiles(connection, batch_id, batch.total + 1, found.new)
    return Difference(len(found.new), found.same, found.changed)


def seal(connection: Connection, batch_id: str, expect: int | None) -> int:
    """Close an open batch for good; returns its total. Sealing it again is harmless, if it has what is expected.

    Settles the race with a producer that still appends: whoever has the batch's lock first; the other is refused, or
    counted. Whether the batch is over now, `conclude` finds out after the commit, as after every settlement.

    Args:
        connection: In a write transaction.
        batch_id: The batch.
        expect: Profiles that it must have; None: whatever it has.

    Raises:
        IllegalMoveError: It has another number of profiles, or it ended before it was sealed.
    """
    batch = lock_batch(connection, batch_id)
    if expect is not None and batch.total != expect:
        raise IllegalMoveError(
            f"cannot seal batch {batch_id}: it has {batch.total:,} profiles, {expect:,} were expected; append what is "
            "missing (keys that are there are not taken twice), or expect what it has"
        )
    if not batch.sealed:
        _check_open(batch, "seal")
        connection.execute(
            update(batches).where(batches.c.id == batch_id, batches.c.sealed.is_(False)).values(sealed=True)
        )
        remember(connection, batch, batch.state, batch.state, f"sealed with {batch.total:,} profiles")
    return batch.total


def _check_open(batch: BatchRow, verb: str) -> None:
    if batch.state in TERMINAL_BATCH_STATES:
        found = f"it is {batch.state}; finished batches take nothing more"
    elif batch.sealed:
        found = f"it is sealed, with {batch.total:,} profiles; submit what is new as another batch"
    elif batch.state is BatchState.STOPPING and batch.target not in _PASSING:
        found = f"it is stopping, on its way to {batch.target}"
    else:
        return
    raise IllegalMoveError(f"cannot {verb} batch {batch.id}: {found}")
