"""`run`: one file through one handler, start to finish. `worker`, `manager`: the parts, in the foreground."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from batching import handlers as marks
from batching import traces
from batching.cli.feeding import told
from batching.cli.following import StopSignals, check_target, follow, summary, write_lines
from batching.cli.submitting import parse_options
from batching.database import Database
from batching.errors import BatchingError, InvalidInputError
from batching.settings import get_settings
from batching.states import BatchState
from batching.statistics import Statistics

if TYPE_CHECKING:
    from batching.cli.access import Access
    from batching.intake import Source
    from batching.options import BatchOptions
    from batching.queue_manager import Batch, QueueManager
    from batching.settings import Settings
    from batching.statistics import BatchView
    from workers.local import LocalServices

#: Shipped with the worker; known without `--handlers`.
_SHIPPED: Final = ("workers.handlers.records",)
#: Exit code after Ctrl-C: 128 + SIGINT.
_INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for on the command line of `run`."""

    handler: str
    file: str
    modules: tuple[str, ...]
    concurrency: int | None
    pool: str
    out: str | None
    errors: str | None
    key: str | None
    key_column: str | None
    file_format: str | None
    option: tuple[str, ...]
    name: str | None


def all_modules(settings: Settings, given: tuple[str, ...]) -> tuple[str, ...]:
    """What is configured and what was given, each once."""
    return tuple(dict.fromkeys((*settings.handlers, *given)))


