"""Dispatched -> running."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import CTE, Integer, Select, Update, bindparam, func, literal, select, union_all, update
from sqlalchemy.dialects import postgresql

from batching.dialects import Identifier
from batching.models import IN_FLIGHT, batches, counters, profiles
from batching.moves.statements.shared import AT_ONCE, BATCH, OURS, WRITER, materialized
from batching.parameters import is_among, parameter_rows
from batching.states import BatchState, ProfileState

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

OFFERS: dict[str, TypeEngine[Any]] = {"batch_id": Identifier(), "number": Integer(), "run": Integer()}

CLAIMED = (
    profiles.c.batch_id,
    profiles.c.number,
    profiles.c.run,
    profiles.c.key,
    profiles.c.payload,
    profiles.c.attempts,
    profiles.c.losses,
    profiles.c.pass_number,
)


@lru_cache
def claim(dialect: str) -> Select[Any] | Update:
    """Dispatched -> running for the `offers` that still stand; takes `wanted` (their batches) and `writer`."""
    given = parameter_rows(dialect, "offers", OFFERS)
    offers = materialized(
        select(given, batches.c.generation, (batches.c.state == BatchState.RUNNING).label("runs"))
        .join(batches, batches.c.id == given.c.batch_id)
        .where(is_among(dialect, batches.c.id, "wanted"))
        .order_by(given.c.batch_id, given.c.number),
        "offers",
    )
    moved = (
        update(profiles)
        .where(
            profiles.c.batch_id == offers.c.batch_id,
            profiles.c.number == offers.c.number,
            profiles.c.run == offers.c.run - 1,
            profiles.c.generation == offers.c.generation,
            profiles.c.state == ProfileState.DISPATCHED,
            offers.c.runs,
        )
        .values(state=ProfileState.RUNNING, run=profiles.c.run + 1, worker_id=WRITER, started_at=AT_ONCE)
        .returning(*CLAIMED)
    )
    return _with_claim_counted(moved.cte("moved"), offers) if dialect == "postgresql" else moved


def _with_claim_counted(moved: CTE, offers: CTE) -> Select[Any]:
    each = union_all(
        select(offers.c.batch_id, literal(1, Integer()).label("offered"), literal(0, Integer()).label("won")),
        select(moved.c.batch_id, literal(0, Integer()), literal(1, Integer())),
    ).subquery("each")
    tally = (
        select(each.c.batch_id, func.sum(each.c.offered).label("offered"), func.sum(each.c.won).label("won"))
        .group_by(each.c.batch_id)
        .subquery("tally")
    )
    counted = (
        update(counters)
        .where(counters.c.batch_id == tally.c.batch_id, OURS)
        .values(
            dispatched=counters.c.dispatched - tally.c.won,
            running=counters.c.running + tally.c.won,
            duplicates=counters.c.duplicates + tally.c.offered - tally.c.won,
        )
    )
    return select(moved).add_cte(counted.cte("counted"))


@lru_cache
def claim_first() -> Select[Any]:
    """The first claim of a worker in a batch, on PostgreSQL: a transaction by itself, so that it costs one round trip.

    Takes `batch`, its `offers` and `writer`. In place of the ticket, which is only being made, it holds the share lock
    of the batch: a stop that comes first is seen, since the row is looked at again once its lock is there, and one that
    comes later waits. (Not for every claim: PostgreSQL lets share locks pass a stop that waits. See `counters`.)
    """
    given = parameter_rows("postgresql", "offers", OFFERS)
    offers = materialized(select(given).order_by(given.c.number), "offers")
    first = (
        select(batches.c.id, batches.c.generation, batches.c.queue, batches.c.handler, batches.c.options)
        .where(batches.c.id == BATCH, batches.c.state == BatchState.RUNNING)
        .with_for_update(read=True)
        .cte("first")
    )
    moved = (
        update(profiles)
        .where(
            profiles.c.batch_id == first.c.id,
            profiles.c.number == offers.c.number,
            IN_FLIGHT,
            profiles.c.run == offers.c.run - 1,
            profiles.c.generation == first.c.generation,
            profiles.c.state == ProfileState.DISPATCHED,
        )
        .values(state=ProfileState.RUNNING, run=profiles.c.run + 1, worker_id=WRITER, started_at=AT_ONCE)
        .returning(*CLAIMED)
        .cte("moved")
    )
    won = select(func.count()).select_from(moved).scalar_subquery()
    tally = select(first.c.id, WRITER, -won, won, bindparam("offered", type_=Integer()) - won)
    deltas = ("dispatched", "running", "duplicates")
    counted = postgresql.insert(counters).from_select(["batch_id", "worker_id", *deltas], tally)
    counted = counted.on_conflict_do_update(
        index_elements=[counters.c.batch_id, counters.c.worker_id],
        set_={name: counters.c[name] + counted.excluded[name] for name in deltas},
    )
    told = select(moved, first.c.queue, first.c.handler, first.c.options).where(moved.c.batch_id == first.c.id)
    return told.add_cte(counted.cte("counted"))
