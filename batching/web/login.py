"""Logging in and out: a browser shows a token once, and gets a session for it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from batching.web.guard import COOKIE
from batching.web.identity import SESSION_SECONDS

if TYPE_CHECKING:
    from batching.web.context import Context

logger = logging.getLogger(__name__)


def router(context: Context) -> APIRouter:
    """`/login` and `/logout`."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/login")
    async def ask(request: Request, next: str = "/") -> Response:  # noqa: A002 - what it is called everywhere
        if context.keyring.open:
            return RedirectResponse("/", 303)
        return _form(context, request, next)

    @routes.post("/login")
    async def enter(request: Request) -> Response:
        fields = await _fields(request)
        identity = context.keyring.by_token(fields.get("token", "").strip())
        if identity is None:
            logger.warning("Nobody was let in: the token is none of ours")
            return _form(context, request, fields.get("next", "/"), failed=True)
        logger.info("%s logged in as %s", identity.name, identity.role)
        answer = RedirectResponse(_own_page(fields.get("next", "/")), 303)
        session = context.keyring.start_session(identity.name, time.time())
        answer.set_cookie(COOKIE, session, max_age=SESSION_SECONDS, **_terms(context))
        return answer

    @routes.post("/logout")
    async def leave() -> Response:
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, **_terms(context))
        return answer

    return routes


def _form(context: Context, request: Request, page: str, *, failed: bool = False) -> Response:
    return context.render(
        request, "login.html", status=401 if failed else 200, next_page=_own_page(page), failed=failed
    )


def _terms(context: Context) -> dict[str, Any]:
    """No script reads it, and no page of another site makes the browser send it."""
    return {"path": "/", "httponly": True, "samesite": "strict", "secure": context.settings.web_https}


def _own_page(page: str) -> str:
    """A page of ours: what begins with two slashes, of either kind, is an address of others."""
    own = page.startswith("/") and not page.startswith(("//", "/\\")) and page.isprintable() and "\\" not in page
    return page if own else "/"


async def _fields(request: Request) -> dict[str, str]:
    """Of a form; the guard has bounded it."""
    return dict(parse_qsl((await request.body()).decode("utf-8", "replace"), max_num_fields=1_000))
