"""`submit`: a file of profiles becomes a batch."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from batching.cli.feeding import told
from batching.cli.output import duration, json_flag, print_json, safe
from batching.cli.parameters import Moment, MomentOrSpan, Span
from batching.cli.watching import exit_code, follow
from batching.documents import submitted
from batching.encoding import Limits
from batching.errors import InvalidInputError
from batching.intake import read_file
from batching.options import Asked, BatchOptions
from batching.words import parse_properties, value_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batching.cli.access import Access
    from batching.preflight import Preflight


def parse_options(pairs: Sequence[str]) -> BatchOptions:
    """`NAME=VALUE` pairs as options of a batch; a value is JSON, or else a text.

    Raises:
        InvalidInputError: A pair has no `=`, or there is no such option, or its value is out of range.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InvalidInputError(f"cannot read the option {pair!r}: expected NAME=VALUE, as in max_attempts=5")
        values[name.strip()] = value_of(text.strip())
    return BatchOptions.from_dict(values)


def asked_options(command: Any) -> Any:
    """The options of every verb that makes a batch; `asked` reads them."""
    for option in reversed(
        (
            click.option("--key", metavar="TEXT", help="Names the batch in its queue: the same key is the same batch."),
            click.option("--name", metavar="TEXT", help="For people; by default the file's name."),
            click.option("--queue", default="default", show_default=True, metavar="NAME"),
            click.option("--priority", type=int, default=0, show_default=True, help="Higher goes first."),
            click.option("--group", metavar="NAME", help="Whose it is: groups take turns inside a priority."),
            click.option(
                "--option", "pairs", multiple=True, metavar="NAME=VALUE", help="As max_attempts=5; repeatable."
            ),
            click.option(
                "--new", is_flag=True, help="A new batch, even if the key names one; the older one gives it up."
            ),
            click.option("--start-at", type=Moment(), metavar="WHEN", help="Not before, as 2026-11-26T02:00+01:00."),
            click.option(
                "--start-in", type=Span(), metavar="SPAN", help="Not before so long from now, as 90s, 15m, 1d."
            ),
            click.option(
                "--deadline", type=MomentOrSpan(), metavar="WHEN", help="Moment or span; what is left then expires."
            ),
            click.option(
                "--after",
                multiple=True,
                metavar="ID[:success|any]",
                help="Wait for this batch (its id or key) to succeed, or to end; repeatable.",
            ),
            click.option("--tag", "tags", multiple=True, metavar="TEXT", help="To find it by; repeatable."),
            click.option(
                "--property", "properties", multiple=True, metavar="NAME=VALUE", help="To find it by; repeatable."
            ),
        )
    ):
        command = option(command)
    return command


def asked(given: dict[str, Any], file: str) -> Asked:
    """What was asked for.

    Raises:
        InvalidInputError: An option or a property cannot be read, or two starts were given.
    """
    if given["start_at"] is not None and given["start_in"] is not None:
        raise InvalidInputError("cannot start a batch both --start-at a moment and --start-in a span: give one of them")
    return Asked(
        name=given["name"] or (None if file == "-" else file.rpartition("/")[2]),
        key=given["key"],
        queue=given["queue"],
        priority=given["priority"],
        group=given["group"],
        options=parse_options(given["pairs"]),
        new=given["new"],
        start_at=given["start_at"] or given["start_in"],
        deadline=given["deadline"],
        after=given["after"],
        tags=given["tags"],
        properties=parse_properties(given["properties"]),
    )


@click.command()
@click.argument("handler")
@click.argument("file")
@asked_options
@click.option("--key-column", metavar="NAME", help="The column or field that holds a profile's key.")
@click.option("--format", "format_", type=click.Choice(["csv", "tsv", "jsonl", "lines"]), help="Of the file.")
@click.option("--open", "open_", is_flag=True, help="Leave it open: `append` adds to it until `seal`.")
@click.option("--dry-run", is_flag=True, help="Only check and estimate; exit code 1 when there is a problem.")
@click.option("--check", is_flag=True, help="Refuse payloads that the handler does not take, and one nobody serves.")
@click.option("--wait", is_flag=True, help="Wait until it ends; exit code 1 when it does not succeed.")
@json_flag
@click.pass_context
def submit(ctx: click.Context, /, handler: str, file: str, **given: Any) -> None:
    """Submit FILE as a batch for HANDLER.

    FILE is CSV, JSONL or lines; - is standard input.
    """
    access: Access = ctx.obj
    as_json: bool = given["as_json"]
    wanted = asked(given, file)
    limits = Limits.from_settings(access.settings)
    with read_file(file, format=given["format_"], key_column=given["key_column"], limits=limits) as source:
        if source.peek() is None and not given["open_"]:
            raise InvalidInputError(f"cannot submit {file}: there is no profile in it; nothing was submitted")
        if given["dry_run"]:
            ctx.exit(_report(access.manager.preflight(handler, source, **wanted), as_json=as_json))
        batch = access.manager.submit(handler, source, seal=not given["open_"], check=given["check"], **wanted)
    if as_json:
        print_json(submitted(batch))
    elif batch.created:
        done = "opened" if given["open_"] else "submitted"
        click.echo(f"{done} batch {batch.id} with {batch.total:,} {'profile' if batch.total == 1 else 'profiles'}")
    else:
        then = "the new ones were appended" if batch.open else "nothing was submitted (--new forces another)"
        click.echo(f"batch {batch.id} has the key {given['key']!r} already: {told(batch.difference)}; {then}")
    if given["wait"]:
        sys.stdout.flush()  # whoever reads the id need not wait
        ctx.exit(exit_code(follow(access.statistics, batch.id, to_stderr=as_json)))


def _report(found: Preflight, *, as_json: bool) -> int:
    """Print what a preflight found; the exit code that goes with it."""
    if as_json:
        print_json(found.as_json())
        return 0 if found.ok else 1
    seconds = found.estimated_seconds
    lines = {
        "profiles": f"{found.profiles:,}, {found.bytes:,} bytes of payload",
        "payloads": found.checked_by,
        "workers": f"{found.workers:,} live, {found.slots:,} slots",
        "estimate": found.basis if seconds is None else f"{duration(seconds)} ({found.basis})",
        "key": "" if found.batch_id is None else f"names batch {found.batch_id}: they would be compared with it",
    }
    for label, value in lines.items():
        if value:
            click.echo(f"{label:<10}{safe(value)}")
    for problem in found.problems:
        click.echo(f"problem   {safe(problem)}")
    click.echo("nothing was submitted; " + ("it may be" if found.ok else "mend the problems first"))
    return 0 if found.ok else 1
