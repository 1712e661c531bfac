"""`pause`, `resume`, `cancel`, `retry`, `move`, `execute`, `prune`: verbs that steer."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from batching.cli.output import json_flag, print_json
from batching.cli.triaging import chosen_profiles, remedy
from batching.states import TERMINAL_BATCH_STATES

if TYPE_CHECKING:
    from batching.cli.access import Access


_ENDED = sorted(state.value for state in TERMINAL_BATCH_STATES)


class _Progress:
    """How far a long verb is, on one line of the terminal that is written over."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, done: int, of: int) -> None:
        if done == of or time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.2
            click.echo(f"\r{done:,} of {of:,} batches", nl=done == of, err=True)


def _report(access: Access, batch_id: str, done: str, *, as_json: bool) -> None:
    """Say what the batch is after the verb."""
    view = access.statistics.batch(batch_id)
    if as_json:
        print_json(view.as_json())
        return
    where = f", place {view.place} in line" if view.place else ""
    why = f" ({view.reason})" if view.reason else ""
    click.echo(f"{done} batch {view.id}: it is {view.state}{where}{why}")


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("--reason", default="", metavar="TEXT", help="Kept in the batch's history.")
@json_flag
@click.pass_obj
def pause(access: Access, batch_id: str, reason: str, *, as_json: bool) -> None:
    """Put a batch aside; what runs may finish."""
    found = access.statistics.resolve(batch_id)
    access.manager.pause(found, reason)
    _report(access, found, "paused", as_json=as_json)


@click.command()
@click.argument("batch_id", metavar="ID")
@json_flag
@click.pass_obj
def resume(access: Access, batch_id: str, *, as_json: bool) -> None:
    """Put a paused batch back in line, at its old position."""
    found = access.statistics.resolve(batch_id)
    access.manager.resume(found)
    _report(access, found, "resumed", as_json=as_json)


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("--reason", default="", metavar="TEXT", help="Kept in the batch's history.")
@click.option(
    "--running",
    type=click.Choice(["finish", "terminate"]),
    default="finish",
    show_default=True,
    help="What becomes of the profiles that run.",
)
@chosen_profiles
@json_flag
@click.pass_obj
def cancel(
    access: Access,
    batch_id: str,
    reason: str,
    running: str,
    fingerprint: str | None,
    profile: str | None,
    *,
    as_json: bool,
) -> None:
    """Cancel a batch for good; what waits will not run.

    With --fingerprint or --profile: only those of its profiles that failed or wait.
    """
    found = access.statistics.resolve(batch_id)
    if fingerprint is not None or profile is not None:
        remedy(access, found, "cancel", (fingerprint, profile), as_json=as_json)
        return
    access.manager.cancel(found, reason, running=running)
    if running == "terminate":
        for pool, count in access.statistics.uninterruptible(found).items():
            many = "1 profile runs" if count == 1 else f"{count:,} profiles run"
            click.echo(f"{many} to the end: workers of the {pool} pool cannot interrupt what they run", err=True)
    _report(access, found, "cancelled", as_json=as_json)


@click.command()
@click.argument("batch_id", metavar="ID")
@chosen_profiles
@json_flag
@click.pass_obj
def retry(access: Access, batch_id: str, fingerprint: str | None, profile: str | None, *, as_json: bool) -> None:
    """Put an ended batch back in line.

    It starts a new pass, over what is not done; with --fingerprint or --profile over those alone, also while the batch
    runs.
    """
    found = access.statistics.resolve(batch_id)
    if fingerprint is not None or profile is not None:
        remedy(access, found, "retry", (fingerprint, profile), as_json=as_json)
        return
    access.manager.retry(found)
    _report(access, found, "retried", as_json=as_json)


class _Place(click.ParamType[Any]):
    """`front`, `end`, or 1, 2, 3, …."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value in {"front", "end"}:
            return str(value)
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"{value!r} is not a place in line; give front, end, or 1, 2, 3, …", param, ctx)
        return number


@click.command()
@click.argument("batch_id", metavar="ID")
@click.argument("to", metavar="PLACE", type=_Place())
@json_flag
@click.pass_obj
def move(access: Access, batch_id: str, to: int | str, *, as_json: bool) -> None:
    """Move a waiting batch to another place.

    PLACE is front, end, or 1 for next, 2, 3, ….
    """
    found = access.statistics.resolve(batch_id)
    access.manager.move(found, to)
    _report(access, found, "moved", as_json=as_json)


@click.command()
@click.argument("batch_id", metavar="ID")
@json_flag
@click.pass_obj
def execute(access: Access, batch_id: str, *, as_json: bool) -> None:
    """Run a waiting batch next, ahead of its turn.

    Whatever its priority, its group, its position, or its pause between passes.
    """
    found = access.statistics.resolve(batch_id)
    access.manager.process(found)
    _report(access, found, "asked for", as_json=as_json)


@click.command()
@click.option(
    "--older-than",
    type=click.FloatRange(0),
    metavar="DAYS",
    help="Batches that ended longer ago; by default BATCHING_RETENTION_DAYS.",
)
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="Batches at most.")
@click.option("--state", "states", multiple=True, type=click.Choice(_ENDED), help="Only what ended so; repeatable.")
@click.option("--queue", metavar="NAME", help="Only this queue's.")
@json_flag
@click.pass_obj
def prune(access: Access, /, older_than: float | None, limit: int, *, as_json: bool, **given: Any) -> None:
    """Delete batches that ended long ago.

    The oldest go first, with their profiles and results, in short steps; stopped on its way, it goes on the next time.
    """
    days = access.settings.retention_days if older_than is None else older_than
    progress = _Progress() if sys.stderr.isatty() else None
    deleted = access.manager.prune(days, limit, states=given["states"], queue=given["queue"], progress=progress)
    if as_json:
        print_json({"deleted": deleted})
    else:
        click.echo(f"deleted {deleted:,} {'batch' if deleted == 1 else 'batches'} that ended over {days:g} days ago")
