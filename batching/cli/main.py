"""The `batching` command: its global options, its verbs, and what an error looks like on the way out."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, Final

import click

from batching.cli.access import Access
from batching.errors import BatchingError, ConfigurationError, InvalidInputError, UnknownHandlerError
from batching.settings import get_settings, refuse_flaws

#: Where each verb is. A verb's module is imported when the verb is called, so that no verb waits for another's imports.
VERBS: Final = {
    "amend": "batching.cli.feeding:amend",
    "append": "batching.cli.feeding:append",
    "callbacks": "batching.cli.telling:callbacks",
    "cancel": "batching.cli.steering:cancel",
    "dashboard": "batching.cli.dashboard:dashboard",
    "db": "batching.cli.checking:db",
    "demo": "batching.cli.demo:demo",
    "doctor": "batching.cli.checking:doctor",
    "drain": "batching.cli.fleet:drain",
    "execute": "batching.cli.steering:execute",
    "failures": "batching.cli.triaging:failures",
    "health": "batching.cli.probing:health",
    "limit": "batching.cli.queues:limit",
    "list": "batching.cli.reading:list_batches",
    "manager": "batching.cli.one_shot:manager",
    "move": "batching.cli.steering:move",
    "pause": "batching.cli.steering:pause",
    "prune": "batching.cli.steering:prune",
    "queue": "batching.cli.queues:queue",
    "results": "batching.cli.reading:results",
    "resume": "batching.cli.steering:resume",
    "retry": "batching.cli.steering:retry",
    "run": "batching.cli.one_shot:run",
    "seal": "batching.cli.feeding:seal",
    "show": "batching.cli.reading:show",
    "skip": "batching.cli.triaging:skip",
    "submit": "batching.cli.submitting:submit",
    "top": "batching.cli.top:top",
    "up": "batching.cli.up:up",
    "watch": "batching.cli.watching:watch",
    "worker": "batching.cli.one_shot:worker",
    "workers": "batching.cli.fleet:list_workers",
}

_WRONG_USE = (InvalidInputError, UnknownHandlerError, ConfigurationError)


class Failure(click.ClickException):
    """An error on its way to standard error: one message, and the exit code that goes with it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click's own way, which its annotation forbids


class Verbs(click.Group):
    """The verbs, imported one by one; and the one place that turns errors into exit codes.

    It is done here, not in `main`, because under `celery -A workers batching …` only this group is ours.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in alphabetical order."""
        del ctx
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb."""
        del ctx
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; every way in which it can end badly becomes a message and an exit code."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here, so that a reader who went away is noticed inside this `try`
        except KeyboardInterrupt:
            ctx.exit(130)
        except BrokenPipeError:
            _forget_standard_output()
            ctx.exit(0)
        except (click.exceptions.Exit, click.Abort, click.ClickException):
            raise
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            raise _failure(error) from error
        return result


def _failure(error: Exception) -> Failure:
    if isinstance(error, BatchingError):
        return Failure(str(error), 2 if isinstance(error, _WRONG_USE) else 1)
    first = (str(error).strip() or "no message").splitlines()[0]
    return Failure(f"internal error, {type(error).__name__}: {first}; `batching --debug …` shows where", 1)


def _forget_standard_output() -> None:
    """Our reader has gone (`| head`): let the interpreter's last flush go nowhere instead of complaining."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


# Named, because Celery mounts a plug-in under the command's own name, not under that of its entry point.
@click.group("batching", cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--database", metavar="URL", help="The store, instead of BATCHING_DATABASE_URL.")
@click.option("--broker", metavar="URL", help="Redis or Valkey, instead of BATCHING_BROKER_URL.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="batching", prog_name="batching")
@click.pass_context
def cli(ctx: click.Context, database: str | None, broker: str | None, *, debug: bool) -> None:
    """A durable batch queue on Celery: submit batches, watch them, steer them.

    Exit codes: 0 done; 1 the batch failed, or a problem was found; 2 wrong use.
    """
    del debug  # read from the context by `Verbs.invoke`
    given = {"database_url": database, "broker_url": broker}
    overrides = {name: value for name, value in given.items() if value}
    settings = get_settings().model_copy(update=overrides)
    refuse_flaws(settings)
    access = Access(settings)
    ctx.obj = access
    ctx.call_on_close(access.close)


def main() -> None:
    """The console script."""
    try:
        cli(prog_name="batching")
    except KeyboardInterrupt:  # before or after a verb; inside one, see `Verbs.invoke`
        sys.exit(130)


if __name__ == "__main__":
    main()
