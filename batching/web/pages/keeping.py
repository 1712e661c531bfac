"""What people do with a queue, or with a callback that could not be delivered: asked first, as with batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from batching.errors import BatchingError, InvalidInputError
from batching.web.pages import words
from batching.web.pages.frame import fields, flashed, local_path, page, page_route

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.web.context import Context


class Act(NamedTuple):
    """One thing that can be done."""

    label: str
    means: str
    done: str
    do: Callable[[Context, str], object]
    grave: bool = False


QUEUE_ACTS: Final[dict[str, Act]] = {
    "pause": Act(
        "Pause",
        "Nothing is promoted and nothing is dispatched; what runs goes on to its end.",
        "Paused the queue",
        lambda context, name: context.access.queues.pause(name),
        grave=True,
    ),
    "drain": Act(
        "Drain",
        "Nothing new starts; batches that run go on to their end.",
        "Draining the queue",
        lambda context, name: context.access.queues.drain(name),
    ),
    "resume": Act(
        "Resume",
        "Ends a pause or a drain: the next in line is promoted.",
        "Resumed the queue",
        lambda context, name: context.access.queues.resume(name),
    ),
}
CALLBACK_ACTS: Final[dict[str, Act]] = {
    "retry": Act(
        "Deliver again",
        "It is tried again at once, with all its attempts.",
        "Will deliver the callback again:",
        lambda context, name: context.access.retry_callback(name),
    )
}
_ACTS: Final = {"queues": QUEUE_ACTS, "callbacks": CALLBACK_ACTS}
_CALLED: Final = {"queues": "queue", "callbacks": "callback"}
_BACK: Final = {"queues": "/system#queues", "callbacks": "/system#callbacks"}


def router(context: Context) -> APIRouter:
    """The pages that ask, and what they send."""
    routes = APIRouter(route_class=page_route(context), include_in_schema=False)
    for kind in _ACTS:
        _add(routes, context, kind)
    return routes


def _add(routes: APIRouter, context: Context, kind: str) -> None:
    @routes.get(f"/{kind}/{{name}}/steer/{{verb}}", response_class=HTMLResponse)
    def ask(request: Request, name: str, verb: str) -> Response:
        act = _act(kind, verb)
        if kind == "queues":
            context.access.queues.get(name)
        return page(
            context,
            request,
            "keep.html",
            allowed=("keep",),
            act=act,
            verb=verb,
            kind=kind,
            name=name,
            called=_CALLED[kind],
            to=local_path(request.query_params.get("to") or _BACK[kind]),
        )

    @routes.post(f"/{kind}/{{name}}/steer/{{verb}}", response_class=HTMLResponse)
    async def do(request: Request, name: str, verb: str) -> Response:
        act = _act(kind, verb)
        to = local_path((await fields(request)).get("to") or _BACK[kind])
        try:
            await context.run(act.do, context, name)
        except BatchingError as error:
            return flashed(context, to, words.shown(str(error)), bad=True)
        return flashed(context, to, f"{act.done} {words.shown(name)}")


def _act(kind: str, verb: str) -> Act:
    found = _ACTS.get(kind, {}).get(verb)
    if found is None:
        raise InvalidInputError(f"there is nothing called {verb[:40]!r} that can be done with {kind[:40]!r}")
    return found
