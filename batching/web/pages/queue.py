"""`/`: the queue as a line of batches, what is wrong first; and the search."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from batching.errors import BatchingError
from batching.states import BatchState
from batching.statistics.reason import is_behind
from batching.web.pages import finding, words
from batching.web.pages.frame import merged, page, page_route, query

if TYPE_CHECKING:
    from batching.statistics import BatchView, QueueView, Situation
    from batching.web.context import Context

#: Batches in one page of the line, or of a search.
SIZE: Final = 50
_MOST_RUNNING: Final = 100
_LATEST: Final = 10
_PARTS: Final = ("pulse", "problems", "running", "waiting", "paused", "finished", "found")


class Trouble(NamedTuple):
    """Something that is wrong now, and where to look."""

    text: str
    link: str = ""
    grave: bool = True


class QueuePage:
    """What the page shows, read as its parts ask for it."""

    def __init__(self, context: Context, asked: finding.Asked, number: int, after: str | None) -> None:
        self._statistics = context.statistics
        self.asked = asked
        self.number = number
        self._after = after
        self._queue = asked.queue or None

    @cached_property
    def situation(self) -> Situation:
        return self._statistics.situation()

    @cached_property
    def queues(self) -> list[QueueView]:
        return self._statistics.queues()

    @cached_property
    def running(self) -> list[BatchView]:
        states = [BatchState.RUNNING, BatchState.STOPPING]
        return self._statistics.batches(self._queue, states, _MOST_RUNNING)

    @cached_property
    def _waiting(self) -> list[BatchView]:
        offset = (self.number - 1) * SIZE
        return self._statistics.batches(self._queue, [BatchState.QUEUED], SIZE + 1, offset=offset)

    @property
    def waiting(self) -> list[BatchView]:
        return self._waiting[:SIZE]

    @cached_property
    def several_queues(self) -> bool:
        """Whether places are those of several lines."""
        return len({view.queue for view in self.waiting}) > 1

    @property
    def more_wait(self) -> bool:
        return len(self._waiting) > SIZE

    @cached_property
    def paused(self) -> list[BatchView]:
        return self._statistics.batches(self._queue, [BatchState.PAUSED], _MOST_RUNNING)

    @cached_property
    def _finished(self) -> list[BatchView]:
        size = _LATEST if self._after is None else SIZE
        return self._statistics.finished(self._queue, after=self._after, limit=size + 1)

    @property
    def finished(self) -> list[BatchView]:
        return self._finished[: _LATEST if self._after is None else SIZE]

    @property
    def more_finished(self) -> str | None:
        """The id after which the next page begins."""
        return self.finished[-1].id if len(self._finished) > len(self.finished) else None

    @cached_property
    def _found(self) -> list[BatchView]:
        return self._statistics.search(self.asked.search(self._after, SIZE + 1))

    @property
    def found(self) -> list[BatchView]:
        return self._found[:SIZE]

    @property
    def more_found(self) -> str | None:
        return self.found[-1].id if len(self._found) > SIZE else None

    @cached_property
    def troubles(self) -> list[Trouble]:
        found = [
            *of_system(self.situation),
            *(
                Trouble(f"The queue {words.shown(each.name)} is paused: nothing of it starts", "/system", grave=False)
                for each in self.queues
                if each.paused
            ),
            *self._stuck(),
            *self._failed(),
        ]
        return sorted(found, key=lambda each: not each.grave)

    def _stuck(self) -> list[Trouble]:
        """Batches that would run and cannot, one line for each reason."""
        found: dict[str, list[BatchView]] = {}
        for view in (*self.running, *self.waiting):
            if view.reason and "no live worker serves" in view.reason and not is_behind(view.reason):
                found.setdefault(view.reason, []).append(view)
        return [
            Trouble(f"{words.many(len(views), 'batch', 'batches')} cannot run: {words.shown(reason)}", _at(views))
            for reason, views in found.items()
        ]

    def _failed(self) -> list[Trouble]:
        since = datetime.now(UTC) - timedelta(hours=1)
        failed = self._statistics.finished(self._queue, states=[BatchState.FAILED], limit=_LATEST)
        lately = [view for view in failed if view.finished_at is not None and view.finished_at > since]
        if not lately:
            return []
        first = f"{words.shown(lately[0].name)} ({words.shown(lately[0].reason)})"
        others = f", and {words.many(len(lately) - 1, 'more', 'more')}" if len(lately) > 1 else ""
        at_least = "at least " if len(lately) == _LATEST else ""
        text = f"{at_least}{words.many(len(lately), 'batch', 'batches')} failed in the last hour: {first}{others}"
        return [Trouble(text[0].upper() + text[1:], _at(lately))]


def of_system(now: Situation) -> list[Trouble]:
    """What is wrong with the system, whatever its batches are."""
    found = []
    if not now.led:
        found.append(Trouble("No manager leads: nothing starts. A worker brings one, or `batching manager`", "/system"))
    if now.broker_away:
        found.append(Trouble("The broker cannot be reached: everything waits in SQL until it answers", "/system"))
    if not now.workers:
        found.append(Trouble("No worker is alive", "/workers"))
    if now.silent:
        text = f"{words.many(now.silent, 'worker')} went silent; what they ran is taken back by itself"
        found.append(Trouble(text, "/workers", grave=False))
    if now.callbacks_dead:
        text = f"{words.many(now.callbacks_dead, 'callback')} could not be delivered"
        found.append(Trouble(text, "/system#callbacks", grave=False))
    return found


def _at(views: list[BatchView]) -> str:
    return f"/batches/{views[0].id}" if len(views) == 1 else ""


def router(context: Context) -> APIRouter:
    """The page of the queue."""
    routes = APIRouter(route_class=page_route(context), include_in_schema=False)

    @routes.get("/", response_class=HTMLResponse)
    def line(
        request: Request,
        q: str = "",
        state: str = "",
        queue: str = "",
        number: Annotated[int, Query(alias="page", ge=1, le=1_000_000)] = 1,
        after: str | None = None,
    ) -> Response:
        asked = finding.read(q, state, queue)
        if asked.batch_id is not None and (found := _resolved(context, asked.batch_id)):
            return RedirectResponse(f"/batches/{found}", 303)
        shown = QueuePage(context, asked, number, after)
        return page(
            context,
            request,
            "queue.html",
            allowed=_PARTS,
            data=shown,
            states=[each for each in BatchState if each is not BatchState.LOADING],
            merged=lambda **changes: "/" + merged(request, changes),
            query=query,
        )

    return routes


def _resolved(context: Context, text: str) -> str | None:
    """The batch whose id begins so; None when there is no such one, or several: then it is a name."""
    try:
        return context.statistics.resolve(text)
    except BatchingError:
        return None
