"""`/workers`: who is alive, what they run, which handlers they serve; and what nobody serves."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from batching.states import BatchState
from batching.statistics.situation import MOST_RUNS
from batching.web.pages.frame import page, page_route

if TYPE_CHECKING:
    from batching.statistics import RunView, Situation, WorkerView
    from batching.web.context import Context

_PARTS: Final = ("pulse", "workers", "handlers")
#: Batches at the head of the line that are looked at for what they need.
_HEAD: Final = 200


class Served(NamedTuple):
    """One handler: who serves it, and how much is there for it."""

    name: str
    workers: int
    slots: int
    batches: int
    """Running or waiting, of those at the head of the line."""
    versions: tuple[str, ...]


class WorkersPage:
    """What the page shows, read as its parts ask for it."""

    def __init__(self, context: Context) -> None:
        self._statistics = context.statistics
        self.most_runs = MOST_RUNS

    @cached_property
    def situation(self) -> Situation:
        return self._statistics.situation()

    @cached_property
    def workers(self) -> list[WorkerView]:
        """Live ones first, by name."""
        found = self._statistics.workers()
        return sorted(found, key=lambda each: (not each.live, each.draining, each.hostname, each.pid))

    @cached_property
    def versions(self) -> list[str]:
        return sorted({each.version for each in self.workers if each.live})

    @cached_property
    def runs(self) -> dict[str, list[RunView]]:
        found: dict[str, list[RunView]] = defaultdict(list)
        for each in self._statistics.runs():
            found[each.worker_id].append(each)
        return found

    @cached_property
    def handlers(self) -> list[Served]:
        open_ones = [each for each in self.workers if each.live and not each.draining]
        states = [BatchState.RUNNING, BatchState.STOPPING, BatchState.QUEUED]
        needed: dict[str, int] = defaultdict(int)
        for view in self._statistics.batches(states=states, limit=_HEAD):
            needed[view.handler] += 1
        names = {name for each in open_ones for name in each.handlers} | set(needed)
        found = []
        for name in sorted(names):
            serving = [each for each in open_ones if name in each.handlers]
            versions = tuple(sorted({each.version for each in serving}))
            found.append(Served(name, len(serving), sum(each.slots for each in serving), needed[name], versions))
        return sorted(found, key=lambda each: (each.workers > 0 or not each.batches, each.name))


def router(context: Context) -> APIRouter:
    """The page of the workers."""
    routes = APIRouter(route_class=page_route(context), include_in_schema=False)

    @routes.get("/workers", response_class=HTMLResponse)
    def show(request: Request) -> Response:
        return page(context, request, "workers.html", allowed=_PARTS, data=WorkersPage(context))

    return routes
