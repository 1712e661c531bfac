"""`top`: the whole installation on one screen, drawn over itself; once, or as JSON, for scripts."""

from __future__ import annotations

import os
import select
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click
from rich.live import Live

from batching.cli.following import StopSignals
from batching.cli.output import console, json_flag, print_json
from batching.cli.screen import draw
from batching.errors import BatchingError, DatabaseUnavailableError
from batching.states import BatchState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batching.cli.access import Access
    from batching.statistics import BatchView, FailureGroup, Occupation, QueueView, Statistics, WorkerView

#: What is read of batches: what runs, what waits, and what ended last.
_MOST: Final = 50
_AT_WORK: Final = frozenset({BatchState.RUNNING, BatchState.STOPPING})
#: Batches whose failures are looked at, and groups that are kept.
_FAILING: Final = 10
_GROUPS: Final = 20


@dataclass(frozen=True, slots=True)
class Failing:
    """Profiles of one batch that failed alike in its present pass."""

    batch: BatchView
    group: FailureGroup


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one screen shows."""

    led: bool
    queues: list[QueueView]
    batches: list[BatchView]
    workers: list[WorkerView]
    occupations: list[Occupation]
    failures: list[Failing]

    def as_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "led": self.led,
            "queues": [each.as_json() for each in self.queues],
            "batches": [each.as_json() for each in self.batches],
            "workers": [
                each.as_json() | {"runs": [run._asdict() for run in self.occupations if run.worker_id == each.id]}
                for each in self.workers
            ],
            "failures": [{"batch": each.batch.id, **each.group.as_json()} for each in self.failures],
        }


def take(statistics: Statistics, queue: str | None = None) -> Snapshot:
    """Read everything that a screen shows.

    Args:
        statistics: The reads.
        queue: Only this queue and its batches.
    """
    queues = [each for each in statistics.queues() if queue in {None, each.name}]
    batches = statistics.batches(queue, limit=_MOST)
    failing = [each for each in batches if each.failed and each.state in _AT_WORK][:_FAILING]
    groups = [Failing(batch, group) for batch in failing for group in statistics.failures(batch.id)]
    return Snapshot(
        led=statistics.led(),
        queues=queues,
        batches=batches,
        workers=sorted(statistics.workers(), key=lambda each: (each.hostname, each.started_at)),
        occupations=statistics.occupations(),
        failures=sorted(groups, key=lambda each: -each.group.count)[:_GROUPS],
    )


@click.command()
@click.option("--queue", metavar="NAME", help="Only this queue and its batches.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
@click.option("--once", is_flag=True, help="Print one screen and end; without a terminal, that is what happens.")
@json_flag
@click.pass_obj
def top(access: Access, queue: str | None, interval: float, *, once: bool, as_json: bool) -> None:
    """Show queues, batches, workers and failures, live. The key q ends it."""
    statistics = access.statistics
    if as_json:
        print_json(take(statistics, queue).as_json())
        return
    out = console()
    if once or not out.is_terminal or out.is_dumb_terminal:
        # Everything, however long: a script's output has no screen to fit on.
        out.print(draw(take(statistics, queue), out.width, None))
        return
    # A signal, too, gives the terminal back as it was.
    with StopSignals() as signals, _keys() as keys, Live(console=out, screen=True, auto_refresh=False) as live:
        snapshot, trouble = None, ""
        while True:
            signals.check()
            try:
                snapshot, trouble = take(statistics, queue), ""
            except DatabaseUnavailableError as error:
                # The last picture stays; what shows it must not end when people need it most.
                trouble = str(error)
            if snapshot is not None:
                live.update(draw(snapshot, out.width, out.height, trouble), refresh=True)
            elif trouble:
                raise BatchingError(trouble)
            if keys.wait(interval) in {"q", "Q", "\x1b", ""}:
                return


class _Keys:
    """The terminal's keys, one at a time, without waiting for the end of a line.

    Args:
        fd: Standard input; None when it is no terminal.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def wait(self, seconds: float) -> str | None:
        """The key that is pressed within so many seconds; None for none, empty when the terminal has gone."""
        if self._fd is None:
            time.sleep(seconds)
            return None
        ready, _, _ = select.select([self._fd], [], [], seconds)
        return os.read(self._fd, 64).decode("utf-8", "replace")[:1] if ready else None


@contextmanager
def _keys() -> Iterator[_Keys]:
    """Let keys come at once, and give the terminal back as it was."""
    if not sys.stdin.isatty():
        yield _Keys(None)
        return
    import termios  # noqa: PLC0415 - not everywhere; where it is missing, there is no such terminal
    import tty  # noqa: PLC0415 - as above

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield _Keys(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
