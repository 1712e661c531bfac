"""The guard before every route: which host, who, whether from a page of ours, whether they may.

It also says to browsers, with every answer, what they must not do with it. It stands before the routes, so a route that
is added later is guarded too: GET and HEAD need a viewer, everything else an operator, unless a path is in the short
list of open ones.
"""

from __future__ import annotations

import logging
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse

from batching.web.context import LOCAL
from batching.web.identity import Identity, Role
from batching.web.problems import Problem, unexpected

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from batching.web.context import Context

logger = logging.getLogger(__name__)

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
COOKIE: Final = "batching_session"
FORM_FIELD: Final = "csrf_token"
FORM_HEADER: Final = "x-csrf-token"
#: Asked by machines that know no host name and have no token: they tell nothing but yes or no.
PROBES: Final = frozenset({"/livez", "/readyz"})
#: Open to everybody: what somebody needs to log in.
OPEN: Final = frozenset({*PROBES, "/login", "/logout"})
_OPEN_BELOW: Final = "/static/"
#: Routes that take their bodies as a stream, line by line, when they are JSON lines.
_STREAMED: Final = re.compile(r"/api/v1/(batches|preflight|batches/[^/]+/(profiles|amendments))/?")
JSON_LINES: Final = frozenset({"application/x-ndjson", "application/jsonl", "application/ndjson"})
_FORM: Final = "application/x-www-form-urlencoded"
#: Bytes of a form.
_FORM_LIMIT: Final = 65_536
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})

