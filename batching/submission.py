"""Submit: a stream of profiles becomes a batch, in bounded memory, once per key, and never halfway."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager, suppress
from itertools import chain, islice
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.exc import DBAPIError

from batching import faults
from batching.errors import BatchingError, IllegalMoveError, InvalidInputError, NotPermittedError
from batching.intake import Limits, Source, from_iterable
from batching.moves.amending import STEP as AMEND_STEP
from batching.moves.loading import LOADING_LEASE, DuplicateKeyError
from batching.options import Difference, ProfileInput
from batching.specification import check_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy import Connection

    from batching.options import Amended, BatchReceipt, BatchSpec
    from batching.state_manager import BatchStateManager

#: Profiles and bytes of payload in one chunk: large enough for its commit to cost little, small enough for flat memory.
CHUNK_PROFILES = 10_000
CHUNK_BYTES = 4_000_000
#: So many profiles are gathered before anything is written: a batch that has no more is written in one transaction.
FIRST_PROFILES = 1_000
#: Seconds that a source may take to fill a chunk before what there is of it is written: no transaction stays open for
#: long, and the lease is renewed long before it lapses.
CHUNK_SECONDS = 1.0

_Result = TypeVar("_Result")
_Answer = TypeVar("_Answer", bound="BatchReceipt | None")


def submit(
    state_manager: BatchStateManager,
    spec: BatchSpec,
    profiles: Iterable[Any],
    limits: Limits,
    announce: Callable[[], object] | None = None,
) -> BatchReceipt:
    """Write a small batch in one transaction, a large one in chunks that are sealed; a failure leaves nothing of it.

    A key that another producer is loading right now is waited for: its batch is sealed, or its lease lapses.

    Args:
        state_manager: Every write goes through it.
        spec: What is asked for.
        profiles: Any iterable of them.
        limits: Of keys and payloads.
        announce: Called as soon as others can see a new batch; see `submit_whole`.
    """
    check_spec(spec, limits)
    if spec.key is not None and not spec.replace_key:
        held = _patiently(state_manager, spec, lambda: state_manager.find_key(spec.queue, str(spec.key)))
        if held is not None:
            source = _as_source(profiles, limits)
            offered = _reading(source, lambda: _offer(state_manager, held, _numbered(source)))
            return _announced(offered, announce)
    source = _as_source(profiles, limits)
    return _reading(source, lambda: _write(state_manager, spec, source, announce))


def append(state_manager: BatchStateManager, batch_id: str, profiles: Iterable[Any], limits: Limits) -> Difference:
    """Append a stream to an open batch, in chunks: what it does not have yet, by key.

    A stream that breaks off has appended what came before: append it again, and what is there is told as `same`.
    """
    source = _as_source(profiles, limits)
    total = Difference()

    def write() -> None:
        nonlocal total
        for first, chunk in _numbered(source):
            total = total.plus(state_manager.append(batch_id, chunk, first))

    _reading(source, write)
    return total


def amend(state_manager: BatchStateManager, batch_id: str, profiles: Iterable[Any], limits: Limits) -> Amended:
    """Other payloads for profiles that are not done: all of the stream, or nothing of it.

    It is read to its end before anything is locked: a slow one must not hold up a queue.

    Raises:
        InvalidInputError: There is nothing in it, or see `moves.amending.amend`.
    """
    source = _as_source(profiles, limits)
    with TemporaryFile("w+", encoding="utf-8") as spool:
        for profile in source:
            spool.write(json.dumps(profile) + "\n")
        if not source.count:
            raise InvalidInputError(f"cannot amend batch {batch_id}: no profile was given")
        spool.seek(0)
        profiles_again = (ProfileInput(*json.loads(line)) for line in spool)
        return state_manager.amend(batch_id, iter(lambda: list(islice(profiles_again, AMEND_STEP)), []))


def _numbered(source: Source) -> Iterator[tuple[int, list[ProfileInput]]]:
    """Chunks that are compared with what is there, gathered before anything is locked; with the number of the first."""
    more = True
    while more:
        chunk = _Chunk(source, FIRST_PROFILES)
        profiles = list(chunk)
        if profiles:
            yield source.count - len(profiles) + 1, profiles
        more = not chunk.is_last


def _offer(
    state_manager: BatchStateManager,
    receipt: BatchReceipt,
    chunks: Iterable[tuple[int, list[ProfileInput]]],
    connection: Connection | None = None,
) -> BatchReceipt:
    """Compare a stream with a batch that was there; one that is open takes what it does not have."""
    is_open, found = receipt.open, Difference()
    for first, chunk in chunks:
        if is_open:
            try:
                found = found.plus(state_manager.append(receipt.id, chunk, first, connection))
                continue
            except IllegalMoveError:
                is_open = False  # sealed, or over, meanwhile
        found = found.plus(state_manager.compare(receipt.id, chunk, first, connection))
    grown = found.new if receipt.open and is_open else 0
    return receipt._replace(total=receipt.total + grown, difference=found)


def _announced(receipt: BatchReceipt, announce: Callable[[], object] | None) -> BatchReceipt:
    if announce is not None and receipt.open and receipt.difference.new:
        announce()
    return receipt


def _write(
    state_manager: BatchStateManager, spec: BatchSpec, source: Source, announce: Callable[[], object] | None
) -> BatchReceipt:
    first = _Chunk(source, FIRST_PROFILES)
    profiles = list(first)
    if first.is_last:
        receipt = _patiently(state_manager, spec, lambda: state_manager.submit_whole(spec, profiles, announce))
    else:
        receipt = _patiently(state_manager, spec, lambda: state_manager.create_batch(spec))
    if not receipt.created:  # another was quicker, since the key was looked for
        return _announced(_offer(state_manager, receipt, chain([(1, profiles)], _numbered(source))), announce)
    if first.is_last:
        return receipt
    try:
        state_manager.add_profiles(receipt.id, profiles)
        faults.reach("submit.chunk")
        for chunk in _chunks(source):
            state_manager.add_profiles(receipt.id, chunk)
            faults.reach("submit.chunk")
        total = state_manager.seal(receipt.id, sealed=spec.sealed)
        sealed = receipt._replace(total=total, difference=Difference(total), open=not spec.sealed)
        faults.reach("submit.sealed")
    except BaseException:
        _clean_up(state_manager, receipt.id)
        raise
    if announce is not None:
        announce()
    return sealed


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
    with _without_parameters(), connection.begin_nested():
        receipt = state_manager.create_batch(spec, connection)
        if not receipt.created:
            if receipt.total < 0:
                raise InvalidInputError(
                    f"cannot submit with the key {spec.key!r}: another producer is loading batch {receipt.id} with "
                    "this key; try again when it is done"
                )
            source = _as_source(profiles, limits)
            return _reading(source, lambda: _offer(state_manager, receipt, _numbered(source), connection))
        source = _as_source(profiles, limits)

        def write() -> int:
            for chunk in _chunks(source):
                # Gathered first: the source may well read from this very connection.
                state_manager.add_profiles(receipt.id, list(chunk), connection)
            return state_manager.seal(receipt.id, connection, sealed=spec.sealed)

        total = _reading(source, write)
        return receipt._replace(total=total, difference=Difference(total), open=not spec.sealed)


@contextmanager
def _without_parameters() -> Iterator[None]:
    """Payloads are among the parameters, and the caller's engine may show them in its errors."""
    try:
        yield
    except DBAPIError as error:
        error.hide_parameters = True
        raise


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


