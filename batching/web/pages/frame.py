"""What every page is put into: rendering whole or in parts, messages that survive a redirect, errors as pages."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, urlencode

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.responses import HTMLResponse, RedirectResponse

from batching.errors import BatchingError
from batching.web.context import HERE
from batching.web.pages import charts, words
from batching.web.problems import Problem, problem_of, unexpected

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from batching.web.context import Context

_FLASH: Final = "batching_flash"
#: Characters of a message: cookies have 4,096 bytes.
_LONGEST: Final = 700
#: Parts of a page are asked for by name, in this parameter of its own address.
_PARTS: Final = "parts"


def prepare(context: Context) -> None:
    """Teach the templates our words."""
    environment = context.templates
    environment.filters.update(words.FILTERS)
    environment.filters.update(path=_quoted)
    environment.globals.update(
        segments=charts.segments,
        equation=charts.equation,
        static=_static,
        signs=words.SIGNS,
        profile_order=words.PROFILE_ORDER,
    )


def page(context: Context, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """A whole page, or the parts of it that were asked for: the same templates, in the same words.

    Args:
        context: The application's.
        request: Names the parts, if it does.
        template: Of the whole page; its parts are in `parts/`.
        status: Of HTTP.
        values: For the template; `allowed` names the parts that this page has.
    """
    allowed: tuple[str, ...] = values.pop("allowed", ())
    now = datetime.now(UTC)
    known = values | {
        "now": now,
        "relative": partial(words.relative, now=now),
        "flash": None,
        "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
    }
    wanted = [name for name in request.query_params.get(_PARTS, "").split(",") if name in allowed]
    if wanted:
        return context.render(request, "parts.html", parts=wanted, **known)
    known["flash"] = _read_flash(request)
    answer = context.render(request, template, status=status, **known)
    if known["flash"] is not None:
        answer.delete_cookie(_FLASH)
    return answer


def flashed(context: Context, to: str, text: str, *, bad: bool = False) -> RedirectResponse:
    """Send the browser on to a page of ours, which then says what happened."""
    answer = RedirectResponse(local_path(to), 303)
    document = json.dumps({"text": text[:_LONGEST], "bad": bad}).encode()
    answer.set_cookie(
        _FLASH,
        base64.urlsafe_b64encode(document).decode(),
        max_age=60,
        httponly=True,
        samesite="strict",
        secure=context.settings.web_https,
    )
    return answer


def _read_flash(request: Request) -> dict[str, Any] | None:
    cookie = request.cookies.get(_FLASH, "")
    try:
        document = json.loads(base64.urlsafe_b64decode(cookie.encode()))
        return {"text": str(document["text"]), "bad": bool(document["bad"])}
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        return None


def local_path(to: str) -> str:
    """A path of this site, whatever was asked for: `//elsewhere` and `https:…` lead away from it."""
    safe = to.startswith("/") and not to.startswith(("//", "/\\")) and to.isprintable()
    return quote(to, safe="/?&=%#:@!$'()*+,;~-._") if safe else "/"


async def fields(request: Request) -> dict[str, str]:
    """The fields of a form; of several with one name the last."""
    body = await request.body()
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=1_000))


def query(**values: Any) -> str:
    """`?a=1&b=2` of what is given; empty when nothing is."""
    given = [(name, str(value)) for name, value in values.items() if value not in (None, "", False)]
    return f"?{urlencode(given)}" if given else ""


def page_route(context: Context) -> type[APIRoute]:
    """Routes whose errors are pages, too: in the words of the library, with a way back."""

    class PageRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            inner = super().get_route_handler()

            async def handle(request: Request) -> Response:
                try:
                    return await inner(request)
                except BatchingError as error:
                    problem = problem_of(error)
                except RequestValidationError as error:
                    # What was sent is not quoted.
                    said = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()[:3])
                    problem = Problem(422, "invalid-request", f"cannot read the address: {said}")
                except Problem as error:
                    problem = error
                except Exception as error:  # noqa: BLE001 - it is logged, under a number that the page names
                    problem = unexpected(request.method, request.url.path, error)
                return _sorry(context, request, problem)

            return handle

    return PageRoute


def _sorry(context: Context, request: Request, problem: Problem) -> HTMLResponse:
    return context.render(
        request,
        "error.html",
        status=problem.status,
        problem=problem,
        now=datetime.now(UTC),
        flash=None,
        here=request.url.path,
    )


def _quoted(text: object) -> str:
    """A text as one segment of a path: a key may have anything in it."""
    return quote(str(text), safe="")


@cache
def _static(name: str) -> str:
    """The address of a file of ours, which changes with its content: browsers may keep it."""
    digest = hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"


def merged(request: Request, changes: Mapping[str, Any]) -> str:
    """The query of this page with some parameters changed; those that are None are left out."""
    present = {name: value for name, value in request.query_params.items() if name != _PARTS}
    return query(**(present | dict(changes)))
