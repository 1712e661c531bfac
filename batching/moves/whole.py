"""A batch that is whole before it is written: one transaction, on PostgreSQL one statement, and it is in line."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import uuid_utils
from sqlalchemy import Boolean, Executable, Integer, String, Text, bindparam, func, insert, literal, select
from sqlalchemy.dialects import postgresql, sqlite

from batching.dialects import Identifier, JSONText
from batching.models import NOBODY, batches, counters, history, labels, queues
from batching.moves import dependencies, room
from batching.moves.loading import insert_chunk, insert_profiles, parameters_of
from batching.moves.statements import UNFLUSHED
from batching.moves.submission import asked_parameters, asked_values, release_key, write_labels
from batching.parameters import encode_rows, parameter_rows
from batching.specification import labels_of
from batching.states import BatchState

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Insert
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.types import TypeEngine

    from batching.direct import Single
    from batching.options import BatchSpec, ProfileInput

_BATCH = bindparam("batch", type_=Identifier())
_QUEUE = bindparam("queue", type_=String(64))
_TOTAL = bindparam("total", type_=Integer())
#: PostgreSQL's word for a NULL where none may be.
_NOT_NULL: Final = "23502"
_LABELS: dict[str, TypeEngine[Any]] = {"name": String(64), "value": String(255)}


def write_whole(connection: Connection, spec: BatchSpec, chunk: list[ProfileInput]) -> str:
    """Write a batch, all its profiles, its counters and its history, in the caller's transaction; returns its id.

    Nothing is read that another transaction could change but the largest position: two batches that are sealed at once
    may get the same one, and their ids, made in order, decide (see `submission.seal`). UNIQUE (queue, key) settles the
    race of two producers with one key, UNIQUE (batch, key) refuses a key that stands twice; then nothing is written.

    Raises:
        QueueFullError: The queue has no room for it.
        IntegrityError: One of the two; the transaction is of no more use.
    """
    awaited = dependencies.find(connection, spec.queue, spec.after)
    if spec.key is not None and spec.replace_key:
        release_key(connection, spec.queue, spec.key)
    # After that: whoever appends to the batch that gives its key up has its lock, too, when it asks for room.
    room.admit(connection, spec.queue, spec.group, len(chunk))
    if connection.dialect.name == "postgresql":
        batch_id = write_at_once(connection, spec, chunk, admitted=True)
        dependencies.record(connection, batch_id, awaited)
        return batch_id
    values = _values(spec, len(chunk))
    for statement in _rows("sqlite"):
        connection.execute(statement, values)
    write_labels(connection, values["batch"], spec)
    dependencies.record(connection, values["batch"], awaited)
    insert_profiles(connection, values["batch"], 1, chunk)
    return str(values["batch"])


def write_at_once(
    connection: Single, spec: BatchSpec, chunk: list[ProfileInput], *, flushed: bool = True, admitted: bool = False
) -> str:
    """What `write_whole` does on PostgreSQL, by one statement, which needs no transaction around it.

    Args:
        connection: In a transaction, or without one.
        spec: As for `write_whole`.
        chunk: As for `write_whole`.
        flushed: False without a transaction around it, for a COMMIT that does not wait for the disk: others see the
            batch at once, and it must not be reported as submitted before `FLUSH` was executed too.
        admitted: Whether the queue was asked for room, in this transaction.

    Raises:
        IntegrityError: As `write_whole`; also, without being admitted, of a queue that has to be asked: see `must_ask`.
    """
    values = _values(spec, len(chunk))
    found_by = list(labels_of(spec))
    statement = _all_at_once(with_profiles=bool(chunk), with_labels=bool(found_by), flushed=flushed, admitted=admitted)
    given = values | parameters_of("postgresql", chunk)
    connection.execute(statement, given | encode_rows("postgresql", "labels", _LABELS, found_by) if found_by else given)
    return str(values["batch"])


def must_ask(error: DBAPIError) -> bool:
    """Whether a batch was refused since its queue has a limit: its queue was written as NULL then."""
    if getattr(error.orig, "sqlstate", None) != _NOT_NULL:
        return False
    missing: Any = getattr(error.orig, "diag", None)
    return (missing.table_name, missing.column_name) == (batches.name, batches.c.queue.name)


#: Returns when everything that was committed before is on the disk: it writes a line of its own into the log, which is
#: flushed in order (https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-REPLICATION).
FLUSH = select(func.pg_logical_emit_message(literal(value=True), literal("batching"), literal("")))


def _values(spec: BatchSpec, total: int) -> dict[str, Any]:
    return {
        "batch": str(uuid_utils.uuid7()),
        "queue": spec.queue,
        "key": spec.key,
        "name": spec.name,
        "handler": spec.handler,
        "priority": spec.priority,
        "group": spec.group,
        "last_pass": spec.options.max_passes,
        "options": spec.options.as_dict(),
        "total": total,
        "sealed": spec.sealed,
        "told": "submitted" if spec.sealed else "opened",
        **asked_parameters(spec),
    }


@lru_cache
def _all_at_once(*, with_profiles: bool, with_labels: bool, flushed: bool, admitted: bool) -> Executable:
    """One statement: foreign keys are checked at its end, when everything is there."""
    rows = _rows("postgresql", flushed=flushed, admitted=admitted)
    if with_labels:
        rows.append(_insert_labels())
    *others, last = [*rows, *([insert_chunk("postgresql")] if with_profiles else [])]
    return last.add_cte(*(each.cte(f"write_{number}") for number, each in enumerate(others)))


def _insert_labels() -> Insert:
    given = parameter_rows("postgresql", "labels", _LABELS)
    return insert(labels).from_select(["batch_id", *_LABELS], select(_BATCH, *(given.c[name] for name in _LABELS)))


def _rows(dialect: str, *, flushed: bool = True, admitted: bool = True) -> list[Insert]:
    """Everything but the profiles, in the order of the foreign keys."""
    # A queue with a limit is asked before: this statement cannot wait for other producers and then look again.
    open_queue = select(_QUEUE).where(~room.is_limited(_QUEUE)).scalar_subquery()
    build = postgresql if dialect == "postgresql" else sqlite
    batch = insert(batches).values(
        id=_BATCH,
        queue=_QUEUE if admitted else open_queue,
        key=bindparam("key", type_=String(255)),
        name=bindparam("name", type_=String(255)),
        handler=bindparam("handler", type_=String(255)),
        state=BatchState.QUEUED,
        priority=bindparam("priority", type_=Integer()),
        group=bindparam("group", type_=String(255)),
        position=_tail(),
        last_pass=bindparam("last_pass", type_=Integer()),
        options=bindparam("options", type_=JSONText()),
        total=_TOTAL,
        sealed=bindparam("sealed", type_=Boolean()),
        **asked_values(),
    )
    submitted = select(
        _BATCH,
        literal(BatchState.LOADING.value),
        literal(BatchState.QUEUED.value),
        literal(1),
        _tail(),
        literal(0),
        bindparam("told", type_=Text()),
    )
    line = insert(history).from_select(
        ["batch_id", "from_state", "to_state", "pass_number", "position", "generation", "reason"],
        submitted if flushed else submitted.where(UNFLUSHED),
    )
    return [
        build.insert(queues).values(name=_QUEUE).on_conflict_do_nothing(),
        batch.inline(),
        insert(counters).values(batch_id=_BATCH, worker_id=NOBODY, pending=_TOTAL).inline(),
        line.inline(),
    ]


def _tail() -> ColumnElement[int]:
    """Behind all others of the queue, whether the batch itself is there yet (SQLite's later statements) or not."""
    others = (batches.c.queue == _QUEUE) & (batches.c.id != _BATCH)
    largest = select(func.max(batches.c.position)).where(others).scalar_subquery()
    return func.coalesce(largest, 0) + 1
