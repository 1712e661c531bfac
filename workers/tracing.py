"""Our trace function: runs in the pool, around Celery's own tracer, and returns a bounded and encoded outcome.

Celery's stock trace function returns a repr cut at 1,024 characters and puts the handler's return value into logs and
events. Ours hands the tracer an object whose repr is a size; the value itself leaves the child as JSON text only.
"""

from __future__ import annotations

import json
import sys
from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from billiard.common import terminate_handler_fired  # type: ignore[attr-defined]
from celery import current_app
from celery.app.trace import build_tracer
from celery.exceptions import Retry

from batching import logs, traces
from batching.errors import (
    BatchingError,
    FailBatch,
    OutputTooLargeError,
    ResultNotJSONError,
    ResultTooLargeError,
    RetryProfile,
    SkipProfile,
)
from batching.handlers import Profile
from batching.interfaces import Ending, ErrorInfo, Outcome, RunId
from workers import board
from workers.failures import describe, told, type_name
from workers.publisher import labels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType


class Shared(NamedTuple):
    """What all runs of one bundle have in common; plain data, small to pickle."""

    handler: str
    batch_id: str
    pass_number: int
    result_limit: int
    hostname: str
    worker: str
    """The id under which they were claimed."""
    trace: tuple[str, str] | None
    """The queue, and the trace that the batch was submitted in, empty for none; None: they are not traced."""


class Own(NamedTuple):
    """What a pool child gets of one run alone. The payload is nowhere else in the worker."""

    number: int
    run: int
    key: str
    payload: str
    attempt: int


class Assignment(NamedTuple):
    """One run, as its trace function sees it: the fields of `Shared`, then those of `Own`."""

    handler: str
    batch_id: str
    pass_number: int
    result_limit: int
    hostname: str
    worker: str
    trace: tuple[str, str] | None
    number: int
    run: int
    key: str
    payload: str
    attempt: int

    @property
    def task_id(self) -> str:
        """The Celery task id of the run."""
        return f"{self.batch_id}.{self.number}.{self.run}"

    def log_fields(self) -> dict[str, Any]:
        """What lines about it carry, Celery's and the handler's own."""
        return {
            "batch": self.batch_id,
            "profile": self.key,
            "run": self.run,
            "attempt": self.attempt,
            "pass": self.pass_number,
            "handler": self.handler,
            "worker": self.worker,
        }


#: `json.dumps` would make an encoder for every result.
_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

#: Ending, result, error, delay, seconds that it ran.
Answer = tuple[str, str | None, tuple[str, str, str, str] | None, float | None, float]

#: Characters that a line of the log has beside what was printed: counted for each write.
LINE: Final = 300

#: Seconds after which a bundle begins no further run.
BUNDLE_TIME: Final = 0.02


class _Size:
    """Stands for a result in logs, events and signals."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


class ContainedError(BatchingError):
    """A handler raised something that would have ended the process; the profile fails instead."""


class _Call:
    """One execution of a handler, and what came of it."""

    __slots__ = ("_output", "_output_limit", "assignment", "begun", "outcome")

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.begun = False
        self.outcome: Outcome | None = None
        self._output = self._output_limit = 0

    def perform(self, function: Callable[[Profile], Any]) -> _Size:
        """Call the handler inside Celery's tracer; leaves the outcome behind, whatever happens."""
        self.begun = True
        try:
            try:
                value = function(self._profile())
            except (SkipProfile, RetryProfile):
                self._check_output()  # again, as below
                raise
            self._check_output()  # again: the handler may have caught what its print raised
            text, size = encode(self.assignment, value)
        except SkipProfile as skip:
            self.outcome = Outcome(Ending.SKIPPED, error=ErrorInfo("SkipProfile", str(skip)[:2000], "skipped"))
            return _Size("<skipped>")
        except RetryProfile as again:
            info = describe(again, None)
            self.outcome = Outcome(Ending.RETRY, error=info, delay=again.delay)
            raise Retry(info.message, when=again.delay) from None  # type: ignore[arg-type] # None: no moment is said
        except Exception as error:
            ending = Ending.FAILED_BATCH if isinstance(error, FailBatch) else Ending.FAILED
            self.outcome = Outcome(ending, error=describe(error, _from_handler(error)))
            raise
        except BaseException as error:
            # Ours to contain, unless it is this child's own end: a signal's SystemExit unwinds through the handler.
            if terminate_handler_fired():
                raise
            self.outcome = Outcome(Ending.FAILED, error=describe(error, _from_handler(error)))
            raise ContainedError(f"handler {self.assignment.handler} raised {type_name(error)}") from None
        self.outcome = Outcome(Ending.SUCCEEDED, result=text)
        return _Size(f"<{size} bytes>")

    def charge(self, characters: int, limit: int) -> None:
        """Count what it prints; not what others do in its context once it has ended.

        Raises:
            OutputTooLargeError: It is over the limit.
        """
        if self.outcome is not None:
            return
        self._output += characters
        self._output_limit = limit
        self._check_output()

    def _check_output(self) -> None:
        if self._output > self._output_limit:
            raise OutputTooLargeError(
                f"handler {self.assignment.handler} printed over {self._output_limit:,} characters, {LINE} for each "
                "write among them, and the rest was dropped; log what is needed, or raise BATCHING_OUTPUT_LIMIT"
            )

    def _profile(self) -> Profile:
        given = self.assignment
        return Profile(
            key=given.key,
            payload=json.loads(given.payload),
            batch_id=given.batch_id,
            attempt=given.attempt,
            run=given.run,
            pass_number=given.pass_number,
            idempotency_key=f"{given.batch_id}.{given.number}",
        )


