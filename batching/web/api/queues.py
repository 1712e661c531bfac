"""Queues and rate limits, read and set."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import Body as InBody
from fastapi import Path
from pydantic import BaseModel, Field
from starlette.requests import Request

from batching.documents import limited
from batching.states import LimitKind
from batching.web.answers import JSON
from batching.web.api.common import UNKNOWN, Answers, Body, Queue, RateLimit, api_router, list_of

if TYPE_CHECKING:
    from fastapi import APIRouter

    from batching.web.context import Context

logger = logging.getLogger(__name__)

QueueName = Annotated[str, Path(max_length=64, description="The queue's name.", examples=["default"])]
Kind = Annotated[Literal["key", "handler", "queue"], Path(description="What the name is of.")]
LimitName = Annotated[str, Path(max_length=200, description="The key, or the handler's or queue's name.")]

_MOST = 1_000_000


class QueueSettings(Body):
    """What changes; what is left out stays. 0 takes a limit away."""

    max_running: int | None = Field(None, ge=1, le=_MOST, description="Batches that run at once, at least.")
    max_concurrency: int | None = Field(None, ge=0, le=_MOST, description="Profiles at once, at most.")
    intake_batches: int | None = Field(None, ge=0, le=_MOST, description="Batches that it holds, at most.")
    intake_profiles: int | None = Field(None, ge=0, le=2_000_000_000, description="Unsettled profiles, at most.")
    intake_per_group: bool | None = Field(None, description="Whether each group has these two to itself.")


class LimitSettings(Body):
    """A rate."""

    rate: str | float = Field(description="Profiles a second, or as `600/m`.", examples=["10/s"])
    burst: int | None = Field(None, ge=1, le=_MOST, description="Profiles at once; by default those of half a second.")


class Removed(BaseModel):
    """What became of it."""

    removed: bool = Field(description="Whether there was one.")


_QUEUE: Answers = {200: {"model": Queue, "description": "The queue."}}


def router(context: Context) -> APIRouter:
    """`/queues` and `/limits`."""
    routes = api_router("queues")
    _add_queues(routes, context)
    _add_queue_verbs(routes, context)
    _add_limits(routes, context)
    return routes


def _note(context: Context, request: Request, what: str) -> None:
    logger.info("%s called %s", context.identity(request).name, what)


def _add_queues(routes: APIRouter, context: Context) -> None:
    queues = context.access.queues

    @routes.get(
        "/queues",
        operation_id="listQueues",
        summary="Every queue, with what is in it",
        responses={200: {"model": list_of(Queue), "description": "By name."}},
    )
    def list_queues() -> JSON:
        return JSON([view.as_json() for view in queues.list()])

    @routes.get("/queues/{name}", operation_id="showQueue", summary="One queue", responses={**_QUEUE, **UNKNOWN})
    def show_queue(name: QueueName) -> JSON:
        return JSON(queues.get(name).as_json())

    @routes.patch(
        "/queues/{name}",
        operation_id="setQueue",
        summary="Change what is given of a queue; it is made when it does not exist",
        responses=_QUEUE,
    )
    def set_queue(request: Request, name: QueueName, body: Annotated[QueueSettings, InBody()]) -> JSON:
        view = queues.set(name, **body.model_dump(exclude_unset=True))
        _note(context, request, f"set of queue {view.name}")
        return JSON(view.as_json())


def _add_queue_verbs(routes: APIRouter, context: Context) -> None:
    queues = context.access.queues

    @routes.post(
        "/queues/{name}/pause",
        operation_id="pauseQueue",
        summary="Promote and dispatch nothing; what runs may finish",
        responses={**_QUEUE, **UNKNOWN},
    )
    def pause(request: Request, name: QueueName) -> JSON:
        view = queues.pause(name)
        _note(context, request, f"pause of queue {view.name}")
        return JSON(view.as_json())

    @routes.post(
        "/queues/{name}/drain",
        operation_id="drainQueue",
        summary="Promote nothing more; batches that run go on",
        responses={**_QUEUE, **UNKNOWN},
    )
    def drain(request: Request, name: QueueName) -> JSON:
        view = queues.drain(name)
        _note(context, request, f"drain of queue {view.name}")
        return JSON(view.as_json())

    @routes.post(
        "/queues/{name}/resume",
        operation_id="resumeQueue",
        summary="End a pause or a drain",
        responses={**_QUEUE, **UNKNOWN},
    )
    def resume(request: Request, name: QueueName) -> JSON:
        view = queues.resume(name)
        _note(context, request, f"resume of queue {view.name}")
        return JSON(view.as_json())


def _add_limits(routes: APIRouter, context: Context) -> None:
    limits = context.access.limits

    @routes.get(
        "/limits",
        operation_id="listLimits",
        summary="Every rate limit; those of single batches while they are in use",
        responses={200: {"model": list[RateLimit], "description": "The limits."}},
    )
    def list_limits() -> JSON:
        return JSON([limited(each) for each in limits.list()])

    @routes.put(
        "/limits/{kind}/{name}",
        operation_id="setLimit",
        summary="Make a rate limit, or change it",
        responses={200: {"model": RateLimit, "description": "The limit."}},
    )
    def set_limit(request: Request, kind: Kind, name: LimitName, body: Annotated[LimitSettings, InBody()]) -> JSON:
        limits.set(name, body.rate, burst=body.burst, kind=kind)
        _note(context, request, f"set of the limit of {kind} {name}")
        made = next(each for each in limits.list() if each.key == (LimitKind(kind), name))
        return JSON(limited(made))

    @routes.delete(
        "/limits/{kind}/{name}",
        operation_id="removeLimit",
        summary="Take a rate limit away",
        responses={200: {"model": Removed, "description": "Whether it was there."}},
    )
    def remove_limit(request: Request, kind: Kind, name: LimitName) -> JSON:
        removed = limits.remove(name, kind=kind)
        _note(context, request, f"remove of the limit of {kind} {name}")
        return JSON({"removed": removed})
