"""`append`, `seal`, `amend`: verbs that change what is in a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from batching.cli.output import json_flag, print_json
from batching.documents import amended, appended
from batching.encoding import Limits
from batching.intake import read_amendments, read_file

if TYPE_CHECKING:
    from batching.cli.access import Access
    from batching.options import Difference


def told(difference: Difference) -> str:
    """How submitted profiles differ from what was there, for people."""
    return f"{difference.new:,} new, {difference.same:,} same, {difference.changed:,} changed"


@click.command()
@click.argument("batch_id", metavar="ID")
@click.argument("file")
@click.option("--key-column", metavar="NAME", help="The column or field that holds a profile's key.")
@click.option("--format", "format_", type=click.Choice(["csv", "tsv", "jsonl", "lines"]), help="Of the file.")
@json_flag
@click.pass_obj
def append(access: Access, /, batch_id: str, file: str, *, as_json: bool, **given: Any) -> None:
    """Append FILE to an open batch.

    Profiles whose keys the batch has already are not taken twice. FILE is CSV, JSONL or lines; - is standard input.
    """
    found = access.statistics.resolve(batch_id)
    limits = Limits.from_settings(access.settings)
    with read_file(file, format=given["format_"], key_column=given["key_column"], limits=limits) as source:
        difference = access.manager.append(found, source)
    if as_json:
        print_json(appended(found, difference))
    else:
        click.echo(f"appended to batch {found}: {told(difference)}")


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("--expect", type=click.IntRange(0), metavar="N", help="Refuse unless it has so many profiles.")
@json_flag
@click.pass_obj
def seal(access: Access, batch_id: str, expect: int | None, *, as_json: bool) -> None:
    """Close an open batch: it takes no more, and ends when all of it is settled."""
    found = access.statistics.resolve(batch_id)
    total = access.manager.seal(found, expect)
    if as_json:
        print_json(access.statistics.batch(found).as_json())
    else:
        click.echo(f"sealed batch {found} with {total:,} {'profile' if total == 1 else 'profiles'}")


@click.command()
@click.argument("batch_id", metavar="ID")
@click.argument("file")
@json_flag
@click.pass_obj
def amend(access: Access, batch_id: str, file: str, *, as_json: bool) -> None:
    """Give profiles that are not done other payloads; an ended batch begins a new pass over what is not done.

    FILE has the lines of `results --payload` or of `run --errors`, edited: JSON objects with key and payload; other
    fields are passed over. - is standard input.
    """
    found = access.statistics.resolve(batch_id)
    with read_amendments(file, limits=Limits.from_settings(access.settings)) as source:
        done = access.manager.amend(found, source)
    if as_json:
        print_json(amended(found, done))
        return
    then = "it takes them in its next turn" if done.pass_number is None else f"pass {done.pass_number} begins"
    click.echo(f"amended batch {found}: {done.amended:,} payloads changed, {done.same:,} were the same; {then}")