HEADERS: Final = {
    # Nothing but our own files, and nothing inline: what a batch carries can at most be shown.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not `no-referrer`: with it, browsers send `Origin: null` with our own forms
    # (https://fetch.spec.whatwg.org/#append-a-request-origin-header).
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class Guard:
    """ASGI middleware; see the module.

    Args:
        app: What it guards.
        context: Settings and keys.
        names: Host names that it answers to, beside loopback and BATCHING_WEB_HOSTS.
    """

    def __init__(self, app: ASGIApp, context: Context, names: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._context = context
        self._hosts = _LOOPBACK | {name.lower() for name in (*context.settings.web_hosts, *names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        answer = _Answer(send, self._headers(request))
        try:
            await self._admit(request, answer)
        except Problem as problem:
            if not answer.started:
                await self._context.told(request, problem)(scope, receive, answer)
        except Exception as error:
            found = unexpected(request.method, request.url.path, error)
            if answer.started:
                # The rest cannot come: the connection breaks off, so that nobody takes what came for all of it.
                raise
            await self._context.told(request, found)(scope, receive, answer)

    async def _admit(self, request: Request, answer: _Answer) -> None:
        scope, path, context = request.scope, request.url.path, self._context
        if path not in PROBES:
            self._check_host(request)
        receive = _Bounded(request, context.settings.web_body_limit)
        is_open = path in OPEN or path.startswith(_OPEN_BELOW)
        identity = self._identify(request)
        if identity is None and not is_open:
            if request.method in {"GET", "HEAD"} and "text/html" in request.headers.get("accept", ""):
                page = path + (f"?{request.url.query}" if request.url.query else "")
                await RedirectResponse(f"/login?next={quote(page)}", 303)(scope, receive, answer)
                return
            raise Problem(
                401,
                "unauthenticated",
                "nobody was let in: send a token as `Authorization: Bearer …`; `batching dashboard token` makes one",
                headers={"WWW-Authenticate": 'Bearer realm="batching"'},
            )
        scope["identity"] = identity
        if request.method not in SAFE:
            replay = await self._check_origin(request, identity, receive)
            if not is_open:
                self._check_role(identity)
            await self._app(scope, replay, answer)
            return
        await self._app(scope, receive, answer)

    def _check_host(self, request: Request) -> None:
        """A page of another site whose name was made to lead here (DNS rebinding) still says its own name."""
        host = request.headers.get("host", "").lower()
        name = re.sub(r":\d+$", "", host)
        if name not in self._hosts and "*" not in self._hosts:
            raise Problem(
                421,
                "unknown-host",
                "this dashboard does not answer to the host name that was asked for; name it in BATCHING_WEB_HOSTS",
            )

    def _identify(self, request: Request) -> Identity | None:
        keyring = self._context.keyring
        if keyring.open:
            return Identity(LOCAL, Role.OPERATOR, ambient=True)
        scheme, _, presented = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return keyring.by_token(presented.strip())
        return keyring.by_session(request.cookies.get(COOKIE, ""), time.time())

    def _check_role(self, identity: Identity | None) -> None:
        if self._context.settings.web_read_only:
            raise Problem(403, "read-only", "this dashboard is read-only: it changes nothing, whoever asks")
        if identity is None or identity.role is not Role.OPERATOR:
            raise Problem(403, "forbidden", "a viewer sees, and changes nothing: this needs the token of an operator")

    async def _check_origin(self, request: Request, identity: Identity | None, receive: _Bounded) -> Receive:
        """Refuse what a page of another site made a browser send. What a program sends with its token is its own.

        Returns:
            From where the body is to be received: it was read if it is a form.
        """
        if identity is not None and not identity.ambient:
            return receive
        headers = request.headers
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site not in {None, "same-origin", "none"} or (origin is not None and not _is_own(origin, request)):
            raise _forged("it came from a page of another site")
        by_browser = site is not None or origin is not None or "cookie" in headers or "referer" in headers
        kind = _media_type(request)
        if not by_browser and kind != _FORM:
            return receive
        session = "" if identity is None else identity.session
        presented = headers.get(FORM_HEADER, "")
        replay: Receive = receive
        if not presented and kind == _FORM:
            body = await Request(request.scope, receive).body()
            presented, replay = _field(body), _Replay(body, receive)
        if not self._context.keyring.is_form_token(session, presented):
            raise _forged("its CSRF token is missing, or is of another session: load the page again")
        return replay

    def _headers(self, request: Request) -> dict[str, str]:
        static = request.url.path.startswith(_OPEN_BELOW)
        headers = HEADERS | {"cache-control": "public, max-age=300" if static else "no-store"}
        if self._context.settings.web_https:
            headers["strict-transport-security"] = "max-age=31536000"
        return headers


def _is_own(origin: str, request: Request) -> bool:
    """Whether an origin is this site: the scheme is a proxy's affair, the name and the port are not."""
    try:
        asked = urlsplit(origin)
    except ValueError:
        return False
    return bool(asked.netloc) and asked.netloc.lower() == request.headers.get("host", "").lower()


def _field(body: bytes) -> str:
    """The CSRF token in a form; empty for none."""
    with suppress(ValueError):  # more fields than any form of ours has
        return dict(parse_qsl(body.decode("utf-8", "replace"), max_num_fields=1_000)).get(FORM_FIELD, "")
    return ""


def _forged(why: str) -> Problem:
    return Problem(403, "forged", f"refused, to be safe from forged requests: {why}")


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


class _Answer:
    """Adds our headers to an answer, and knows whether it has begun."""

    def __init__(self, send: Send, headers: dict[str, str]) -> None:
        self._send = send
        self._more = headers
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in self._more.items():
                headers.setdefault(name, value)
        await self._send(message)


class _Bounded:
    """Counts a body while it comes, and ends the request when it is too large."""

    def __init__(self, request: Request, limit: int) -> None:
        self._receive = request.receive
        self._size = 0
        kind = _media_type(request)
        self._limit: float = _FORM_LIMIT if kind == _FORM else limit
        if kind in JSON_LINES and request.method == "POST" and _STREAMED.fullmatch(request.url.path):
            self._limit = float("inf")
            return
        said = request.headers.get("content-length", "0")
        if said.isdigit() and int(said) > self._limit:
            raise self._too_large()

    async def __call__(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            raise self._too_large()
        return message

    def _too_large(self) -> Problem:
        return Problem(
            413,
            "too-large",
            f"the body is longer than {self._limit:,.0f} bytes; send profiles as JSON lines (application/x-ndjson), "
            "which are streamed, or raise BATCHING_WEB_BODY_LIMIT",
        )


class _Replay:
    """Gives a body that was read once more, and then what follows it: that the sender has left."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return dict(await self._receive())
