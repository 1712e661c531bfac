"""The OpenAPI document: what the framework makes of the routes, with our problems and ways to log in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from batching import __version__
from batching.web.answers import JSON
from batching.web.api.common import ROOT, Result
from batching.web.api.feeding import Sent
from batching.web.api.submitting import Submission

if TYPE_CHECKING:
    from fastapi import FastAPI
    from pydantic import BaseModel

_ABOUT = """\
Submit batches, watch them, steer them. Every answer is read from SQL at that moment; every verb is one transaction.

* **Who**: `Authorization: Bearer TOKEN`, once the dashboard has tokens. Viewers read, operators also act.
* **Again**: a batch with a `key` is submitted once, however often it is tried; appending is idempotent by profile key.
* **Problems** are `application/problem+json` (RFC 9457); programs go by `type`, people by `detail`.
* **Pages**: `next` of a page is the `cursor` of the following one.
* **Events**: `/events` streams changes as server-sent events.
"""

_TAGS = {
    "batches": "Submit, list, show, fill, seal, amend.",
    "profiles": "Profiles of a batch, and their results.",
    "failures": "What failed, by what went wrong; and who was told.",
    "measures": "How much was settled when, and how long runs took.",
    "verbs": "Steer batches. Each acts at once, however large the batch.",
    "queues": "How much runs at once, and how fast.",
    "system": "Workers, callbacks, this dashboard.",
    "events": "Changes as they happen.",
}

_PROBLEM: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "What went wrong (RFC 9457).",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "Stable, for programs.", "pattern": "^urn:batching:problem:[a-z-]+$"},
        "title": {"type": "string", "description": "The same for people."},
        "status": {"type": "integer", "description": "As in the answer's first line."},
        "detail": {"type": "string", "description": "What was tried, what was found, what to do."},
        "errors": {
            "type": "array",
            "description": "Of a request that cannot be read: where, and why.",
            "items": {
                "type": "object",
                "required": ["at", "message"],
                "properties": {"at": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
    "example": {
        "type": "urn:batching:problem:illegal-move",
        "title": "Illegal move",
        "status": 409,
        "detail": "cannot resume batch 0192…: it is running; only paused batches can be resumed",
    },
}


def describe(app: FastAPI) -> None:
    """Serve the document at `/api/v1/openapi.json`."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # the framework's documented way

    @app.get(f"{ROOT}/openapi.json", include_in_schema=False)
    async def openapi() -> JSON:
        return JSON(document())


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(
        title="batching",
        version=__version__,
        summary="A durable batch queue on Celery",
        description=_ABOUT,
        routes=app.routes,
        tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
        license_info={"name": "MIT", "identifier": "MIT"},
    )
    schemas = made["components"]["schemas"]
    schemas["Problem"] = _PROBLEM
    # Named by hand where a body has two kinds, or streams.
    models: list[type[BaseModel]] = [Submission, Sent, Result]
    _, extra = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas.update({name: schema for name, schema in extra["$defs"].items() if name not in schemas})
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    made["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "Made by `batching dashboard token`."}
    }
    made["security"] = [{"token": []}, {}]
    return made
