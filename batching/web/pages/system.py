"""`/system`: throughput and failures of everything, queues, limits, callbacks, the leader and the broker."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from batching.states import CallbackState
from batching.web.pages import charts
from batching.web.pages.frame import page, page_route
from batching.web.pages.queue import Trouble, of_system

if TYPE_CHECKING:
    from batching.brakes import Limit
    from batching.statistics import CallbackView, QueueView, Situation, ThroughputPoint
    from batching.web.context import Context

_PARTS: Final = ("pulse", "problems", "system_charts", "queues", "limits", "undelivered", "leader")
#: Minutes that the charts can span, in words.
SPANS: Final = {15: "15 min", 60: "1 h", 360: "6 h", 1_440: "24 h"}
_LISTED: Final = 50


class SystemPage:
    """What the page shows, read as its parts ask for it."""

    def __init__(self, context: Context, minutes: int) -> None:
        self._context = context
        self._statistics = context.statistics
        self.minutes = minutes if minutes in SPANS else 60
        self.spans = SPANS

    @cached_property
    def situation(self) -> Situation:
        return self._statistics.situation()

    @property
    def troubles(self) -> list[Trouble]:
        return of_system(self.situation)

    @cached_property
    def _points(self) -> list[ThroughputPoint]:
        return self._statistics.throughput(minutes=self.minutes)

    @cached_property
    def throughput(self) -> charts.Chart | None:
        return charts.throughput(self._points)

    @cached_property
    def failures(self) -> charts.Chart | None:
        return charts.failures(self._points)

    @cached_property
    def durations(self) -> charts.Chart | None:
        return charts.histogram(self._statistics.durations())

    @cached_property
    def queues(self) -> list[QueueView]:
        return self._statistics.queues()

    @cached_property
    def limits(self) -> list[Limit]:
        return self._context.access.limits.list()

    @cached_property
    def callbacks(self) -> list[CallbackView]:
        """Dead ones first: they wait for a person."""
        states = [CallbackState.DEAD, CallbackState.WAITING]
        found = [self._statistics.callbacks(states=[state], limit=_LISTED) for state in states]
        return [each for some in found for each in some]


def router(context: Context) -> APIRouter:
    """The page of the whole system."""
    routes = APIRouter(route_class=page_route(context), include_in_schema=False)

    @routes.get("/system", response_class=HTMLResponse)
    def show(request: Request, minutes: int = 60) -> Response:
        return page(context, request, "system.html", allowed=_PARTS, data=SystemPage(context, minutes))

    return routes
