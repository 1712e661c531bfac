"""`demo`: the main job on real input. Every installed distribution is verified against its own RECORD.

One batch per distribution, one profile per line of its RECORD. One more batch, submitted first, is a private copy with
one file altered: it has to fail, go to the end of the queue, be tried again only in what failed, and end `failed`,
while all others succeed. Afterwards a plain loop over the same RECORDs says how each batch had to end, and the two are
compared.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from batching.cli.demo_input import altered_copy, expect, installed, key_of
from batching.cli.display import Display
from batching.cli.following import StopSignals, follow
from batching.cli.output import console, safe, styled, table
from batching.database import Database
from batching.errors import BatchingError, ConfigurationError
from batching.options import BatchOptions
from batching.states import BatchState, ProfileState
from batching.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batching.cli.access import Access
    from batching.cli.demo_input import Expected, Subject
    from batching.settings import Settings
    from batching.statistics import BatchView
    from workers.local import LocalServices

HANDLER: Final = "records.verify"
#: Passes of the altered batch, all of which it has to use up. The others would need one each.
_PASSES: Final = 3
#: `fail_fast` off: the first pass runs every file, so that later passes can show that they run only what failed.
OPTIONS: Final = BatchOptions(max_attempts=1, max_passes=_PASSES, fail_fast=False, pass_backoff=0.5)


class Audit:
    """Compares what the queue says with what the plain loop says, batch by batch.

    Args:
        statistics: What the queue says.
        key_limit: Characters of a key, as at submission.
    """

    def __init__(self, statistics: Statistics, key_limit: int) -> None:
        self._statistics = statistics
        self._key_limit = key_limit
        self.problems: list[str] = []

    def batch(self, subject: Subject, expected: Expected, view: BatchView) -> None:
        """Counts, state, passes, and every single profile of one batch."""
        name = subject.name
        self._same(f"{name}: state", expected.state, view.state)
        self._same(f"{name}: profiles", len(subject.lines), view.total)
        for state, count in (
            ("succeeded", expected.succeeded),
            ("skipped", expected.skipped),
            ("failed", len(expected.culprits)),
        ):
            self._same(f"{name}: {state}", count, getattr(view, state))
        self._same(f"{name}: passes", _PASSES if expected.culprits else 1, view.pass_number)
        self._profiles(subject, expected, view)

    def _profiles(self, subject: Subject, expected: Expected, view: BatchView) -> None:
        culprits = {key_of(path, self._key_limit) for path in expected.culprits}
        seen = Counter(result.key for result in self._statistics.results(view.id))
        self._same(f"{subject.name}: keys", Counter(key_of(line.path, self._key_limit) for line in subject.lines), seen)
        for result in self._statistics.results(view.id):
            if (result.state is ProfileState.FAILED) is not (result.key in culprits):
                self.problems.append(f"{subject.name}: {result.key} is {result.state.value}")
            self._same(f"{subject.name}: attempts of {result.key} in its last pass", 1, result.attempts)

    def last_of_all(self, altered: BatchView, others: Sequence[BatchView]) -> None:
        """The altered batch stood first in line; it must have made room for all that succeeded."""
        later = [
            view.name
            for view in others
            if view.state is BatchState.SUCCEEDED
            and (view.finished_at is None or altered.finished_at is None or view.finished_at > altered.finished_at)
        ]
        if later:
            self.problems.append(
                f"{altered.name} ended before {', '.join(later)}: it did not wait at the end of the queue"
            )

    def only_what_failed(self, view: BatchView, culprit: str) -> None:
        """Later passes ran the culprit alone: it has one run a pass, every other file one run altogether."""
        for result in self._statistics.results(view.id):
            runs = self._statistics.attempts(view.id, result.key)
            passes = [run.pass_number for run in runs if run.outcome != "given back"]
            wanted = list(range(1, _PASSES + 1)) if result.key == culprit else [1]
            self._same(f"{view.name}: passes in which {result.key} ran", wanted, passes)

    def _same(self, what: str, expected: object, found: object) -> None:
        if expected != found:
            self.problems.append(f"{what}: expected {expected}, found {found}")


class Demo:
    """One demo run in a folder of its own.

    Args:
        settings: Limits; its URLs and home folder are not used.
        folder: Where store, server and the altered copy go.
        concurrency: Pool slots; None for one per processor.
        signals: What ends it early.
    """

    def __init__(self, settings: Settings, folder: Path, concurrency: int | None, signals: StopSignals) -> None:
        self._settings = settings.model_copy(update={"database_url": None, "broker_url": None, "home": folder})
        self._folder = folder
        self._concurrency = concurrency
        self._signals = signals
        self._console = console()

    def __call__(self) -> list[str]:
        """Run it, and print what happened.

        Returns:
            What did not come out as it had to; empty when all did.
        """
        from workers.local import LocalServices, WorkerPlan  # noqa: PLC0415 - producers never load a worker's parts

        subjects = installed()
        altered, culprit = altered_copy(subjects, self._folder / "altered")
        self._print(
            f"verifying {len(subjects)} distributions against their RECORD; "
            f"{altered.name} is a copy with {culprit} altered"
        )
        with LocalServices(self._settings, WorkerPlan(self._concurrency)) as services:
            database = Database(services.database_url)
            try:
                views = self._run(services, database, [altered, *subjects])
                return self._judge(Statistics(database, self._settings), [altered, *subjects], views, culprit)
            finally:
                database.close()

    def _run(self, services: LocalServices, database: Database, subjects: Sequence[Subject]) -> list[BatchView]:
        from batching.queue_manager import QueueManager  # noqa: PLC0415 - the other commands here submit nothing

        manager = QueueManager(database, services.broker_url, self._settings)
        limit = self._settings.key_limit
        ids = [
            manager.submit(HANDLER, subject.profiles(limit), name=subject.name[:255], options=OPTIONS).id
            for subject in subjects
        ]
        # Only now: a batch that fails while others are still being submitted would not stand behind them.
        services.start_worker()
        statistics = Statistics(database, self._settings)
        live = self._console.is_terminal and not self._console.is_dumb_terminal

        def read() -> list[BatchView]:
            return statistics.batches(limit=len(ids))

        with Display(self._console, live=live) as display:
            views = follow(read, services, display if live else Brief(display), self._signals)
        by_id = {view.id: view for view in views}
        return [by_id[each] for each in ids]

    def _judge(
        self, statistics: Statistics, subjects: Sequence[Subject], views: Sequence[BatchView], culprit: str
    ) -> list[str]:
        audit = Audit(statistics, self._settings.key_limit)
        for subject, view in zip(subjects, views, strict=True):
            audit.batch(subject, expect(subject), view)
        audit.last_of_all(views[0], views[1:])
        audit.only_what_failed(views[0], key_of(culprit, self._settings.key_limit))
        self._print_table(views)
        for view in views:
            for group in statistics.failures(view.id):
                self._print(f"{view.name}: {group.count:,} failed: {', '.join(group.keys)}: {group.message}")
        return audit.problems

    def _print_table(self, views: Sequence[BatchView]) -> None:
        numbers = ("profiles", "ok", "skipped", "failed", "passes", "seconds")
        ended = sorted(views, key=lambda view: view.finished_at or view.created_at)
        rows: list[Sequence[object]] = [
            (styled(view.state), view.name, *_counts([view]), view.pass_number, f"{_seconds([view]):.1f}")
            for view in ended
        ]
        seconds = _seconds(views)
        rows.append(("", "total", *_counts(views), "", f"{seconds:.1f}"))
        self._print("in the order in which they ended:")
        self._console.print(table(("state", "batch", *numbers), rows, right=numbers))
        settled = sum(view.settled for view in views)
        self._print(f"{settled:,} profiles in {seconds:.1f} s: {settled / max(seconds, 0.001):,.0f} a second")

    def _print(self, text: str) -> None:
        self._console.print(safe(text), soft_wrap=True)


class Brief:
    """For output that is no terminal: a batch that merely waits says nothing, or every step of it would be a line."""

    def __init__(self, display: Display) -> None:
        self._display = display

    def update(self, views: Sequence[BatchView]) -> None:
        """Show what runs, what has ended, and what is back in line."""
        self._display.update(
            [
                replace(view, reason="") if view.state is BatchState.QUEUED else view
                for view in views
                if view.state is not BatchState.QUEUED or view.pass_number > 1
            ]
        )


def _counts(views: Sequence[BatchView]) -> tuple[str, ...]:
    return tuple(
        f"{sum(getattr(view, name) for view in views):,}" for name in ("total", "succeeded", "skipped", "failed")
    )


def _seconds(views: Sequence[BatchView]) -> float:
    """From the first start to the last end."""
    began = min(view.started_at or view.created_at for view in views)
    return (max(view.finished_at or view.created_at for view in views) - began).total_seconds()


@contextlib.contextmanager
def _folder(home: Path, *, keep: bool) -> Iterator[Path]:
    """A fresh folder in the home folder, removed unless it is to be kept or something went wrong."""
    made = not home.exists()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="demo-", dir=home)).absolute()
    except OSError as error:
        raise ConfigurationError(f"cannot make a folder in {home}: {error}; name another with --home") from None
    try:
        yield folder
    except Exception:
        click.echo(f"store and logs are kept in {folder}", err=True)
        raise
    except BaseException:  # Ctrl-C, SIGTERM: nobody asks what happened
        shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        if keep:
            click.echo(f"kept: BATCHING_HOME={folder} batching list")
        else:
            shutil.rmtree(folder)
    finally:
        if made:
            with contextlib.suppress(OSError):
                home.rmdir()


@click.command()
@click.option("--home", type=click.Path(path_type=Path), help="Where its folder is made; default: BATCHING_HOME.")
@click.option("--keep", is_flag=True, help="Keep store and logs, to look at them with the other verbs.")
@click.option("--concurrency", "-c", type=click.IntRange(min=1), help="Pool slots; default: one a processor.")
@click.pass_obj
def demo(access: Access, /, home: Path | None, keep: bool, concurrency: int | None) -> None:
    """Run the main job on real input, with SQLite and a private Valkey: verify everything that is installed here.

    Exit code 0 only when all came out as a plain loop over the same files says.
    """
    with StopSignals() as signals, _folder(home or access.settings.home, keep=keep) as folder:
        problems = Demo(access.settings, folder, concurrency, signals)()
        if problems:
            shown = "\n".join(f"  {problem}" for problem in problems[:20])
            raise BatchingError(f"the demo did not come out as it had to, in {len(problems)} respects:\n{shown}")
        click.echo("all as it had to be, by a plain loop over the same files")
