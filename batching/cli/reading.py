"""`list`, `show`, `results`: verbs that only read."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from batching.cli.output import (
    console,
    duration,
    json_flag,
    place,
    print_json,
    rate,
    safe,
    short_ids,
    styled,
    table,
    when,
)
from batching.cli.parameters import MomentOrSpan
from batching.documents import shown
from batching.errors import InvalidInputError
from batching.options import BatchOptions
from batching.spreadsheet import write_csv
from batching.states import BatchState, CallbackState, ProfileState
from batching.statistics.reason import is_behind
from batching.statistics.search import Search
from batching.words import parse_properties

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batching.cli.access import Access
    from batching.statistics import AttemptView, BatchView, CallbackView, HistoryEntry

_STATES = [state.value for state in BatchState if state is not BatchState.LOADING]
_ENDS = [state.value for state in ProfileState]
_LABEL = 12
#: Lines of history that `show` prints unless all are asked for.
_LATEST = 10


@click.command("list")
@click.option("--queue", metavar="NAME", help="Only this queue's.")
@click.option("--state", "states", multiple=True, type=click.Choice(_STATES), help="Only these states; repeatable.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Batches at most.")
@click.option("--handler", metavar="NAME", help="Search: this handler's.")
@click.option("--key", metavar="TEXT", help="Search: with this key.")
@click.option("--name", metavar="TEXT", help="Search: with this in their name.")
@click.option("--tag", "tags", multiple=True, metavar="TEXT", help="Search: with this tag; repeatable: with all.")
@click.option("--property", "pairs", multiple=True, metavar="NAME=VALUE", help="Search: with it; repeatable: with all.")
@click.option("--since", type=MomentOrSpan(), metavar="WHEN", help="Search: made since then, or since so long, as 2h.")
@click.option("--until", type=MomentOrSpan(), metavar="WHEN", help="Search: made before.")
@click.option("--after", metavar="ID", help="Search: go on after this batch, the last of a page.")
@json_flag
@click.pass_obj
def list_batches(
    access: Access, /, queue: str | None, states: Sequence[str], limit: int, *, as_json: bool, **given: Any
) -> None:
    """List batches.

    Running ones come first, then the line in its order, then what ended last. A search lists the newest first.
    """
    searches = any(value not in {None, ()} for value in given.values())
    if searches:
        wanted = Search(queue, tuple(states), limit=limit, properties=parse_properties(given.pop("pairs")), **given)
        views = access.statistics.search(wanted)
    else:
        views = access.statistics.batches(queue, [BatchState(state) for state in states] or None, limit)
    if as_json:
        print_json([view.as_json() for view in views])
        return
    if searches and len(views) == limit:
        click.echo(f"# there may be more: --after {views[-1].id}", err=True)
    if not views and searches:
        click.echo("no batch was found", err=True)
    elif not views:
        click.echo("there are no batches to list; `batching submit HANDLER FILE` makes one", err=True)
    else:
        _print_list(views)


def _print_list(views: Sequence[BatchView]) -> None:
    out = console()
    ids = short_ids(views)
    headers = ("ID", "NAME", "STATE", "LINE", "DONE", "PROFILES", "LEFT")
    rows = [
        (
            ids[view.id],
            view.name,
            styled(view.state),
            place(view),
            f"{view.percent}%",
            f"{view.total:,}",
            duration(view.eta_seconds),
        )
        for view in views
    ]
    out.print(table(headers, rows, right=("LINE", "DONE", "PROFILES", "LEFT")))
    for view in views:
        # That a batch stands behind others is what its place says already.
        if view.reason and not is_behind(view.reason):
            out.print(Text(f"{ids[view.id]}: {safe(view.reason)}", style="dim"), soft_wrap=True)


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("--profile", "key", metavar="KEY", help="Show the runs of this profile instead.")
@click.option("--history", "whole", is_flag=True, help="Show all of its passes, positions and moves instead.")
@json_flag
@click.pass_obj
def show(access: Access, batch_id: str, key: str | None, *, whole: bool, as_json: bool) -> None:
    """Show one batch.

    How far it is, why it does not move, and its history.
    """
    if key is not None:
        runs = access.statistics.attempts(batch_id, key)
        if as_json:
            print_json([run.as_json() for run in runs])
        else:
            _print_runs(runs)
        return
    view = access.statistics.batch(batch_id)
    history = access.statistics.history(view.id)
    if whole:
        _show_history(history, as_json=as_json)
    elif as_json:
        print_json(shown(view, history))
    else:
        _print_batch(view, history, access.statistics.callbacks(view.id))


def _print_batch(view: BatchView, history: Sequence[HistoryEntry], told: Sequence[CallbackView]) -> None:
    out = console()
    out.print(Text(f"batch {view.id}", style="bold"))
    for label, value in (*_description(view), *_callbacks(told)):
        text = Text(f"  {label:<{_LABEL}}") + (value if isinstance(value, Text) else Text(safe(value)))
        out.print(text, soft_wrap=True)
    out.print(Text("  history"))
    if len(history) > _LATEST:
        out.print(Text(f"    {len(history) - _LATEST:,} moves before; --history shows all", style="dim"))
    for entry in history[-_LATEST:]:
        said = f": {safe(entry.reason)}" if entry.reason else ""
        line = f"    {when(entry.at)}  pass {entry.pass_number}  {_change(entry)}{said}"
        out.print(Text(line), soft_wrap=True)


def _change(entry: HistoryEntry) -> str:
    stays = entry.from_state in {None, entry.to_state}
    return str(entry.to_state) if stays else f"{entry.from_state} -> {entry.to_state}"


def _show_history(history: Sequence[HistoryEntry], *, as_json: bool) -> None:
    """Every move, with the pass and the position that the batch had after it."""
    if as_json:
        print_json([entry.as_json() for entry in history])
        return
    rows = [
        (when(entry.at), safe(entry.reason), _change(entry), entry.pass_number, entry.position) for entry in history
    ]
    headers = ("AT", "REASON", "MOVE", "PASS", "POSITION")
    console().print(table(headers, rows, right=("PASS", "POSITION")))


def _description(view: BatchView) -> list[tuple[str, str | Text]]:
    lines: list[tuple[str, str | Text]] = [
        ("name", view.name),
        ("handler", view.handler),
        ("queue", f"{view.queue}, priority {view.priority}" + (f", group {view.group}" if view.group else "")),
        ("state", styled(view.state) + Text(f", pass {view.pass_number}, at most {view.max_passes}")),
        ("reason", view.reason),
        ("place", place(view)),
        ("progress", f"{view.percent} %, {view.settled:,} of {view.total:,} profiles settled"),
        ("profiles", _equation(view)),
        ("beside", _beside(view)),
        ("rate", rate(view.rate)),
        ("left", _left(view)),
        ("scheduled", when(view.start_at)),
        ("deadline", when(view.deadline)),
        ("tags", ", ".join(view.tags)),
        ("properties", ", ".join(f"{name}={value}" for name, value in view.properties.items())),
        ("created", when(view.created_at)),
        ("started", when(view.started_at)),
        ("finished", when(view.finished_at)),
        ("options", _chosen(view) or "defaults"),
    ]
    if view.key is not None:
        lines.insert(1, ("key", view.key))
    return [(label, value) for label, value in lines if str(value) not in {"", "-"}]


def _callbacks(told: Sequence[CallbackView]) -> list[tuple[str, str | Text]]:
    """How many were told, and whether somebody has to look."""
    counts = Counter(callback.state for callback in told)
    said = ", ".join(f"{counts[state]} {state}" for state in CallbackState if counts[state])
    hint = "; see `batching callbacks list`" if counts[CallbackState.DEAD] else ""
    return [("callbacks", Text(said + hint))] if said else []


def _equation(view: BatchView) -> str:
    """The accounting equation: every profile is in exactly one state."""
    counts = [f"{getattr(view, state.value):,} {state}" for state in ProfileState if getattr(view, state.value)]
    return f"{view.total:,} = {' + '.join(counts) or '0'}"


def _beside(view: BatchView) -> str:
    """What was refused or came late, and so counts in no state."""
    found = [
        f"{number:,} {one if number == 1 else many}"
        for number, one, many in (
            (view.duplicates, "duplicate delivery", "duplicate deliveries"),
            (view.late, "late result", "late results"),
        )
        if number
    ]
    return f"{', '.join(found)}: counted, and otherwise without effect" if found else ""


def _left(view: BatchView) -> str:
    """The range with its basis, or why there is none."""
    if view.eta_seconds is None:
        return view.eta_basis
    until = "more" if view.eta_high is None else duration(view.eta_high)
    return f"{duration(view.eta_low)} to {until}, most likely {duration(view.eta_seconds)}; {view.eta_basis}"


def _chosen(view: BatchView) -> str:
    """The options that are not the defaults."""
    defaults = BatchOptions().as_dict()
    return ", ".join(f"{name}={value}" for name, value in view.options.items() if value != defaults.get(name))


def _print_runs(runs: Sequence[AttemptView]) -> None:
    if not runs:
        click.echo("this profile has not run yet", err=True)
        return
    rows = [
        (
            run.run,
            "" if run.error is None else f"{run.error['type']}: {run.error['message']}",
            run.outcome,
            run.pass_number,
            run.attempt,
            when(run.started_at),
        )
        for run in runs
    ]
    headers = ("RUN", "ERROR", "OUTCOME", "PASS", "ATTEMPT", "STARTED")
    console().print(table(headers, rows, right=("RUN", "PASS", "ATTEMPT")))


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="Of the output.",
)
@click.option("--state", "states", multiple=True, type=click.Choice(_ENDS), help="Only these profiles; repeatable.")
@click.option("--payload", "payloads", is_flag=True, help="Also what was submitted: lines that `amend` takes.")
@click.option("--json", "as_json", is_flag=True, help="Accepted for symmetry: JSONL is the default.")
@click.pass_obj
def results(access: Access, /, batch_id: str, *, format_: str, as_json: bool, **given: Any) -> None:
    """Print every profile of a batch.

    Each line has key, state, attempts, result and error. In CSV, a cell that a spreadsheet could take for a formula has
    an apostrophe before it.
    """
    lines = access.statistics.results(batch_id, payloads=given["payloads"])
    if given["states"]:
        lines = (line for line in lines if line.state in given["states"])
    if format_ == "csv" and given["payloads"]:
        raise InvalidInputError("cannot print payloads as CSV: leave --payload or --format csv out")
    if format_ == "csv" and as_json:
        raise InvalidInputError("cannot print CSV as JSON: give --format csv or --json, not both")
    if format_ == "csv":
        write_csv(lines, sys.stdout.buffer)
        return
    for line in lines:
        print_json(line.as_json())
