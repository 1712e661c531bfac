"""Verbs that steer a batch, and `prune`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import Body as InBody
from pydantic import BaseModel, Field
from starlette.requests import Request

from batching.documents import remedied
from batching.errors import InvalidInputError
from batching.states import Remedy
from batching.web.answers import JSON
from batching.web.api.common import ILLEGAL, UNKNOWN, Answers, Batch, BatchId, Body, Remedied, api_router

if TYPE_CHECKING:
    from fastapi import APIRouter

    from batching.web.context import Context

logger = logging.getLogger(__name__)

_AFTER: Answers = {
    200: {"model": Batch, "description": "The batch after it."},
    **UNKNOWN,
    **ILLEGAL,
}
_SOME: Answers = {
    200: {
        "model": Remedied,
        "description": "The batch after it; `profiles` when only some of its profiles were meant.",
    },
    **UNKNOWN,
    **ILLEGAL,
}


class Pause(Body):
    """How a batch is paused."""

    reason: str = Field("", max_length=1_000, description="Kept in its history.", examples=["the source is down"])


class Chosen(Body):
    """Which profiles of a batch."""

    fingerprint: str | None = Field(None, max_length=64, description="Those that failed so; of `listFailures`.")
    profile: str | None = Field(None, max_length=255, description="The one with this key.")

    @property
    def any(self) -> bool:
        """Whether some are meant, and not the whole batch."""
        return self.fingerprint is not None or self.profile is not None


class Cancel(Chosen):
    """How a batch, or some profiles of it, are cancelled."""

    reason: str = Field("", max_length=1_000, description="Kept in its history.")
    running: Literal["finish", "terminate"] = Field(
        "finish", description="What becomes of the profiles that run; `terminate` works in prefork workers alone."
    )


class Place(Body):
    """Where in line."""

    to: Literal["front", "end"] | Annotated[int, Field(ge=1, le=2_000_000_000)] = Field(
        description="`front`, `end`, or a place: 1 is next.", examples=["front"]
    )


class Prune(Body):
    """What is deleted."""

    older_than_days: float | None = Field(
        None, ge=0, le=36_500, description="Since it ended; by default BATCHING_RETENTION_DAYS."
    )
    limit: int = Field(1_000, ge=1, le=100_000, description="Batches at most.")
    states: list[Literal["succeeded", "failed", "cancelled", "expired"]] | None = Field(
        None, description="Only what ended so."
    )
    queue: str | None = Field(None, max_length=64, description="Only this queue's.")


class Pruned(BaseModel):
    """What became of it."""

    deleted: int = Field(description="Batches that were deleted.")


class _Teller:
    """Answers with the batch after a verb; the log keeps who called it."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def after(self, request: Request, verb: str, batch_id: str) -> JSON:
        logger.info("%s called %s of batch %s", self._context.identity(request).name, verb, batch_id)
        return JSON(self._context.statistics.batch(batch_id).as_json())

    def remedy(self, request: Request, verb: Remedy, batch_id: str, chosen: Chosen) -> JSON:
        access, name = self._context.access, self._context.identity(request).name
        number = access.remedy(batch_id, verb, fingerprint=chosen.fingerprint, profile=chosen.profile)
        logger.info("%s called %s of %d profiles of batch %s", name, verb, number, batch_id)
        return JSON(remedied(self._context.statistics.batch(batch_id), number))


def router(context: Context) -> APIRouter:
    """Verbs."""
    routes = api_router("verbs")
    _add_verbs(routes, context)
    _add_turns(routes, context)
    _add_prune(routes, context)
    return routes


def _add_verbs(routes: APIRouter, context: Context) -> None:
    access, statistics, tell = context.access, context.statistics, _Teller(context)

    @routes.post(
        "/batches/{batch_id}/pause",
        operation_id="pauseBatch",
        summary="Put a batch aside; what runs may finish",
        responses=_AFTER,
    )
    def pause(request: Request, batch_id: BatchId, body: Pause | None = None) -> JSON:
        found = statistics.resolve(batch_id)
        access.pause(found, context.said_by(request, "" if body is None else body.reason, "paused"))
        return tell.after(request, "pause", found)

    @routes.post(
        "/batches/{batch_id}/cancel",
        operation_id="cancelBatch",
        summary="Cancel a batch for good, or some of its profiles",
        responses=_SOME,
    )
    def cancel(request: Request, batch_id: BatchId, body: Cancel | None = None) -> JSON:
        found, said = statistics.resolve(batch_id), body or Cancel()
        if said.any:
            return tell.remedy(request, Remedy.CANCEL, found, said)
        access.cancel(found, context.said_by(request, said.reason, "cancelled"), running=said.running)
        return tell.after(request, "cancel", found)

    @routes.post(
        "/batches/{batch_id}/retry",
        operation_id="retryBatch",
        summary="Open a new pass over what is not done, or over some profiles",
        responses=_SOME,
    )
    def retry(request: Request, batch_id: BatchId, body: Chosen | None = None) -> JSON:
        found = statistics.resolve(batch_id)
        if body is not None and body.any:
            return tell.remedy(request, Remedy.RETRY, found, body)
        access.retry(found)
        return tell.after(request, "retry", found)

    @routes.post(
        "/batches/{batch_id}/skip",
        operation_id="skipProfiles",
        summary="Skip profiles that failed alike, or one: they never run again",
        responses=_SOME,
    )
    def skip(request: Request, batch_id: BatchId, body: Annotated[Chosen, InBody()]) -> JSON:
        found = statistics.resolve(batch_id)
        if not body.any:
            raise InvalidInputError("say which profiles to skip: `fingerprint` or `profile`")
        return tell.remedy(request, Remedy.SKIP, found, body)


def _add_turns(routes: APIRouter, context: Context) -> None:
    access, statistics, tell = context.access, context.statistics, _Teller(context)

    @routes.post(
        "/batches/{batch_id}/resume",
        operation_id="resumeBatch",
        summary="Put a paused batch back in line, at its old position",
        responses=_AFTER,
    )
    def resume(request: Request, batch_id: BatchId) -> JSON:
        found = statistics.resolve(batch_id)
        access.resume(found)
        return tell.after(request, "resume", found)

    @routes.post(
        "/batches/{batch_id}/move",
        operation_id="moveBatch",
        summary="Move a waiting batch to another place in line",
        responses=_AFTER,
    )
    def move(request: Request, batch_id: BatchId, body: Annotated[Place, InBody()]) -> JSON:
        found = statistics.resolve(batch_id)
        access.move(found, body.to)
        return tell.after(request, "move", found)

    @routes.post(
        "/batches/{batch_id}/execute",
        operation_id="executeBatch",
        summary="Run a waiting batch next, ahead of its turn",
        responses=_AFTER,
    )
    def execute(request: Request, batch_id: BatchId) -> JSON:
        found = statistics.resolve(batch_id)
        access.process(found)
        return tell.after(request, "execute", found)


def _add_prune(routes: APIRouter, context: Context) -> None:
    access = context.access

    @routes.post(
        "/prune",
        operation_id="pruneBatches",
        summary="Delete batches that ended long ago, the oldest first",
        responses={200: {"model": Pruned, "description": "How many."}},
    )
    def prune(request: Request, body: Prune | None = None) -> JSON:
        said = body or Prune()
        deleted = access.prune(said.older_than_days, said.limit, states=said.states, queue=said.queue)
        logger.info("%s called prune: %d batches", context.identity(request).name, deleted)
        return JSON({"deleted": deleted})
