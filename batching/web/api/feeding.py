"""What changes a batch that is there: append, seal, amend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, TypeAdapter, ValidationError
from starlette.requests import Request

from batching.documents import amended, appended
from batching.encoding import Limits
from batching.intake import Source, from_iterable
from batching.web.answers import JSON
from batching.web.api.common import ILLEGAL, UNKNOWN, Answers, Batch, BatchId, Body, Differences, api_router, problem
from batching.web.api.reading import JSON_LINES, amendments_of, json_body, lines_of, media_type, streamed
from batching.web.api.submitting import Profiles, refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from fastapi import APIRouter

    from batching.web.context import Context

_SENT: Answers = {
    408: problem("Nothing of the body came for half a minute."),
    413: problem("The document is too large: send JSON lines."),
    415: problem("The body is neither JSON nor JSON lines."),
}


class Sent(Body):
    """Profiles."""

    profiles: Profiles = Field(description='`{"key": …, "payload": …}`, `[key, payload]` or keys alone.')


class Seal(Body):
    """How a batch is sealed."""

    expect: int | None = Field(None, ge=0, description="Refuse while it has another number of profiles.")


class Amendment(Body):
    """What was done."""

    id: str = Field(description="The batch's id.")
    amended: int = Field(description="Profiles that have another payload now.")
    same: int = Field(description="Profiles whose payload was this one already.")
    pass_: int | None = Field(alias="pass", description="The pass that was opened; null: the batch waits.")


_SENT_ADAPTER: TypeAdapter[Sent] = TypeAdapter(Sent)
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Sent"}},
            "application/x-ndjson": {
                "schema": {"type": "string", "description": "One profile a line."},
                "example": '{"key": "k3", "payload": {"text": "four five"}}\n',
            },
        },
    }
}


def router(context: Context) -> APIRouter:
    """Verbs that take profiles, and `seal`."""
    routes = api_router("batches")
    limits = Limits.from_settings(context.settings)

    async def read(
        request: Request, lines: Callable[[BinaryIO, Limits], Source], use: Callable[[Source], JSON]
    ) -> JSON:
        if media_type(request) in JSON_LINES:
            return await streamed(context, request, lambda file: use(lines(file, limits)))
        document = await json_body(request)
        return await context.run(lambda: use(from_iterable(_sent(document), limits)))

    @routes.post(
        "/batches/{batch_id}/profiles",
        operation_id="appendProfiles",
        summary="Append profiles to an open batch",
        description=(
            "Idempotent by profile key: what the batch has already is not written again, whatever its payload. A "
            "stream that breaks off has appended what came before: send it again."
        ),
        responses={200: {"model": Differences, "description": "What was new."}, **UNKNOWN, **ILLEGAL, **_SENT},
        openapi_extra=_BODY,
    )
    async def append(request: Request, batch_id: BatchId) -> JSON:
        found = await context.run(context.statistics.resolve, batch_id)
        return await read(request, lines_of, lambda source: JSON(appended(found, context.access.append(found, source))))

    @routes.post(
        "/batches/{batch_id}/seal",
        operation_id="sealBatch",
        summary="Close an open batch: it ends when all of it is settled",
        responses={200: {"model": Batch, "description": "The batch."}, **UNKNOWN, **ILLEGAL},
    )
    def seal(batch_id: BatchId, body: Seal | None = None) -> JSON:
        found = context.statistics.resolve(batch_id)
        context.access.seal(found, None if body is None else body.expect)
        return JSON(context.statistics.batch(found).as_json())

    @routes.post(
        "/batches/{batch_id}/amendments",
        operation_id="amendBatch",
        summary="Give profiles that are not done other payloads: all of them, or none",
        description=(
            "JSON lines are those of `results?payload=true`, edited: other fields than `key` and `payload` are passed "
            "over. A batch that has ended begins a new pass over what is not done."
        ),
        responses={200: {"model": Amendment, "description": "What was done."}, **UNKNOWN, **ILLEGAL, **_SENT},
        openapi_extra=_BODY,
    )
    async def amend(request: Request, batch_id: BatchId) -> JSON:
        found = await context.run(context.statistics.resolve, batch_id)
        return await read(
            request, amendments_of, lambda source: JSON(amended(found, context.access.amend(found, source)))
        )

    return routes


def _sent(document: Any) -> list[Any]:
    try:
        return _SENT_ADAPTER.validate_python(document).profiles
    except ValidationError as error:
        raise refused(error) from None
