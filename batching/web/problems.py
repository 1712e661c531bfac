"""Errors as problem details (RFC 9457): a stable `type` for programs, a whole sentence for people."""

from __future__ import annotations

import logging
import re
import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from batching import errors
from batching.web.answers import JSON

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastapi import FastAPI

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
#: Before each slug: a name, not an address.
TYPE: Final = "urn:batching:problem:"

#: Status of each error of the library; a class that is not named has its base's.
STATUS: Final[dict[type[errors.BatchingError], int]] = {
    errors.BatchingError: 500,
    errors.InvalidInputError: 422,
    errors.PayloadError: 422,
    errors.QueueFullError: 429,
    errors.UnknownBatchError: 404,
    errors.UnknownCallbackError: 404,
    errors.UnknownQueueError: 404,
    errors.UnknownHandlerError: 404,
    errors.IllegalMoveError: 409,
    errors.LeaseLostError: 409,
    errors.NotPermittedError: 403,
    errors.DatabaseUnavailableError: 503,
    errors.BrokerUnavailableError: 503,
    errors.SchemaVersionError: 503,
}
#: What these say is for whoever runs the dashboard: it names hosts and roles. The log has it.
_INTERNAL: Final[dict[type[errors.BatchingError], str]] = {
    errors.DatabaseUnavailableError: "the database cannot be reached; try again later, nothing was lost",
    errors.BrokerUnavailableError: "the broker cannot be reached; try again later, nothing was lost",
    errors.SchemaVersionError: "the database's schema is not the one that this dashboard needs; see its log",
    errors.NotPermittedError: "the dashboard's role in the database may not do this; see its log",
    errors.ConfigurationError: "the dashboard is not set up for this; see its log",
}
#: Seconds after which it is worth trying again.
_RETRY_AFTER: Final = {503: "2", 429: "10"}


class Problem(HTTPException):
    """Ends a request with a problem document. The framework lets its own kind of exception pass wherever it is raised.

    Args:
        status: Of the answer.
        slug: The last part of its `type`.
        detail: What was tried, what was found, what to do.
        headers: Of the answer, beside its own.
        more: Members of the document beside its own.
    """

    def __init__(
        self,
        status: int,
        slug: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.slug = slug
        self.more = dict(more or {})

    @property
    def status(self) -> int:
        """Of the answer."""
        return self.status_code

    @property
    def title(self) -> str:
        """The slug for people."""
        return self.slug.replace("-", " ").capitalize()

    def response(self) -> JSON:
        """The answer."""
        document = {
            "type": TYPE + self.slug,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }
        wait = {"Retry-After": _RETRY_AFTER[self.status]} if self.status in _RETRY_AFTER else {}
        return JSON(document, self.status, headers=wait | dict(self.headers or {}), media_type=MEDIA_TYPE)


def slug_of(kind: type[errors.BatchingError]) -> str:
    """`IllegalMoveError` -> `illegal-move`."""
    words = re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z][a-z]+|[A-Z]+", kind.__name__.removesuffix("Error"))
    return "-".join(words).lower() or "internal"


def problem_of(error: errors.BatchingError) -> Problem:
    """The problem that an error of the library is."""
    kinds = [kind for kind in type(error).__mro__ if issubclass(kind, errors.BatchingError)]
    status = next(STATUS[kind] for kind in kinds if kind in STATUS)
    hidden = next((_INTERNAL[kind] for kind in kinds if kind in _INTERNAL), None)
    return Problem(status, slug_of(type(error)), str(error) if hidden is None else hidden)


def install(app: FastAPI, answer: Callable[[Request, Problem], Response]) -> None:
    """Let every error of the application become a problem.

    Args:
        app: Whose errors.
        answer: Makes the answer: a document, or a page for people.
    """

    async def told(request: Request, error: Exception) -> Response:
        return answer(request, _of(request, error))

    for kind in (Problem, errors.BatchingError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, told)
    app.add_exception_handler(ClientDisconnect, _gone)


def _of(request: Request, error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case errors.BatchingError():
            problem = problem_of(error)
            if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR or problem.detail != str(error):
                logger.warning("%s %s: %s", request.method, request.url.path, error)
            return problem
        case HTTPException():
            return _of_http(request, error)
        case RequestValidationError():
            return _of_validation(error)
        case _:
            raise error


def _of_http(request: Request, error: HTTPException) -> Problem:
    """What the framework refuses by itself: no such page, no such method, a body that is no JSON."""
    phrase = HTTPStatus(error.status_code).phrase
    detail = {
        404: f"there is nothing at {request.url.path}; /api/v1/openapi.json lists what there is",
        405: f"{request.method} is no method of {request.url.path}",
    }.get(error.status_code, str(error.detail))
    return Problem(error.status_code, phrase.lower().replace(" ", "-"), detail, headers=error.headers)


def _of_validation(error: RequestValidationError) -> Problem:
    """A field that does not fit. What was sent is not quoted: it may be a payload."""
    found = [
        {"at": ".".join(str(part) for part in each["loc"]), "message": str(each["msg"])} for each in error.errors()
    ]
    said = "; ".join(f"{each['at']}: {each['message']}" for each in found[:5])
    return Problem(422, "invalid-request", f"cannot read the request: {said}", more={"errors": found[:50]})


async def _gone(request: Request, error: Exception) -> Response:
    """Whoever asked has left: nobody reads this."""
    del request, error
    return Response(status_code=HTTPStatus.BAD_REQUEST)


def unexpected(method: str, path: str, error: Exception) -> Problem:
    """What nobody foresaw: the log has all of it, the answer only where to look."""
    number = uuid.uuid4().hex[:12]
    logger.error("Request %s failed: %s %s", number, method, path, exc_info=error)
    return Problem(500, "internal", f"an internal error; the dashboard's log has it under {number}")
