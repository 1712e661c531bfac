"""`up`: everything that one machine needs, in the foreground."""

from __future__ import annotations

import contextlib
import shlex
import socket
import time
from typing import TYPE_CHECKING, Final

import click

from batching.cli.dashboard import require_extra
from batching.cli.following import LOOK, StopSignals
from batching.cli.one_shot import all_modules, worker_choices
from batching.errors import BatchingError, ConfigurationError

if TYPE_CHECKING:
    from batching.cli.access import Access
    from workers.local import LocalServices

#: Where a dashboard is looked for first.
_PORT: Final = 8080


class _Dashboard:
    """The dashboard beside the worker. What goes wrong with it is told, and stops nothing else.

    Args:
        services: What it is a part of.
        port: Where it shall listen; None for the usual port, or a free one when that is taken.
    """

    def __init__(self, services: LocalServices, port: int | None) -> None:
        self._services = services
        self._lives = self._told = False
        try:
            require_extra()
            services.start_dashboard(usual_or_free() if port is None else port)
        except (ConfigurationError, OSError) as error:
            click.echo(f"# {error}", err=True)
        else:
            self._lives = True

    def look(self) -> None:
        """Tell the address once it is known, and that the dashboard has ended."""
        if not self._lives:
            return
        try:
            address = self._services.dashboard_address()
        except BatchingError as error:
            self._lives = False
            click.echo(f"# {error}", err=True)
            return
        if address is not None and not self._told:
            self._told = True
            click.echo(f"# dashboard: {address}")


def usual_or_free() -> int:
    """The usual port; 0, which takes a free one, when somebody has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", _PORT))
        except OSError:
            return 0
    return _PORT


@click.command()
@worker_choices
@click.option("--loglevel", default="INFO", show_default=True, help="What the worker prints.")
@click.option("--dashboard/--no-dashboard", default=True, show_default=True, help="Serve it, to this machine alone.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    help="Of the dashboard; default: 8080, or a free one when that is taken.",
)
@click.pass_obj
def up(
    access: Access,
    /,
    modules: tuple[str, ...],
    concurrency: int | None,
    pool: str,
    loglevel: str,
    *,
    dashboard: bool,
    port: int | None,
) -> None:
    """Run server, worker, manager and dashboard in the foreground until Ctrl-C."""
    from workers.local import LocalServices, WorkerPlan  # noqa: PLC0415 - producers never load a worker's parts

    settings = access.settings
    plan = WorkerPlan(concurrency, pool, all_modules(settings, modules), settings.queues, loglevel)
    with (
        StopSignals() as signals,
        contextlib.suppress(KeyboardInterrupt),
        LocalServices(settings, plan) as services,
    ):
        services.start_worker()
        click.echo("# for producers and for the other verbs, elsewhere than in this folder:")
        click.echo(f"export BATCHING_DATABASE_URL={shlex.quote(services.database_url)}")
        click.echo(f"export BATCHING_BROKER_URL={shlex.quote(services.broker_url)}")
        click.echo(f"# the worker's log is {services.log}; Ctrl-C stops", err=True)
        beside = _Dashboard(services, port) if dashboard else None
        with services.log.open("rb") as log:
            while True:
                signals.check()
                services.check()
                if beside is not None:
                    beside.look()
                # Bytes, not lines: the terminal gets what the worker wrote as it wrote it.
                click.echo(log.read(), nl=False, err=True)
                time.sleep(LOOK)
