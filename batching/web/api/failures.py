"""What failed, by what went wrong; and who was told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import Query
from pydantic import BaseModel, Field

from batching.documents import compared
from batching.states import CallbackState  # noqa: TC001 - the framework reads the annotation
from batching.web.answers import JSON
from batching.web.api.common import (
    UNKNOWN,
    BatchId,
    Callback,
    Change,
    Cursor,
    Failures,
    PageLimit,
    api_router,
    cursor_of,
    list_of,
    page,
    page_of,
    read_cursor,
)

if TYPE_CHECKING:
    from fastapi import APIRouter

    from batching.web.context import Context

CallbackPage = page_of(Callback, "CallbackPage")

PassNumber = Annotated[
    int | None, Query(alias="pass", ge=1, le=1_000_000, description="Of this pass; the present, if it is not said.")
]


class Changes(BaseModel):
    """The failures of a pass against those of the pass before."""

    from_: int = Field(alias="from", description="The earlier pass.")
    to: int = Field(description="The later pass.")
    failures: list[Change]  # type: ignore[valid-type]  # made at run time, of the view


def router(context: Context) -> APIRouter:
    """Reads of failures and callbacks."""
    routes = api_router("failures")

    @routes.get(
        "/batches/{batch_id}/failures",
        operation_id="listFailures",
        summary="What failed in a pass, by fingerprint, the largest group first",
        responses={200: {"model": list_of(Failures), "description": "Groups of failures."}, **UNKNOWN},
    )
    def failures(batch_id: BatchId, pass_number: PassNumber = None) -> JSON:
        return JSON([group.as_json() for group in context.statistics.failures(batch_id, pass_number)])

    @routes.get(
        "/batches/{batch_id}/failures/changes",
        operation_id="compareFailures",
        summary="What became of the failures of one pass in the next",
        responses={200: {"model": Changes, "description": "By fingerprint, the most frequent first."}, **UNKNOWN},
    )
    def changes(batch_id: BatchId, pass_number: PassNumber = None) -> JSON:
        return JSON(compared(*context.statistics.failure_changes(batch_id, pass_number)))

    @routes.get(
        "/callbacks",
        operation_id="listCallbacks",
        summary="Callbacks, the latest first",
        responses={200: {"model": CallbackPage, "description": "Who is told, and how far it got."}, **UNKNOWN},
    )
    def callbacks(
        batch: Annotated[str | None, Query(max_length=64, description="Only this batch's.")] = None,
        state: Annotated[list[CallbackState] | None, Query(description="Only these states; repeatable.")] = None,
        limit: PageLimit = 100,
        cursor: Cursor = None,
    ) -> JSON:
        after = read_cursor(cursor, "callback")
        views = context.statistics.callbacks(batch, state or None, limit, after=after)
        following = cursor_of(callback=views[-1].id) if len(views) == limit else None
        return JSON(page([view.as_json() for view in views], following))

    return routes
