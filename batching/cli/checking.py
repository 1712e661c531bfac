"""`doctor`, `db`: does everything add up, does the schema fit."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import click

from batching.cli.output import json_flag, print_json, safe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batching.cli.access import Access
    from batching.doctor.broker import Keys
    from batching.interfaces import Publisher


@click.command()
@click.option("--fix", is_flag=True, help="Repair what can be repaired.")
@json_flag
@click.pass_context
def doctor(ctx: click.Context, *, fix: bool, as_json: bool) -> None:
    """Check that every profile is accounted for. Exit code 1 when a problem is left."""
    from batching.doctor import examine  # noqa: PLC0415 - no other verb needs it

    access: Access = ctx.obj
    with _broker_parts(access) as (publisher, keys):
        report = examine(access.database, publisher, fix=fix, keys=keys)
    problems = report.problems
    if as_json:
        print_json({"ok": not problems, "problems": problems, "repaired": report.repaired})
    else:
        for repair in report.repaired:
            click.echo(f"repaired: {safe(repair)}")
        for problem in problems:
            click.echo(f"problem: {safe(problem)}")
        if not problems:
            click.echo("everything is accounted for")
    ctx.exit(1 if problems else 0)


@contextmanager
def _broker_parts(access: Access) -> Iterator[tuple[Publisher | None, Keys | None]]:
    """The broker, when one is configured; without it, what SQL knows can still be examined."""
    url, prefix = access.settings.broker_url, access.settings.key_prefix
    if url is None:
        yield None, None
        return
    from workers.keys import RedisKeys  # noqa: PLC0415 - reading verbs do not need redis
    from workers.publisher import RedisPublisher  # noqa: PLC0415 - as above

    with closing(RedisPublisher(url, prefix)) as publisher, closing(RedisKeys(url, prefix)) as keys:
        yield publisher, keys


@click.group()
def db() -> None:
    """The schema of the database."""


@db.command()
@json_flag
@click.pass_obj
def upgrade(access: Access, *, as_json: bool) -> None:
    """Bring the schema up to date; harmless when it is."""
    from batching import migration  # noqa: PLC0415 - alembic is slow to import

    before, after = migration.upgrade(access.unchecked)
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        click.echo(f"the schema is up to date: {after}")
    else:
        click.echo(f"upgraded the schema from {before or 'nothing'} to {after}")


@db.command()
@json_flag
@click.pass_context
def current(ctx: click.Context, *, as_json: bool) -> None:
    """Say which schema the database has. Exit code 1 when this version needs another."""
    from batching import migration  # noqa: PLC0415 - alembic is slow to import

    access: Access = ctx.obj
    found, needed = migration.current(access.unchecked), migration.latest()
    if as_json:
        print_json({"current": found, "latest": needed, "up_to_date": found == needed})
    elif found == needed:
        click.echo(f"{found} (up to date)")
    else:
        click.echo(f"{found or 'no schema'} (this version needs {needed}; run `batching db upgrade`)")
    ctx.exit(0 if found == needed else 1)
