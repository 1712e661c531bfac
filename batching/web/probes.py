"""`/livez`, `/readyz` and `/metrics`: for machines that look after this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from batching.health import Health, answers, readiness
from batching.metrics import CONTENT_TYPE, exposition
from batching.web.answers import JSON

if TYPE_CHECKING:
    from batching.web.context import Context


def router(context: Context) -> APIRouter:
    """Probes, which need no token, and figures, which do."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/livez")
    async def live(request: Request) -> JSON:
        return _told(context, request, answers("dashboard"))

    @routes.get("/readyz")
    def ready(request: Request) -> JSON:
        found = readiness(lambda: context.access.database, context.settings)
        # It can show and steer without workers, and without Redis; what is missing there, it tells.
        return _told(context, request, found, status=200 if found.checks[0].ok else 503)

    @routes.get("/metrics")
    def metrics() -> Response:
        figures = exposition(context.access.database, context.settings)
        return Response(figures, headers={"Content-Type": CONTENT_TYPE})

    return routes


def _told(context: Context, request: Request, found: Health, status: int | None = None) -> JSON:
    """Whether, to everybody; why, to those who may read here: it names hosts."""
    document = found.as_json()
    if not context.identity(request).name:
        document["checks"] = {name: {"ok": check["ok"]} for name, check in document["checks"].items()}
    return JSON(document, found.status if status is None else status)
