"""`failures`, `skip`, and what `retry` and `cancel` do with some profiles of a batch: triage by what went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from batching.cli.output import console, json_flag, print_json, safe, table
from batching.documents import compared, remedied
from batching.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from batching.cli.access import Access
    from batching.statistics import FailureChange, FailureGroup


def chosen_profiles(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that make a verb about some profiles of the batch."""
    fingerprint = click.option(
        "--fingerprint", metavar="F", help="Only the profiles that failed so; see `batching failures`."
    )
    profile = click.option("--profile", metavar="KEY", help="Only the profile with this key.")
    return fingerprint(profile(command))


def remedy(access: Access, batch_id: str, verb: str, chosen: tuple[str | None, str | None], *, as_json: bool) -> None:
    """Retry, skip or cancel some profiles, and say how many.

    Args:
        access: The command's.
        batch_id: The batch, by its whole id.
        verb: `retry`, `skip` or `cancel`.
        chosen: A fingerprint or a key.
        as_json: Whether for machines.
    """
    fingerprint, key = chosen
    number = access.manager.remedy(batch_id, verb, fingerprint=fingerprint, profile=key)
    view = access.statistics.batch(batch_id)
    if as_json:
        print_json(remedied(view, number))
        return
    done = {"retry": "will run again", "skip": "skipped", "cancel": "cancelled"}[verb]
    why = f" ({safe(view.reason)})" if view.reason else ""
    many = "1 profile" if number == 1 else f"{number:,} profiles"
    click.echo(f"{many} of batch {view.id} {done}: it is {view.state}{why}")


@click.command()
@click.argument("batch_id", metavar="ID")
@chosen_profiles
@json_flag
@click.pass_obj
def skip(access: Access, batch_id: str, fingerprint: str | None, profile: str | None, *, as_json: bool) -> None:
    """Skip profiles that failed alike, or one.

    They never run again, and do not count as failures.
    """
    if fingerprint is None and profile is None:
        raise InvalidInputError("say which profiles to skip: --fingerprint F, or --profile KEY")
    remedy(access, access.statistics.resolve(batch_id), "skip", (fingerprint, profile), as_json=as_json)


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("--pass", "pass_number", type=click.IntRange(1), metavar="N", help="Of this pass; else of the present.")
@click.option("--diff", is_flag=True, help="What became of the failures of one pass in the next.")
@json_flag
@click.pass_obj
def failures(access: Access, batch_id: str, pass_number: int | None, *, diff: bool, as_json: bool) -> None:
    """Print what failed in a batch, by what went wrong."""
    if diff:
        _show_changes(access, batch_id, pass_number, as_json=as_json)
        return
    groups = access.statistics.failures(batch_id, pass_number)
    if as_json:
        print_json([group.as_json() for group in groups])
        return
    if not groups:
        which = "its present pass" if pass_number is None else f"pass {pass_number}"
        click.echo(f"no profile of this batch has failed in {which}", err=True)
        return
    out = console()
    for group in groups:
        _print_group(out, group)


def _print_group(out: Console, group: FailureGroup) -> None:
    many = "1 profile" if group.count == 1 else f"{group.count:,} profiles"
    out.print(Text(f"{many}: ", style="bold") + Text(f"{safe(group.type)}: {safe(group.message)}"), soft_wrap=True)
    more = ", …" if group.count > len(group.keys) else ""
    out.print(Text(f"  fingerprint {group.fingerprint}", style="dim"))
    out.print(Text(f"  keys {', '.join(safe(key) for key in group.keys)}{more}"), soft_wrap=True)


_FATES = ("before", "fixed", "same", "changed", "waiting", "new", "now")


def _show_changes(access: Access, batch_id: str, pass_number: int | None, *, as_json: bool) -> None:
    later, changes = access.statistics.failure_changes(batch_id, pass_number)
    if as_json:
        print_json(compared(later, changes))
        return
    if not changes:
        click.echo(f"no profile of this batch failed in pass {later - 1} or {later}", err=True)
        return
    _print_changes(later, changes)


def _print_changes(later: int, changes: list[FailureChange]) -> None:
    out = console()
    out.print(Text(f"pass {later - 1} -> pass {later}", style="bold"))
    headers = ("FINGERPRINT", "ERROR", *(fate.upper() for fate in _FATES))
    rows = [
        (change.fingerprint, f"{change.type}: {change.message}", *(f"{getattr(change, fate):,}" for fate in _FATES))
        for change in changes
    ]
    out.print(table(headers, rows, right=headers[2:]))