def _check_handler(name: str, modules: tuple[str, ...]) -> None:
    """Import the handlers here, before anything is written or started.

    Raises:
        HandlerImportError: A module does not import.
        UnknownHandlerError: None of them marks this handler; the message lists those that are marked.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    marks.load((*_SHIPPED, *modules))
    marks.get(name)


class OneShot:
    """One file through one handler: checks first, then the services, then the batch, then its results.

    Args:
        request: What was asked for.
        settings: URLs, home folder and limits.
    """

    def __init__(self, request: Request, settings: Settings) -> None:
        self._request = request
        self._settings = settings
        self._modules = all_modules(settings, request.modules)
        self._paused: str | None = None
        self._resumable = False

    def __call__(self) -> int:
        """Do it.

        Returns:
            0 when the batch succeeded, 1 when it did not, 130 after Ctrl-C.
        """
        from workers.local import LocalServices  # noqa: PLC0415 - producers never load a worker's parts

        _check_handler(self._request.handler, self._modules)
        options = parse_options(self._request.option)
        check_target(self._request.out)
        check_target(self._request.errors)
        self._refuse_empty_file()
        with self._open() as source, StopSignals() as signals:
            try:
                with LocalServices(self._settings, self._plan()) as services:
                    # It boots while the file is read.
                    services.start_worker()
                    return self._work(services, source, options, signals)
            except KeyboardInterrupt:
                self._say_how_to_go_on("interrupted")
                return _INTERRUPTED
            except BatchingError:
                if self._paused is not None:
                    self._say_how_to_go_on("stopped")
                raise

    def _refuse_empty_file(self) -> None:
        if self._request.file != "-":
            with self._open() as source:
                self._refuse_if(empty=next(source, None) is None)

    def _refuse_if(self, *, empty: bool) -> None:
        if empty:
            raise InvalidInputError(f"cannot run {self._request.file}: there is no profile in it")

    def _plan(self) -> Any:
        from workers.local import WorkerPlan  # noqa: PLC0415 - as above

        return WorkerPlan(self._request.concurrency, self._request.pool, self._modules, queues=("default",))

    def _open(self) -> Source:
        from batching.intake import Limits, read_file  # noqa: PLC0415 - only this verb reads files

        request = self._request
        return read_file(
            request.file,
            format=request.file_format,
            key_column=request.key_column,
            limits=Limits.from_settings(self._settings),
        )

    def _work(self, services: LocalServices, source: Source, options: BatchOptions, signals: StopSignals) -> int:
        from batching.cli.display import Display  # noqa: PLC0415 - rich is slow to import
        from batching.cli.output import console  # noqa: PLC0415 - as above

        database = Database(services.database_url)
        try:
            manager = self._queue_manager(services, database)
            batch = self._submit(manager, source, options)
            statistics = Statistics(database, self._settings)
            # An earlier run of this command, with the same key, may have put it aside.
            self._resumable = not batch.created
            try:
                # Standard output is for results.
                with Display(console(to_stderr=True)) as display:
                    (view,) = follow(lambda: [self._look(manager, statistics, batch.id)], services, display, signals)
            except BaseException:
                # Nobody expects it to go on in a later command; the worker then drains without taking more of it.
                self._put_aside(manager, batch.id)
                raise
            self._report(view, statistics)
            return 0 if view.state is BatchState.SUCCEEDED else 1
        finally:
            database.close()

    def _queue_manager(self, services: LocalServices, database: Database) -> QueueManager:
        from batching.queue_manager import QueueManager  # noqa: PLC0415 - the other verbs here submit nothing

        traces.boot()
        return QueueManager(database, services.broker_url, self._settings)

    def _submit(self, manager: QueueManager, source: Source, options: BatchOptions) -> Batch:
        request = self._request
        name = request.name or (Path(request.file).name if request.file != "-" else request.handler)
        batch = manager.submit(request.handler, source, name=name, key=request.key, options=options)
        if batch.created and not batch.total:
            # Standard input can be read only once, so only now is it known to be empty.
            manager.cancel(batch.id, "there was no profile in it")
            self._refuse_if(empty=True)
        goes_on = f"goes on: key {request.key!r} names it already, the file has {told(batch.difference)}"
        click.echo(f"batch {batch.id} {'submitted' if batch.created else goes_on}: {batch.total:,} profiles", err=True)
        return batch

    def _look(self, manager: QueueManager, statistics: Statistics, batch_id: str) -> BatchView:
        view = statistics.batch(batch_id)
        if view.state is BatchState.PAUSED and self._resumable:
            # Once: whoever pauses it from now on, a person or its `requeue` policy, means it.
            self._resumable = False
            manager.resume(batch_id)
        return view

    def _put_aside(self, manager: QueueManager, batch_id: str) -> None:
        # It ended meanwhile, or the store is away: what interrupted us is what the user has to hear of.
        with contextlib.suppress(BatchingError):
            manager.pause(batch_id, "its `batching run` was interrupted")
            self._paused = batch_id

    def _report(self, view: BatchView, statistics: Statistics) -> None:
        out, errors = self._request.out, self._request.errors
        written = write_lines(view.id, statistics, out, errors)
        for line in summary(view):
            click.echo(line, err=True)
        for group in statistics.failures(view.id)[:5]:
            click.echo(f"  {group.count:,} x {group.type}: {group.message} (first: {group.keys[0]})", err=True)
        for target, lines in written.items():
            click.echo(f"  {target}: {lines:,} lines", err=True)
        if out is None:
            click.echo(f"  batching results {view.id} prints the results", err=True)

    def _say_how_to_go_on(self, how: str) -> None:
        if self._paused is None:
            click.echo(f"{how}; no batch waits", err=True)
        elif self._request.key is not None:
            click.echo(f"{how}; batch {self._paused} is paused: the same command again goes on", err=True)
        else:
            modules = "".join(f" --handlers {shlex.quote(module)}" for module in self._request.modules)
            click.echo(
                f"{how}; batch {self._paused} is paused: `batching resume {self._paused}` and `batching up{modules}` "
                "go on (with --key, the same command again would)",
                err=True,
            )


def worker_choices(command: Any) -> Any:
    """The options that every command has which starts a worker."""
    for option in (
        click.option(
            "--handlers", "modules", multiple=True, metavar="MODULE", help="Import handlers from here; repeatable."
        ),
        click.option("--concurrency", "-c", type=click.IntRange(min=1), help="Pool slots; default: one a processor."),
        click.option("--pool", "-P", default="prefork", show_default=True, help="Celery's name of the pool."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("handler")
@click.argument("file")
@worker_choices
@click.option("--out", metavar="FILE", help="Write all results here, as JSON lines; - is standard output.")
@click.option("--errors", metavar="FILE", help="Write the failed profiles here, as JSON lines.")
@click.option("--key", help="Name the batch: the same command again goes on where it stopped.")
@click.option("--key-column", metavar="NAME", help="Column or field with the profiles' keys.")
@click.option(
    "--format", "file_format", type=click.Choice(["csv", "tsv", "jsonl", "lines"]), help="Default: by suffix."
)
@click.option("--option", multiple=True, metavar="NAME=VALUE", help="An option of the batch, as max_attempts=5.")
@click.option("--name", help="What the batch is called; default: the file's name.")
@click.pass_context
def run(context: click.Context, /, **given: Any) -> None:
    """Run FILE (CSV, JSON lines or lines; - is standard input) through HANDLER, once, and wait for it.

    Starts what has no URL configured: SQLite and a private Valkey in BATCHING_HOME, and always a worker of its own.
    """
    access: Access = context.obj
    context.exit(OneShot(Request(**given), access.settings)())


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.option("--handlers", "modules", multiple=True, metavar="MODULE")
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def worker(access: Access, /, modules: tuple[str, ...], celery_options: tuple[str, ...]) -> None:
    """Become `celery -A workers worker`; every other option is Celery's (-c N, -P POOL, --help …)."""
    from workers.interpreter import environment, python  # noqa: PLC0415 - producers never load a worker's parts

    _export_urls(access.settings)
    # Celery's banner is no JSON.
    quiet = ["--quiet"] if access.settings.log_format == "json" else []
    command = python("workers", *quiet, "worker", *celery_options)
    sys.stdout.flush()
    os.execve(command[0], command, environment(BATCHING_HANDLERS=",".join(all_modules(access.settings, modules))))  # noqa: S606 - our own interpreter; signals then reach the worker


@click.command()
@click.pass_context
def manager(context: click.Context, /) -> None:
    """Run a manager on its own: leader election, promotion, dispatch and the sweep."""
    from workers.manager import main  # noqa: PLC0415 - producers never load a worker's parts

    access: Access = context.obj
    _export_urls(access.settings)
    context.exit(main())


def _export_urls(settings: Settings) -> None:
    """`--database` and `--broker` reach what reads its settings from the environment, as `celery worker` does."""
    for name, url in (("BATCHING_DATABASE_URL", settings.database_url), ("BATCHING_BROKER_URL", settings.broker_url)):
        if url is not None:
            os.environ[name] = url
    get_settings.cache_clear()
