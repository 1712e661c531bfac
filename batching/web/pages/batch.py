"""`/batches/{id}`: one batch, from its accounting equation to its history."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from batching.web.pages import charts
from batching.web.pages.frame import page, page_route
from batching.web.pages.steering import verbs_of

if TYPE_CHECKING:
    from batching.statistics import BatchView, CallbackView, FailureChange, FailureGroup, HistoryEntry
    from batching.web.context import Context

_PARTS: Final = ("head", "accounting", "charts", "failures", "history", "callbacks")
#: Failures beyond which they are grouped when somebody asks, not with every change.
_COSTLY: Final = 50_000
_GROUPS: Final = 50
_ENTRIES: Final = 100


class BatchPage:
    """What the page shows, read as its parts ask for it."""

    def __init__(self, context: Context, batch_id: str, pass_number: int | None, *, changes: bool) -> None:
        self._statistics = context.statistics
        self._id = batch_id
        self.of_pass = pass_number
        self.compares = changes

    @cached_property
    def view(self) -> BatchView:
        return self._statistics.batch(self._id)

    @cached_property
    def verbs(self) -> list[str]:
        return verbs_of(self.view)

    @cached_property
    def throughput(self) -> charts.Chart | None:
        return charts.throughput(self._statistics.throughput(self.view.id), over=self.view.terminal)

    @cached_property
    def durations(self) -> charts.Chart | None:
        return charts.histogram(self._statistics.durations(self.view.id))

    @property
    def costly(self) -> bool:
        return self.view.failed > _COSTLY

    @cached_property
    def _groups(self) -> list[FailureGroup]:
        return self._statistics.failures(self.view.id, self.of_pass)

    @property
    def failures(self) -> list[FailureGroup]:
        return self._groups[:_GROUPS]

    @property
    def more_failures(self) -> int:
        return len(self._groups) - len(self.failures)

    @cached_property
    def changes(self) -> tuple[int, list[FailureChange]] | None:
        """What became of the failures of one pass in the next."""
        if not self.compares or self.view.pass_number < 2:
            return None
        later, found = self._statistics.failure_changes(self.view.id)
        return later, found[:_GROUPS]

    @cached_property
    def _history(self) -> list[HistoryEntry]:
        return self._statistics.history(self.view.id)

    @property
    def history(self) -> list[HistoryEntry]:
        """The latest first."""
        return self._history[::-1][:_ENTRIES]

    @property
    def more_history(self) -> int:
        return len(self._history) - len(self.history)

    @cached_property
    def callbacks(self) -> list[CallbackView]:
        return self._statistics.callbacks(self.view.id)


def router(context: Context) -> APIRouter:
    """The page of one batch."""
    routes = APIRouter(route_class=page_route(context), include_in_schema=False)

    @routes.get("/batches/{batch_id}", response_class=HTMLResponse)
    def show(request: Request, batch_id: str, of_pass: int | None = None, changes: bool = False) -> Response:
        found = context.statistics.resolve(batch_id)
        if found != batch_id:
            return RedirectResponse(f"/batches/{found}", 303)
        data = BatchPage(context, found, of_pass, changes=changes)
        return page(context, request, "batch.html", allowed=_PARTS, data=data)

    return routes
