"""A claimed run as a Celery request: `inspect`, revoke, events and time limits work on it as on any task's.

Its body, arguments and information hold ids only; the payload enters nothing but the call into the pool. Every run
ends exactly once here, however often the pool calls back: a hard time limit calls twice, and a killed child's job may
be reported lost and terminated.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ref

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback  # type: ignore[attr-defined]
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import signals
from celery.app import trace as celery_trace
from celery.exceptions import TaskRevokedError
from celery.utils.log import get_logger
from celery.worker.request import Request
from celery.worker.state import revoked as revoked_ids
from celery.worker.state import task_ready, task_reserved

from batching.interfaces import Ending, Outcome
from workers.failures import describe, storable, told, type_name
from workers.tracing import ANSWER_FIELDS, Assignment, outcome_of, request_context, trace_run

if TYPE_CHECKING:
    from batching.interfaces import Claimed

logger = get_logger("celery.worker.strategy")
_log = logging.getLogger(__name__)

_EVENTS = {
    Ending.SUCCEEDED: "task-succeeded",
    Ending.SKIPPED: "task-succeeded",
    Ending.RETRY: "task-retried",
    Ending.FAILED: "task-failed",
    Ending.FAILED_BATCH: "task-failed",
    Ending.LOST: "task-failed",
    Ending.GIVEN_BACK: "task-rejected",
}


class Sink(Protocol):
    """Who wants to know how a run goes on. May be called from any thread."""

    def run_started(self, request: RunRequest) -> None:
        """The pool has begun with it."""

    def run_ended(self, request: RunRequest, outcome: Outcome) -> None:
        """It is over; called once."""


class RunRequest(Request):
    """One claimed run in Celery's hands.

    Args:
        claimed: The run; its payload is handed to the pool and nowhere else.
        holder: The worker id under which it was claimed.
        task: The handler's Celery task.
        consumer: Celery's consumer, for its name, application and events.
        sink: Who is told.
        result_limit: Bytes of the encoded result.
    """

    def __init__(
        self, claimed: Claimed, holder: str, *, task: Any, consumer: Any, sink: Sink, result_limit: int
    ) -> None:
        # Not Request.__init__: it wants a broker message, and decodes what this run does not carry.
        self.claimed = claimed
        self.holder = holder
        self.sink = sink
        self.over = False
        self.handed = False
        """In the pool's hands; it may start at any moment."""
        self.stopping = False
        """Our own shutdown ends it: whatever the pool says from now on, it is given back."""
        self.runtime: float | None = None
        """Seconds that its handler took, when it came to an end by itself."""
        self.handle: Any = None
        self._killed = False
        run, terms = claimed.run, claimed.terms
        self.assignment = Assignment(
            terms.lane.handler, run.batch_id, run.number, run.run, claimed.key, claimed.payload, claimed.attempt,
            terms.pass_number, result_limit, consumer.hostname,
        )  # fmt: skip
        context = request_context(self.assignment)
        self._message = self._body = None
        self._request_dict = context
        self._app, self._task, self._hostname = consumer.app, task, consumer.hostname
        self._eventer = consumer.event_dispatcher
        self.id = context["id"]
        self._type = self.name = terms.lane.handler  # type: ignore[misc] # the stub makes it a property
        self._root_id, self._parent_id = run.batch_id, None
        self._argsrepr, self._kwargsrepr = context["argsrepr"], context["kwargsrepr"]
        self._args, self._kwargs = context["args"], context["kwargs"]
        self._Request__payload: tuple[Any, Any, Any] = (self._args, self._kwargs, {})
        self._delivery_info = context["delivery_info"]
        self._eta = self._expires = self._content_type = self._content_encoding = None
        self._connection_errors = ()
        self._utc = self._decoded = self._ignore_result = True
        # The message was popped for good; there is nothing to acknowledge, and `inspect` says so.
        self.acknowledged = True

    @property
    def started(self) -> bool:
        """Whether the pool said that it began."""
        return self.time_start is not None

    def received(self, consumer: Any) -> None:
        """Tell the log, signals, events and `inspect reserved`, as Celery's own strategy does."""
        if logger.isEnabledFor(logging.INFO):
            context = {"id": self.id, "name": self.name, "args": "()", "kwargs": self._kwargsrepr, "eta": None}
            logger.info(celery_trace.LOG_RECEIVED, context, extra={"data": context})
        signals.task_received.send(sender=consumer, request=self)
        self.send_event(
            "task-received", name=self.name, args="()", kwargs=self._kwargsrepr, root_id=self._root_id,
            parent_id=None, retries=self._request_dict["retries"], eta=None, expires=None,
        )  # fmt: skip
        task_reserved(self)

    def execute_using_pool(self, pool: Any, **options: Any) -> Any:
        """Hand it to the pool; called by Celery's worker, which frees the slot on `TaskRevokedError`."""
        del options
        if self.over or self.revoked():
            raise TaskRevokedError(self.id)
        self.handed = True
        self.handle = pool.apply_async(
            trace_run,
            args=tuple(self.assignment),
            accept_callback=self.on_accepted,
            timeout_callback=self.on_timeout,
            callback=self.on_success,
            error_callback=self.on_failure,
            soft_timeout=self._task.soft_time_limit,
            timeout=self._task.time_limit,
            correlation_id=self.id,
        )
        # Celery's `terminate` finds the pool's job through a weak reference.
        self._apply_result = None if self.handle is None else ref(self.handle)
        return self.handle

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        """The pool has begun with it."""
        super().on_accepted(pid, time_accepted)
        self.sink.run_started(self)

    def on_success(self, failed__retval__runtime: Any, **options: Any) -> None:
        """The trace function returned; a pool that could not run it returns what went wrong."""
        del options
        answer = failed__retval__runtime
        if isinstance(answer, tuple) and len(answer) == ANSWER_FIELDS:
            self.runtime = answer[4]
            self.finish(outcome_of(answer))
        elif isinstance(answer, ExceptionInfo):
            self.on_failure(answer)
        else:
            self.finish(Outcome(Ending.GIVEN_BACK))

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """The pool ended it: a dead child, a time limit, a termination. Never raises."""
        del send_failed_event, return_ok
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        outcome = self._from_pool(error)
        if outcome.ending in {Ending.LOST, Ending.FAILED} and not self.over:
            self._signal_failure(error, exc_info)
        self.finish(outcome)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A time limit passed; the pool has reported a hard one to `on_failure` before."""
        if soft:
            _log.warning("Soft time limit (%ss) exceeded for %s[%s]", timeout, self.name, self.id)
        else:
            _log.error("Hard time limit (%ss) exceeded for %s[%s]", timeout, self.name, self.id)
            self.finish(self._from_pool(TimeLimitExceeded(timeout)))

    def revoked(self) -> bool:
        """Whether a person revoked it before it began; ends it then."""
        if not super().revoked():
            return False
        self.finish(Outcome(Ending.REVOKED))
        return True

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End it by a person's wish; only a child process can be ended."""
        if not pool.uses_semaphore:
            _log.warning("cannot terminate %s[%s]: only the prefork pool can; it runs to its end", self.name, self.id)
            return
        self._killed = True
        super().terminate(pool, signal)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """End it because the worker stops at once. Called in a signal handler: flags and a signal, nothing more."""
        del emit_retry
        self.stopping = True
        if pool.uses_semaphore and self.started and not self.over:
            pool.terminate_job(self.worker_pid, signal)

    def finish(self, outcome: Outcome) -> None:
        """End it, once."""
        if self.over:
            return
        self.over = True
        self.handle = None  # it refers back to this request
        task_ready(self)
        # First the one who settles it: an event that cannot be sent must not cost the outcome.
        self.sink.run_ended(self, outcome)
        try:
            self._tell(outcome)
        except Exception as error:  # noqa: BLE001 - whatever the broker's client raises
            _log.debug("Could not send the event of %s: %r", self.id, error)

    def _from_pool(self, error: BaseException) -> Outcome:
        if self.stopping:
            return Outcome(Ending.GIVEN_BACK)
        if isinstance(error, Terminated):
            # Without a wish of a person for this very run it is the neighbour of one: its child was killed under it.
            wished = self._killed or self.id in revoked_ids
            return Outcome(Ending.REVOKED if wished else Ending.GIVEN_BACK)
        if isinstance(error, TimeLimitExceeded):
            limit = error.args[0] if error.args else self._task.time_limit
            return Outcome(
                Ending.FAILED, error=told("TimeLimitExceeded", f"ran over its time limit of {limit} seconds")
            )
        if isinstance(error, (WorkerLostError, SystemExit, KeyboardInterrupt)):
            reason = str(error).partition(" Job: ")[0] if isinstance(error, WorkerLostError) else type_name(error)
            return Outcome(Ending.LOST, error=told("WorkerLost", f"its pool child died: {reason}"))
        return Outcome(Ending.FAILED, error=describe(error, error.__traceback__))

    def _signal_failure(self, error: BaseException, exc_info: Any) -> None:
        # The child could not: as Celery does for lost children and hard time limits.
        signals.task_failure.send(
            sender=self._task, task_id=self.id, exception=error, args=self._args, kwargs=self._kwargs,
            traceback=exc_info.traceback, einfo=exc_info,
        )  # fmt: skip

    def _tell(self, outcome: Outcome) -> None:
        kind = _EVENTS.get(outcome.ending)
        if kind is None or not (self._eventer and self._eventer.enabled):
            return
        fields: dict[str, Any] = {}
        if outcome.ending is Ending.GIVEN_BACK:
            fields = {"requeue": True}
        elif kind == "task-succeeded":
            size = "skipped" if outcome.result is None else f"{len(outcome.result.encode())} bytes"
            fields = {"result": f"<{size}>", "runtime": self.runtime}
        elif outcome.error is not None:
            text = storable(f"{outcome.error.type}({outcome.error.message!r})", 500)
            fields = {"exception": text, "traceback": outcome.error.traceback}
        self.send_event(kind, **fields)


__all__ = ["RunRequest", "Sink"]
