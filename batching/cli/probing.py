"""`health`: can this installation work, and does a worker get on; for people, containers and load balancers."""

from __future__ import annotations

import http.client
import json
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from batching import health as looks
from batching.cli.output import json_flag, print_json, safe
from batching.errors import BatchingError
from batching.health import Check, Health
from batching.probes import url_of

if TYPE_CHECKING:
    from batching.cli.access import Access

#: Seconds that a process gets to answer for itself.
_PATIENCE = 5.0


@click.command()
@click.option("--live", is_flag=True, help="Liveness: does it get on? Of the leader and all workers, or of --worker.")
@click.option("--ready", is_flag=True, help="Readiness: can it work? What is shown without any option.")
@click.option("--worker", metavar="NAME", help="Of this worker: its id, its Celery name, or its host; implies --live.")
@click.option("--self", "own", is_flag=True, help="Of the process of this host or container; implies --live.")
@json_flag
@click.pass_context
def health(ctx: click.Context, *, live: bool, ready: bool, worker: str | None, own: bool, as_json: bool) -> None:
    """Check database, schema, manager, workers and broker. Exit code 1 when one of them is not well.

    With --live, whether the leader and every worker get on; with --worker or --self, one worker. --self asks the
    process at BATCHING_HEALTH_ADDRESS, when that is set, and else the database about the workers of this host.
    """
    if own and worker is not None:
        raise click.UsageError("--self and --worker exclude each other")
    access: Access = ctx.obj
    live |= not ready and (own or worker is not None)
    if own and access.settings.health_address is not None:
        found = _asked(access.settings.health_address, live=live, ready=ready)
    else:
        found = _looked(access, socket.gethostname() if own else worker, live=live, ready=ready)
    if as_json:
        print_json(found.as_json())
    else:
        for check in found.checks:
            click.echo(f"{'ok  ' if check.ok else 'BAD '} {check.name}: {safe(check.why)}")
    ctx.exit(0 if found.ok else 1)


def _looked(access: Access, name: str | None, *, live: bool, ready: bool) -> Health:
    """What the database says."""
    found = Health(())
    try:
        if live:
            statistics = access.statistics
            found = looks.liveness_of_all(statistics) if name is None else looks.liveness_of(statistics, name)
        if ready and name is not None:
            found = found.plus(looks.readiness_of(access.statistics, name))
    except BatchingError as error:
        return found.plus(Health((Check("database", ok=False, why=str(error)),)))
    if name is None and (ready or not live):
        found = found.plus(looks.readiness(lambda: access.database, access.settings))
    return found


def _asked(address: str, *, live: bool, ready: bool) -> Health:
    """What the process itself says."""
    found = Health(())
    for path, wanted in (("/livez", live), ("/readyz", ready)):
        if wanted:
            found = found.plus(_page(url_of(address, path)))
    return found


def _page(url: str) -> Health:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=_PATIENCE)
    try:
        connection.request("GET", parts.path)
        document = json.loads(connection.getresponse().read())
        checks = document["checks"].items()
        return Health(tuple(Check(name, ok=each["ok"], why=each["detail"]) for name, each in checks))
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"cannot ask {url}: {str(error) or type(error).__name__}; the process has not booted, is gone, or hangs"
        return Health((Check("answers", ok=False, why=why),))
    finally:
        connection.close()
