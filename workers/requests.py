"""A claimed run as a Celery request: `inspect`, revoke, events and time limits work on it as on any task's.

Its body, arguments and information hold ids only; the payload enters nothing but the call into the pool. Every run
ends exactly once here, however often the pool calls back: a hard time limit calls twice, and a killed child's job may
be reported lost and terminated.
"""

from __future__ import annotations

import logging
from functools import cached_property
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Protocol

from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import signals
from celery.app import trace as celery_trace
from celery.utils.log import get_logger
from celery.worker.request import Request
from celery.worker.state import (
    active_requests,
    all_total_count,
    revoked_stamps,
    task_accepted,
    task_ready,
    task_reserved,
    total_count,
)
from celery.worker.state import revoked as revoked_ids

from batching import traces
from batching.interfaces import Ending, Outcome
from batching.logs import about
from workers import events
from workers.failures import describe, storable, told, type_name
from workers.publisher import labels
from workers.structured import run_fields
from workers.tracing import Answer, Assignment, Shared, outcome_of, request_context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batching.interfaces import Claimed
    from workers.bundles import Bundle

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
    """Who wants to know how runs go on. May be called from any thread."""

    def runs_ended(self, ended: Sequence[tuple[RunRequest, Outcome]]) -> None:
        """They are over; called once for each."""

    def tell_in_time(self, eventer: Any, events: Sequence[dict[str, Any]]) -> None:
        """Send events of runs of which those who watch know nothing else; see `events.Pace`."""


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

    # Thousands of these are made a second: what is the same for all of them stands here, and what only people ask for
    # is made when they ask. The message was popped for good; there is nothing to acknowledge, and `inspect` says so.
    acknowledged = _utc = _decoded = _ignore_result = True
    _message = _body = _parent_id = _eta = _expires = _content_type = _content_encoding = None
    _connection_errors = _args = ()
    _argsrepr = "()"
    over = False
    stopping = False
    """Our own shutdown ends it: whatever the pool says from now on, it is given back."""
    runtime: float | None = None
    """Seconds that its handler took, when it came to an end by itself."""
    _terminate_on_ack: tuple[Any, Any] | None = None
    bundle: Bundle | None = None
    """In the pool's hands with it; it may start at any moment."""
    _apply_result: Any = None
    recalled = False
    """It is given back when it comes out of its bundle unrun."""
    announced = False
    """Those who watch know of it: its reception was told."""
    _killed = False

    def __init__(
        self, claimed: Claimed, holder: str, *, task: Any, consumer: Any, sink: Sink, result_limit: int
    ) -> None:
        # Not Request.__init__: it wants a broker message, and decodes what this run does not carry.
        self.claimed = claimed
        self.holder = holder
        self.sink = sink
        self.id = claimed.run.task_id
        self._type = self.name = claimed.terms.lane.handler  # type: ignore[misc] # the stub makes it a property
        self._root_id = claimed.run.batch_id
        self._app, self._task, self._hostname = consumer.app, task, consumer.hostname
        self._eventer = consumer.event_dispatcher
        self._result_limit = result_limit

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """Seconds until it is told that its time is up, and until it is killed: the batch's, else the handler's."""
        options, task = self.claimed.terms.options, self.task
        soft = task.soft_time_limit if options.soft_time_limit is None else options.soft_time_limit
        return soft, task.time_limit if options.time_limit is None else options.time_limit

    @property
    def shared(self) -> Shared:
        """What the pool gets once for all runs of a bundle."""
        run, terms = self.claimed.run, self.claimed.terms
        parent = None if (spans := traces.active()) is None else spans.known(run.batch_id)
        trace = None if parent is None else (terms.lane.queue, parent)
        return Shared(
            terms.lane.handler, run.batch_id, terms.pass_number, self._result_limit, self._hostname, self.holder, trace
        )

    @property
    def own(self) -> tuple[int, int, str, str, int]:
        """What the pool gets of this run alone: the fields of an `Own`, as they travel."""
        claimed = self.claimed
        return claimed.run.number, claimed.run.run, claimed.key, claimed.payload, claimed.attempt

    def log_fields(self) -> dict[str, Any]:
        """What lines about it carry."""
        return run_fields(self.claimed, self.holder)

    @cached_property
    def _request_dict(self) -> dict[str, Any]:
        return request_context(Assignment(*self.shared, *self.own))

    @property
    def _kwargs(self) -> Any:
        return self._request_dict["kwargs"]

    @property
    def _kwargsrepr(self) -> str:
        claimed = self.claimed
        return labels(claimed.run.batch_id, claimed.key, claimed.attempt, claimed.terms.pass_number)

    @property
    def _delivery_info(self) -> Any:
        return self._request_dict["delivery_info"]

    @property
    def _Request__payload(self) -> tuple[Any, Any, Any]:  # noqa: N802 - where Celery's own code looks for it
        return (), self._kwargs, {}

    @property
    def started(self) -> bool:
        """Whether the pool said that it began, or its bundle."""
        return self.time_start is not None

    @property
    def waits(self) -> bool:
        """Whether it has not begun, or is in a bundle that is at another run."""
        return not self.started or (self.bundle is not None and self.bundle.running is not self)

    def received(self, consumer: Any) -> None:
        """Tell the log, signals and `inspect reserved`, as Celery's own strategy does. Its event comes in a group."""
        if logger.isEnabledFor(logging.INFO):
            context = {"id": self.id, "name": self.name, "args": "()", "kwargs": self._kwargsrepr, "eta": None}
            logger.info(celery_trace.LOG_RECEIVED, context, extra={"data": context} | self.log_fields())
        signals.task_received.send(sender=consumer, request=self)
        task_reserved(self)

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        """The pool has begun with it, or with its bundle."""
        self.worker_pid = pid
        self.time_start = time() - (monotonic() - time_accepted)
        task_accepted(self)
        if self._terminate_on_ack is not None:
            self.terminate(*self._terminate_on_ack)

    def withdrawn(self) -> None:
        """It left the pool's hands without having run, and waits for its turn again."""
        self.bundle = self._apply_result = None
        if self.started:
            # It was announced as begun with its bundle.
            self.time_start = self.worker_pid = None
            active_requests.discard(self)
            total_count[self.name] -= 1
            all_total_count[0] -= 1

    def answered(self, answer: Answer) -> Outcome | None:
        """The trace function returned; returns the outcome, or None when it is over already."""
        self.runtime = answer[4]
        outcome = outcome_of(answer)
        return outcome if self._end() else None

    def lost(self, error: BaseException, exc_info: Any) -> Outcome | None:
        """The pool ended it: a dead child, a time limit, a termination. Returns the outcome, as `answered` does."""
        outcome = self._from_pool(error)
        if outcome.ending in {Ending.LOST, Ending.FAILED} and not self.over:
            self._signal_failure(error, exc_info)
        return outcome if self._end() else None

    def revoked(self) -> bool:
        """Whether a person revoked it before it began; ends it then."""
        if self.id not in revoked_ids and not revoked_stamps:
            return False
        with about(self):
            revoked = super().revoked()
        if not revoked:
            return False
        self.finish(Outcome(Ending.REVOKED))
        return True

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End it by a person's wish; only a child process can be ended."""
        if not pool.uses_semaphore:
            why = "only the prefork pool can; it runs to its end"
            _log.warning("cannot terminate %s[%s]: %s", self.name, self.id, why, extra=self.log_fields())
            return
        self._killed = True
        if self.bundle is None or not self.started or self.bundle.running is self:
            super().terminate(pool, signal)
        else:
            # The one that runs is not to die for it; this one comes back, and is found revoked when its turn comes.
            self.bundle.halt()

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """End it because the worker stops at once. Called in a signal handler: a flag, and nothing more.

        The drain comes next, and asks the child: a child takes the second polite signal for the last one.
        """
        del pool, signal, emit_retry
        self.stopping = True

    def finish(self, outcome: Outcome) -> None:
        """End it, once, and tell everybody."""
        if self._end():
            tell_ended(self.sink, [(self, outcome)])

    def give_back(self) -> None:
        """End it unrun or unheard of, uncharged; a person's wish that it shall not run stands."""
        if not self.revoked():
            self.finish(Outcome(Ending.GIVEN_BACK))

    def _end(self) -> bool:
        """Mark it as over; False when it was so before. Who gets True tells the sink, whatever comes."""
        if self.over:
            return False
        self.over = True
        task_ready(self)
        return True

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

    def received_event(self) -> dict[str, Any]:
        """What Flower shows of it before it begins."""
        return {
            "type": "task-received", "uuid": self.id, "name": self.name, "args": "()", "kwargs": self._kwargsrepr,
            "root_id": self._root_id, "parent_id": None, "retries": self.claimed.attempt - 1, "eta": None,
            "expires": None,
        }  # fmt: skip

    def started_event(self) -> dict[str, Any]:
        """That it began."""
        return {"type": "task-started", "uuid": self.id}

    def ended_event(self, outcome: Outcome) -> dict[str, Any]:
        """How it ended: sizes and errors, never a result."""
        event: dict[str, Any] = {"type": _EVENTS[outcome.ending], "uuid": self.id}
        if not self.announced:
            event |= {"name": self.name, "args": "()", "kwargs": self._kwargsrepr, "root_id": self._root_id}
        if outcome.ending is Ending.GIVEN_BACK:
            event["requeue"] = True
        elif event["type"] == "task-succeeded":
            size = "skipped" if outcome.result is None else f"{len(outcome.result.encode())} bytes"
            event |= {"result": f"<{size}>", "runtime": self.runtime}
        elif outcome.error is not None:
            text = storable(f"{outcome.error.type}({outcome.error.message!r})", 500)
            event |= {"exception": text, "traceback": outcome.error.traceback}
        return event


