"""Changes as they happen: server-sent events of all batches, or of one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import Query

from batching.errors import UnknownBatchError
from batching.states import TERMINAL_BATCH_STATES
from batching.web.api.common import UNKNOWN, Answers, BatchId, api_router
from batching.web.events import EventStream

if TYPE_CHECKING:
    from fastapi import APIRouter

    from batching.web.context import Context
    from batching.web.feed import Event

#: Batches that the stream of all of them tells of: running ones, then the line, then the latest.
LISTED = 200

_STREAM: Answers = {
    200: {
        "description": (
            "First `status` (`live`: notices arrive; `stale`: Redis, or the database, is away, and why) and `snapshot` "
            "(`batches`: a list); then `batch` for each that changed, `gone` (`id`) for each that is not listed any "
            "more, and `status` whenever it changes. `data` is JSON on one line. A comment every 15 s shows that the "
            "line stands. Connecting again, with `Last-Event-ID` or not, begins with a snapshot: nothing is missed."
        ),
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": (
                    'retry: 2000\n\nid: 1f3a-1\nevent: status\ndata: {"live":true,"stale":false,"reason":""}\n\n'
                ),
            }
        },
    }
}


def router(context: Context) -> APIRouter:
    """Streams."""
    routes = api_router("events")

    def all_batches() -> list[dict[str, Any]]:
        return [view.as_json() for view in context.statistics.batches(limit=LISTED)]

    @routes.get(
        "/events",
        operation_id="streamEvents",
        summary="Changes of all batches, as server-sent events",
        description=f"Of the first {LISTED} batches in the order of `listBatches` with `order=line`.",
        responses=_STREAM,
        response_class=EventStream,
        status_code=200,
    )
    async def everything() -> EventStream:
        return EventStream(context.feed, None, all_batches)

    @routes.get(
        "/batches/{batch_id}/events",
        operation_id="streamBatchEvents",
        summary="Changes of one batch, as server-sent events",
        responses={**_STREAM, **UNKNOWN},
        response_class=EventStream,
        status_code=200,
    )
    async def one(
        batch_id: BatchId,
        until: Annotated[
            Literal["end"] | None, Query(description="`end`: the stream is over when the batch has ended.")
        ] = None,
    ) -> EventStream:
        found = await context.run(context.statistics.resolve, batch_id)

        def look() -> list[dict[str, Any]]:
            try:
                return [context.statistics.batch(found).as_json()]
            except UnknownBatchError:  # it was pruned
                return []

        return EventStream(context.feed, found, look, is_last if until == "end" else None)

    return routes


def is_last(event: Event) -> bool:
    """Whether the batch has ended with this, or is gone."""
    if event.kind == "gone":
        return True
    if event.kind not in {"batch", "snapshot"}:
        return False
    document = json.loads(event.data)
    listed = document["batches"] if event.kind == "snapshot" else [document]
    return all(each["state"] in TERMINAL_BATCH_STATES for each in listed)