def _patiently(state_manager: BatchStateManager, spec: BatchSpec, ask: Callable[[], _Answer]) -> _Answer:
    """Ask until the answer is no batch that another producer is loading."""
    patience = time.monotonic() + 2 * LOADING_LEASE
    while True:
        receipt = ask()
        if receipt is None or receipt.created or receipt.total >= 0:
            return receipt
        if time.monotonic() > patience:
            raise InvalidInputError(
                f"cannot submit with the key {spec.key!r}: another producer has been loading a batch with this key for "
                f"over {2 * LOADING_LEASE:g} s; wait for it, or choose another key"
            )
        with suppress(NotPermittedError):  # then it is the managers' alone
            state_manager.sweep_abandoned()
        time.sleep(0.2)


def _as_source(profiles: Iterable[Any], limits: Limits) -> Source:
    return profiles if isinstance(profiles, Source) else from_iterable(profiles, limits)


class _SourceFailedError(Exception):
    """Carries what a source raised through a transaction, which must not take it for an error of its own."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class _Chunk:
    """The next profiles of a source, up to a bounded size; fewer of a slow one, since each chunk renews the lease.

    Read as it is iterated. When that is while it is written, the encoding of the next profiles and the server's work on
    the last ones go on at once.
    """

    def __init__(self, source: Source, most: int) -> None:
        self._source = source
        self._most = most
        self.is_last = False
        """The source is at its end; known once the chunk was read."""

    def __iter__(self) -> Iterator[ProfileInput]:
        count, size, due = 0, 0, time.monotonic() + CHUNK_SECONDS
        try:
            for profile in self._source:
                yield profile
                count += 1
                size += len(profile.payload)
                if count >= self._most or size >= CHUNK_BYTES or time.monotonic() >= due:
                    return
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - also Ctrl-C: it is raised again once the transaction is undone
            raise _SourceFailedError(error) from None
        self.is_last = True


def _reading(source: Source, write: Callable[[], _Result]) -> _Result:
    """Do what reads a source; a failure is worded, or raised, as the source would."""
    try:
        return write()
    except DuplicateKeyError as error:
        raise source.duplicate(error.key, error.second, error.first) from None
    except _SourceFailedError as failed:
        theirs = failed.error
    raise theirs  # outside of the handler, which would write itself into its context


def _chunks(source: Source) -> Iterator[_Chunk]:
    while True:
        chunk = _Chunk(source, CHUNK_PROFILES)
        yield chunk
        if chunk.is_last:
            return


def _clean_up(state_manager: BatchStateManager, batch_id: str) -> None:
    """When even this fails, the sweep deletes it: the database is away, or a producer's role may delete nothing."""
    try:
        state_manager.abandon(batch_id)
    except BatchingError:
        return
