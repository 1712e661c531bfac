"""The manager: elects one leader, who promotes, dispatches and sweeps. A subprocess of each worker, or on its own.

Needs SQL and redis-py, no Celery: it starts quickly and holds no pool.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import uuid_utils

from batching import faults, logs, migration, traces
from batching.database import Database
from batching.dispatcher import Dispatcher
from batching.errors import BatchingError, BrokerUnavailableError, ConfigurationError, DatabaseUnavailableError
from batching.execution_manager import BatchExecutionManager
from batching.figures import TURN_DURATION, Figures
from batching.live import News
from batching.logs import Log
from batching.measure import Measurer
from batching.outlook import look
from batching.probes import Probe
from batching.settings import get_settings
from batching.state_manager import BatchStateManager
from batching.sweeper import Sweeper
from workers.courier import Courier
from workers.heap import spare_what_is_loaded
from workers.publisher import RedisPublisher
from workers.vitals import Turn, manager_liveness, manager_readiness

if TYPE_CHECKING:
    from batching.interfaces import LeaderTerm
    from batching.metrics.server import MetricsServer
    from batching.moves.promotion import Start
    from batching.outlook import Outlook
    from batching.settings import Settings

log = Log("batching.manager")

#: Seconds between two passes of the sweep, and between two measurements of the rates.
SWEEP_INTERVAL = 1.0
#: Seconds that one tick may spend on writing bulk moves into rows before it looks at the rest again.
REWRITE_SLICE = 0.2
#: Seconds between two ticks at least, however quickly the lanes are emptied; a hint comes sooner.
_SHORTEST_PAUSE = 0.02
#: Seconds that small batches get to reach their workers, before the leader asks the database for anything else.
_BREATH = 0.01
#: Seconds that a turn may take at least, before it counts as one that hangs.
_LONGEST_TURN = 10.0
#: Ticks in a row without waiting, while there is more to do.
_BUSY_TICKS = 50


class Manager:
    """One candidate for leadership.

    Args:
        settings: Leases and intervals.
        database: The store.
        publisher: The broker's border, also the doorbell that wakes the leader.
    """

    def __init__(self, settings: Settings, database: Database, publisher: RedisPublisher) -> None:
        self.id = str(uuid_utils.uuid7())
        self._settings = settings
        self._database = database
        self._publisher = publisher
        self._state = BatchStateManager(database, max_losses=settings.max_losses)
        self._figures = Figures()
        execution = BatchExecutionManager(self._state, publisher, max_losses=settings.max_losses, figures=self._figures)
        self._dispatcher = Dispatcher(execution, settings)
        self._sweeper = Sweeper(self._state, execution, publisher, settings, self._figures)
        self._measurer = Measurer(database, counted=self._figures, retention_days=settings.retention_days)
        self._exporter = _exporter(settings)
        self._courier = Courier(self._state, settings, lambda: self._term is not None)
        self._stopping = threading.Event()
        self._term: LeaderTerm | None = None
        self._renewed_at = 0.0
        self._next_sweep = 0.0
        self._hinted = False
        self._news = News(settings.key_prefix)
        self._outlook: Outlook | None = None
        self._alarm = math.inf
        self._broker = True
        self.last: Turn | None = None
        """How the last turn went, for probes."""

    @property
    def patience(self) -> float:
        """Seconds after which a turn that has not ended says that this process hangs."""
        return max(_LONGEST_TURN, 5 * self._settings.leader_lease)

    def stop(self) -> None:
        """Ask the loop to end; safe from a signal handler, and to call twice."""
        self._stopping.set()

    def run(self) -> None:
        """Lead, or stand by, until `stop`. An outage of SQL or of the broker is waited out."""
        pause = 0.0
        self._courier.start()
        if self._exporter is not None:
            self._exporter.start()
        while not self._stopping.is_set():
            pause = self.turn(pause)
            self._wait(pause)
        self._courier.stop()
        self.resign()
        if self._exporter is not None:
            self._exporter.stop()

    def turn(self, pause: float = 0.0) -> float:
        """Lead, or stand by, for one turn; whatever goes wrong in it, the next one begins anew.

        Args:
            pause: Seconds that were waited after the last turn.

        Returns:
            The seconds to wait before the next.
        """
        try:
            next_pause = self._turn()
        except DatabaseUnavailableError as error:
            pause = min(5.0, max(0.2, 2 * pause))
            self._figures.count("database_errors", "manager")
            log.warning("database is away", error=str(error), retry_in=pause)
            self._note("the database is away")
        except Exception as error:
            pause = min(5.0, max(0.2, 2 * pause))
            log.exception("turn failed", retry_in=pause)
            self._note(f"its turn failed with {type(error).__name__}; its log says more")
        else:
            self._note(None)
            return next_pause
        self._term = None
        return pause

    def _note(self, trouble: str | None) -> None:
        leads = trouble is None and self._term is not None
        self.last = Turn(time.monotonic(), self.id, leads, trouble, self._broker)

    def _turn(self) -> float:
        term = self._lead()
        if term is None:
            return self._settings.leader_lease / 6
        if self._welcome(term):
            return _BREATH
        for _ in range(_BUSY_TICKS):
            if not self._timed_tick(term) or self._stopping.is_set():
                return min(self._settings.poll_interval, max(_SHORTEST_PAUSE, min(self._dispatcher.pace, self._alarm)))
            if time.monotonic() - self._renewed_at > self._settings.leader_lease / 3:
                return 0.0
        return 0.0

    def _lead(self) -> LeaderTerm | None:
        """This process's term, renewed in time; None while somebody else leads."""
        started = time.monotonic()
        if self._term is not None:
            if started - self._renewed_at < self._settings.leader_lease / 3:
                return self._term
            if self._state.renew(self._term, self._settings.leader_lease):
                self._renewed_at = started  # from before the request: the lease cannot be older than we believe
                return self._term
            log.warning("leadership is lost", manager=self.id)
            self._term = None
        self._term = self._state.lead(self.id, self._settings.leader_lease)
        if self._term is not None:
            log.info("leads", manager=self.id, epoch=self._term.epoch)
            self._renewed_at = started
            faults.reach("lease.taken")
            self._state.rehearse(self._term)
            spare_what_is_loaded()
            self._sweeper.resume()
            self._dispatcher.forget()
            self._outlook = None
            # The next sweep keeps its time: one that fails must leave a turn to dispatch before it is tried again.
        return self._term

    def _timed_tick(self, term: LeaderTerm) -> bool:
        began = time.perf_counter()
        more = self.tick(term)
        self._figures.observe(TURN_DURATION, time.perf_counter() - began)
        return more

    def tick(self, term: LeaderTerm) -> bool:
        """Sweep, dispatch, promote once; returns whether there is more to do at once."""
        outlook = self._outlook = look(self._database, self._settings.worker_lease)
        self._alarm = outlook.alarm
        more = self._expire(outlook.overdue)
        more |= self._release(outlook.released)
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + SWEEP_INTERVAL
            swept = self._sweeper.sweep(term, outlook)
            self._measurer.measure(term, outlook, self._seen())
            self._news.note(swept.concluded)
            more |= bool(swept.concluded or swept.lost_runs)
        more |= self._rewrite(outlook.unwritten)
        try:
            self._dispatcher.dispatch(term, outlook)
            # Only now is it known whether those that run can fill the workers, or the next is let in.
            started = self._dispatcher.promote(term, outlook)
        except BrokerUnavailableError as error:
            log.warning("broker is away", error=str(error))
            self._broker = False
            self._figures.count("broker_errors", "manager")
            return False
        self._broker = True
        if started:
            self._outlook = None
            self._begun(started)
        return more or bool(started)

    def _seen(self) -> dict[str, Any]:
        """What only this process sees: messages in the broker, room for them, and its own connections."""
        return {
            "messages": self._sweeper.lengths,
            "windows": self._dispatcher.windows(),
            "connections": self._database.connections()._asdict(),
        }

    def _expire(self, overdue: list[str]) -> bool:
        """Stop what is past its deadline; in every tick, since a completion window is kept to the second."""
        expired = [batch_id for batch_id in overdue if self._state.expire(batch_id)]
        if expired:
            self._news.note(expired)
            log.info("past their deadline", batches=expired)
        return bool(expired)

    def _release(self, waiting: list[str]) -> bool:
        """Let those go on that wait for batches which are over; or end them, when those ended otherwise than wanted."""
        released = [batch_id for batch_id in waiting if self._state.release(batch_id)]
        self._news.note(released)
        return bool(released)

    def _welcome(self, term: LeaderTerm) -> bool:
        """After a hint: what was just submitted need not wait for a look at everything, if the last one is fresh.

        Returns:
            Whether the look had better wait: all that was let in is on its way to workers, who need the database now.
        """
        hinted, self._hinted = self._hinted, False
        outlook, self._outlook = self._outlook, None
        if not hinted or outlook is None:
            return False
        try:
            started = self._dispatcher.welcome(term, outlook)
            self._begun(started)
        except BrokerUnavailableError:
            return False  # the tick that follows says so
        return bool(started) and all(len(each.dispatches) == each.total for each in started)

    def _begun(self, started: list[Start]) -> None:
        """Tell of what was promoted; an empty batch has nothing to wait for."""
        self._news.note(each.batch_id for each in started)
        self._state.conclude(each.batch_id for each in started if not each.total)

    def _rewrite(self, unwritten: list[str]) -> bool:
        """Write bulk moves into their rows for a slice of time; returns whether some are left."""
        until = time.monotonic() + REWRITE_SLICE
        for batch_id in unwritten:
            while self._state.rewrite(batch_id):
                if time.monotonic() > until:
                    return True
        return bool(unwritten)

    def _wait(self, seconds: float) -> None:
        """Until a hint comes or the time is over. Standing by and outages are waited out without hints."""
        if seconds <= 0 or self._stopping.is_set():
            return
        if self._term is None:
            self._stopping.wait(seconds)
            return
        now = time.monotonic()
        news = (self._news.take(now),) if self._news.due(now) else ()
        try:
            self._hinted = self._publisher.wait_hint(seconds, *news)
        except BrokerUnavailableError:
            self._broker = False
            self._stopping.wait(seconds)

    def resign(self) -> None:
        """Hand the lease back, if this process has it, so that the next leader need not wait. Safe to call twice."""
        if self._term is not None:
            with contextlib.suppress(BatchingError):  # it lapses by itself
                self._state.resign(self._term)
            self._term = None


