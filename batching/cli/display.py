"""Live progress of batches: a table that is drawn over itself on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple, Self

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from batching.cli.output import console as make_console
from batching.cli.output import duration, place, rate, safe, styled

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from rich.console import Console, RenderableType

    from batching.statistics import BatchView

#: Seconds between two plain lines about a batch whose state does not change.
_PLAIN_INTERVAL = 5.0
_BAR_WIDTH = 16


class _Told(NamedTuple):
    """What the last plain line about a batch said, and when."""

    state: str
    pass_number: int
    reason: str
    settled: int
    at: float


class Display:
    """Shows progress; fed with `update(views)` as often as its owner looks.

    Args:
        console: Where to; by default standard output.
        live: True draws over itself, False prints lines; by default what the console is.
    """

    def __init__(self, console: Console | None = None, *, live: bool | None = None) -> None:
        self._console = console or make_console()
        wanted = self._console.is_terminal and not self._console.is_dumb_terminal if live is None else live
        self._live = Live(console=self._console, auto_refresh=False) if wanted else None
        self._told: dict[str, _Told] = {}

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, views: Sequence[BatchView]) -> None:
        """Show how far these batches are.

        Args:
            views: All of them, in the order in which they are to be shown.
        """
        if self._live is not None:
            self._live.update(self._drawn(views), refresh=True)
            return
        for view in views:
            self._tell(view)

    def _drawn(self, views: Sequence[BatchView]) -> RenderableType:
        chosen = _most_telling(views, max(3, self._console.height - 3))
        return Group(_grid(chosen), Text(_below(views, len(views) - len(chosen)), style="dim"))

    def _tell(self, view: BatchView) -> None:
        """One line when there is something new: at once for another state, at a slow beat for mere progress."""
        now = time.monotonic()
        said = _Told(view.state, view.pass_number, view.reason, view.settled, now)
        last = self._told.get(view.id)
        if (
            last is not None
            and last[:3] == said[:3]
            and (last.settled == said.settled or now - last.at < _PLAIN_INTERVAL)
        ):
            return
        self._told[view.id] = said
        self._console.print(plain_line(view), soft_wrap=True)


def plain_line(view: BatchView) -> str:
    """Where a batch is, on one line of text."""
    parts = [f"{view.state}", f"{view.percent} % ({view.settled:,} of {view.total:,})"]
    if view.pass_number > 1:
        parts.insert(1, f"pass {view.pass_number} of {view.max_passes}")
    if view.failed:
        parts.append(f"{view.failed:,} failed")
    if view.rate is not None:
        parts.append(rate(view.rate))
    if view.eta_seconds is not None:
        parts.append(f"{duration(view.eta_seconds)} left")
    if view.reason:
        parts.append(safe(view.reason))
    return f"{safe(view.name)}: {', '.join(parts)}"


def _cells(view: BatchView) -> tuple[Text | ProgressBar, ...]:
    state = styled(view.state)
    if view.place:
        state.append(f" #{place(view)}")
    if view.pass_number > 1 and not view.terminal:
        state.append(f" pass {view.pass_number}")
    return (
        Text(safe(view.name)),
        state,
        ProgressBar(total=100, completed=view.percent, width=_BAR_WIDTH),
        Text(f"{view.percent}%"),
        Text(rate(view.rate)),
        Text(duration(view.eta_seconds)),
    )


def _grid(views: Sequence[BatchView]) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, overflow="ellipsis", min_width=8, max_width=24)
    grid.add_column(no_wrap=True)
    grid.add_column(width=_BAR_WIDTH)
    for _ in range(3):
        grid.add_column(no_wrap=True, justify="right")
    for view in views:
        grid.add_row(*_cells(view))
    return grid


def _below(views: Sequence[BatchView], hidden: int) -> str:
    """What stands under the rows: why the one batch does not move, or how far many are."""
    if len(views) == 1:
        return safe(views[0].reason)
    ended = sum(view.terminal for view in views)
    return f"{ended} of {len(views)} batches have ended" + (f", {hidden} not shown" if hidden else "")


def _most_telling(views: Sequence[BatchView], room: int) -> list[BatchView]:
    """As many as there is room for: those that have not ended before those that have, else in the given order."""
    if len(views) <= room:
        return list(views)
    order = sorted(range(len(views)), key=lambda index: (views[index].terminal, index))
    return [views[index] for index in sorted(order[:room])]
