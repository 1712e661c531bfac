"""What failed in a batch, by what went wrong; and what became of it in the next pass: fixed, the same again, new."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import Subquery, and_, func, literal, select

from batching.errors import InvalidInputError
from batching.models import attempts, batches, history, profiles
from batching.moves.bulk import failures_since, younger_moves
from batching.states import UNSETTLED_PROFILE_STATES, BatchState, ProfileState, effective_state
from batching.statistics.views import FailureChange, FailureGroup, short_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

_EXAMPLES = 5
#: Groups whose examples are read one by one; with more, all failures are walked.
_FEW_GROUPS = 200
_WAITS = frozenset(UNSETTLED_PROFILE_STATES)


def read_failures(connection: Connection, batch_id: str, pass_number: int | None = None) -> list[FailureGroup]:
    """The failed profiles of one pass by fingerprint, the largest group first; of the present one by default.

    Raises:
        InvalidInputError: The batch has not come to that pass.
    """
    present = _present(connection, batch_id)
    _check(batch_id, pass_number or present, present)
    if pass_number is None or pass_number == present:
        return _of_the_present(connection, batch_id)
    return _in_one_walk(connection, _ended(batch_id, pass_number))


def _of_the_present(connection: Connection, batch_id: str) -> list[FailureGroup]:
    """Counted through the index of failures, without their errors; of each group, those of the examples are read then.

    A million failures have a gigabyte of tracebacks, which the one walk would carry along.
    """
    failed = _failed_now(connection, batch_id)
    counted = connection.execute(
        select(failed.c.fingerprint, func.count().label("failed")).group_by(failed.c.fingerprint)
    ).all()
    if len(counted) > _FEW_GROUPS:
        return _in_one_walk(connection, failed)
    found = []
    for group in sorted(counted, key=lambda each: (-each.failed, each.fingerprint)):
        examples = select(failed, literal(group.failed).label("count")).where(failed.c.fingerprint == group.fingerprint)
        rows = connection.execute(examples.order_by(failed.c.number).limit(_EXAMPLES)).all()
        found.append(_as_group(group.fingerprint, rows))
    return found


def _in_one_walk(connection: Connection, failed: Subquery) -> list[FailureGroup]:
    chosen = select(
        failed,
        func.count().over(partition_by=failed.c.fingerprint).label("count"),
        func.row_number().over(partition_by=failed.c.fingerprint, order_by=failed.c.number).label("nth"),
    ).subquery()
    groups: dict[str, list[Any]] = {}
    for row in connection.execute(select(chosen).where(chosen.c.nth <= _EXAMPLES).order_by(chosen.c.number)):
        groups.setdefault(row.fingerprint, []).append(row)
    found = [_as_group(fingerprint, rows) for fingerprint, rows in groups.items()]
    return sorted(found, key=lambda group: (-group.count, group.fingerprint))


def _as_group(fingerprint: str, rows: Sequence[Any]) -> FailureGroup:
    error = short_error(rows[0].error) or {"type": "", "message": ""}
    return FailureGroup(
        fingerprint=fingerprint,
        type=error["type"],
        message=error["message"],
        count=int(rows[0].count),
        keys=tuple(row.key for row in rows),
    )


def compare_failures(connection: Connection, batch_id: str, pass_number: int | None) -> tuple[int, list[FailureChange]]:
    """The failures of a pass against those of the pass before, by fingerprint, the most frequent first.

    Args:
        connection: In a read transaction.
        batch_id: The batch.
        pass_number: The later pass; by default the last that has begun.

    Returns:
        The later pass, and the changes.

    Raises:
        InvalidInputError: The batch has not come to that pass, or there is none before it.
    """
    present = _present(connection, batch_id)
    later = _begun(connection, batch_id) if pass_number is None else pass_number
    _check(batch_id, later, present)
    if later < 2:
        raise InvalidInputError(f"cannot compare pass 1 of batch {batch_id}: there is no pass before it")
    now = _failed_now(connection, batch_id) if later == present else _ended(batch_id, later)
    return later, _changes(connection, batch_id, _ended(batch_id, later - 1), now)


def _present(connection: Connection, batch_id: str) -> int:
    return int(connection.scalar(select(batches.c.pass_number).where(batches.c.id == batch_id)) or 1)


def _begun(connection: Connection, batch_id: str) -> int:
    begun = select(func.max(history.c.pass_number)).where(
        history.c.batch_id == batch_id, history.c.to_state == BatchState.RUNNING
    )
    return int(connection.scalar(begun) or 1)


def _check(batch_id: str, pass_number: int, present: int) -> None:
    if not 1 <= pass_number <= present:
        raise InvalidInputError(f"cannot show pass {pass_number} of batch {batch_id}: it is in pass {present}")


def _ended(batch_id: str, pass_number: int) -> Subquery:
    """The failures of a pass that is over, from the history of runs: the last of each profile in it."""
    nth = func.row_number().over(partition_by=attempts.c.number, order_by=attempts.c.run.desc()).label("nth")
    runs = (
        select(attempts.c.number, attempts.c.fingerprint, attempts.c.error, attempts.c.outcome, nth)
        .where(attempts.c.batch_id == batch_id, attempts.c.pass_number == pass_number)
        .subquery()
    )
    return (
        select(runs.c.number, runs.c.fingerprint, runs.c.error, profiles.c.key)
        .join(profiles, and_(profiles.c.batch_id == batch_id, profiles.c.number == runs.c.number))
        .where(runs.c.nth == 1, runs.c.outcome == ProfileState.FAILED)
        .subquery()
    )


def _failed_now(connection: Connection, batch_id: str) -> Subquery:
    """The failures of the present pass, from the profiles themselves."""
    return (
        select(profiles.c.number, profiles.c.fingerprint, profiles.c.error, profiles.c.key)
        .where(
            profiles.c.batch_id == batch_id,
            profiles.c.fingerprint.is_not(None),
            profiles.c.state == ProfileState.FAILED,
            profiles.c.generation >= failures_since(connection, batch_id),
        )
        .subquery()
    )


def _changes(connection: Connection, batch_id: str, earlier: Subquery, later: Subquery) -> list[FailureChange]:
    before, now = earlier.alias("before"), later.alias("now")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    examples: dict[str, Any] = {}
    moves = younger_moves(connection, batch_id)
    fates = connection.execute(
        select(
            before.c.fingerprint.label("was"),
            now.c.fingerprint.label("is_now"),
            profiles.c.state,
            profiles.c.generation,
            func.count().label("number"),
            func.min(before.c.error).label("error"),
        )
        .select_from(before.outerjoin(now, now.c.number == before.c.number))
        .join(profiles, and_(profiles.c.batch_id == batch_id, profiles.c.number == before.c.number))
        .group_by(before.c.fingerprint, now.c.fingerprint, profiles.c.state, profiles.c.generation)
    )
    for row in fates:
        younger = tuple(move for number, move in moves.items() if number > row.generation)
        fate = _fate(row.was, row.is_now, effective_state(ProfileState(row.state), younger))
        counts[row.was].update({"before": row.number, fate: row.number})
        examples.setdefault(row.was, row.error)
    found = select(
        now.c.fingerprint,
        func.count().label("number"),
        func.count(before.c.number).label("known"),
        func.min(now.c.error).label("error"),
    ).select_from(now.outerjoin(before, before.c.number == now.c.number))
    for row in connection.execute(found.group_by(now.c.fingerprint)):
        counts[row.fingerprint].update({"now": row.number, "new": row.number - row.known})
        examples.setdefault(row.fingerprint, row.error)
    order = sorted(counts, key=lambda each: (-counts[each]["before"] - counts[each]["now"], each))
    return [_as_change(each, counts[each], examples[each]) for each in order]


def _fate(was: str, is_now: str | None, state: ProfileState) -> str:
    if is_now is not None:
        return "same" if is_now == was else "changed"
    return "waiting" if state in _WAITS else "fixed"


def _as_change(fingerprint: str, counted: Counter[str], error: str | None) -> FailureChange:
    known = short_error(error) or {"type": "", "message": ""}
    names = ("before", "now", "fixed", "same", "changed", "waiting", "new")
    return FailureChange(
        fingerprint or "unknown", known["type"], known["message"], **{name: counted[name] for name in names}
    )
