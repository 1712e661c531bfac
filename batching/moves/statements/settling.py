"""Running -> a terminal state, or pending again."""

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
    case,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    union_all,
    update,
)

from batching.dialects import Identifier, later
from batching.models import attempts, batches, counters, profiles
from batching.moves.statements.shared import AT_ONCE, HOLDER, OURS, UNKNOWN, materialized
from batching.parameters import is_among, parameter_rows
from batching.states import TERMINAL_PROFILE_STATES, BatchState, ProfileState, StopTarget

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.types import TypeEngine

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
    return materialized(
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
    fingerprint = func.coalesce(outcomes.c.fingerprint, UNKNOWN)
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
        .where(counters.c.batch_id == tally.c.batch_id, OURS)
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
