"""`watch`, and the loop that other verbs wait with."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from batching.cli.display import Display
from batching.cli.output import console, json_flag, print_json
from batching.states import BatchState

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.cli.access import Access
    from batching.statistics import BatchView, Statistics


@click.command()
@click.argument("batch_id", metavar="ID")
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
def watch(ctx: click.Context, batch_id: str, interval: float, *, as_json: bool) -> None:
    """Show the progress of a batch until it ends. Exit code 1 when it did not succeed."""
    access: Access = ctx.obj
    found = access.statistics.resolve(batch_id)
    ctx.exit(exit_code(follow(access.statistics, found, interval=interval, as_json=as_json)))


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
    if as_json:
        return _look(statistics, batch_id, interval, _Lines())
    with Display(console(to_stderr=to_stderr)) as display:
        return _look(statistics, batch_id, interval, lambda view: display.update([view]))


def _look(statistics: Statistics, batch_id: str, interval: float, show: Callable[[BatchView], object]) -> BatchView:
    while True:
        view = statistics.batch(batch_id)
        show(view)
        if view.terminal:
            return view
        time.sleep(interval)


class _Lines:
    """Prints a batch as JSON whenever it changed."""

    def __init__(self) -> None:
        self._last: BatchView | None = None

    def __call__(self, view: BatchView) -> None:
        if view != self._last:
            print_json(view.as_json())
            sys.stdout.flush()
            self._last = view


def exit_code(view: BatchView) -> int:
    """0 for a batch that succeeded, 1 for one that ended otherwise."""
    return 0 if view.state is BatchState.SUCCEEDED else 1
