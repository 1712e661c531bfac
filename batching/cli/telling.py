"""`callbacks`: who was told what, who could not be, and trying again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.text import Text

from batching.cli.output import console, json_flag, print_json, safe, table, when
from batching.errors import InvalidInputError
from batching.states import CallbackState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batching.cli.access import Access
    from batching.statistics import CallbackView

_MANY = 10_000


@click.group()
def callbacks() -> None:
    """Look after what a batch tells others: on_success, on_failure, on_finish."""


@callbacks.command("list")
@click.option("--batch", "batch_id", metavar="ID", help="Only this batch's.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in CallbackState]),
    help="Only these states; repeatable.",
)
@click.option("--limit", type=click.IntRange(1, _MANY), default=100, show_default=True, help="Callbacks at most.")
@json_flag
@click.pass_obj
def list_callbacks(access: Access, batch_id: str | None, states: Sequence[str], limit: int, *, as_json: bool) -> None:
    """List callbacks, the latest first."""
    chosen = [CallbackState(state) for state in states] or None
    views = access.statistics.callbacks(batch_id, chosen, limit)
    if as_json:
        print_json([view.as_json() for view in views])
        return
    if not views:
        click.echo("there are no callbacks to list; --option on_finish=… asks for one", err=True)
        return
    headers = ("ID", "TO", "EVENT", "PASS", "STATE", "TRIED", "NEXT")
    rows = [
        (view.id, view.target, view.event, view.pass_number, view.state, view.attempts, when(view.due_at))
        for view in views
    ]
    out = console()
    out.print(table(headers, rows, right=("PASS", "TRIED")))
    for view in views:
        if view.error:
            out.print(Text(f"{view.id}: {safe(view.error)}", style="dim"), soft_wrap=True)


@callbacks.command("retry")
@click.argument("callback_id", metavar="ID", required=False)
@click.option("--batch", "batch_id", metavar="ID", help="Every dead one of this batch.")
@click.option("--all", "everything", is_flag=True, help="Every dead one there is.")
@json_flag
@click.pass_obj
def retry(access: Access, callback_id: str | None, batch_id: str | None, *, everything: bool, as_json: bool) -> None:
    """Deliver dead callbacks again, with all their attempts."""
    if [callback_id is not None, batch_id is not None, everything].count(True) != 1:
        raise InvalidInputError("say which: the ID of a dead callback, --batch ID, or --all")
    chosen = [callback_id] if callback_id is not None else [view.id for view in _dead(access, batch_id)]
    for each in chosen:
        access.manager.retry_callback(each)
    if as_json:
        print_json({"retried": chosen})
    else:
        click.echo(f"{len(chosen):,} {'callback' if len(chosen) == 1 else 'callbacks'} will be delivered again")


def _dead(access: Access, batch_id: str | None) -> list[CallbackView]:
    return access.statistics.callbacks(batch_id, [CallbackState.DEAD], _MANY)
