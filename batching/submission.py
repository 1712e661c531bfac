"""Submit: a stream of profiles becomes a batch, in bounded memory, once per key, and never halfway."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from batching.errors import BatchingError, InvalidInputError
from batching.handlers import HANDLER_NAME
from batching.intake import Limits, Source, check_key, from_iterable
from batching.moves.submission import LOADING_LEASE, DuplicateKeyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection

    from batching.interfaces import BatchReceipt, BatchSpec, ProfileInput
    from batching.state_manager import BatchStateManager

#: Profiles and bytes of payload in one chunk: large enough for a fast insert, small enough for flat memory.
CHUNK_PROFILES = 2_000
CHUNK_BYTES = 4_000_000
#: Seconds that a source may take to fill a chunk before what there is of it is written.
CHUNK_SECONDS = LOADING_LEASE / 6

_NAME_LIMIT = 255
_QUEUE_LIMIT = 64
_PRIORITY_LIMIT = 1_000_000


def submit(state_manager: BatchStateManager, spec: BatchSpec, profiles: Iterable[Any], limits: Limits) -> BatchReceipt:
    """Write a batch in chunks, each its own transaction, then seal it; whatever fails, nothing of it is left.

    A key that another producer is loading right now is waited for: its batch is sealed, or its lease lapses.
    """
    check_spec(spec, limits)
    receipt = _create_or_wait(state_manager, spec)
    if not receipt.created:
        return receipt
    source = _as_source(profiles, limits)
    try:
        for chunk in _chunks(source):
            _add(state_manager, receipt.id, chunk, source)
        total = state_manager.seal(receipt.id)
    except BaseException:
        _clean_up(state_manager, receipt.id)
        raise
    return receipt._replace(total=total)


def submit_within(
    state_manager: BatchStateManager,
    spec: BatchSpec,
    profiles: Iterable[Any],
    limits: Limits,
    connection: Connection,
) -> BatchReceipt:
    """Write a batch inside the caller's transaction: it exists if and only if that commits.

    A savepoint around it all keeps the caller's transaction usable when the submission is refused.

    Raises:
        InvalidInputError: A profile is not acceptable, or another producer loads a batch with this key right now: it is
            not waited for, since the caller's transaction may be what it waits for.
    """
    check_spec(spec, limits)
    _begin_in_earnest(connection)
    with connection.begin_nested():
        receipt = state_manager.create_batch(spec, connection)
        if not receipt.created:
            if receipt.total < 0:
                raise InvalidInputError(
                    f"cannot submit with the key {spec.key!r}: another producer is loading batch {receipt.id} with "
                    "this key; try again when it is done"
                )
            return receipt
        source = _as_source(profiles, limits)
        for chunk in _chunks(source):
            _add(state_manager, receipt.id, chunk, source, connection)
        return receipt._replace(total=state_manager.seal(receipt.id, connection))


def _begin_in_earnest(connection: Connection) -> None:
    """Open the transaction that Python's sqlite3 has only promised.

    It says BEGIN before the first INSERT, not before a SAVEPOINT: ours would be the outermost, and its release would
    commit what the caller may yet roll back
    (https://docs.sqlalchemy.org/en/21/dialects/sqlite.html#serializable-isolation-savepoints-transactional-ddl).
    """
    if connection.dialect.name == "sqlite":
        driver: Any = connection.connection.driver_connection
        if not driver.in_transaction:
            connection.exec_driver_sql("BEGIN IMMEDIATE")


def check_spec(spec: BatchSpec, limits: Limits) -> None:
    """Refuse what no batch can be called.

    Raises:
        InvalidInputError: The message names the field, what was found, and what it may be.
    """
    if not HANDLER_NAME.fullmatch(str(spec.handler)):
        raise InvalidInputError(
            f"cannot submit to the handler {spec.handler!r}: a handler's name has letters, digits, '_', '-' and '.'"
        )
    if not HANDLER_NAME.fullmatch(str(spec.queue)) or len(spec.queue) > _QUEUE_LIMIT:
        raise InvalidInputError(
            f"cannot submit to the queue {spec.queue!r}: a queue's name has letters, digits, '_', '-' and '.', at most "
            f"{_QUEUE_LIMIT}"
        )
    if not spec.name or len(spec.name) > _NAME_LIMIT or not spec.name.isprintable():
        raise InvalidInputError(
            f"cannot submit a batch named {spec.name[:80]!r}: a name has 1 to {_NAME_LIMIT} printable characters"
        )
    if type(spec.priority) is not int or abs(spec.priority) > _PRIORITY_LIMIT:
        raise InvalidInputError(
            f"cannot submit with priority {spec.priority!r}: it is a whole number up to {_PRIORITY_LIMIT:,}"
        )
    if spec.key is not None:
        check_key(spec.key, limits, "the batch key")


def _create_or_wait(state_manager: BatchStateManager, spec: BatchSpec) -> BatchReceipt:
    patience = time.monotonic() + 2 * LOADING_LEASE
    while True:
        receipt = state_manager.create_batch(spec)
        if receipt.created or receipt.total >= 0:
            return receipt
        if time.monotonic() > patience:
            raise InvalidInputError(
                f"cannot submit with the key {spec.key!r}: another producer has been loading a batch with this key for "
                f"over {2 * LOADING_LEASE:g} s; wait for it, or choose another key"
            )
        state_manager.sweep_abandoned()
        time.sleep(0.2)


def _as_source(profiles: Iterable[Any], limits: Limits) -> Source:
    return profiles if isinstance(profiles, Source) else from_iterable(profiles, limits)


def _chunks(source: Iterator[ProfileInput]) -> Iterator[list[ProfileInput]]:
    """Chunks of a bounded size; smaller ones of a slow source, since each renews the loading lease."""
    chunk: list[ProfileInput] = []
    size, due = 0, time.monotonic() + CHUNK_SECONDS
    for profile in source:
        chunk.append(profile)
        size += len(profile.payload)
        if len(chunk) >= CHUNK_PROFILES or size >= CHUNK_BYTES or time.monotonic() >= due:
            yield chunk
            chunk, size, due = [], 0, time.monotonic() + CHUNK_SECONDS
    if chunk:
        yield chunk


def _add(
    state_manager: BatchStateManager,
    batch_id: str,
    chunk: list[ProfileInput],
    source: Source,
    connection: Connection | None = None,
) -> None:
    try:
        state_manager.add_profiles(batch_id, chunk, connection)
    except DuplicateKeyError as error:
        raise source.duplicate(error.key, error.second, error.first) from None


def _clean_up(state_manager: BatchStateManager, batch_id: str) -> None:
    """When even this fails (the database is away), the batch's lease lapses and the sweep deletes it."""
    try:
        state_manager.abandon(batch_id)
    except BatchingError:
        return
