"""Structured logs: every line carries what it is about as fields, and never a payload, a result or a secret.

All of ours goes through the standard library's `logging`, with the fields as `extra`: in an application that calls
`install(app)`, its own formatter decides what becomes of them. Processes of our own get the formatter that is made
here, with structlog, and it does the same for the lines of Celery, of handlers, and of whatever they import.
"""

from __future__ import annotations

import logging
import re
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, MutableMapping

#: What a line about a run carries. `profile` is its key, `worker` the id under which it was claimed.
FIELDS: Final = ("batch", "profile", "run", "attempt", "pass", "handler", "worker")


class About(Protocol):
    """What lines can be about. Asked only when a line is written, so that runs pay nothing for it."""

    def log_fields(self) -> Mapping[str, Any]:
        """The fields, by name."""


#: What the lines of this thread or greenlet are about: the run that it is at.
_about: ContextVar[About | None] = ContextVar("batching_about", default=None)
set_about = _about.set
reset_about = _about.reset


@contextmanager
def about(subject: About) -> Iterator[None]:
    """Let every line that is written inside be about this, whoever writes it."""
    token = _about.set(subject)
    try:
        yield
    finally:
        _about.reset(token)


def current_fields() -> Mapping[str, Any]:
    """What the lines of this thread are about; empty for nothing."""
    subject = _about.get()
    return {} if subject is None else subject.log_fields()


class RunFields(logging.Filter):
    """For an application's own logging: gives each record what its thread is about, as attributes.

    Hang it on a handler, not on a logger: `handler.addFilter(RunFields())`. A record that is about no run gets `None`
    for each field, so that a format may name them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; always True."""
        known = current_fields()
        for name in FIELDS:
            if not hasattr(record, name):
                setattr(record, name, known.get(name))
        return True


class Log:
    """A logger whose lines are an event and its fields, as structlog's are; through the standard library's.

    Args:
        name: Of the logger.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def info(self, event: str, **fields: Any) -> None:
        """Something that people may want to know."""
        self._logger.info(event, extra=fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something that goes on by itself, and should not happen often."""
        self._logger.warning(event, extra=fields)

    def exception(self, event: str, **fields: Any) -> None:
        """An error that nobody expected, with its traceback; in an `except` clause."""
        self._logger.exception(event, extra=fields)  # noqa: LOG004 - it is called in one


def configure(form: str, level: str = "INFO") -> None:
    """Send the logs of this whole process to standard error. For processes of our own.

    Args:
        form: `json` or `console`.
        level: As `logging` names it.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(form, colours=sys.stderr.isatty()))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    hush()
    logging.captureWarnings(capture=True)
    configure_structlog()


def hush() -> None:
    """Let alembic tell of no look at the schema: every process of ours looks when it starts."""
    logging.getLogger("alembic").setLevel(logging.WARNING)


def configure_structlog() -> None:
    """Send what handlers log with structlog the same way; unless a program has set structlog up for itself."""
    import structlog  # noqa: PLC0415 - an application that brings its own logging need not load it

    if not structlog.is_configured():
        structlog.configure(
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.PositionalArgumentsFormatter(),
                *_shared(),
                structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
            logger_factory=structlog.stdlib.LoggerFactory(),
            cache_logger_on_first_use=False,
        )


def formatter(form: str, *, colours: bool = False) -> logging.Formatter:
    """What turns a record into one line: of JSON, or for people.

    Tracebacks show no variables: where rich is installed, structlog would show those of all frames, and URLs, secrets
    and documents with them.

    Args:
        form: `json` or `console`.
        colours: For a terminal.
    """
    import structlog  # noqa: PLC0415 - see `configure_structlog`

    last: list[Any] = [structlog.processors.JSONRenderer()]
    if form != "json":
        renderer = structlog.dev.ConsoleRenderer(
            colors=colours, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0, pad_level=False
        )
        last = [_printable, renderer]
    return structlog.stdlib.ProcessorFormatter(
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _bounded,
            _without_passwords,
            *last,
        ],
        foreign_pre_chain=[_extras, *_shared()],
    )


def _shared() -> list[Any]:
    """What happens to each line, whoever wrote it."""
    import structlog  # noqa: PLC0415 - see `configure_structlog`

    return [
        add_run_fields,
        _trace_ids,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def add_run_fields(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: adds what this thread is about, beside what the line says itself."""
    del logger, method
    for name, value in current_fields().items():
        event.setdefault(name, value)
    return event


#: What every record has, and what Celery adds for its own formatter: the arguments and the result of a task.
_KNOWN: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"data", "message", "asctime", "taskName"}


def _extras(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The fields of a record of the standard library. Of Celery's own, the task's id and name, and nothing else."""
    del logger, method
    record = event["_record"]
    event["process"] = record.processName
    for name, value in record.__dict__.items():
        if name not in _KNOWN and not name.startswith("_"):
            event.setdefault(name, value)
    data = getattr(record, "data", None)
    if isinstance(data, dict) and "id" in data:
        event.setdefault("task_id", data["id"])
        event.setdefault("task", data.get("name"))
    return event


def _trace_ids(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The trace that the line belongs to, where OpenTelemetry is at work."""
    del logger, method
    tracing: Any = sys.modules.get("opentelemetry.trace")
    if tracing is not None and (context := tracing.get_current_span().get_span_context()).is_valid:
        event.setdefault("trace_id", f"{context.trace_id:032x}")
        event.setdefault("span_id", f"{context.span_id:016x}")
    return event


#: Characters of one text in a line. A handler may raise whatever it read; the disk of a log is there for others too.
TEXT_LIMIT: Final = 100_000


def _bounded(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Texts with an end, tracebacks too."""
    del logger, method
    return _with_texts(event, lambda text: text if len(text) <= TEXT_LIMIT else _cut(text))


def _cut(text: str) -> str:
    kept = text[:TEXT_LIMIT]
    # Half of a URL would not be known for one by what hides passwords. A password may have the sign in itself, so that
    # the first one of the last word counts.
    last_word = max(kept.rfind(blank) for blank in " \t\n") + 1
    if (url := kept.find("://", last_word)) >= 0:
        kept = kept[: url + 3]
    return f"{kept}… (cut: {len(text):,} characters)"


_PASSWORD: Final = re.compile(r"(://[^:/@\s]*):\S*@")


def _without_passwords(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """URLs as our own errors show them; other libraries are less careful."""
    del logger, method
    return _with_texts(event, lambda text: _PASSWORD.sub(r"\1:***@", text) if "://" in text else text)


def _printable(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """One event, one line: keys and messages come from elsewhere, and must not steer a terminal or forge a line."""
    del logger, method
    return _with_texts(event, _escaped, _OF_MANY_LINES)


#: Tracebacks, which have lines of their own.
_OF_MANY_LINES: Final = frozenset({"exception", "stack"})


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _with_texts(
    event: MutableMapping[str, Any], change: Callable[[str], str], leave: frozenset[str] = frozenset()
) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str) and name not in leave:
            event[name] = change(value)
    return event
