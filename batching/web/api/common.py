"""What the routes of the API share: parameters, the answers that they document, cursors."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field, create_model

from batching.errors import InvalidInputError
from batching.statistics import (
    AttemptView,
    BatchView,
    CallbackView,
    FailureChange,
    FailureGroup,
    HistoryEntry,
    ProfileView,
    QueueView,
    ResultLine,
    WorkerView,
)
from batching.web.problems import MEDIA_TYPE
from batching.web.schema import model_of

ROOT: Final = "/api/v1"
#: Stands for the schema in `description.describe`.
PROBLEM: Final = {"$ref": "#/components/schemas/Problem"}

BatchId = Annotated[
    str,
    Path(
        description="The batch's id, or the beginning of one: eight digits at least.",
        max_length=64,
        examples=["019dc0de-7a11-7c52-9a46-3f1d7b0f4e21"],
    ),
]
PageLimit = Annotated[int, Query(alias="limit", ge=1, le=1_000, description="Entries in a page, at most.")]
Cursor = Annotated[
    str | None, Query(max_length=512, description="Where the page begins: `next` of the page before, as it is.")
]


class Body(BaseModel):
    """What a request says: unknown fields are refused, and texts are no numbers."""

    model_config = ConfigDict(extra="forbid", strict=True)


def problem(description: str) -> dict[str, Any]:
    """One documented answer that is a problem."""
    return {"description": description, "content": {MEDIA_TYPE: {"schema": PROBLEM}}}


Answers = dict[int | str, dict[str, Any]]

#: What every route may answer.
ALWAYS: Final[Answers] = {
    401: problem("Nobody was let in: the token is missing, or none of ours."),
    403: problem("Not for this role, or this dashboard is read-only, or a browser was made to ask by another site."),
    422: problem("Something in the request is not acceptable; `detail` names it."),
    503: problem("The database cannot be reached; nothing was lost. Try again after `Retry-After` seconds."),
    "default": problem("Any other problem."),
}
UNKNOWN: Final[Answers] = {404: problem("There is none with this id or name.")}
ILLEGAL: Final[Answers] = {409: problem("The state of the batch forbids it.")}


def api_router(tag: str) -> APIRouter:
    """Routes under one heading."""
    return APIRouter(prefix=ROOT, tags=[tag], responses=ALWAYS)


def page(items: list[Any], following: str | None) -> dict[str, Any]:
    """A page of entries, and where the next one begins."""
    return {"items": items, "next": following}


def cursor_of(**state: Any) -> str:
    """Where a page begins, as a text that says nothing to anybody else."""
    return base64.urlsafe_b64encode(json.dumps(state, separators=(",", ":")).encode()).decode().rstrip("=")


def read_cursor(cursor: str | None, field: str) -> str | None:
    """What `cursor_of` put into it.

    Raises:
        InvalidInputError: Nobody here made it.
    """
    if cursor is None:
        return None
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        found = json.loads(raw)[field]
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        found = None
    if not isinstance(found, str):
        raise InvalidInputError(
            "cannot go on from this cursor: it is no `next` of a page of this list; begin without one"
        )
    return found


Batch = model_of(BatchView, "Batch", percent=(int, Field(description="Share of settled profiles, rounded down.")))
Move = model_of(HistoryEntry, "Move")
Attempt = model_of(AttemptView, "Attempt")
Callback = model_of(CallbackView, "Callback")
Failures = model_of(FailureGroup, "Failures")
Change = model_of(FailureChange, "Change")
Profile = model_of(ProfileView, "Profile")
Queue = model_of(QueueView, "Queue")
Result = model_of(ResultLine, "Result")
Worker = model_of(WorkerView, "Worker")


class Shown(Batch):  # type: ignore[valid-type, misc]  # made at run time, of the view
    """A batch with its history."""

    history: list[Move] = Field(description="Every move that it made, the first first.")  # type: ignore[valid-type]  # as above


class Remedied(Batch):  # type: ignore[valid-type, misc]  # as above
    """A batch after a remedy."""

    profiles: int = Field(0, description="How many profiles were meant; left out when the whole batch was.")


class Differences(BaseModel):
    """How profiles that were sent differ from what their batch had."""

    id: str = Field(description="The batch's id.")
    new: int = Field(description="Keys that it did not have.")
    same: int = Field(description="Keys that it had, with the same payload.")
    changed: int = Field(description="Keys that it had with another payload, which stays as it was.")


class RateLimit(BaseModel):
    """A rate limit, and what it has to give now."""

    kind: str = Field(description="`key`, `handler`, `queue` or `batch`.")
    name: str
    per_second: float
    burst: int = Field(description="Profiles that may go at once.")
    available: float = Field(description="Profiles that may go now.")


def list_of(model: Any) -> Any:
    """The type of a plain list; models that are made at run time are no types to a checker."""
    return list[model]


def page_of(model: Any, name: str, **more: Any) -> type[BaseModel]:
    """The model of a page, with what it has beside its entries."""
    following = Field(description="The `cursor` of the next page; null: this was the last.")
    return create_model(
        name,
        __doc__="A page, and where the next one begins.",
        items=(list[model], ...),
        next=(str | None, following),
        **more,
    )
