"""How `top` draws: sections share the height, rows share the width, and nothing that a batch carries steers it."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from batching.cli.fleet import state_of
from batching.cli.output import duration, place, rate, safe, short_ids, styled
from batching.states import BatchState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import JustifyMethod, RenderableType

    from batching.cli.top import Snapshot
    from batching.statistics import BatchView, Occupation, QueueView, WorkerView

_BAR: Final = 10
#: Columns from which on what is nice to have is shown, too.
_WIDE: Final = 100
_AT_WORK: Final = frozenset({BatchState.RUNNING, BatchState.STOPPING})


class _Section(NamedTuple):
    """A heading, its rows, and how many of them are worth a line even where there are few."""

    title: str
    columns: tuple[tuple[str, JustifyMethod, int | None], ...]
    """Header, side, and width; None for the one that takes what is left."""
    rows: list[tuple[RenderableType, ...]]
    least: int


def draw(snapshot: Snapshot, width: int, height: int | None, trouble: str = "") -> RenderableType:
    """One picture.

    Args:
        snapshot: What there is.
        width: Columns of the screen.
        height: Its lines; None for as many as it takes.
        trouble: Why the picture is an old one; empty when it is not.
    """
    wide = width >= _WIDE
    sections = [
        _queues(snapshot.queues, wide=wide),
        _batches(snapshot.batches, wide=wide),
        _workers(snapshot.workers, snapshot.occupations, snapshot.batches, wide=wide),
        _failures(snapshot, wide=wide),
    ]
    shown = [each for each in sections if each.rows]
    head: list[RenderableType] = [_summary(snapshot, width)]
    if trouble:
        head.append(Text(safe(trouble), style="red", no_wrap=True, overflow="ellipsis"))
    # A rule and a header for each, and the last line, which some terminals scroll by.
    room = None if height is None else height - len(head) - 2 * len(shown) - 1
    lines = _share([(len(each.rows), each.least) for each in shown], room)
    return Group(*head, *(part for each, most in zip(shown, lines, strict=True) for part in _drawn(each, most)))


def _share(wanted: Sequence[tuple[int, int]], room: int | None) -> list[int]:
    """Lines for each section: what it needs at least, and then whoever wants more takes turns."""
    if room is None:
        return [rows for rows, _ in wanted]
    given = [min(rows, least) for rows, least in wanted]
    while sum(given) > max(room, 0):  # a tiny screen: the last sections go first
        index = max(place for place, lines in enumerate(given) if lines)
        given[index] -= 1
    while sum(given) < room:
        hungry = [place for place, (rows, _) in enumerate(wanted) if given[place] < rows]
        if not hungry:
            break
        given[min(hungry, key=lambda place: given[place])] += 1
    return given


def _drawn(section: _Section, most: int) -> Iterable[RenderableType]:
    hidden = len(section.rows) - most
    title = section.title + (f" ({hidden} more)" if hidden else "")
    yield Rule(Text(title, style="bold"), align="left", style="dim", characters="─")
    if not most:
        return
    grid = Table(box=None, pad_edge=False, header_style="dim", expand=True, padding=(0, 1, 0, 0))
    for header, justify, columns in section.columns:
        ratio = 1 if columns is None else None
        grid.add_column(header, justify=justify, no_wrap=True, overflow="ellipsis", width=columns, ratio=ratio)
    for row in section.rows[:most]:
        grid.add_row(*row)
    yield grid


def _summary(snapshot: Snapshot, width: int) -> Text:
    live = [each for each in snapshot.workers if each.live]
    slots, busy = sum(each.slots for each in live), sum(each.running for each in live)
    states = Counter(each.state for each in snapshot.batches)
    running = states[BatchState.RUNNING] + states[BatchState.STOPPING]
    queued = sum(each.queued for each in snapshot.queues)
    speed = sum(each.rate or 0.0 for each in snapshot.queues)
    leader = Text("led", style="green") if snapshot.led else Text("no manager leads", style="red")
    parts = [
        Text(f"{datetime.now(UTC):%H:%M:%S} UTC"),
        leader,
        Text(f"{len(live)} workers, {busy:,} of {slots:,} slots busy"),
        Text(f"{running} running, {queued:,} in line"),
        Text(rate(speed) if speed else "0/s"),
    ]
    line = Text("  ").join(parts)
    line.truncate(width, overflow="ellipsis")
    return line


def _queues(views: Sequence[QueueView], *, wide: bool) -> _Section:
    rows: list[tuple[RenderableType, ...]] = []
    for view in sorted(views, key=lambda each: (not each.running, not each.queued, each.name)):
        state = "paused" if view.paused else "draining" if view.draining else "open"
        rows.append(
            (
                Text(safe(view.name)),
                Text(state, style="" if state == "open" else "yellow"),
                Text(f"{view.running:,}"),
                Text(f"{view.queued:,}"),
                Text(f"{view.parked:,}"),
                *((Text(f"{view.finished:,}"),) if wide else ()),
                Text(rate(view.rate)),
            )
        )
    finished: tuple[tuple[str, JustifyMethod, int | None], ...] = (("ENDED", "right", 8),) if wide else ()
    columns = (
        ("QUEUE", "left", None), ("STATE", "left", 8), ("RUNNING", "right", 7), ("IN LINE", "right", 7),
        ("PAUSED", "right", 6), *finished, ("RATE", "right", 8),
    )  # fmt: skip
    return _Section("queues", columns, rows, least=1)  # type: ignore[arg-type] # a mixed tuple is no tuple of them


def _batches(views: Sequence[BatchView], *, wide: bool) -> _Section:
    ids = short_ids(views)
    rows = [_batch(view, ids[view.id], wide=wide) for view in views]
    more: tuple[tuple[str, JustifyMethod, int | None], ...] = (("FAILED", "right", 8), ("REASON", "left", None))
    columns = (
        ("ID", "left", max((len(each) for each in ids.values()), default=2)), ("NAME", "left", None),
        ("STATE", "left", 12), ("DONE", "left", _BAR), ("", "right", 4), ("RATE", "right", 8), ("LEFT", "right", 12),
        *(more if wide else ()),
    )  # fmt: skip
    return _Section("batches", columns, rows, least=4)  # type: ignore[arg-type] # as above


def _batch(view: BatchView, short: str, *, wide: bool) -> tuple[RenderableType, ...]:
    state = styled(view.state)
    if view.place:
        state.append(f" #{place(view)}")
    elif view.pass_number > 1 and view.state in _AT_WORK:
        state.append(f" p{view.pass_number}")
    left = duration(view.eta_seconds) if view.eta_seconds is not None or wide else safe(view.reason) or "-"
    cells: tuple[RenderableType, ...] = (
        Text(short),
        Text(safe(view.name)),
        state,
        ProgressBar(total=100, completed=view.percent, width=_BAR),
        Text(f"{view.percent}%"),
        Text(rate(view.rate)),
        Text(left, no_wrap=True, overflow="ellipsis"),
    )
    if not wide:
        return cells
    failed = Text(f"{view.failed:,}" if view.failed else "-", style="red" if view.failed else "")
    return (*cells, failed, Text(safe(view.reason), style="dim"))


def _workers(
    views: Sequence[WorkerView], occupations: Sequence[Occupation], batches: Sequence[BatchView], *, wide: bool
) -> _Section:
    names = {view.id: view.name for view in batches}
    runs: dict[str, list[Occupation]] = defaultdict(list)
    for each in occupations:
        runs[each.worker_id].append(each)
    rows: list[tuple[RenderableType, ...]] = [
        (
            Text(view.id[:8]),
            Text(safe(view.hostname)),
            state_of(view),
            Text(f"{view.running:,}/{view.slots:,}"),
            *((Text(view.pool), Text(view.version)) if wide else ()),
            Text(_doing(runs[view.id], names)),
        )
        for view in sorted(views, key=lambda each: (not each.live, -each.running, each.hostname))
    ]
    more: tuple[tuple[str, JustifyMethod, int | None], ...] = (("POOL", "left", 7), ("VERSION", "left", 8))
    columns = (
        ("WORKER", "left", 8), ("HOST", "left", 18 if not wide else 28), ("STATE", "left", 8), ("RUNS", "right", 7),
        *(more if wide else ()), ("WHAT", "left", None),
    )  # fmt: skip
    return _Section("workers", columns, rows, least=2)  # type: ignore[arg-type] # as above


def _doing(runs: Sequence[Occupation], names: dict[str, str]) -> str:
    """What a worker runs: most of it first, with how long the oldest of each has been running."""
    return ", ".join(
        f"{each.running} {safe(names.get(each.batch_id, each.handler))} {duration(each.oldest_seconds)}"
        for each in runs[:3]
    )


def _failures(snapshot: Snapshot, *, wide: bool) -> _Section:
    rows: list[tuple[RenderableType, ...]] = [
        (
            Text(f"{each.group.count:,}", style="red"),
            Text(safe(each.group.fingerprint)),
            Text(safe(each.batch.name)),
            Text(safe(f"{each.group.type}: {each.group.message}")),
        )
        for each in snapshot.failures
    ]
    columns: tuple[tuple[str, JustifyMethod, int | None], ...] = (
        ("COUNT", "right", 7), ("FINGERPRINT", "left", 16), ("BATCH", "left", 24 if wide else 14),
        ("ERROR", "left", None),
    )  # fmt: skip
    return _Section("failures of what runs", columns, rows, least=1)
