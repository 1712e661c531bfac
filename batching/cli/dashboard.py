"""`dashboard`: the web process, and tokens for it."""

from __future__ import annotations

import importlib.util
import logging
import sys
from typing import TYPE_CHECKING

import click

from batching import logs
from batching.cli.output import json_flag, print_json
from batching.errors import ConfigurationError

if TYPE_CHECKING:
    from batching.cli.access import Access

_NEEDED = ("fastapi", "uvicorn", "jinja2")


def require_extra() -> None:
    """Check that the packages of the extra `web` are there.

    Raises:
        ConfigurationError: Some are missing; the message names them.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"cannot start the dashboard: {', '.join(missing)} is not installed; pip install 'batching[web]'"
        )


@click.group(invoke_without_command=True)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8080, show_default=True, help="0 takes a free one, and prints it."
)
@click.option("--read-only", is_flag=True, help="Refuse everything that changes something, whoever asks.")
@click.pass_context
def dashboard(ctx: click.Context, /, host: str, port: int, *, read_only: bool) -> None:
    """Serve the dashboard and the JSON API until Ctrl-C.

    On an address that other machines reach, BATCHING_WEB_TOKENS has to say who may come in.
    """
    if ctx.invoked_subcommand is not None:
        return
    require_extra()
    from batching.web.server import serve  # noqa: PLC0415 - its packages are an extra

    access: Access = ctx.obj
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logs.hush()
    settings = access.settings
    if read_only:
        settings = settings.model_copy(update={"web_read_only": True})
    serve(settings, access.database_url, host, port, lambda address: click.echo(f"dashboard: {address}"))


@dashboard.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["viewer", "operator"]), required=True, help="A viewer changes nothing.")
@json_flag
def token(name: str, role: str, *, as_json: bool) -> None:
    """Make a token for NAME, and print it once: nobody can find it out again."""
    from batching.web.identity import make_token  # noqa: PLC0415 - no other verb needs it

    made, entry = make_token(name, role)
    if as_json:
        print_json({"token": made, "entry": entry})
        return
    click.echo(f"token  {made}")
    click.echo(f"entry  {entry}")
    click.echo("# give the token to whom it is for; add the entry to BATCHING_WEB_TOKENS, and start again", err=True)
