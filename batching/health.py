"""Readiness (can this installation work?) and liveness (does this process get on?), as frozen data with named checks.

Liveness is progress, not the presence of a process: whoever restarts what is not live must neither restart a worker
because its database is away, nor leave one alone that only still exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batching.errors import BatchingError
from batching.statistics import Statistics
from batching.statistics.fleet import named as those_named
from batching.statistics.fleet import newest

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.database import Database
    from batching.settings import Settings
    from batching.statistics import WorkerView


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    why: str
    """What was found, and what to do when it is not well; one line, without secrets."""


@dataclass(frozen=True, slots=True)
class Health:
    """What was looked at, in this order."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether all is well."""
        return all(check.ok for check in self.checks)

    @property
    def status(self) -> int:
        """The HTTP status of a probe: 200, or 503."""
        return 200 if self.ok else 503

    def as_json(self) -> dict[str, Any]:
        """As a JSON object: `ok`, and `checks` by name, each with `ok` and `detail`."""
        return {"ok": self.ok, "checks": {each.name: {"ok": each.ok, "detail": each.why} for each in self.checks}}

    def plus(self, other: Health) -> Health:
        """Both together."""
        return Health(self.checks + other.checks)


def answers(what: str) -> Health:
    """Liveness of a process whose only duty is to answer, such as the dashboard: it does.

    Args:
        what: Its name in the check.
    """
    return Health((Check(what, ok=True, why="answers"),))


def readiness(database: Callable[[], Database], settings: Settings) -> Health:
    """Whether an installation can work: its store, its broker, a leader, and live workers for what waits.

    Args:
        database: Opens the store; raises a BatchingError when it does not answer or its schema does not fit.
        settings: Where the broker is, and how long a worker's lease is.
    """
    checks = [_attempt("database", lambda: _database(database()))]
    if checks[0].ok:  # what follows is asked of the database
        statistics = Statistics(database(), settings)
        checks += [
            _attempt("manager", lambda: _manager(statistics)),
            _attempt("workers", lambda: _workers(statistics)),
            _attempt("lanes", lambda: _lanes(statistics)),
        ]
    if settings.broker_url is not None:
        checks.append(_attempt("broker", lambda: _broker(settings)))
    return Health(tuple(checks))


def liveness_of_all(statistics: Statistics) -> Health:
    """Liveness of the manager that leads, and of every worker that is registered."""
    leader = _attempt("manager", lambda: _manager(statistics))
    if not leader.ok:
        return Health((leader,))
    found = newest(statistics.workers())
    return Health((leader, *(check for worker in found for check in _liveness(statistics, worker, named=True))))


def liveness_of(statistics: Statistics, name: str) -> Health:
    """Liveness of one worker, or of those of one host, as SQL sees them.

    Args:
        statistics: The reads.
        name: The beginning of a worker's id, its Celery name (`celery@host`), or the name of its host.
    """
    found = newest(those_named(statistics.workers(), name))
    if not found:
        return Health((_unregistered(name),))
    checks = (check for worker in found for check in _liveness(statistics, worker, named=len(found) > 1))
    return Health(tuple(checks))


def readiness_of(statistics: Statistics, name: str) -> Health:
    """Whether one worker, or each of one host, takes new profiles; see `liveness_of`."""
    found = newest(those_named(statistics.workers(), name))
    if not found:
        return Health((_unregistered(name),))
    return Health(tuple(_takes(worker, named=len(found) > 1) for worker in found))


def _attempt(name: str, look: Callable[[], tuple[bool, str]]) -> Check:
    try:
        return Check(name, *look())
    except BatchingError as error:
        return Check(name, ok=False, why=str(error))


def _database(database: Database) -> tuple[bool, str]:
    from batching import migration  # noqa: PLC0415 - alembic is slow to import, and not every probe gets here

    migration.check(database)
    return True, f"{database.dialect} answers, its schema is up to date"


def _manager(statistics: Statistics) -> tuple[bool, str]:
    if statistics.led():
        return True, "a manager leads"
    return False, "no manager leads; start a worker, or `batching manager`, or look at their logs"


def _workers(statistics: Statistics) -> tuple[bool, str]:
    live = [worker for worker in statistics.workers() if worker.live and not worker.draining]
    if live:
        slots = sum(worker.slots for worker in live)
        return True, f"{len(live)} live, with {slots} {'slot' if slots == 1 else 'slots'} in all"
    return False, "none is live; start one with `batching worker`, or look at their logs"


def _lanes(statistics: Statistics) -> tuple[bool, str]:
    """Whether somebody serves what waits."""
    unserved = statistics.unserved()
    if not unserved:
        return True, "whatever waits has live workers"
    shown = ", ".join(f"{lane.handler} in the queue {lane.queue}" for lane in unserved[:_SHOWN])
    more = f", and {len(unserved) - _SHOWN} more" if len(unserved) > _SHOWN else ""
    return False, f"profiles wait and no live worker serves {shown}{more}; start a worker with that handler"


#: Lanes, or runs, that one line names.
_SHOWN = 3


def _broker(settings: Settings) -> tuple[bool, str]:
    from batching.broker import Doorbell  # noqa: PLC0415 - only this check needs redis

    bell = Doorbell(str(settings.broker_url), settings.key_prefix)
    try:
        bell.ping()
    finally:
        bell.close()
    return True, "answers"


def _unregistered(name: str) -> Check:
    why = f"no worker {name} is registered; it has not booted, has left, or was declared dead; look at its log"
    return Check("worker", ok=False, why=why)


def _liveness(statistics: Statistics, worker: WorkerView, *, named: bool) -> tuple[Check, ...]:
    """Its sign of life, and whether it gets on with what it holds."""
    behind = f" {worker.hostname}" if named else ""
    heard = f"its last sign of life came {worker.silent_seconds:.1f} s ago"
    if not worker.live:
        why = f"worker {worker.id}: {heard}; it is gone, frozen, or cut off from the database"
        return (Check(f"heartbeat{behind}", ok=False, why=why),)
    progress = _attempt(f"progress{behind}", lambda: _progress(statistics, worker))
    return Check(f"heartbeat{behind}", ok=True, why=f"worker {worker.id}: {heard}"), progress


def _progress(statistics: Statistics, worker: WorkerView) -> tuple[bool, str]:
    if worker.stuck is not None:
        return False, worker.stuck
    if not worker.running:
        return True, "it holds no profile"
    overdue = statistics.overdue_runs(worker.id)
    if overdue:
        shown = ", ".join(overdue[:_SHOWN])
        return False, f"{len(overdue)} of its runs are past their time limit and have not ended, such as {shown}"
    return True, f"it holds {worker.running:,} profiles, none past its time"


def _takes(worker: WorkerView, *, named: bool) -> Check:
    name = f"takes work {worker.hostname}" if named else "takes work"
    if not worker.live:
        why = f"worker {worker.id} has been silent for {worker.silent_seconds:.0f} s"
        return Check(name, ok=False, why=why)
    if worker.draining:
        return Check(name, ok=False, why=f"worker {worker.id} drains: it takes nothing new")
    return Check(name, ok=True, why=f"worker {worker.id} has {worker.slots} slots and runs {worker.running}")
