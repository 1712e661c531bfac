"""Loading: chunks of profiles into a batch that nobody sees yet, by whatever is fastest on the connection."""

from __future__ import annotations

import uuid
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Any

from sqlalchemy import Insert, Integer, String, Text, bindparam, insert, literal, select, update
from sqlalchemy.exc import IntegrityError

from batching.copying import can_copy, copy_rows, length
from batching.database import is_unique_violation
from batching.dialects import Identifier, later
from batching.errors import IllegalMoveError, InvalidInputError
from batching.models import batches, profiles
from batching.parameters import encode_rows, parameter_rows
from batching.states import BatchState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.types import TypeEngine

    from batching.options import ProfileInput

#: Seconds that a producer may be silent between two chunks before its batch is taken for abandoned.
LOADING_LEASE = 60.0

LOADS = (batches.c.state == BatchState.LOADING) & batches.c.loading_until.is_not(None)

_COLUMNS: dict[str, TypeEngine[Any]] = {"number": Integer(), "key": String(255), "payload": Text()}
#: Rows in one statement: three parameters each, of the 999 that an old SQLite allows.
_SQLITE_ROWS = 250
#: A row as `copy_rows` takes it, up to the content of the third of its four fields.
_row = Struct(">hi16siii").pack


class DuplicateKeyError(InvalidInputError):
    """Two profiles of one batch have the same key; carries the numbers of both."""

    def __init__(self, key: str, first: int, second: int) -> None:
        super().__init__(f"the key {key!r} stands twice in the batch: profile {first:,} and profile {second:,}")
        self.key = key
        self.first = first
        self.second = second


def add_profiles(connection: Connection, batch_id: str, chunk: Iterable[ProfileInput]) -> int:
    """Append a chunk to a loading batch and renew its lease; returns the number of its last profile.

    The batch's row is written last: what a chunk is made of may come slowly, and no lock that others want is held
    while it comes. So the guard speaks at the end: the batch still loads, and nobody added to it since its total was
    read, or nothing of the chunk is written. The sweep ends the lease of a silent producer first, and deletes later:
    when it ended the lease before the guard, the guard refuses the chunk, be the batch there or not; when it comes
    after the guard, it waits for the commit, and the chunk is deleted with the rest.

    Raises:
        DuplicateKeyError: A key stands twice, in the chunk or in the batch; the chunk is not written.
        IllegalMoveError: The batch does not load (any more): its lease lapsed and the sweep deleted it.
    """
    before = connection.scalar(select(batches.c.total).where(batches.c.id == batch_id, LOADS))
    if before is None:
        raise _over(batch_id)
    keys: list[str] = []
    try:
        with connection.begin_nested():
            _write(connection, batch_id, before + 1, chunk, keys)
    except IntegrityError as error:
        if is_unique_violation(error):
            _raise_duplicate(connection, batch_id, keys, before + 1)
        raise
    last = connection.scalar(
        update(batches)
        .where(batches.c.id == batch_id, LOADS, batches.c.total == before)
        .values(total=before + len(keys), loading_until=later(literal(LOADING_LEASE)))
        .returning(batches.c.total)
    )
    if last is None:
        raise _over(batch_id)
    return int(last)


def _over(batch_id: str) -> IllegalMoveError:
    return IllegalMoveError(
        f"cannot add profiles to batch {batch_id}: it does not load any more (its producer was silent for over "
        f"{LOADING_LEASE:g} s, or it was sealed); submit it again"
    )


def _write(connection: Connection, batch_id: str, first: int, chunk: Iterable[ProfileInput], keys: list[str]) -> None:
    """Write profiles, numbered from `first`; `keys` gathers their keys, also of what is refused."""
    if can_copy(connection):
        rows = _binary_rows(batch_id, first, chunk, keys)
        copy_rows(connection, profiles.name, ["batch_id", *_COLUMNS], rows)
        return
    chunk = list(chunk)
    keys.extend(each.key for each in chunk)
    insert_profiles(connection, batch_id, first, chunk)


def _binary_rows(batch_id: str, first: int, chunk: Iterable[ProfileInput], keys: list[str]) -> Iterator[bytes]:
    identity = uuid.UUID(batch_id).bytes
    for number, (key, payload) in enumerate(chunk, first):
        keys.append(key)
        name, body = key.encode(), payload.encode()
        yield _row(4, 16, identity, 4, number, len(name)) + name + length(len(body)) + body


def insert_profiles(connection: Connection, batch_id: str, first: int, chunk: Sequence[ProfileInput]) -> None:
    """Write profiles, numbered from `first`, by statements with parameters."""
    if connection.dialect.name == "sqlite":
        for start in range(0, len(chunk), _SQLITE_ROWS):
            part = chunk[start : start + _SQLITE_ROWS]
            values: list[Any] = [batch_id]
            for number, (key, payload) in enumerate(part, first + start):
                values += (number, key, payload)
            connection.exec_driver_sql(_sqlite_insert(len(part)), tuple(values))
    elif chunk:
        parameters = parameters_of("postgresql", chunk, first)
        connection.execute(insert_chunk("postgresql"), {"batch": batch_id, **parameters})


@lru_cache
def _sqlite_insert(rows: int) -> str:
    """Many rows in one statement: SQLite prepares the table's checks anew for each statement, at half of its cost."""
    places = ", ".join(f"(?1, ?{at}, ?{at + 1}, ?{at + 2})" for at in range(2, 3 * rows + 2, 3))
    return f"INSERT INTO profiles (batch_id, number, key, payload) VALUES {places}"  # noqa: S608 - only numbers enter


def parameters_of(dialect: str, chunk: Sequence[ProfileInput], first: int = 1) -> dict[str, str]:
    """The parameters of `insert_chunk` but for `batch`: the profiles, numbered from `first`."""
    if not chunk:
        return {}
    return encode_rows(dialect, "chunk", _COLUMNS, [(number, *each) for number, each in enumerate(chunk, first)])


@lru_cache
def insert_chunk(dialect: str) -> Insert:
    """Write the profiles of `parameters_of` into `:batch`."""
    chunk = parameter_rows(dialect, "chunk", _COLUMNS)
    chosen = select(bindparam("batch", type_=Identifier()), *(chunk.c[name] for name in _COLUMNS))
    return insert(profiles).from_select(["batch_id", *_COLUMNS], chosen)


def _raise_duplicate(connection: Connection, batch_id: str, keys: list[str], first: int) -> None:
    seen = numbers_by_key(keys, first)
    for start in range(0, len(keys), 500):
        earlier = connection.execute(
            select(profiles.c.key, profiles.c.number)
            .where(profiles.c.batch_id == batch_id, profiles.c.key.in_(keys[start : start + 500]))
            .order_by(profiles.c.number)
            .limit(1)
        ).one_or_none()
        if earlier is not None:
            raise DuplicateKeyError(earlier.key, earlier.number, seen[earlier.key])


def numbers_by_key(keys: Iterable[str], first: int) -> dict[str, int]:
    """The number of the profile with each key, counted from `first`.

    Raises:
        DuplicateKeyError: One stands twice.
    """
    seen: dict[str, int] = {}
    for number, key in enumerate(keys, first):
        if key in seen:
            raise DuplicateKeyError(key, seen[key], number)
        seen[key] = number
    return seen