def tell_ended(sink: Sink, ended: Sequence[tuple[RunRequest, Outcome]]) -> None:
    """Tell that runs are over: first the one who settles them, then those who watch."""
    sink.runs_ended(ended)
    if ended and events.listens(eventer := ended[0][0].eventer):
        shown = [pair for pair in ended if pair[0].task.send_events and pair[1].ending in _EVENTS]
        known = [request.ended_event(outcome) for request, outcome in shown if request.announced]
        others = [request.ended_event(outcome) for request, outcome in shown if not request.announced]
        events.send(eventer, known)  # at once, as their other events were
        if others:
            sink.tell_in_time(eventer, others)


def is_watched(requests: Sequence[RunRequest]) -> bool:
    """Whether anybody wants to be told of these runs."""
    return bool(requests) and events.listens(requests[0].eventer)


def tell_received(requests: Sequence[RunRequest]) -> None:
    """Tell those who watch that runs are here, if they have not been told."""
    if is_watched(requests):
        news = [each for each in requests if each.task.send_events and not each.announced]
        for each in news:
            each.announced = True
        events.send(requests[0].eventer, [each.received_event() for each in news])


def tell_started(request: RunRequest) -> None:
    """Tell those who watch that a run began."""
    tell_received([request])
    if events.listens(request.eventer) and request.task.send_events:
        events.send(request.eventer, [request.started_event()])


__all__ = ["RunRequest", "Sink", "is_watched", "tell_ended", "tell_received", "tell_started"]
