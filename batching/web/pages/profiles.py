"""`/batches/{id}/profiles`: search and paging over any number of them; and one of them with all its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from batching.errors import InvalidInputError
from batching.states import ProfileState
from batching.web.identity import Role
from batching.web.pages.frame import merged, page, page_route

if TYPE_CHECKING:
    from batching.web.context import Context

SIZE: Final = 50
_LONGEST_KEY: Final = 255


def router(context: Context) -> APIRouter:
    """The pages of profiles."""
    routes = APIRouter(route_class=page_route(context), include_in_schema=False)

    @routes.get("/batches/{batch_id}/profiles", response_class=HTMLResponse)
    def browse(
        request: Request,
        batch_id: str,
        key: str = "",
        state: Annotated[list[str] | None, Query()] = None,
        fingerprint: str = "",
        start: str = "",
        after: str = "",
    ) -> Response:
        view = context.statistics.batch(batch_id)
        states = _states(state or [])
        found = context.statistics.profiles(
            view.id,
            states=states,
            key=key[: _LONGEST_KEY + 1] or None,
            fingerprint=fingerprint or None,
            after=after or _before(start, key, states, fingerprint),
            limit=SIZE,
        )
        return page(
            context,
            request,
            "profiles.html",
            view=view,
            found=found,
            key=key,
            chosen=states,
            fingerprint=fingerprint,
            start=start,
            paged=bool(after or start),
            filtered=bool(key or states or fingerprint or start or after),
            merged=lambda **changes: request.url.path + merged(request, changes),
        )

    @routes.get("/batches/{batch_id}/profiles/{name:path}", response_class=HTMLResponse)
    def show(request: Request, batch_id: str, name: str, by: str = "") -> Response:
        view = context.statistics.batch(batch_id)
        detail = context.statistics.profile(view.id, name, by_number=True if by == "number" else None)
        sees = context.identity(request).role is Role.OPERATOR
        payload = context.statistics.payload(view.id, detail.profile.number) if sees else None
        return page(context, request, "profile.html", view=view, detail=detail, payload=payload, sees_payloads=sees)

    return routes


def _states(names: list[str]) -> list[ProfileState]:
    unknown = [name for name in names if name not in set(ProfileState)]
    if unknown:
        raise InvalidInputError(
            f"cannot show profiles in the state {unknown[0]!r}: a profile is one of {', '.join(ProfileState)}"
        )
    return [ProfileState(name) for name in names]


def _before(start: str, key: str, states: list[ProfileState], fingerprint: str) -> str | None:
    """The cursor that begins with a number; only where profiles come by number."""
    failed_alone = states == [ProfileState.FAILED]
    if not start.strip() or key or fingerprint or failed_alone:
        return None
    digits = start.strip().replace(",", "")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 10):
        raise InvalidInputError(f"cannot begin with profile {start!r}: give its number, 1 or more")
    return f"n:{int(digits) - 1}" if int(digits) > 1 else None
