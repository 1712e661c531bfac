"""What is around the batches: workers, callbacks that are dead, and how this dashboard stands."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

from fastapi import Path
from pydantic import BaseModel, Field
from starlette.requests import Request

from batching import __version__
from batching.web.answers import JSON
from batching.web.api.common import UNKNOWN, Worker, api_router, list_of

if TYPE_CHECKING:
    from fastapi import APIRouter

    from batching.web.context import Context

logger = logging.getLogger(__name__)


class Standing(BaseModel):
    """How this dashboard stands, and who asks."""

    version: str
    name: str = Field(description="Whose token it is; `local` where none is asked for.")
    role: str = Field(description="`viewer` or `operator`.")
    read_only: bool = Field(description="It refuses everything that changes something.")
    live: bool = Field(description="Notices arrive from Redis: streams tell of changes within a second.")
    stale: bool = Field(description="Redis is away: streams look into SQL every other second.")
    reason: str = Field(description="Why it is not live; empty when it is.")


class Retried(BaseModel):
    """What is delivered again."""

    retried: list[str] = Field(description="Ids of callbacks.")


def router(context: Context) -> APIRouter:
    """`/status`, `/workers`, and another try of a callback."""
    routes = api_router("system")

    @routes.get(
        "/status",
        operation_id="showStatus",
        summary="How this dashboard stands, and who asks",
        responses={200: {"model": Standing, "description": "As of now."}},
    )
    async def status(request: Request) -> JSON:
        identity = context.identity(request)
        return JSON(
            {
                "version": __version__,
                "name": identity.name,
                "role": identity.role.value,
                "read_only": context.settings.web_read_only,
                **context.feed.status._asdict(),
            }
        )

    @routes.get(
        "/workers",
        operation_id="listWorkers",
        summary="Every worker, those that were heard last first",
        responses={200: {"model": list_of(Worker), "description": "The workers."}},
    )
    def workers() -> JSON:
        return JSON([view.as_json() for view in context.statistics.workers()])

    @routes.post(
        "/callbacks/{callback_id}/retry",
        operation_id="retryCallback",
        summary="Deliver a dead callback again, with all its attempts",
        responses={200: {"model": Retried, "description": "It will be delivered."}, **UNKNOWN},
    )
    def retry(
        request: Request, callback_id: Annotated[str, Path(max_length=64, description="The callback's id.")]
    ) -> JSON:
        context.access.retry_callback(callback_id)
        logger.info("%s called retry of callback %s", context.identity(request).name, callback_id)
        return JSON({"retried": [callback_id]})

    return routes
