"""Preflight: what would become of a submission, without writing any of it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from batching.encoding import not_acceptable
from batching.errors import InvalidInputError
from batching.intake import Limits, Source, from_iterable
from batching.moves.advertising import schema_of
from batching.moves.submission import find_key
from batching.schemas import Check, local_check, schema_check
from batching.specification import check_spec
from batching.statistics.line import read_workers
from batching.statistics.pace import Pace, measured_pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from batching.database import Database
    from batching.options import BatchSpec, ProfileInput

#: Problems that are told one by one.
_TOLD = 20


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found. Nothing was written."""

    ok: bool
    handler: str
    queue: str
    profiles: int
    """Profiles read; up to the first that cannot be read, when there is one."""
    bytes: int
    """Of all payloads, as they would be stored."""
    checked_by: str
    """What payloads were checked against, or why they were not."""
    workers: int
    """Live workers that take profiles of this handler from this queue."""
    slots: int
    """Profiles that those can run at once."""
    batch_id: str | None
    """The batch that the key names already: the profiles would be compared with it, not submitted."""
    estimated_seconds: float | None
    """From its start to its end; None: unknown."""
    basis: str
    """What the estimate rests on, or why there is none."""
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self) | {"problems": list(self.problems)}


def check_for(database: Database, handler: str) -> Check:
    """How payloads of a handler can be checked here: by its own code, else by what its workers advertise."""
    here = local_check(handler)
    if here is not None:
        return here
    with database.read() as reading:
        schema = schema_of(reading, handler)
    if schema is None:
        return Check(f"payloads are not checked: no worker has advertised a schema for handler {handler}", None)
    return schema_check(handler, schema)


def required(check: Check) -> Callable[[ProfileInput, str], None] | None:
    """A check that refuses the first payload with a flaw, for a submission that reads its source once."""
    flaws = check.flaws
    if flaws is None:
        return None

    def inspect(profile: ProfileInput, where: str) -> None:
        if found := flaws(json.loads(profile.payload)):
            raise not_acceptable(where, f"profile {profile.key!r}: {'; '.join(found)}")

    return inspect


def unserved(handler: str, queue: str) -> str:
    """That nobody would run it."""
    return (
        f"no live worker serves handler {handler} in queue {queue}; start one that imports it, or submit all the same: "
        "the batch waits for one"
    )


def workers_of(database: Database, spec: BatchSpec, lease: float) -> tuple[int, int]:
    """The live workers of a lane, and their slots."""
    with database.read() as reading:
        serving = [each for each in read_workers(reading, lease) if each.serves(spec.queue, spec.handler)]
    return len(serving), sum(each.slots for each in serving)


def checked(database: Database, spec: BatchSpec, profiles: Iterable[Any], limits: Limits, lease: float) -> Source:
    """A stream for a submission that refuses the first payload which the handler does not take.

    Raises:
        InvalidInputError: No live worker serves the handler.
    """
    check_spec(spec, limits)
    if not workers_of(database, spec, lease)[0]:
        raise InvalidInputError(f"cannot submit: {unserved(spec.handler, spec.queue)}")
    source = profiles if isinstance(profiles, Source) else from_iterable(profiles, limits)
    source.inspect = required(check_for(database, spec.handler))
    return source


def examine(database: Database, spec: BatchSpec, profiles: Iterable[Any], limits: Limits, lease: float) -> Preflight:
    """Read all of a submission, in constant memory, and judge it.

    Args:
        database: Asked for workers, schemas, rates and the key; never written to.
        spec: What would be asked for.
        profiles: As for `submit`.
        limits: Of keys and payloads.
        lease: Seconds; of a worker.
    """
    problems: list[str] = []
    try:
        check_spec(spec, limits)
    except InvalidInputError as error:
        problems.append(str(error))
    check = check_for(database, spec.handler)
    count, size = _read(profiles, limits, check, problems)
    if not count:
        problems.append("there is no profile in it")
    workers, slots = workers_of(database, spec, lease)
    if not workers:
        problems.append(unserved(spec.handler, spec.queue))
    with database.read() as reading:
        pace = measured_pace(reading, spec.handler)
        held = None if spec.key is None or spec.replace_key else find_key(reading, spec.queue, spec.key)
    seconds, basis = _estimate(count, workers, pace)
    return Preflight(
        ok=not problems,
        handler=spec.handler,
        queue=spec.queue,
        profiles=count,
        bytes=size,
        checked_by=check.basis,
        workers=workers,
        slots=slots,
        batch_id=None if held is None else held.id,
        estimated_seconds=seconds,
        basis=basis,
        problems=tuple(problems),
    )


def _read(profiles: Iterable[Any], limits: Limits, check: Check, problems: list[str]) -> tuple[int, int]:
    source = profiles if isinstance(profiles, Source) else from_iterable(profiles, limits)
    count = size = 0
    flawed = _Told(problems, "more profiles whose payload the handler does not take")
    twice = _Told(problems, "more profiles whose key was used before")
    try:
        with closing(_Keys()) as keys:
            for profile in source:
                count += 1
                size += len(profile.payload.encode())
                if first := keys.seen(profile.key, count):
                    twice.tell(str(source.duplicate(profile.key, count, first)))
                if check.flaws is not None and (found := check.flaws(json.loads(profile.payload))):
                    flawed.tell(f"{source.describe(count)}, profile {profile.key!r}: {'; '.join(found)}")
    except InvalidInputError as error:
        problems.append(str(error))
    flawed.close()
    twice.close()
    return count, size


class _Told:
    """Problems of one kind: the first ones one by one, the others as a number."""

    def __init__(self, problems: list[str], more: str) -> None:
        self._problems = problems
        self._more = more
        self._count = 0

    def tell(self, problem: str) -> None:
        self._count += 1
        if self._count <= _TOLD:
            self._problems.append(problem)

    def close(self) -> None:
        if self._count > _TOLD:
            self._problems.append(f"and {self._count - _TOLD:,} {self._more}")


class _Keys:
    """Every key so far, in a nameless database of SQLite's that moves to the disk when it outgrows its cache.

    https://www.sqlite.org/inmemorydb.html#temp_db
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        # Its own durability is nobody's concern.
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE keys (key TEXT PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def seen(self, key: str, number: int) -> int:
        """The number of the profile that had this key before; 0 when none had."""
        if self._database.execute("INSERT OR IGNORE INTO keys VALUES (?, ?)", (key, number)).rowcount:
            return 0
        return int(self._database.execute("SELECT number FROM keys WHERE key = ?", (key,)).fetchone()[0])

    def close(self) -> None:
        """It is gone."""
        self._database.close()


def _estimate(profiles: int, workers: int, pace: Pace | None) -> tuple[float | None, str]:
    """Seconds, and what they rest on; or why there is no telling."""
    if not workers:
        return None, "unknown: no live worker serves the handler"
    if pace is None:
        return None, "unknown: no batch of this handler has been measured yet"
    basis = f"{profiles:,} profiles at {pace.per_second:,.3g} a second, {pace.basis}"
    return round(profiles / pace.per_second, 1), basis
