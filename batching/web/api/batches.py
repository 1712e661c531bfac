"""Batches: the list, the search, one of them, its history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from batching.documents import shown
from batching.errors import InvalidInputError
from batching.states import BatchState
from batching.statistics import Search
from batching.web.answers import JSON
from batching.web.api.common import (
    UNKNOWN,
    Batch,
    BatchId,
    Move,
    Shown,
    api_router,
    cursor_of,
    list_of,
    page,
    page_of,
    read_cursor,
)
from batching.words import parse_properties, read_moment_or_span

if TYPE_CHECKING:
    from fastapi import APIRouter

    from batching.web.context import Context

BatchPage = page_of(Batch, "BatchPage")

State = Literal["queued", "running", "stopping", "paused", "succeeded", "failed", "cancelled", "expired"]


class Wanted(BaseModel):
    """What a batch must be to be listed: all of what is given."""

    model_config = ConfigDict(extra="forbid")

    order: Literal["newest", "line"] = Field(
        "newest", description="`newest` first, page by page; or as they stand in `line`: running ones, then the queue."
    )
    queue: str | None = Field(None, max_length=64)
    state: list[State] = Field([], description="One of these states; repeatable.")
    handler: str | None = Field(None, max_length=200)
    key: str | None = Field(None, max_length=255, description="With this very key.")
    name: str | None = Field(None, max_length=255, description="With this in their name, in upper or lower case.")
    tag: list[str] = Field([], description="With this tag; repeatable: with all.")
    property: list[str] = Field([], description="`NAME=VALUE`, the value as JSON or as it is; repeatable: with all.")
    since: str | None = Field(None, description="Made since this moment (ISO 8601), or since so long, as `2h`.")
    until: str | None = Field(None, description="Made before this moment, or so long ago.")
    limit: int = Field(100, ge=1, le=1_000, description="Batches in a page, at most.")
    cursor: str | None = Field(None, max_length=512, description="`next` of the page before, as it is.")

    def search(self) -> Search:
        """For `Statistics.search`."""
        return Search(
            queue=self.queue,
            states=tuple(self.state),
            handler=self.handler,
            key=self.key,
            name=self.name,
            tags=tuple(self.tag),
            properties=parse_properties(self.property),
            since=None if self.since is None else read_moment_or_span(self.since),
            until=None if self.until is None else read_moment_or_span(self.until),
            after=read_cursor(self.cursor, "batch"),
            limit=self.limit,
        )

    def check_line(self) -> None:
        """Refuse what the line cannot be asked for.

        Raises:
            InvalidInputError: It is not searched, and has no pages.
        """
        asked = self.model_fields_set - {"order", "queue", "state", "limit"}
        if asked:
            raise InvalidInputError(
                f"cannot list the line by {', '.join(sorted(asked))}: it takes queue, state and limit; "
                "leave `order` out to search"
            )


def router(context: Context) -> APIRouter:
    """Reads of batches."""
    routes = api_router("batches")

    @routes.get(
        "/batches",
        operation_id="listBatches",
        summary="List or search batches",
        responses={200: {"model": BatchPage, "description": "A page of batches."}},
    )
    def list_batches(wanted: Annotated[Wanted, Query()]) -> JSON:
        if wanted.order == "line":
            wanted.check_line()
            states = [BatchState(state) for state in wanted.state] or None
            views = context.statistics.batches(wanted.queue, states, wanted.limit)
            return JSON(page([view.as_json() for view in views], None))
        views = context.statistics.search(wanted.search())
        following = cursor_of(batch=views[-1].id) if len(views) == wanted.limit else None
        return JSON(page([view.as_json() for view in views], following))

    @routes.get(
        "/batches/{batch_id}",
        operation_id="showBatch",
        summary="Show one batch",
        description="The same document as `batching show ID --json`.",
        responses={200: {"model": Shown, "description": "The batch, with its history."}, **UNKNOWN},
    )
    def show(batch_id: BatchId) -> JSON:
        view = context.statistics.batch(batch_id)
        return JSON(shown(view, context.statistics.history(view.id)))

    @routes.get(
        "/batches/{batch_id}/history",
        operation_id="listMoves",
        summary="Every move of a batch, the first first",
        responses={200: {"model": list_of(Move), "description": "Its moves."}, **UNKNOWN},
    )
    def history(batch_id: BatchId) -> JSON:
        return JSON([entry.as_json() for entry in context.statistics.history(batch_id)])

    return routes
