"""Submitting: a JSON document with all profiles, or JSON lines that are streamed; and the rehearsal of either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema
from starlette.requests import Request

from batching.documents import submitted
from batching.encoding import Limits
from batching.errors import InvalidInputError
from batching.intake import Source, from_iterable
from batching.options import Asked, BatchOptions
from batching.preflight import Preflight
from batching.web.answers import JSON
from batching.web.api.common import Answers, Body, api_router, problem
from batching.web.api.reading import JSON_LINES, json_body, lines_of, media_type, streamed
from batching.web.problems import Problem
from batching.web.schema import model_of
from batching.words import parse_properties, read_moment_or_span, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastapi import APIRouter

    from batching.web.context import Context

_OPTIONS = model_of(BatchOptions, "Options", __config__=ConfigDict(extra="forbid"))
_MOMENT = "An ISO 8601 moment with a time zone, or seconds from now, or a span as `15m`."

_PROFILE = {
    "anyOf": [
        {
            "type": "object",
            "required": ["key"],
            "properties": {"key": {"type": ["string", "integer"]}, "payload": {}},
            "additionalProperties": False,
        },
        {"type": "array", "minItems": 2, "maxItems": 2, "items": {}, "description": "A key and a payload."},
        {"type": ["string", "integer"], "description": "A key without a payload."},
    ]
}
Profiles = Annotated[list[Any], WithJsonSchema({"type": "array", "items": _PROFILE})]


class Submission(Body):
    """A batch. What is left out has its default."""

    handler: str = Field(description="The handler's registered name.", examples=["words.count"])
    profiles: Profiles = Field(
        [],
        description='`{"key": …, "payload": …}`, `[key, payload]` or keys alone.',
        examples=[[{"key": "k1", "payload": {"text": "one two"}}, {"key": "k2", "payload": {"text": "three"}}]],
    )
    name: str | None = Field(None, description="For people; by default the handler's name.", examples=["nightly"])
    key: str | None = Field(
        None,
        description="Its idempotency key in its queue: the same key again is the same batch, with a report.",
        examples=["nightly-2026-11-23"],
    )
    queue: str = Field("default", description="Made when it does not exist.")
    priority: int = Field(0, description="Larger runs first.")
    group: str | None = Field(None, description="Whose it is: inside a priority, groups take turns.")
    options: dict[str, Any] = Field(default_factory=dict, description="How it runs: `BatchOptions`.")
    new: bool = Field(False, description="With `key`: a fresh batch; an older one gives the key up.")
    start_at: str | float | None = Field(None, description=f"Not before. {_MOMENT}")
    deadline: str | float | None = Field(None, description=f"What is left then expires. {_MOMENT}")
    tags: list[str] = Field([], description="Texts to find it by.")
    properties: dict[str, Any] = Field(default_factory=dict, description="Names and JSON values to find it by.")
    after: list[str] = Field([], description="Batches that it waits for: ids, or keys of the queue; `:any` behind one.")
    on: Literal["success", "any"] = Field("success", description="What it wants of them.")
    open: bool = Field(False, description="Leave it open: more can be appended, until it is sealed.")
    check: bool = Field(False, description="Refuse payloads that the handler does not take, and one nobody serves.")

    def asked(self) -> Asked:
        """For `QueueManager.submit`."""
        return Asked(
            name=self.name,
            key=self.key,
            queue=self.queue,
            priority=self.priority,
            group=self.group,
            options=BatchOptions.from_dict(self.options),
            new=self.new,
            start_at=_moment(self.start_at),
            deadline=_moment(self.deadline),
            tags=self.tags,
            properties=self.properties,
            after=self.after,
            on=self.on,
        )


def _moment(given: str | float | None) -> Any:
    return read_moment_or_span(given) if isinstance(given, str) else given


class Said(BaseModel):
    """The same in the address, for profiles that come as JSON lines."""

    model_config = ConfigDict(extra="forbid")

    handler: str | None = Field(None, description="The handler's registered name; needed with JSON lines.")
    name: str | None = None
    key: str | None = None
    queue: str = "default"
    priority: int = 0
    group: str | None = None
    option: list[str] = Field([], description="`NAME=VALUE`, as `max_attempts=5`; repeatable.")
    new: bool = False
    start_at: str | None = Field(None, description=_MOMENT)
    deadline: str | None = Field(None, description=_MOMENT)
    tag: list[str] = Field([], description="Repeatable.")
    property: list[str] = Field([], description="`NAME=VALUE`; repeatable.")
    after: list[str] = Field([], description="Repeatable.")
    on: Literal["success", "any"] = "success"
    open: bool = False
    check: bool = False
    key_column: str | None = Field(None, max_length=255, description="The field that holds a profile's key.")

    def submission(self) -> Submission:
        """As if it had been said in a document.

        Raises:
            InvalidInputError: A pair cannot be read, or the handler is missing.
        """
        if self.handler is None:
            raise InvalidInputError("cannot submit JSON lines without a handler: name it in the address, ?handler=NAME")
        known = self.model_dump(exclude={"option", "tag", "property", "key_column"})
        return Submission(
            **known, options=_pairs(self.option), tags=self.tag, properties=parse_properties(self.property)
        )


def _pairs(pairs: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InvalidInputError(f"cannot read the option {pair!r}: expected NAME=VALUE, as in max_attempts=5")
        values[name.strip()] = value_of(text.strip())
    return values


class Receipt(BaseModel):
    """What became of a submission."""

    id: str = Field(description="The batch's id.")
    total: int = Field(description="Profiles in it.")
    created: bool = Field(description="False: the key named a batch that was there.")
    new: int = Field(description="Keys that it did not have.")
    same: int = Field(description="Keys that it had, with the same payload.")
    changed: int = Field(description="Keys that it had with another payload, which stays as it was.")


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Submission"}},
            "application/x-ndjson": {
                "schema": {"type": "string", "description": "One profile a line; the rest is in the address."},
                "example": '{"key": "k1", "payload": {"text": "one two"}}\n{"key": "k2"}\n',
            },
        },
    }
}
_REFUSED: Answers = {
    404: problem("It waits for a batch that does not exist."),
    408: problem("Nothing of the body came for half a minute; nothing of the batch was kept."),
    413: problem("The document is too large: send JSON lines."),
    415: problem("The body is neither JSON nor JSON lines."),
    429: problem("The queue, or the group in it, holds as much as it may."),
}
PreflightReport = model_of(Preflight, "Preflight")


def router(context: Context) -> APIRouter:
    """`POST /batches`, `POST /preflight`."""
    routes = api_router("batches")

    @routes.post(
        "/batches",
        operation_id="submitBatch",
        summary="Submit a batch",
        description=(
            "A JSON document with all profiles, or JSON lines (`application/x-ndjson`), which are streamed: memory "
            "does not grow with them, and the rest is said in the address. With a `key` it is safe to try again: "
            "the answer to the second try is 200 and tells what is new, same and changed."
        ),
        status_code=201,
        responses={
            201: {"model": Receipt, "description": "A new batch."},
            200: {"model": Receipt, "description": "The key named a batch that was there: compared, not submitted."},
            **_REFUSED,
        },
        openapi_extra=_BODY,
    )
    async def submit(request: Request, said: Annotated[Said, Query()]) -> JSON:
        def use(submission: Submission, source: Source) -> JSON:
            if not submission.open and source.peek() is None:
                raise InvalidInputError("cannot submit a batch without profiles; set `open` to fill it later")
            batch = context.access.submit(
                submission.handler, source, seal=not submission.open, check=submission.check, **submission.asked()
            )
            return JSON(
                submitted(batch), 201 if batch.created else 200, headers={"Location": f"/api/v1/batches/{batch.id}"}
            )

        return await _read(context, request, said, use)

    @routes.post(
        "/preflight",
        operation_id="rehearseBatch",
        summary="What would become of a submission, without making it",
        responses={200: {"model": PreflightReport, "description": "What was found."}, **_REFUSED},
        openapi_extra=_BODY,
    )
    async def rehearse(request: Request, said: Annotated[Said, Query()]) -> JSON:
        def use(submission: Submission, source: Source) -> JSON:
            found = context.access.preflight(submission.handler, source, **submission.asked())
            return JSON(found.as_json())

        return await _read(context, request, said, use)

    return routes


_ADAPTER: TypeAdapter[Submission] = TypeAdapter(Submission)


async def _read(context: Context, request: Request, said: Said, use: Callable[[Submission, Source], JSON]) -> JSON:
    """Call what submits, in a thread, with profiles from either kind of body."""
    limits = Limits.from_settings(context.settings)
    if media_type(request) in JSON_LINES:
        submission = said.submission()
        return await streamed(
            context, request, lambda file: use(submission, lines_of(file, limits, key_column=said.key_column))
        )
    if said.model_fields_set:
        raise InvalidInputError("say everything in the JSON document; the address is for JSON lines")
    document = await json_body(request)
    return await context.run(lambda: _from(document, use, limits))


def _from(document: Any, use: Callable[[Submission, Source], JSON], limits: Limits) -> JSON:
    try:
        submission = _ADAPTER.validate_python(document)
    except ValidationError as error:
        raise refused(error) from None
    profiles: Iterable[Any] = submission.profiles
    return use(submission, from_iterable(profiles, limits))


def refused(error: ValidationError) -> Problem:
    found = [
        {"at": ".".join(str(part) for part in each["loc"]), "message": each["msg"]}
        for each in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    said = "; ".join(f"{each['at'] or 'the document'}: {each['message']}" for each in found[:5])
    return Problem(422, "invalid-request", f"cannot read the submission: {said}", more={"errors": found[:50]})
