"""The logs of our own Celery application: Celery's set-up, with a formatter that knows fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click
from celery.app.log import Logging
from celery.utils.log import mlevel
from click.core import ParameterSource

from batching import logs
from batching.settings import get_settings

if TYPE_CHECKING:
    import logging

    from batching.interfaces import Claimed


def run_fields(claimed: Claimed, worker: str) -> dict[str, Any]:
    """What a line about a claimed run carries.

    Args:
        claimed: The run.
        worker: The id under which it was claimed.
    """
    run, terms = claimed.run, claimed.terms
    return {
        "batch": run.batch_id,
        "profile": claimed.key,
        "run": run.run,
        "attempt": claimed.attempt,
        "pass": terms.pass_number,
        "handler": terms.lane.handler,
        "worker": worker,
    }


class StructuredLogging(Logging):
    """Celery sets up what it always does, streams, files, levels and signals; only how a line looks is ours.

    It is the class of `workers.celery:app` alone. Applications that call `install(app)` keep their logging.
    """

    def setup_logging_subsystem(self, loglevel: Any = None, *arguments: Any, **options: Any) -> Any:
        """Celery's; BATCHING_LOG_LEVEL decides, unless the command line says otherwise."""
        level = get_settings().log_level
        if level is not None and not _said_by_hand("loglevel"):
            loglevel = mlevel(level)
        logs.configure_structlog()
        return super().setup_logging_subsystem(loglevel, *arguments, **options)

    def setup_handlers(self, logger: logging.Logger, *arguments: Any, **options: Any) -> logging.Logger:
        """Give a logger its handler, as Celery does, and the handler our formatter."""
        before = list(logger.handlers)
        super().setup_handlers(logger, *arguments, **options)
        colours = bool(arguments[_COLOUR]) if len(arguments) > _COLOUR else bool(options.get("colorize"))
        for handler in logger.handlers:
            if handler not in before:
                handler.setFormatter(logs.formatter(get_settings().log_format, colours=colours))
        return logger


#: The place of `colorize` behind the logger, the file and the format (celery/app/log.py `setup_handlers`).
_COLOUR: Final = 2


def _said_by_hand(option: str) -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(option) is ParameterSource.COMMANDLINE
