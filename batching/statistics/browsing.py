"""Profiles of one batch page by page: searched, and filtered by effective state, at a cost that its size does not set.

A page goes on where the one before ended (keyset), through an index that is there for something else anyway:

- without a filter by number, which is the primary key;
- what waits, what is in flight and what failed each through its own partial index, failures by fingerprint;
- a key, and the keys that begin with it, through the unique index of keys.

Nothing leads to the other states (of a batch that went well they are nearly all, so the first look finds a page of
them), nor to any state while a bulk move is not written into the rows. There the batch is walked in steps, and a page
ends after `MOST_LOOKED_AT` rows, full or not, and says how far it came.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import ColumnElement, and_, func, null, or_, select, text, tuple_

from batching.errors import InvalidInputError, UnknownBatchError
from batching.models import batches, profiles
from batching.moves.bulk import younger_moves
from batching.moves.counters import read_many
from batching.states import TERMINAL_PROFILE_STATES, ProfileState, effective_state
from batching.statistics.profile_reads import as_result
from batching.statistics.views import _AsJSON

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from datetime import datetime

    from sqlalchemy import Connection, Select

    from batching.states import BulkMove

#: Rows that one statement looks at where no index leads, and that one page does.
STEP: Final = 10_000
MOST_LOOKED_AT: Final = 1_000_000

#: Word for word as in the indexes (`models/profile.py`): SQLite uses a partial one only for a condition that it finds.
_WAITING = text("dispatched_at IS NULL AND finished_at IS NULL")
_IN_FLIGHT = text("dispatched_at IS NOT NULL")
_FAILED = text("fingerprint IS NOT NULL")
_MOVING = frozenset({ProfileState.DISPATCHED, ProfileState.RUNNING})

PROFILE_COLUMNS: Final = (
    *(
        profiles.c[name]
        for name in (
            "number",
            "key",
            "state",
            "generation",
            "run",
            "pass_number",
            "attempts",
            "losses",
            "worker_id",
            "not_before",
            "started_at",
            "finished_at",
            "error",
            "fingerprint",
        )
    ),
    null().label("result"),
)


@dataclass(frozen=True, slots=True)
class ProfileView(_AsJSON):
    """One profile in a list: what it is, and how far it got; payload and result are `Statistics.profile`'s."""

    number: int
    """Counts from 1 in the order of submission."""
    key: str
    state: ProfileState
    attempts: int
    """Attempts used in this pass."""
    run: int
    """How often it was claimed."""
    losses: int
    """Workers or pool children that died under it since it last ended by itself."""
    worker_id: str | None
    """Who runs it, or ran it last."""
    not_before: datetime | None
    """When its next attempt is due, while it waits for that."""
    started_at: datetime | None
    finished_at: datetime | None
    error: dict[str, str] | None
    """`type`, `message` and `fingerprint` of what ended it."""


class ProfilePage(NamedTuple):
    """A stretch of profiles."""

    profiles: list[ProfileView]
    after: str | None
    """Where the next page begins; None: there is none."""
    looked_at: int | None = None
    """The page is not full because so many rows were looked at for it; more may follow."""


class _Batch(NamedTuple):
    """What is read of the batch first."""

    id: str
    pass_number: int
    moves: dict[int, BulkMove]
    written: bool
    """Whether every bulk move is in the rows, so that the indexes by state lead to what they are of."""


class _Wanted(NamedTuple):
    """The filter of one page."""

    batch: _Batch
    states: tuple[ProfileState, ...]
    fingerprint: str | None
    limit: int

    @property
    def condition(self) -> ColumnElement[bool]:
        """On a row: that it is read as one of the states."""
        found = [profiles.c.batch_id == self.batch.id]
        if self.states:
            found.append(reads_as(self.states, self.batch.moves))
        if self.fingerprint is not None:
            found.append(profiles.c.fingerprint == self.fingerprint)
        return and_(*found)


