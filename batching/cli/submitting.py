"""`submit`: a file of profiles becomes a batch."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from batching.cli.output import json_flag, print_json
from batching.cli.watching import exit_code, follow
from batching.encoding import Limits
from batching.errors import InvalidInputError
from batching.intake import read_file
from batching.options import BatchOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batching.cli.access import Access


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
        values[name.strip()] = _value(text.strip())
    return BatchOptions.from_dict(values)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@click.command()
@click.argument("handler")
@click.argument("file")
@click.option("--key", metavar="TEXT", help="Names the batch in its queue: the same key again is the same batch.")
@click.option("--name", metavar="TEXT", help="For people; by default the file's name.")
@click.option("--queue", default="default", show_default=True, metavar="NAME")
@click.option("--priority", type=int, default=0, show_default=True, help="Higher goes first.")
@click.option("--group", metavar="NAME", help="Whose it is: groups take turns inside a priority.")
@click.option("--option", "pairs", multiple=True, metavar="NAME=VALUE", help="As max_attempts=5; repeatable.")
@click.option("--key-column", metavar="NAME", help="The column or field that holds a profile's key.")
@click.option("--format", "format_", type=click.Choice(["csv", "tsv", "jsonl", "lines"]), help="Of the file.")
@click.option("--new", is_flag=True, help="A new batch, even if the key names one; the older one gives the key up.")
@click.option("--wait", is_flag=True, help="Wait until it ends; exit code 1 when it does not succeed.")
@json_flag
@click.pass_context
def submit(ctx: click.Context, /, handler: str, file: str, **given: Any) -> None:
    """Submit FILE as a batch for HANDLER.

    FILE is CSV, JSONL or lines; - is standard input.
    """
    access: Access = ctx.obj
    as_json: bool = given["as_json"]
    options = parse_options(given["pairs"])
    limits = Limits.from_settings(access.settings)
    with read_file(file, format=given["format_"], key_column=given["key_column"], limits=limits) as source:
        if source.peek() is None:
            raise InvalidInputError(f"cannot submit {file}: there is no profile in it; nothing was submitted")
        batch = access.manager.submit(
            handler,
            source,
            name=given["name"] or (None if file == "-" else file.rpartition("/")[2]),
            key=given["key"],
            queue=given["queue"],
            priority=given["priority"],
            group=given["group"],
            options=options,
            new=given["new"],
        )
    if as_json:
        print_json({"id": batch.id, "total": batch.total, "created": batch.created})
    elif batch.created:
        click.echo(f"submitted batch {batch.id} with {batch.total:,} {'profile' if batch.total == 1 else 'profiles'}")
    else:
        click.echo(
            f"batch {batch.id} has the key {given['key']!r} already; nothing was submitted (--new forces another)"
        )
    if given["wait"]:
        sys.stdout.flush()  # whoever reads the id need not wait
        ctx.exit(exit_code(follow(access.statistics, batch.id, to_stderr=as_json)))
