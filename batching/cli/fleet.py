"""`workers` and `drain`: who is there, what they run, and who shall take nothing new."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
from rich.text import Text

from batching.cli.output import console, duration, json_flag, print_json, safe, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batching.cli.access import Access
    from batching.statistics import WorkerView

#: Seconds between two looks at a worker that drains.
_LOOK = 0.2
_SHORT_ID = 8
#: Columns from which on queues, pools and versions are shown, too.
_WIDE = 110


@click.command("workers")
@json_flag
@click.pass_obj
def list_workers(access: Access, *, as_json: bool) -> None:
    """List workers: who lives, what they serve, how much they run."""
    views = sorted(access.statistics.workers(), key=lambda each: (each.hostname, each.started_at))
    if as_json:
        print_json([view.as_json() for view in views])
    elif not views:
        click.echo("no worker is registered; start one with `batching worker`", err=True)
    else:
        _print(views)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="WORKER...")
@click.option("--off", is_flag=True, help="Let them take work again.")
@click.option("--wait", is_flag=True, help="Wait until they run nothing any more.")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="With --wait: give up after so long.")
@json_flag
@click.pass_context
def drain(
    ctx: click.Context, names: Sequence[str], *, off: bool, wait: bool, timeout: float | None, as_json: bool
) -> None:
    """Let workers take nothing new: they finish what has begun, give the rest back, and stay up.

    WORKER is the beginning of an id, a Celery name (celery@host), or a host. It goes through the database, so it works
    without remote control. Exit code 1 when --wait gave up.
    """
    if (off and wait) or (timeout is not None and not wait):
        raise click.UsageError("--wait goes with a drain, and --timeout with --wait")
    access: Access = ctx.obj
    verbs = access.manager.workers
    asked = {each.id for name in names for each in (verbs.resume(name) if off else verbs.drain(name))}
    done = _await_end(access, asked, timeout) if wait else True
    views = [each for each in access.statistics.workers() if each.id in asked]
    if as_json:
        print_json([view.as_json() for view in views])
    else:
        for view in views:
            click.echo(f"worker {view.id} on {safe(view.hostname)} {_stand(view, off=off)}")
        for gone in sorted(asked - {view.id for view in views}):
            click.echo(f"worker {gone} has left")
    ctx.exit(0 if done else 1)


def _await_end(access: Access, asked: set[str], timeout: float | None) -> bool:
    """Whether they run nothing any more, or have left, before the time is up."""
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        busy = [each for each in access.statistics.workers() if each.id in asked and not _is_drained(each)]
        if not busy:
            return True
        if until is not None and time.monotonic() >= until:
            return False
        time.sleep(_LOOK)


def _is_drained(view: WorkerView) -> bool:
    return view.draining and not view.running


def _stand(view: WorkerView, *, off: bool) -> str:
    if off:
        return "takes work again" if not view.draining else "was asked to take work again"
    if _is_drained(view):
        return "is drained: it runs nothing, and takes nothing new"
    begun = f"{view.running} of its profiles run" if view.running else "it runs nothing"
    return f"{'drains' if view.draining else 'was asked to drain'}: {begun}"


def state_of(view: WorkerView) -> Text:
    """A worker's state in one word, coloured where colours are."""
    if not view.live:
        return Text("silent", style="red")
    if view.stuck is not None:
        return Text("stuck", style="red")
    if view.draining:
        return Text("drained" if not view.running else "draining", style="yellow")
    return Text("to drain", style="yellow") if view.drain_asked else Text("live", style="green")


def _print(views: Iterable[WorkerView]) -> None:
    out = console()
    wide = out.width >= _WIDE
    headers = ("ID", "HOST", "STATE", "RUNS", "HEARD", "HANDLERS", *(("QUEUES", "POOL", "VERSION") if wide else ()))
    rows = [
        (
            view.id[:_SHORT_ID],
            view.hostname,
            state_of(view),
            f"{view.running:,}/{view.slots:,}",
            duration(view.silent_seconds),
            _few(view.handlers, 3 if wide else 1),
            *((",".join(view.queues), view.pool, view.version) if wide else ()),
        )
        for view in views
    ]
    out.print(table(headers, rows, right=("RUNS", "HEARD")))
    for view in views:
        if view.stuck is not None:
            out.print(Text(f"{view.id[:_SHORT_ID]}: {safe(view.stuck)}", style="dim"), soft_wrap=True)


def _few(names: Sequence[str], most: int) -> str:
    """Some names, and how many more there are."""
    more = f" +{len(names) - most}" if len(names) > most else ""
    return ",".join(names[:most]) + more
