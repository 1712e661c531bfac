"""The statements of the hot path, each built once: dispatch, claim and settle move rows and count them in one.

On PostgreSQL the guarded UPDATE stands in a WITH clause, and next to it the counters get exactly the rows that it
returned; all parts see one snapshot, and the rows that changed reach the others only through RETURNING
(https://www.postgresql.org/docs/current/queries-with.html#QUERIES-WITH-MODIFYING). SQLite has no such clause:
there the UPDATE stands alone, and the counters follow in a second statement, while its one write lock is held.

Each reads the batch itself, in the snapshot of its own start. So it must come after the ticket, in a statement of its
own: from then on what it reads of the batch cannot change (see `counters`). The batches are named once more as
`wanted`, a list of known length, and joined in a materialized part: PostgreSQL cannot guess how few batches some
hundred runs have, and would walk over all that are kept, or pair each profile with each offer while a new table has no
statistics. That part is in the order of the runs, so that everybody locks rows in one order: a join with the batches
may turn it round in one plan and not in another, and two workers with the same offers would wait for each other.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    CTE,
    Double,
    Integer,
    Select,
    SmallInteger,
    String,
    Text,
    Update,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql

from batching.database import Identifier, later, now
from batching.models import attempts, batches, counters, leases, profiles
from batching.moves.rows import LEADER, among
from batching.parameters import is_among, parameter_rows
from batching.states import TERMINAL_PROFILE_STATES, BatchState, ProfileState, StopTarget

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.sql.dml import ReturningUpdate
    from sqlalchemy.types import TypeEngine

#: The clock, read once for the whole statement: rows that are published together must not seem to overtake each other,
#: in whatever order the statement meets them.
AT_ONCE = select(now()).scalar_subquery()

WRITER = bindparam("writer", type_=Identifier())
HOLDER = bindparam("holder", type_=Identifier())
BATCH = bindparam("batch", type_=Identifier())

#: True while the lease's epoch is still this one: a leader that was replaced writes nothing.
LEADS = exists().where(
    leases.c.name == LEADER, leases.c.holder == WRITER, leases.c.epoch == bindparam("epoch", type_=leases.c.epoch.type)
)

#: The writer's rows of the batches that are `wanted`; only PostgreSQL counts in the same statement.
_OURS = (counters.c.worker_id == WRITER) & is_among("postgresql", counters.c.batch_id, "wanted")

#: True, and with an effect on PostgreSQL: the COMMIT of this transaction does not wait for the disk. It costs a
#: dispatch nothing: should the server crash within that moment, the profiles are pending again, and their messages are
#: refused. The log is written in order, so a claim flushes the dispatch that it claims
#: (https://www.postgresql.org/docs/current/wal-async-commit.html). Not for a claim or a settlement: on their COMMIT
#: everybody relies.
UNFLUSHED = func.set_config("synchronous_commit", "off", True) == "off"

# --- dispatch

#: The columns of a profile that a message is made of.
DISPATCHED = (
    profiles.c.number,
    profiles.c.run,
    profiles.c.key,
    profiles.c.attempts,
    profiles.c.losses,
    profiles.c.pass_number,
)


@lru_cache
def dispatch(dialect: str) -> Select[Any] | Update:
    """Pending -> dispatched; takes `batch`, `behind`, `limit`, and the leader's `writer` and `epoch`.

    Looks at what is numbered `behind` that or higher, so that it need not walk over what was dispatched before: an
    index keeps an entry for each of those until PostgreSQL vacuums.
    """
    due = (
        select(profiles.c.number)
        .where(
            profiles.c.batch_id == BATCH,
            profiles.c.number > bindparam("behind", type_=Integer()),
            profiles.c.dispatched_at.is_(None),
            profiles.c.finished_at.is_(None),
            or_(profiles.c.not_before.is_(None), profiles.c.not_before <= now()),
        )
        .order_by(profiles.c.number)
        .limit(bindparam("limit", type_=Integer()))
    )
    moved = (
        update(profiles)
        .where(
            batches.c.id == BATCH,
            batches.c.state == BatchState.RUNNING,
            batches.c.rewritten == batches.c.generation,
            profiles.c.batch_id == batches.c.id,
            among(dialect, due),
            profiles.c.state == ProfileState.PENDING,
            LEADS,
        )
        .values(
            state=ProfileState.DISPATCHED,
            generation=batches.c.generation,
            attempts=case((profiles.c.pass_number == batches.c.pass_number, profiles.c.attempts), else_=0),
            pass_number=batches.c.pass_number,
            republished=0,
            not_before=null(),
            dispatched_at=AT_ONCE,
        )
        .returning(*DISPATCHED)
    )
    return _with_dispatch_counted(moved.cte("moved")) if dialect == "postgresql" else moved


def dispatch_of(batch: CTE, limit: ColumnElement[int]) -> ReturningUpdate[Any]:
    """As `dispatch` on PostgreSQL, for the batch that another part of the same statement has locked and promoted."""
    due = (
        select(profiles.c.number)
        .where(
            profiles.c.batch_id == select(batch.c.id).scalar_subquery(),
            profiles.c.dispatched_at.is_(None),
            profiles.c.finished_at.is_(None),
            or_(profiles.c.not_before.is_(None), profiles.c.not_before <= now()),
        )
        .order_by(profiles.c.number)
        .limit(limit)
    )
    return (
        update(profiles)
        .where(
            profiles.c.batch_id == batch.c.id,
            batch.c.rewritten == batch.c.generation,
            among("postgresql", due),
            profiles.c.state == ProfileState.PENDING,
        )
        .values(
            state=ProfileState.DISPATCHED,
            generation=batch.c.generation,
            attempts=case((profiles.c.pass_number == batch.c.pass_number, profiles.c.attempts), else_=0),
            pass_number=batch.c.pass_number,
            republished=0,
            not_before=null(),
            dispatched_at=AT_ONCE,
        )
        .returning(*DISPATCHED)
    )


def _with_dispatch_counted(moved: CTE) -> Select[Any]:
    number = select(BATCH.label("batch_id"), func.count().label("moved")).select_from(moved)
    tally = number.having(UNFLUSHED).subquery("tally")
    counted = (
        update(counters)
        .where(counters.c.batch_id == tally.c.batch_id, counters.c.worker_id == WRITER, tally.c.moved > 0)
        .values(pending=counters.c.pending - tally.c.moved, dispatched=counters.c.dispatched + tally.c.moved)
    )
    return select(moved).add_cte(counted.cte("counted"))


# --- claim

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
    offers = _materialized(
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
        .where(counters.c.batch_id == tally.c.batch_id, _OURS)
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
    offers = _materialized(select(given).order_by(given.c.number), "offers")
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


# --- settle

_RUNS: dict[str, TypeEngine[Any]] = {"batch_id": Identifier(), "number": Integer(), "run": Integer()}

#: What travels for a group in which everything succeeded: by far the most of all.
SUCCESSES: dict[str, TypeEngine[Any]] = {**_RUNS, "result": Text()}

#: What travels for any other group.
OUTCOMES: dict[str, TypeEngine[Any]] = {
    **SUCCESSES,
    "state": String(12),
    "label": String(12),
    "pass_number": Integer(),
    "attempt": SmallInteger(),
    "error": Text(),
    "fingerprint": String(16),
    "delay": Double(),
    "charge": SmallInteger(),
    "losses": SmallInteger(),
    "aborts": SmallInteger(),
}

#: What each success has in the columns that do not travel for it.
_SUCCESS: dict[str, ColumnElement[Any]] = {
    "state": literal(ProfileState.SUCCEEDED.value, String(12)),
    "label": literal(ProfileState.SUCCEEDED.value, String(12)),
    "pass_number": null(),
    "attempt": null(),
    "error": null(),
    "fingerprint": null(),
    "delay": null(),
    "charge": literal(1, SmallInteger()),
    "losses": literal(0, SmallInteger()),
    "aborts": literal(0, SmallInteger()),
}


@lru_cache
def settle(dialect: str, *, successes: bool) -> Select[Any] | Update:
    """Running -> a terminal state or pending, for `outcomes`; takes `wanted` (their batches), `holder` and `writer`.

    On PostgreSQL it returns what is out of the ordinary: the places of late outcomes, and of those whose batch stops.
    On SQLite it returns the rows that moved.
    """
    outcomes = _outcomes(dialect, successes=successes)
    moved = _settled(outcomes)
    if dialect != "postgresql":
        return moved.returning(
            profiles.c.batch_id, profiles.c.number, profiles.c.run, profiles.c.state, profiles.c.started_at
        )
    told = [each for each in outcomes.c if each.key not in _UNTOLD]
    return _with_settlements_counted(moved.returning(*told, profiles.c.started_at).cte("moved"), outcomes, successes)


#: The columns of an outcome that nobody asks for once it is applied.
_UNTOLD = frozenset({"result", "generation", "stopping", "charge", "losses", "delay"})


def _with_settlements_counted(moved: CTE, outcomes: CTE, successes: bool) -> Select[Any]:
    """Count, remember, and return what is out of the ordinary; without a join.

    PostgreSQL believes that an UPDATE returns one row, and would compare each outcome with each row that moved.
    """
    each = union_all(
        select(outcomes.c.place, outcomes.c.stopping), select(moved.c.place, literal(value=False))
    ).subquery("each")
    late = func.count() == 1
    unusual = (
        select(each.c.place, func.bool_or(each.c.stopping).label("stopping"), late.label("late"))
        .group_by(each.c.place)
        .having(or_(late, func.bool_or(each.c.stopping)))
        .add_cte(_settlements_counted(moved, outcomes).cte("counted"))
    )
    return unusual if successes else unusual.add_cte(_attempts_remembered(moved))


def _outcomes(dialect: str, *, successes: bool) -> CTE:
    """The outcomes with where they really go: what would wait again in a batch that is cancelled or expires, ends."""
    given = parameter_rows(dialect, "outcomes", SUCCESSES if successes else OUTCOMES)
    facts = {name: _SUCCESS[name] if successes else given.c[name] for name in OUTCOMES if name not in SUCCESSES}
    state = facts.pop("state")
    stopping = batches.c.state == BatchState.STOPPING
    ends = and_(
        state == ProfileState.PENDING.value,
        stopping,
        or_(batches.c.target == StopTarget.CANCELLED, batches.c.target == StopTarget.EXPIRED),
    )
    return _materialized(
        select(
            *(given.c[name] for name in (*SUCCESSES, "place")),
            *(fact.label(name) for name, fact in facts.items()),
            state.label("wanted"),
            (state if successes else case((ends, batches.c.target), else_=state)).label("state"),
            batches.c.generation,
            stopping.label("stopping"),
        )
        .join(batches, batches.c.id == given.c.batch_id)
        .where(is_among(dialect, batches.c.id, "wanted"))
        .order_by(given.c.batch_id, given.c.number),
        "outcomes",
    )


def _settled(outcomes: CTE) -> Update:
    waits = outcomes.c.state == ProfileState.PENDING.value
    fingerprint = func.coalesce(outcomes.c.fingerprint, "unknown")
    return (
        update(profiles)
        .where(
            profiles.c.batch_id == outcomes.c.batch_id,
            profiles.c.number == outcomes.c.number,
            profiles.c.run == outcomes.c.run,
            profiles.c.state == ProfileState.RUNNING,
            profiles.c.worker_id == HOLDER,
        )
        .values(
            state=outcomes.c.state,
            generation=outcomes.c.generation,
            result=outcomes.c.result,
            error=outcomes.c.error,
            fingerprint=case((outcomes.c.state == ProfileState.FAILED.value, fingerprint), else_=null()),
            attempts=profiles.c.attempts + outcomes.c.charge,
            losses=case((outcomes.c.charge == 1, 0), else_=profiles.c.losses + outcomes.c.losses),
            not_before=case((waits, later(outcomes.c.delay)), else_=null()),
            dispatched_at=null(),
            worker_id=case((waits, null()), else_=profiles.c.worker_id),
            finished_at=case((waits, null()), else_=AT_ONCE),
        )
    )


def _settlements_counted(moved: CTE, outcomes: CTE) -> Update:
    ends = union_all(
        select(outcomes.c.batch_id, literal(None, String(12)).label("state"), literal(0, Integer()).label("aborts")),
        select(moved.c.batch_id, moved.c.state, moved.c.aborts),
    ).subquery("ends")
    states = [ProfileState.PENDING, *TERMINAL_PROFILE_STATES]
    applied = func.count(ends.c.state)
    tally = (
        select(
            ends.c.batch_id,
            applied.label("applied"),
            (func.count() - 2 * applied).label("late"),
            func.sum(ends.c.aborts).label("aborts"),
            *(func.count().filter(ends.c.state == state.value).label(state.value) for state in states),
        )
        .group_by(ends.c.batch_id)
        .subquery("tally")
    )
    return (
        update(counters)
        .where(counters.c.batch_id == tally.c.batch_id, _OURS)
        .values(
            {name: counters.c[name] + tally.c[name] for name in (*(state.value for state in states), "late", "aborts")}
            | {"running": counters.c.running - tally.c.applied}
        )
    )


def _attempts_remembered(moved: CTE) -> CTE:
    """A success is the profile's own row; every other end of a run is kept in `attempts`."""
    names = ("batch_id", "number", "run", "pass_number", "attempt", "started_at", "error", "fingerprint")
    facts = {
        **{name: moved.c[name] for name in names},
        "outcome": case((moved.c.state == moved.c.wanted, moved.c.label), else_=moved.c.state),
        "worker_id": HOLDER,
    }
    ended = select(*facts.values()).where(moved.c.state != ProfileState.SUCCEEDED.value)
    return insert(attempts).from_select(list(facts), ended).cte("remembered")


def _materialized(rows: Select[Any], name: str) -> CTE:
    return rows.cte(name).prefix_with("MATERIALIZED", dialect="postgresql")
