"""QueueManager: the verbs that people and producers call. Needs SQL alone; rings the leader's doorbell when it can."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from sqlalchemy import Connection

from batching import preflight, traces
from batching.broker import Doorbell
from batching.database import Database
from batching.errors import BrokerUnavailableError, ConfigurationError, InvalidInputError
from batching.execution_manager import BatchExecutionManager
from batching.fleet import Workers
from batching.intake import Limits
from batching.live import publication
from batching.moves.triage import Chosen
from batching.options import Asked, BatchReceipt, BatchSpec
from batching.queues import Queues, RateLimits
from batching.settings import Settings, get_settings
from batching.state_manager import BatchStateManager
from batching.states import TERMINAL_BATCH_STATES, BatchState, Remedy, StopTarget
from batching.statistics import Statistics
from batching.submission import amend, append, submit, submit_within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy.orm import Session

    from batching.options import Amended, Difference
    from batching.preflight import Preflight
    from batching.statistics import BatchView, ResultLine

_Result = TypeVar("_Result")


class Batch:
    """A handle on one batch: what `submit` returns."""

    def __init__(self, manager: QueueManager, receipt: BatchReceipt) -> None:
        self._manager = manager
        self.id = receipt.id
        self.total = receipt.total
        """Profiles in it."""
        self.created = receipt.created
        """False when the key named a batch that was there already."""
        self.open = receipt.open
        """It takes more profiles, until it is sealed."""
        self.difference = receipt.difference
        """`new`, `same` and `changed` profiles of this submission, against what the batch had."""

    def append(self, profiles: Iterable[Any]) -> Difference:
        """See `QueueManager.append`."""
        return self._manager.append(self.id, profiles)

    def seal(self, expect: int | None = None) -> int:
        """See `QueueManager.seal`."""
        self.total = self._manager.seal(self.id, expect)
        return self.total

    def progress(self) -> BatchView:
        """Counts, place in line, rate and ETA, as of now."""
        return self._manager.statistics.batch(self.id)

    def wait(self, timeout: float | None = None, poll: float = 0.1) -> BatchView:
        """Block until the batch is finished.

        Args:
            timeout: Seconds; None waits for ever.
            poll: Seconds between two looks.

        Raises:
            TimeoutError: It was not finished in time; the batch itself goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            state = self._manager.statistics.state(self.id)
            # Between the two looks somebody may have retried it.
            if state in TERMINAL_BATCH_STATES and (view := self.progress()).terminal:
                return view
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"batch {self.id} is {state} after {timeout:g} s; it goes on without this caller")
            time.sleep(poll)

    def results(self) -> Iterator[ResultLine]:
        """Every profile with its state, result and error, in the order of submission; streamed."""
        return self._manager.statistics.results(self.id)

    def __repr__(self) -> str:
        return f"<Batch {self.id}: {self.total:,} profiles>"