#: The call in progress in this thread or greenlet: the task's own arguments are ids only.
_call: ContextVar[_Call | None] = ContextVar("batching_call", default=None)

_DIRECT: Final = (
    "cannot run task {name} by itself: it processes the profiles of a batch; "
    "submit one with batching.queue_manager, or `batching submit {name} FILE`"
)


def perform(name: str, function: Callable[[Profile], Any]) -> Any:
    """The body of a handler's Celery task.

    Raises:
        BatchingError: Somebody called the task instead of submitting a batch.
    """
    call = _call.get()
    if call is None or call.begun:
        raise BatchingError(_DIRECT.format(name=name))
    return call.perform(function)


def charge_for_output(characters: int, limit: int) -> None:
    """Count what is printed for the run that prints it; what is printed outside of runs is not counted.

    Args:
        characters: That are to be printed.
        limit: That one run may print.

    Raises:
        OutputTooLargeError: The run has printed too much.
    """
    call = _call.get()
    if call is not None:
        call.charge(characters, limit)


def encode(assignment: Assignment, value: Any) -> tuple[str, int]:
    """A handler's return value as JSON text, and its bytes.

    Raises:
        ResultNotJSONError: JSON cannot express it.
        ResultTooLargeError: It is over the limit.
    """
    try:
        text = _encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ResultNotJSONError(
            f"handler {assignment.handler} returned a {type(value).__name__} that is not JSON ({error}); return "
            "dictionaries with text keys, lists, text, finite numbers, booleans or None"
        ) from None
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ResultNotJSONError(
            f"handler {assignment.handler} returned text with a lone surrogate, which no database stores; decode bytes "
            "with errors='replace', or encode them as base64"
        ) from None
    if size > assignment.result_limit:
        raise ResultTooLargeError(
            f"handler {assignment.handler} returned {size:,} bytes, over the limit of {assignment.result_limit:,}; "
            "store it elsewhere and return where, or raise BATCHING_RESULT_LIMIT"
        )
    return text, size


def request_context(assignment: Assignment) -> dict[str, Any]:
    """The request of a run, as `current_task.request`, signals and Flower see it: ids and labels, no payload."""
    given = assignment
    task_id = given.task_id
    return {
        "lang": "py",
        "task": given.handler,
        "id": task_id,
        "root_id": given.batch_id,
        "parent_id": None,
        "correlation_id": task_id,
        "reply_to": "",
        "retries": given.attempt - 1,
        "timelimit": [None, None],
        "eta": None,
        "expires": None,
        "group": None,
        "ignore_result": True,
        "is_eager": False,
        "argsrepr": "()",
        "kwargsrepr": labels(given.batch_id, given.key, given.attempt, given.pass_number),
        "hostname": given.hostname,
        "delivery_info": {"exchange": "", "routing_key": given.handler, "priority": 0, "redelivered": False},
        "properties": {},
        "headers": {},  # None would make Celery collect what it does not know of this dictionary, for every run
        "args": (),
        "kwargs": {"batch": given.batch_id, "number": given.number, "run": given.run},
        "callbacks": None,
        "errbacks": None,
        "chain": None,
        "chord": None,
    }


def trace_runs(cell: int, shared: tuple[Any, ...], owns: Sequence[tuple[Any, ...]]) -> list[Answer]:
    """Run a bundle, one run after the other, each through Celery's tracer. What the pool calls.

    It returns early when its time or its room is used up, or when the parent wants no more: a run that takes longer
    than planned must not keep those behind it waiting for long, nor large results fill the pipe.

    Args:
        cell: Where the progress is noted, for when this process dies or hangs: see `board`. Negative for nowhere; only
            the first run runs then.
        shared: The fields of `Shared`.
        owns: The fields of an `Own` for each run.

    Returns:
        The answers of the runs that ran, in order.
    """
    answers: list[Answer] = []
    until = monotonic() + BUNDLE_TIME
    around = Surroundings.now()
    for index, own in enumerate(owns):
        if not board.begin(cell, index):
            break
        answer = trace_run(Assignment._make((*shared, *own)), around)
        answers.append(answer)
        if not board.keep(cell, answer) or monotonic() > until:
            break
    return answers


