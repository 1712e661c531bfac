"""Whether a pass has failed: what failed in it, by class where the options ask for that, against what it may."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from batching.dialects import error_type
from batching.models import profiles
from batching.moves.bulk import failures_since
from batching.moves.statements import UNKNOWN
from batching.policies import least_allowed, overspent
from batching.states import ProfileState

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from batching.moves.counters import Counts
    from batching.moves.rows import BatchRow


#: Errors that are read with one statement, each with a parameter of its own.
_AT_ONCE: Final = 500


def may_be_spent(batch: BatchRow, counts: Counts) -> bool:
    """Whether the pass may have failed, from the counters alone; for certain, unless there are budgets by class."""
    return counts.aborts > 0 or counts.failed > least_allowed(batch.options, _total(batch))


def verdict(connection: Connection, batch: BatchRow, counts: Counts) -> str | None:
    """Why the pass has failed, for the history and for people; None: it has not.

    The failures are counted by class only when the smallest budget is used up: no row that everybody writes keeps
    counters by class, and a batch without such budgets asks nothing.
    """
    if not may_be_spent(batch, counts):
        return None
    failed = f"{counts.failed:,} {_profiles(counts.failed)} failed"
    if counts.aborts:
        return f"pass {batch.pass_number} failed: a handler raised FailBatch; {failed}"
    by_class = count_by_class(connection, batch.id) if batch.options.failure_budgets else {"": counts.failed}
    spent = overspent(batch.options, _total(batch), by_class)
    if spent is None:
        return None
    failed = f"{spent.failed:,} {_profiles(spent.failed)} failed"
    return f"pass {batch.pass_number} failed: {failed}{spent.where}, {spent.allowed:,} allowed"


def count_by_class(connection: Connection, batch_id: str) -> dict[str, int]:
    """Failed profiles of the present pass by the class of their error; through the index of failures.

    A fingerprint is of one class (`workers/failures.py`), so that one error of each has to be read, and not each with
    its traceback: whoever settles a failure near its budget waits for this.
    """
    failed = (
        profiles.c.batch_id == batch_id,
        profiles.c.fingerprint.is_not(None),
        profiles.c.state == ProfileState.FAILED,
        profiles.c.generation >= failures_since(connection, batch_id),
    )
    groups = connection.execute(
        select(func.min(profiles.c.number), func.count())
        .where(*failed, profiles.c.fingerprint != UNKNOWN)
        .group_by(profiles.c.fingerprint)
    ).all()
    kind = error_type(profiles.c.error)
    found: Counter[str] = Counter()
    for start in range(0, len(groups), _AT_ONCE):
        numbers: dict[int, int] = dict(tuple(row) for row in groups[start : start + _AT_ONCE])
        one_of_each = profiles.c.number.in_(numbers)
        for number, name in connection.execute(select(profiles.c.number, kind).where(*failed, one_of_each)):
            found[name or ""] += numbers[number]
    rest = select(kind, func.count()).where(*failed, profiles.c.fingerprint == UNKNOWN).group_by(kind)
    for name, number in connection.execute(rest):
        found[name or ""] += number
    return dict(found)


def _total(batch: BatchRow) -> int:
    """What a ratio is one of: the sealed total. No number of failures is too large a share of what is still open."""
    return batch.total if batch.sealed else sys.maxsize


def _profiles(number: int) -> str:
    return "profile" if number == 1 else "profiles"
