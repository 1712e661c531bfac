"""Preflight: what would become of a submission, without writing any of it."""

from __future__ import annotations

import json
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

    Keys that stand twice are found by the submission itself, which has an index for it.

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
    count, size, flawed = _read(profiles, limits, check, problems)
    if flawed > _TOLD:
        problems.append(f"and {flawed - _TOLD:,} more profiles whose payload the handler does not take")
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


def _read(profiles: Iterable[Any], limits: Limits, check: Check, problems: list[str]) -> tuple[int, int, int]:
    source = profiles if isinstance(profiles, Source) else from_iterable(profiles, limits)
    count = size = flawed = 0
    try:
        for profile in source:
            count += 1
            size += len(profile.payload.encode())
            if check.flaws is None:
                continue
            if found := check.flaws(json.loads(profile.payload)):
                flawed += 1
                if flawed <= _TOLD:
                    problems.append(f"{source.describe(count)}, profile {profile.key!r}: {'; '.join(found)}")
    except InvalidInputError as error:
        problems.append(str(error))
    return count, size, flawed


def _estimate(profiles: int, workers: int, pace: Pace | None) -> tuple[float | None, str]:
    """Seconds, and what they rest on; or why there is no telling."""
    if not workers:
        return None, "unknown: no live worker serves the handler"
    if pace is None:
        return None, "unknown: no batch of this handler has been measured yet"
    basis = f"{profiles:,} profiles at {pace.per_second:,.3g} a second, {pace.basis}"
    return round(profiles / pace.per_second, 1), basis