class QueueManager:
    """Submit batches, steer them, ask about them.

    Args:
        database: The store; by default the one that BATCHING_DATABASE_URL names.
        broker_url: Where the leader's doorbell hangs; by default BATCHING_BROKER_URL, and none is needed.
        settings: By default the environment's.
    """

    def __init__(
        self, database: Database | None = None, broker_url: str | None = None, settings: Settings | None = None
    ) -> None:
        self._given_database = database
        self._given_broker_url = broker_url
        self._given_settings = settings

    @cached_property
    def settings(self) -> Settings:
        """The settings in force, read at first use."""
        return self._given_settings or get_settings()

    @cached_property
    def database(self) -> Database:
        """The store.

        Raises:
            ConfigurationError: None is configured: a batch must not land in a place where nobody looks.
        """
        if self._given_database is not None:
            return self._given_database
        if self.settings.database_url is None:
            raise ConfigurationError(
                "no database is configured: set BATCHING_DATABASE_URL, for example "
                "postgresql+psycopg://user:password@host/name or sqlite:////absolute/path/batching.db"
            )
        return Database(self.settings.database_url)

    @property
    def broker_url(self) -> str | None:
        """Where the leader's doorbell hangs; None: nowhere, and the leader looks by itself."""
        return self._given_broker_url or self.settings.broker_url

    @cached_property
    def state_manager(self) -> BatchStateManager:
        """Every write."""
        return BatchStateManager(self.database, max_losses=self.settings.max_losses)

    @cached_property
    def execution_manager(self) -> BatchExecutionManager:
        """`execute_batch` asks for promotion; dispatching itself is the leader's."""
        return BatchExecutionManager(self.state_manager, max_losses=self.settings.max_losses)

    @cached_property
    def statistics(self) -> Statistics:
        """Every read."""
        return Statistics(self.database, self.settings)

    @cached_property
    def queues(self) -> Queues:
        """The settings of queues: how much runs at once; pause, drain, resume."""
        return Queues(self.database, self.statistics, self.ring)

    @cached_property
    def workers(self) -> Workers:
        """The registered workers: drain them, and let them go on."""
        return Workers(self.database, self.statistics)

    @cached_property
    def limits(self) -> RateLimits:
        """Rate limits of keys, handlers and queues."""
        return RateLimits(self.database, self.ring)

    def submit(
        self,
        handler: str,
        profiles: Iterable[Any],
        *,
        session: Session | Connection | None = None,
        seal: bool = True,
        check: bool = False,
        **asked: Unpack[Asked],
    ) -> Batch:
        """Record a batch and put it in line. Streams: nothing but a chunk is held in memory.

        Args:
            handler: The handler's registered name; workers need it, this process does not.
            profiles: Any iterable of `{"key": …, "payload": …}`, `(key, payload)` or bare keys; or an
                `intake.Source`.
            session: A SQLAlchemy session or connection: the batch is written in its transaction, and exists if and
                only if that commits.
            seal: False leaves the batch open: `append` adds to it while it waits and runs, until `seal`.
            check: Refuse what a preflight would: payloads that the handler does not take (checked while they stream;
                nothing of the batch is left), and a handler that no live worker serves. See also `preflight`.
            **asked: `name`, `key`, `queue`, `priority`, `group`, `options`, `new`, `start_at`, `deadline`, `tags`,
                `properties`: see `options.Asked`.

        Raises:
            InvalidInputError: A profile or an argument is not acceptable; nothing of the batch is left.
            DatabaseUnavailableError: The database cannot be reached; nothing of the batch is left, unless only the
                answer got lost. With a `key`, submitting again is safe either way.
        """
        spec = BatchSpec.of(handler, asked, sealed=seal)
        self._check_pools(spec)
        limits = Limits.from_settings(self.settings)
        if check:
            profiles = preflight.checked(self.database, spec, profiles, limits, self.settings.worker_lease)
        if (spans := traces.producing()) is None:
            return Batch(self, self._write(spec, profiles, limits, session))
        with spans.submitting(spec) as (traceparent, submitted):
            receipt = self._write(replace(spec, traceparent=traceparent), profiles, limits, session)
            submitted(receipt.id, receipt.total)
        return Batch(self, receipt)

    def _write(
        self, spec: BatchSpec, profiles: Iterable[Any], limits: Limits, session: Session | Connection | None
    ) -> BatchReceipt:
        if session is None:
            announce = None if self._doorbell is None else self.ring
            return submit(self.state_manager, spec, profiles, limits, announce)
        connection = session if isinstance(session, Connection) else session.connection()
        return submit_within(self.state_manager, spec, profiles, limits, connection)

    def preflight(self, handler: str, profiles: Iterable[Any], **asked: Unpack[Asked]) -> Preflight:
        """What would become of a submission, without writing any of it: a dry run. Reads all of `profiles`.

        Args:
            handler: As for `submit`.
            profiles: As for `submit`.
            **asked: As for `submit`.

        Returns:
            Whether payloads fit the handler's schema and the limits, who serves it, and how long it may take.
        """
        spec, limits = BatchSpec.of(handler, asked), Limits.from_settings(self.settings)
        return preflight.examine(self.database, spec, profiles, limits, self.settings.worker_lease)

    def open(self, handler: str, *, session: Session | Connection | None = None, **asked: Unpack[Asked]) -> Batch:
        """Make an open batch without profiles; the same `key` again is the same batch. See `submit`."""
        return self.submit(handler, (), session=session, seal=False, **asked)

    def append(self, batch_id: str, profiles: Iterable[Any]) -> Difference:
        """Append to an open batch, from any process, while it waits or runs; several may do so at once.

        Idempotent by profile key: what the batch has already is not written again, whatever its payload. A stream that
        breaks off has appended what came before; append it again.

        Args:
            batch_id: The batch.
            profiles: As for `submit`; streamed.

        Returns:
            How many were new, the same, or there with another payload.

        Raises:
            UnknownBatchError: There is none with this id.
            IllegalMoveError: It is sealed, or over.
            InvalidInputError: A profile is not acceptable.
        """
        limits = Limits.from_settings(self.settings)
        return self._rung(append(self.state_manager, batch_id, profiles, limits), batch_id)

    def seal(self, batch_id: str, expect: int | None = None) -> int:
        """Close an open batch: it finishes once everything in it is settled. Sealing it twice is harmless.

        Args:
            batch_id: The batch.
            expect: Profiles that it must have.

        Returns:
            Its number of profiles.

        Raises:
            UnknownBatchError: There is none with this id.
            IllegalMoveError: It has another number of profiles, or ended before it was sealed.
        """
        return self._rung(self.state_manager.seal_open(batch_id, expect), batch_id)

    def amend(self, batch_id: str, profiles: Iterable[Any]) -> Amended:
        """Give profiles that are not done other payloads, under their old keys: all of them, or none.

        A batch that has ended begins a new pass over them and over whatever else is not done; what was tried before is
        kept. One that waits takes them in its next turn.

        Args:
            batch_id: The batch.
            profiles: As for `submit`. A profile that is done may be among them with the payload that it had.

        Raises:
            UnknownBatchError: There is none with this id.
            IllegalMoveError: It runs, or all of it is done.
            InvalidInputError: A key is not the batch's, or its profile is done.
        """
        limits = Limits.from_settings(self.settings)
        return self._rung(amend(self.state_manager, batch_id, profiles, limits), batch_id)

    def get(self, batch_id: str) -> Batch:
        """A handle on a batch that exists.

        Raises:
            UnknownBatchError: There is none with this id.
        """
        view = self.statistics.batch(batch_id)
        return Batch(self, BatchReceipt(view.id, view.total, created=False))

    def pause(self, batch_id: str, reason: str = "") -> BatchState:
        """Stop dispatching a batch and put it aside; what runs may settle. Acts at once, however large it is."""
        return self._stop(batch_id, StopTarget.PAUSED, reason or "paused by a person")

    def cancel(self, batch_id: str, reason: str = "", *, running: str = "finish") -> BatchState:
        """End a batch: what waits is cancelled at once.

        Args:
            batch_id: Which batch.
            reason: Kept in its history.
            running: What becomes of what runs: `finish` lets it settle; `terminate` interrupts it within a second in
                workers of the prefork pool, and it is cancelled. In other pools it runs to its end, since nothing can
                interrupt it: `statistics.uninterruptible` tells how much that is.

        Raises:
            IllegalMoveError: The batch has ended.
            InvalidInputError: `running` is neither of these.
        """
        if running not in {"finish", "terminate"}:
            raise InvalidInputError(f"cannot cancel {batch_id}: running takes finish or terminate, not {running!r}")
        said = reason or "cancelled by a person"
        interrupt = running == "terminate"
        return self._rung(self.state_manager.stop(batch_id, StopTarget.CANCELLED, said, interrupt=interrupt), batch_id)

    def resume(self, batch_id: str) -> BatchState:
        """Return a paused batch to its old position in line."""
        return self._rung(self.state_manager.resume(batch_id), batch_id)

    def retry(self, batch_id: str) -> int:
        """Open a new pass over what is not done of a finished batch; returns the number of the pass."""
        return self._rung(self.state_manager.retry(batch_id), batch_id)

    def remedy(
        self, batch_id: str, remedy: Remedy | str, *, fingerprint: str | None = None, profile: str | None = None
    ) -> int:
        """Retry, skip or cancel those profiles of a batch that failed alike, or one profile.

        Args:
            batch_id: A batch that runs, waits, is paused or finished.
            remedy: `retry`, `skip` or `cancel`; see `Remedy`.
            fingerprint: Profiles that failed with it, in this pass or, while they wait, in the one before.
            profile: The profile with this key.

        Returns:
            How many profiles.

        Raises:
            IllegalMoveError: The batch is stopping, or none of its profiles is meant.
        """
        if (fingerprint is None) == (profile is None):
            raise InvalidInputError("say which profiles: fingerprint=… or profile=…")
        chosen = Chosen(fingerprint, profile)
        return self._rung(self.state_manager.remedy(batch_id, Remedy(remedy), chosen), batch_id)

    def move(self, batch_id: str, place: int | str) -> int:
        """Move a waiting batch to `front`, `end`, or a place (1 is next); returns its position."""
        return self._rung(self.state_manager.move(batch_id, place), batch_id)

    def prune(
        self,
        older_than_days: float | None = None,
        limit: int = 100,
        *,
        states: Iterable[BatchState | str] | None = None,
        queue: str | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> int:
        """Delete batches that ended long ago, the oldest first, in bounded steps; what is waited for stays.

        Args:
            older_than_days: Since it ended; by default BATCHING_RETENTION_DAYS.
            limit: Batches at most in this call.
            states: Only those that ended so; None for all.
            queue: Only this queue's.
            progress: Called with the number of batches that are dealt with, and of how many.

        Returns:
            How many were deleted.

        Raises:
            InvalidInputError: A batch cannot have ended in one of the states.
        """
        days = self.settings.retention_days if older_than_days is None else older_than_days
        deleted = self.state_manager.prune(days, limit, states=states, queue=queue, progress=progress)
        return self._rung(deleted) if deleted else deleted

    def retry_callback(self, callback_id: str) -> None:
        """Let a dead callback be delivered again, at once and with all its attempts.

        Raises:
            UnknownCallbackError: There is none with this id.
            IllegalMoveError: It is not dead.
        """
        self.state_manager.retry_callback(callback_id)

    def process(self, batch_id: str) -> BatchState:
        """Ask for a batch to run ahead of its turn; a running or finished batch stays as it is."""
        return self._rung(self.execution_manager.execute_batch(batch_id), batch_id)

    def ring(self, *batch_ids: str) -> None:
        """Wake the leader, and tell whoever watches. A broker that is away costs a moment: all of them also look.

        Args:
            batch_ids: What has changed; nothing: something is new.
        """
        if self._doorbell is None:
            return
        try:
            self._doorbell.ring(publication(self.settings.key_prefix, batch_ids))
        except BrokerUnavailableError:
            return

    def close(self) -> None:
        """Close connections. Safe to call twice."""
        if "database" in self.__dict__ and self._given_database is None:
            self.database.close()
        if self.__dict__.get("_doorbell") is not None:
            self.__dict__.pop("_doorbell").close()

    def _check_pools(self, spec: BatchSpec) -> None:
        """Refuse time limits that no live worker of the lane can keep; without one, the worker that comes will tell."""
        if not spec.options.is_timed:
            return
        pools = {each.pool for each in self.statistics.workers() if each.serves(spec.queue, spec.handler)}
        if pools and "prefork" not in pools:
            raise InvalidInputError(
                f"cannot submit to {spec.handler} in the queue {spec.queue} with a time limit: its live workers are of "
                f"the pool {', '.join(sorted(pools))}, which cannot interrupt what they run; serve it by a worker with "
                "--pool=prefork, or drop soft_time_limit and time_limit"
            )

    @cached_property
    def _doorbell(self) -> Doorbell | None:
        return None if self.broker_url is None else Doorbell(self.broker_url, self.settings.key_prefix)

    def _stop(self, batch_id: str, target: StopTarget, reason: str) -> BatchState:
        return self._rung(self.state_manager.stop(batch_id, target, reason), batch_id)

    def _rung(self, result: _Result, *batch_ids: str) -> _Result:
        self.ring(*batch_ids)
        return result


#: The ready instance: configured by the environment at its first use.
queue_manager = QueueManager()