def _exporter(settings: Settings) -> MetricsServer | None:
    """Who tells Prometheus, when somebody asked for it."""
    if settings.metrics_address is None:
        return None
    from batching.metrics.server import MetricsServer  # noqa: PLC0415 - most managers never need it

    return MetricsServer(settings)


def build(settings: Settings) -> Manager:
    """A manager over the configured store and broker.

    Raises:
        ConfigurationError: One of them is not configured.
        SchemaVersionError: The schema does not fit.
    """
    if settings.database_url is None or settings.broker_url is None:
        missing = "BATCHING_DATABASE_URL" if settings.database_url is None else "BATCHING_BROKER_URL"
        raise ConfigurationError(f"cannot start a manager: {missing} is not set; a manager needs SQL and a broker")
    # Longer than a worker's: the leader's statements touch more rows, and nobody's event loop waits for them.
    database = Database(settings.database_url, timeout=max(10.0, settings.sql_timeout))
    migration.check(database)
    # Short, or a Redis that is frozen would cost the leader its lease in every turn.
    publisher = RedisPublisher(settings.broker_url, settings.key_prefix, timeout=min(2.0, settings.leader_lease / 3))
    return Manager(settings, database, publisher)


def main(*, tied: bool = False) -> int:
    """Run a manager until SIGTERM or SIGINT.

    Args:
        tied: Also end when standard input closes: the process that started this one holds the other end of the pipe,
            so this one cannot outlive it, however it dies.

    Returns:
        The exit code.
    """
    try:
        settings = get_settings()
        logs.configure(settings.log_format, settings.log_level or "INFO")
        traces.boot()
        manager = build(settings)
        probe = None if settings.health_address is None else _probe(settings.health_address, manager)
    except BatchingError as error:
        sys.stderr.write(f"batching manager: {error}\n")
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        # In a thread of its own: the main one may be inside the lock of the event that `stop` sets.
        signal.signal(number, lambda *_: threading.Thread(target=manager.stop).start())
    if tied:
        threading.Thread(target=_end_with_parent, args=(manager,), daemon=True).start()
    manager.run()
    if probe is not None:
        probe.close()
    return 0


def _probe(address: str, manager: Manager) -> Probe:
    """Answer `/livez` and `/readyz` by how the last turn went."""
    pages = {
        "/livez": lambda: manager_liveness(manager.last, manager.patience),
        "/readyz": lambda: manager_readiness(manager.last, manager.patience),
    }
    probe = Probe(address, pages)
    probe.start()
    return probe


def _end_with_parent(manager: Manager) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    manager.stop()


if __name__ == "__main__":
    raise SystemExit(main(tied=True))
