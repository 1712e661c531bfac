"""What was measured: how much was settled when, and how long runs took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import Query
from pydantic import BaseModel, Field

from batching.statistics import ThroughputPoint
from batching.web.answers import JSON
from batching.web.api.common import UNKNOWN, BatchId, api_router, list_of
from batching.web.schema import model_of

if TYPE_CHECKING:
    from fastapi import APIRouter

    from batching.web.context import Context

Point = model_of(ThroughputPoint, "ThroughputPoint")
Minutes = Annotated[
    int, Query(ge=1, le=527_040, description="So many up to now, or up to the end of the batch; a year at most.")
]


class Durations(BaseModel):
    """How long the runs of handlers took, as a histogram; runs that were lost or given back are not in it."""

    bounds: list[float | None] = Field(description="The largest seconds of each bucket, ascending; null: no limit.")
    counts: list[int] = Field(description="Runs in each bucket alone.")
    seconds: float = Field(description="Of all runs together.")
    runs: int = Field(description="How many there were.")


def router(context: Context) -> APIRouter:
    """Reads of figures over time."""
    routes = api_router("measures")
    statistics = context.statistics

    @routes.get(
        "/throughput",
        operation_id="showThroughput",
        summary="What was settled when, in spans of one length without gaps",
        responses={200: {"model": list_of(Point), "description": "The first span first; some seconds late."}},
    )
    def throughput(minutes: Minutes = 60) -> JSON:
        return JSON([point.as_json() for point in statistics.throughput(minutes=minutes)])

    @routes.get(
        "/durations",
        operation_id="showDurations",
        summary="How long all runs took that there ever were",
        responses={200: {"model": Durations, "description": "A histogram."}},
    )
    def durations() -> JSON:
        return JSON(statistics.durations().as_json())

    @routes.get(
        "/batches/{batch_id}/throughput",
        operation_id="showBatchThroughput",
        summary="What a batch settled when, from its first settled profile on",
        responses={
            200: {"model": list_of(Point), "description": "The first span first; some seconds late."},
            **UNKNOWN,
        },
    )
    def batch_throughput(batch_id: BatchId, minutes: Minutes = 60) -> JSON:
        return JSON([point.as_json() for point in statistics.throughput(batch_id, minutes=minutes)])

    @routes.get(
        "/batches/{batch_id}/durations",
        operation_id="showBatchDurations",
        summary="How long the runs of a batch took",
        responses={200: {"model": Durations, "description": "A histogram."}, **UNKNOWN},
    )
    def batch_durations(batch_id: BatchId) -> JSON:
        return JSON(statistics.durations(batch_id).as_json())

    return routes
