"""`watch`, and the loop that other verbs wait with."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import click

from batching.cli.display import Display
from batching.cli.output import console, json_flag, print_json
from batching.errors import DatabaseUnavailableError
from batching.states import BatchState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batching.cli.access import Access
    from batching.statistics import BatchView, Statistics

#: What `--all` watches: what runs, or will by itself.
_GOES_ON: Final = (BatchState.RUNNING, BatchState.STOPPING, BatchState.QUEUED)
#: Seconds that the database may be away before watching gives up. The batches themselves do not mind.
_PATIENCE: Final = 60.0
_MOST: Final = 1_000


@click.command()
@click.argument("batch_ids", nargs=-1, metavar="ID...")
@click.option("--all", "everything", is_flag=True, help="All that run or wait in line, new ones included.")
@click.option(
    "--interval",
    type=click.FloatRange(0.05, 3600),
    default=0.5,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
@json_flag
@click.pass_context
def watch(ctx: click.Context, batch_ids: Sequence[str], interval: float, *, everything: bool, as_json: bool) -> None:
    """Show the progress of batches until they have ended. Exit code 1 when one did not succeed."""
    if everything == bool(batch_ids):
        raise click.UsageError("name the batches to watch, or give --all")
    access: Access = ctx.obj
    statistics = access.statistics
    found = list(dict.fromkeys(statistics.resolve(each) for each in batch_ids))
    read = _Everything(statistics) if everything else lambda: [statistics.batch(each) for each in found]
    views = _shown(read, interval, as_json=as_json)
    ctx.exit(max((exit_code(view) for view in views), default=0))


class _Everything:
    """Reads what runs or waits in line, and what was seen to do so before."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._seen: dict[str, BatchView] = {}

    def __call__(self) -> list[BatchView]:
        current = {view.id: view for view in self._statistics.batches(states=_GOES_ON, limit=_MOST)}
        for batch_id, view in self._seen.items():
            if batch_id not in current and not view.terminal:
                current[batch_id] = self._statistics.batch(batch_id)
        self._seen |= current
        # Paused ones wait for a person: nobody can tell how long, so they are not waited for.
        return [view for view in self._seen.values() if view.state is not BatchState.PAUSED]


def follow(
    statistics: Statistics, batch_id: str, *, interval: float = 0.5, as_json: bool = False, to_stderr: bool = False
) -> BatchView:
    """Show a batch until it ends.

    Args:
        statistics: Where to look.
        batch_id: Which batch.
        interval: Seconds between two looks.
        as_json: Print one JSON object for each change instead.
        to_stderr: Show on standard error, for a verb whose standard output is for programs.

    Returns:
        The batch as it ended.
    """
    (view,) = _shown(lambda: [statistics.batch(batch_id)], interval, as_json=as_json, to_stderr=to_stderr)
    return view


def _shown(
    read: Callable[[], list[BatchView]], interval: float, *, as_json: bool, to_stderr: bool = False
) -> list[BatchView]:
    if as_json:
        return _look(read, interval, _Lines())
    with Display(console(to_stderr=to_stderr)) as display:
        return _look(read, interval, display.update)


def _look(
    read: Callable[[], list[BatchView]], interval: float, show: Callable[[Sequence[BatchView]], object]
) -> list[BatchView]:
    """Look until all have ended; an outage of the database is waited out for a while."""
    answered = time.monotonic()
    while True:
        try:
            views = read()
        except DatabaseUnavailableError:
            if time.monotonic() - answered > _PATIENCE:
                raise
        else:
            answered = time.monotonic()
            show(views)
            if all(view.terminal for view in views):
                return views
        time.sleep(interval)


class _Lines:
    """Prints each batch as JSON whenever it changed."""

    def __init__(self) -> None:
        self._last: dict[str, BatchView] = {}

    def __call__(self, views: Sequence[BatchView]) -> None:
        for view in views:
            if view != self._last.get(view.id):
                print_json(view.as_json())
                self._last[view.id] = view
        sys.stdout.flush()


def exit_code(view: BatchView) -> int:
    """0 for a batch that succeeded, 1 for one that ended otherwise."""
    return 0 if view.state is BatchState.SUCCEEDED else 1