class Surroundings(NamedTuple):
    """What is the same for all runs of a bundle, where they run; asked for once, since both ways are long."""

    tasks: Mapping[str, Any]
    """Celery's, by name."""
    structlog: Any
    """The package, where it has to be told of the run; None elsewhere."""

    @classmethod
    def now(cls) -> Surroundings:
        """As they are.

        A handler's own structlog is told where an application has set it up for itself: ours asks for the fields when a
        line is written. Binding costs some microseconds, so it is for those alone that would not know them otherwise.
        """
        structlog: Any = sys.modules.get("structlog")
        if structlog is not None and logs.add_run_fields in structlog.get_config()["processors"]:
            structlog = None
        app: Any = current_app._get_current_object()  # type: ignore[attr-defined] # noqa: SLF001 - what it stands for
        # Where kombu's `cached_property` keeps it; asked itself, it takes a lock that all threads share.
        return cls(vars(app).get("tasks") or app.tasks, structlog)


def trace_run(assignment: Assignment, around: Surroundings | None = None) -> Answer:
    """Run one assignment through Celery's tracer. Never raises, but for the end of this very process.

    Args:
        assignment: The run.
        around: What it runs in; None: as it is now.

    Returns:
        How it ended, as plain data.
    """
    call = _Call(assignment)
    token = _call.set(call)
    subject = logs.set_about(assignment)
    tasks, structlog = around or Surroundings.now()
    bound = None if structlog is None else structlog.contextvars.bind_contextvars(**assignment.log_fields())
    started = monotonic()
    try:
        trouble = _traced(assignment, tasks) if assignment.trace is None else _observed(call, assignment.trace, tasks)
    except BaseException as error:
        if terminate_handler_fired():
            raise
        # Such as a time limit's exception that struck between the handler and this line.
        trouble = describe(error, error.__traceback__)
    finally:
        _call.reset(token)
        logs.reset_about(subject)
        if bound:
            structlog.contextvars.reset_contextvars(**bound)
    outcome = call.outcome or Outcome(Ending.FAILED, error=trouble or told("NoOutcome", "Celery did not run the task"))
    info = outcome.error
    error_fields = None if info is None else (info.type, info.message, info.fingerprint, info.traceback)
    return outcome.ending.value, outcome.result, error_fields, outcome.delay, monotonic() - started


def outcome_of(answer: Answer) -> Outcome:
    """The outcome that an answer carries."""
    ending, result, error, delay, _ = answer
    return Outcome(Ending(ending), result, None if error is None else ErrorInfo(*error), delay)


def _observed(call: _Call, trace: tuple[str, str], tasks: Mapping[str, Any]) -> ErrorInfo | None:
    """As `_traced`, inside a span of OpenTelemetry."""
    given = call.assignment
    run = RunId(given.batch_id, given.number, given.run)
    attributes = {
        "batching.attempt": given.attempt, "batching.pass": given.pass_number, "batching.worker.id": given.worker,
        "messaging.client.id": given.hostname,
    }  # fmt: skip
    place = (trace[0], given.handler, trace[1])
    with traces.boot_child().processing(run, given.key, place, attributes) as tell:
        trouble = _traced(given, tasks)
        if tell is not None and (outcome := call.outcome) is not None:
            failed = outcome.error is not None and outcome.ending is not Ending.SKIPPED
            tell(outcome.ending.value, outcome.error.type if failed and outcome.error else None)
        return trouble


def _traced(assignment: Assignment, tasks: Mapping[str, Any]) -> ErrorInfo | None:
    task = tasks[assignment.handler]
    if task.__trace__ is None:
        task.__trace__ = build_tracer(task.name, task, task.app.loader, assignment.hostname, app=task.app)
    request = request_context(assignment)
    _, info, _, _ = task.__trace__(request["id"], request["args"], request["kwargs"], request)
    # Only of interest when the handler was never reached, as when the loader failed.
    if info is None or not isinstance(info.retval, BaseException):
        return None
    return describe(info.retval, None)


def _from_handler(error: BaseException) -> TracebackType | None:
    """The traceback without our own frame, which is its first; none when the error is ours: what it refused."""
    if isinstance(error, ResultNotJSONError | ResultTooLargeError | OutputTooLargeError):
        return None
    trace = error.__traceback__
    return trace.tb_next if trace is not None else None
