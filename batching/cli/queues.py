"""`queue` and `limit`: how much runs at once, how fast, and whether anything starts at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from batching.cli.output import console, json_flag, print_json, rate, table
from batching.documents import limited
from batching.states import LimitKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batching.cli.access import Access
    from batching.statistics import QueueView


@click.group()
def queue() -> None:
    """Queues: settings, pause, drain."""


@queue.command("list")
@json_flag
@click.pass_obj
def list_queues(access: Access, *, as_json: bool) -> None:
    """List queues."""
    views = access.statistics.queues()
    if as_json:
        print_json([view.as_json() for view in views])
    elif not views:
        click.echo("there are no queues yet; `batching queue set NAME` or a first batch makes one", err=True)
    else:
        _print(views)


@queue.command("show")
@click.argument("name")
@json_flag
@click.pass_obj
def show_queue(access: Access, name: str, *, as_json: bool) -> None:
    """Show one queue."""
    _report(access.manager.queues.get(name), as_json=as_json)


@queue.command("set")
@click.argument("name")
@click.option("--max-running", type=click.IntRange(1), metavar="N", help="Batches at once, at least.")
@click.option("--max-concurrency", type=click.IntRange(0), metavar="N", help="Profiles at once, at most; 0: no cap.")
@click.option(
    "--intake-batches", type=click.IntRange(0), metavar="N", help="Batches that it holds, at most; 0: no limit."
)
@click.option(
    "--intake-profiles", type=click.IntRange(0), metavar="N", help="Unsettled profiles, at most; 0: no limit."
)
@click.option(
    "--intake-per-group/--intake-together", default=None, help="Whether each group has these limits to itself."
)
@click.option("--rate", metavar="RATE", help="Profiles a second, at most, as 10/s or 600/m; 0: no limit.")
@click.option("--burst", type=click.IntRange(1), metavar="N", help="With --rate: profiles that may go at once.")
@json_flag
@click.pass_obj
def set_queue(
    access: Access, /, name: str, *, rate: str | None, burst: int | None, as_json: bool, **settings: Any
) -> None:
    """Change what is given of a queue.

    It is made when it does not exist.
    """
    if burst is not None and rate in {None, "0"}:
        raise click.UsageError("--burst goes with --rate")
    view = access.manager.queues.set(name, **settings)
    if rate == "0":
        access.manager.limits.remove(name, kind=LimitKind.QUEUE)
    elif rate is not None:
        access.manager.limits.set(name, rate, burst=burst, kind=LimitKind.QUEUE)
    _report(view, as_json=as_json)


@queue.command("pause")
@click.argument("name")
@json_flag
@click.pass_obj
def pause_queue(access: Access, name: str, *, as_json: bool) -> None:
    """Promote and dispatch nothing; what runs may finish."""
    _report(access.manager.queues.pause(name), as_json=as_json)


@queue.command("drain")
@click.argument("name")
@click.option("--wait", is_flag=True, help="Until no batch of it runs any more.")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="With --wait: then exit with code 1.")
@json_flag
@click.pass_obj
def drain_queue(access: Access, name: str, *, wait: bool, timeout: float | None, as_json: bool) -> None:
    """Promote nothing more; batches that run go on."""
    if timeout is not None and not wait:
        raise click.UsageError("--timeout goes with --wait")
    view = access.manager.queues.drain(name)
    if wait:
        view = _wait_idle(access, name, timeout)
    _report(view, as_json=as_json)


def _wait_idle(access: Access, name: str, timeout: float | None) -> QueueView:
    told = 0

    def tell(view: QueueView) -> None:
        nonlocal told
        if view.running != told:
            told = view.running
            click.echo(f"waiting for {told:,} {'batch' if told == 1 else 'batches'} of queue {name}", err=True)

    try:
        return access.manager.queues.wait_idle(name, timeout, show=tell)
    except TimeoutError as error:
        raise click.ClickException(str(error)) from error


@queue.command("resume")
@click.argument("name")
@json_flag
@click.pass_obj
def resume_queue(access: Access, name: str, *, as_json: bool) -> None:
    """End a pause or a drain."""
    _report(access.manager.queues.resume(name), as_json=as_json)


def _report(view: QueueView, *, as_json: bool) -> None:
    if as_json:
        print_json(view.as_json())
    else:
        _print([view])


def _print(views: Sequence[QueueView]) -> None:
    headers = ("QUEUE", "STATE", "QUEUED", "RUNNING", "PARKED", "AT LEAST", "CAP", "RATE")
    rows = [
        (
            view.name,
            "paused" if view.paused else "draining" if view.draining else "open",
            f"{view.queued:,}",
            f"{view.running:,}",
            f"{view.parked:,}",
            view.max_running,
            "-" if view.max_concurrency is None else f"{view.max_concurrency:,}",
            rate(view.rate),
        )
        for view in views
    ]
    console().print(table(headers, rows, right=headers[2:]))


@click.group()
def limit() -> None:
    """Rate limits of keys, handlers and queues."""


_kind = click.option(
    "--of",
    "kind",
    type=click.Choice([LimitKind.KEY.value, LimitKind.HANDLER.value, LimitKind.QUEUE.value]),
    default=LimitKind.KEY.value,
    show_default=True,
    help="What NAME is.",
)


@limit.command("list")
@json_flag
@click.pass_obj
def list_limits(access: Access, *, as_json: bool) -> None:
    """List rate limits.

    Also those of single batches, while they are in use.
    """
    found = access.manager.limits.list()
    if as_json:
        print_json([limited(each) for each in found])
    elif not found:
        click.echo("there are no rate limits; `batching limit set NAME RATE` makes one", err=True)
    else:
        headers = ("OF", "NAME", "RATE", "BURST", "AVAILABLE")
        rows = [
            (each.key.kind, each.key.name, rate(each.per_second), each.burst, int(each.available)) for each in found
        ]
        console().print(table(headers, rows, right=headers[2:]))


@limit.command("set")
@click.argument("name")
@click.argument("rate_", metavar="RATE")
@click.option("--burst", type=click.IntRange(1), metavar="N", help="Profiles at once; by default half a second's.")
@_kind
@json_flag
@click.pass_obj
def set_limit(access: Access, name: str, rate_: str, burst: int | None, kind: str, *, as_json: bool) -> None:
    """Make a rate limit, or change it.

    RATE is profiles a second, as 10 or 10/s, or 600/m, 5000/h.
    """
    access.manager.limits.set(name, rate_, burst=burst, kind=kind)
    made = next(each for each in access.manager.limits.list() if each.key == (kind, name))
    if as_json:
        print_json(limited(made))
    else:
        click.echo(f"limited {kind} {name} to {rate(made.per_second)}, {made.burst:,} at once")


@limit.command("remove")
@click.argument("name")
@_kind
@json_flag
@click.pass_obj
def remove_limit(access: Access, name: str, kind: str, *, as_json: bool) -> None:
    """Take a rate limit away."""
    removed = access.manager.limits.remove(name, kind=kind)
    if as_json:
        print_json({"removed": removed})
    else:
        click.echo(f"took the limit of {kind} {name} away" if removed else f"there is no limit of {kind} {name}")