def read_profiles(
    connection: Connection,
    batch_id: str,
    *,
    states: Collection[ProfileState] | None = None,
    key: str | None = None,
    fingerprint: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> ProfilePage:
    """A page of a batch's profiles.

    Args:
        connection: In a read transaction.
        batch_id: The batch, by its whole id.
        states: Only those that are in one of these states now; None or nothing for all.
        key: Only those whose keys begin so; the one that has this very key is first.
        fingerprint: Only those that failed so in the present pass.
        after: Where the page before ended.
        limit: Profiles in a page.

    Returns:
        By number; with `key` in the order of keys; failures alone (or a fingerprint) by fingerprint and number.

    Raises:
        UnknownBatchError: The batch was deleted meanwhile.
        InvalidInputError: Nothing can go on after such a text, or the filters contradict each other.
    """
    batch = _read_batch(connection, batch_id)
    chosen = tuple(ProfileState(state) for state in states or ())
    if fingerprint is not None:
        if chosen and ProfileState.FAILED not in chosen:
            raise InvalidInputError("only failed profiles have a fingerprint; leave out the states, or name `failed`")
        chosen = (ProfileState.FAILED,)
    wanted = _Wanted(batch, chosen, fingerprint, limit)
    if not _is_there(connection, wanted):
        return ProfilePage([], None)
    if key:
        return _by_key(connection, wanted, key, _cursor(after, "k"))
    direct = _leading(wanted)
    if direct is None:
        return _by_number(connection, wanted, int(_cursor(after, "n") or 0))
    if direct is _FAILED:
        return _failures(connection, wanted, _cursor(after, "f"))
    beyond = profiles.c.number > int(_cursor(after, "n") or 0)
    rows = connection.execute(_select(wanted, direct, beyond).order_by(profiles.c.number).limit(limit + 1)).all()
    return _page(wanted, rows, lambda row: f"n:{row.number}")


def reads_as(states: Collection[ProfileState], moves: Mapping[int, BulkMove]) -> ColumnElement[bool]:
    """The condition under which a stored row is read as one of these states, through bulk moves that are younger.

    Args:
        states: The effective states.
        moves: Of the batch, by generation, the oldest first.
    """
    # A row of generation g is read through the moves above g, so what it is read as changes only at their numbers.
    starts = [0, *moves]
    found, plain = [], []
    for stored in ProfileState:
        fits = [
            effective_state(stored, tuple(move for number, move in moves.items() if number > start)) in states
            for start in starts
        ]
        if all(fits):
            plain.append(stored.value)
        elif any(fits):
            found += [and_(profiles.c.state == stored.value, span) for span in _spans(starts, fits)]
    if plain:
        found.append(profiles.c.state.in_(plain))
    return or_(*found)


def _spans(starts: list[int], fits: list[bool]) -> Iterator[ColumnElement[bool]]:
    """Ranges of generations: neighbours that fit are one."""
    low: int | None = None
    for start, fit in zip(starts, fits, strict=True):
        if fit and low is None:
            low = start
        elif not fit and low is not None:
            yield and_(profiles.c.generation >= low, profiles.c.generation < start)
            low = None
    if low is not None:
        yield profiles.c.generation >= low


def _read_batch(connection: Connection, batch_id: str) -> _Batch:
    row = connection.execute(
        select(batches.c.pass_number, (batches.c.rewritten == batches.c.generation).label("written")).where(
            batches.c.id == batch_id
        )
    ).one_or_none()
    if row is None:
        raise UnknownBatchError(f"cannot read profiles of batch {batch_id}: it was deleted meanwhile")
    return _Batch(batch_id, row.pass_number, younger_moves(connection, batch_id), bool(row.written))


def _is_there(connection: Connection, wanted: _Wanted) -> bool:
    """Whether the counters know of any such profile: to find none would cost the most."""
    if not wanted.states:
        return True
    counts = read_many(connection, [wanted.batch.id])[wanted.batch.id]
    return any(counts.of(state) for state in wanted.states)


def _leading(wanted: _Wanted) -> Any:
    """The condition of the partial index that holds what is wanted, and little else; None: there is none."""
    if not wanted.batch.written or not wanted.states:
        return None
    if wanted.states == (ProfileState.FAILED,):
        return _FAILED
    if wanted.states == (ProfileState.PENDING,):
        return _WAITING
    return _IN_FLIGHT if _MOVING.issuperset(wanted.states) else None


def _select(wanted: _Wanted, *conditions: Any) -> Select[Any]:
    return select(*PROFILE_COLUMNS).where(wanted.condition, *conditions)


def _failures(connection: Connection, wanted: _Wanted, cursor: str | None) -> ProfilePage:
    order = (profiles.c.fingerprint, profiles.c.number)
    query = _select(wanted, _FAILED)
    if cursor is not None:
        fingerprint, _, number = cursor.rpartition(":")
        query = query.where(tuple_(*order) > tuple_(fingerprint, _whole(number)))
    rows = connection.execute(query.order_by(*order).limit(wanted.limit + 1)).all()
    return _page(wanted, rows, lambda row: f"f:{row.fingerprint}:{row.number}")


def _by_number(connection: Connection, wanted: _Wanted, after: int) -> ProfilePage:
    """Walk the primary key. Numbers leave no gaps, so a range of them is a bound on rows."""
    if not wanted.states:
        query = _select(wanted, profiles.c.number > after)
        rows: list[Any] = list(connection.execute(query.order_by(profiles.c.number).limit(wanted.limit + 1)))
        return _page(wanted, rows, lambda row: f"n:{row.number}")
    last = connection.scalar(select(func.max(profiles.c.number)).where(profiles.c.batch_id == wanted.batch.id)) or 0
    begun, rows = after, []
    while after < last and len(rows) <= wanted.limit:
        if after - begun >= MOST_LOOKED_AT:
            return ProfilePage(_views(wanted, rows), f"n:{after}", after - begun)
        step = _select(wanted, profiles.c.number > after, profiles.c.number <= after + STEP)
        rows += connection.execute(step.order_by(profiles.c.number).limit(wanted.limit + 1 - len(rows)))
        after += STEP
    return _page(wanted, rows, lambda row: f"n:{row.number}")


def _by_key(connection: Connection, wanted: _Wanted, prefix: str, cursor: str | None) -> ProfilePage:
    """The profile with this key, then those whose keys begin so.

    Keys are walked in the order of the index, which is that of the database's collation, and may put others between
    those that begin so; what begins so is then decided character by character. The walk ends with a step in which none
    does: in no collation do such keys lie further apart unless they differ by case and punctuation alone.
    """
    exact: list[Any] = []
    if cursor is None:
        exact = list(connection.execute(_select(wanted, profiles.c.key == prefix)))
    own = profiles.c.batch_id == wanted.batch.id
    begins = func.substr(profiles.c.key, 1, len(prefix)) == prefix
    after, looked, rows = cursor, 0, exact
    while len(rows) <= wanted.limit:
        if looked >= MOST_LOOKED_AT:
            return ProfilePage(_views(wanted, rows), f"k:{after}", looked)
        start = profiles.c.key >= prefix if after is None else profiles.c.key > after
        window = select(profiles.c.key, begins.label("begins")).where(own, start).order_by(profiles.c.key).limit(STEP)
        seen = window.subquery()
        last, matching = connection.execute(
            select(func.max(seen.c.key), func.count().filter(seen.c.begins)).select_from(seen)
        ).one()
        if not matching:
            break
        step = _select(wanted, start, profiles.c.key <= last, begins, profiles.c.key != prefix)
        rows += connection.execute(step.order_by(profiles.c.key).limit(wanted.limit + 1 - len(rows)))
        after, looked = last, looked + STEP
    return _page(wanted, rows, lambda row: f"k:{row.key}")


def _page(wanted: _Wanted, rows: list[Any] | Any, cursor: Any) -> ProfilePage:
    shown = rows[: wanted.limit]
    return ProfilePage(_views(wanted, shown), cursor(shown[-1]) if len(rows) > wanted.limit else None)


def _views(wanted: _Wanted, rows: list[Any]) -> list[ProfileView]:
    return [as_profile(row, wanted.batch.moves, wanted.batch.pass_number) for row in rows]


def as_profile(row: Any, moves: Mapping[int, BulkMove], pass_number: int) -> ProfileView:
    """A stored row as it is read through younger bulk moves, in the batch's present pass."""
    line = as_result(row, moves, pass_number)
    waits = line.state is ProfileState.PENDING
    ended = line.state in TERMINAL_PROFILE_STATES
    return ProfileView(
        number=row.number,
        key=row.key,
        state=line.state,
        attempts=line.attempts,
        run=row.run,
        losses=row.losses,
        worker_id=row.worker_id,
        not_before=row.not_before if waits else None,
        started_at=None if waits else row.started_at,
        finished_at=row.finished_at if ended else None,
        error=line.error,
    )


def _cursor(after: str | None, kind: str) -> str | None:
    """What a cursor of this kind goes on after; None: from the beginning.

    Raises:
        InvalidInputError: It is of another kind of page, or none at all.
    """
    if after is None or after == "":
        return None
    found, _, rest = after.partition(":")
    if found != kind or not rest or (kind == "n" and not _is_number(rest)):
        raise InvalidInputError(f"cannot go on after {after!r}: it is not the end of a page with these filters")
    return rest


def _whole(digits: str) -> int:
    if not _is_number(digits):
        raise InvalidInputError(f"cannot go on after {digits!r}: it is not the end of a page with these filters")
    return int(digits)


def _is_number(digits: str) -> bool:
    return digits.isascii() and digits.isdigit() and len(digits) <= 10
