"""Turns: while batches with a group wait in a queue, the groups of one priority are served round robin.

The rule: what was asked to run ahead of its turn comes first, then the highest priority; inside it, the group whose
last turn is the longest ago (one that had none before all others); inside the group, the order of the line. A promotion
is a turn, however large the batch. The batches that name no group are a group of their own.

Where nobody names a group, none of this is asked: one look into an empty index tells so.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    JSON,
    ColumnElement,
    Integer,
    Select,
    String,
    Subquery,
    Text,
    and_,
    bindparam,
    cast,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

from batching.dialects import now
from batching.models import GROUPED, IN_LINE, LINE_ORDER, batches, turns

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection

#: The order of the line inside one group of one priority.
INSIDE = LINE_ORDER[2:]


class Turn(NamedTuple):
    """The batch whose turn it is, and the group that has the turn with it."""

    batch_id: str
    queue: str
    priority: int
    group: str


def may_start() -> ColumnElement[bool]:
    """Whether a batch may be promoted, as far as it alone decides: it is in line, and waits for nothing else."""
    return and_(
        IN_LINE,
        or_(batches.c.not_before.is_(None), batches.c.not_before <= now()),
        batches.c.awaiting.is_(False),
    )


def grouped(queue: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a batch with a group waits in a queue."""
    # SQLite uses a partial index only for a condition that it finds in the query, word for word and unqualified.
    return exists(select(literal_column("1")).select_from(batches).where(batches.c.queue == queue, GROUPED))


def next_turn(
    connection: Connection, queue: str, handlers: Collection[str] | None = None, spent: Collection[str] = ()
) -> Turn | None:
    """Whose turn it is in a queue when a batch may start.

    Only a reason to promote it: who does so looks at the batch again under its lock.

    Args:
        connection: In a transaction.
        queue: Whose line.
        handlers: Only batches of these.
        spent: Shared rate limits: no batch that names one of them.
    """
    line: list[ColumnElement[bool]] = [batches.c.queue == queue]
    if handlers is not None:
        line.append(batches.c.handler.in_(sorted(handlers)))
    if spent:
        line.append(~_names_one_of(connection.dialect.name, spent))
    ready = select(batches.c.urgent, batches.c.priority).where(*line, may_start())
    top = connection.execute(ready.order_by(*LINE_ORDER[:2]).limit(1)).first()
    if top is None:
        return None
    line += [batches.c.urgent.is_(top.urgent), batches.c.priority == top.priority]
    found = connection.execute(_first_of_each_group(line)).first()
    return None if found is None else Turn(found.id, queue, top.priority, found.group)


def take_turns(connection: Connection, queue: str) -> bool:
    """Whether groups take turns in a queue now."""
    return bool(connection.scalar(select(grouped(literal(queue)))))


def _names_one_of(dialect: str, limits: Collection[str]) -> ColumnElement[bool]:
    if dialect == "postgresql":
        names = func.json_array_elements_text(cast(batches.c.options, JSON())["rate_limits"])
        each: ColumnElement[Any] = names.column_valued("named")
    else:
        each = (
            func.json_each(cast(batches.c.options, Text()), "$.rate_limits").table_valued("value", name="named").c.value
        )
    return exists(select(literal_column("1")).where(each.in_(sorted(limits))))


def _first_of_each_group(line: list[ColumnElement[bool]]) -> Select[Any]:
    """The first batch of each group, that of the next turn first: steps from group to group through the index."""
    queued = [*line, IN_LINE]
    names = select(func.min(batches.c.group).label("name")).where(*queued).cte("names", recursive=True)
    following = select(func.min(batches.c.group)).where(*queued, batches.c.group > names.c.name).correlate(names)
    names = names.union_all(select(following.scalar_subquery()).where(names.c.name.is_not(None)))
    first = batches.alias("first")
    own = (
        select(batches.c.id)
        .where(*line, may_start(), batches.c.group == names.c.name)
        .order_by(*INSIDE)
        .limit(1)
        .correlate(names)
    )
    of_it = and_(turns.c.queue == first.c.queue, turns.c.priority == first.c.priority, turns.c.group == first.c.group)
    return (
        select(first.c.id, first.c.group)
        .select_from(names.join(first, first.c.id == own.scalar_subquery()).outerjoin(turns, of_it))
        .order_by(func.coalesce(turns.c.served, 0), *(first.c[each.name] for each in INSIDE))
        .limit(1)
    )


def take(connection: Connection, turn: Turn) -> None:
    """Note that a group had its turn; in the transaction that promoted its batch.

    Two leaders at once may note the same number for two groups; who comes first among them is then the line's to say.
    """
    connection.execute(_take(connection.dialect.name), turn._asdict())


@lru_cache
def _take(dialect: str) -> Any:
    build = postgresql if dialect == "postgresql" else sqlite
    last = select(func.coalesce(func.max(turns.c.served), 0) + 1).where(
        turns.c.queue == bindparam("queue", type_=Text())
    )
    row = build.insert(turns).values(
        queue=bindparam("queue", type_=Text()),
        priority=bindparam("priority", type_=Integer()),
        group=bindparam("group", type_=String()),
        served=last.scalar_subquery(),
    )
    return row.on_conflict_do_update(
        index_elements=[turns.c.queue, turns.c.priority, turns.c.group], set_={"served": row.excluded.served}
    )


class Line(NamedTuple):
    """Queued batches, and what to order them by."""

    rows: Subquery
    order: list[ColumnElement[Any]]


def in_order(*conditions: ColumnElement[bool]) -> Line:
    """The queued batches of whole queues, as promotion would take them if all of them were ready; for reads.

    A group's batch number n comes in round n. Inside a round, groups come in the order of their last turns, or of their
    first batches where they had none; that order is the same in every round, since a round renews it. Without groups
    all are in one, and a round is one batch.
    """
    partition = [batches.c.queue, batches.c.urgent, batches.c.priority, batches.c.group]
    named = {each.name: each for each in INSIDE}
    of_it = and_(
        turns.c.queue == batches.c.queue, turns.c.priority == batches.c.priority, turns.c.group == batches.c.group
    )
    rows = (
        select(
            batches.c.queue,
            batches.c.urgent,
            batches.c.priority,
            *named.values(),
            func.row_number().over(partition_by=partition, order_by=INSIDE).label("round"),
            func.coalesce(turns.c.served, 0).label("served"),
            *(
                func.first_value(each).over(partition_by=partition, order_by=INSIDE).label(f"first_{name}")
                for name, each in named.items()
            ),
        )
        .select_from(batches.outerjoin(turns, of_it))
        .where(IN_LINE, *conditions)
        .subquery("line")
    )
    firsts = [rows.c[f"first_{name}"] for name in named]
    return Line(rows, [rows.c.urgent.desc(), rows.c.priority.desc(), rows.c.round, rows.c.served, *firsts])


def places(*conditions: ColumnElement[bool]) -> Subquery:
    """The place in line of each queued batch of whole queues: 1 is next."""
    rows, order = in_order(*conditions)
    place = func.row_number().over(partition_by=rows.c.queue, order_by=order)
    return select(rows.c.id, place.label("place")).subquery("places")
