"""Profiles of a batch: pages of them, the runs of one, and all results as a stream."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Final, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import StreamingResponse

from batching.spreadsheet import csv_records
from batching.states import ProfileState
from batching.web.answers import JSON, encode, in_pieces
from batching.web.api.common import (
    UNKNOWN,
    Answers,
    Attempt,
    BatchId,
    Profile,
    api_router,
    cursor_of,
    list_of,
    page,
    page_of,
    problem,
    read_cursor,
)
from batching.web.identity import Role
from batching.web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import APIRouter

    from batching.statistics import ResultLine
    from batching.web.context import Context

#: Profiles that are read, and sent, at once.
_STRETCH: Final = 250
LINES, TABLE = "application/x-ndjson", "text/csv"

_RESULTS: Answers = {
    200: {
        "description": "Every profile, in the order of submission; streamed, in memory that does not grow.",
        "content": {
            LINES: {
                "schema": {"$ref": "#/components/schemas/Result"},
                "example": {"key": "k1", "state": "succeeded", "attempts": 1, "result": {"words": 3}, "error": None},
            },
            TABLE: {
                "schema": {"type": "string"},
                "example": "key,state,attempts,result,error\r\nk1,succeeded,1,3,\r\n",
            },
        },
    },
    406: problem("Results are application/x-ndjson or text/csv, and neither is accepted."),
}


class Chosen(BaseModel):
    """What a profile must be to be listed: all of what is given."""

    model_config = ConfigDict(extra="forbid")

    state: list[ProfileState] = Field([], description="In one of these states; repeatable.")
    key: str | None = Field(None, max_length=255, description="Whose keys begin so; the one with this very key first.")
    fingerprint: str | None = Field(None, max_length=64, description="That failed so in the present pass.")
    limit: int = Field(100, ge=1, le=1_000, description="Profiles in a page, at most.")
    cursor: str | None = Field(None, max_length=1_024, description="`next` of the page before, as it is.")


ProfilePage = page_of(
    Profile,
    "ProfilePage",
    looked_at=(int | None, Field(description="The page is short because so many profiles were looked at for it.")),
)


def router(context: Context) -> APIRouter:
    """Reads of profiles."""
    routes = api_router("profiles")
    _add_pages(routes, context)
    _add_results(routes, context)
    return routes


def _add_pages(routes: APIRouter, context: Context) -> None:
    @routes.get(
        "/batches/{batch_id}/profiles",
        operation_id="listProfiles",
        summary="Profiles of a batch, page by page, however many it has",
        description=(
            "By number; with `key` by key, with failures alone by fingerprint. A page that found little among very "
            "many profiles is short, with `looked_at`, and goes on at `next` all the same."
        ),
        responses={200: {"model": ProfilePage, "description": "A page of profiles."}, **UNKNOWN},
    )
    def profiles(batch_id: BatchId, wanted: Annotated[Chosen, Query()]) -> JSON:
        found = context.statistics.profiles(
            batch_id,
            states=wanted.state,
            key=wanted.key,
            fingerprint=wanted.fingerprint,
            after=read_cursor(wanted.cursor, "profile"),
            limit=wanted.limit,
        )
        following = None if found.after is None else cursor_of(profile=found.after)
        items = [view.as_json() for view in found.profiles]
        return JSON(page(items, following) | {"looked_at": found.looked_at})

    @routes.get(
        "/batches/{batch_id}/attempts",
        operation_id="listAttempts",
        summary="Every run of one profile, in all passes, the first first",
        responses={200: {"model": list_of(Attempt), "description": "Its runs."}, **UNKNOWN},
    )
    def attempts(
        batch_id: BatchId, key: Annotated[str, Query(max_length=255, description="The profile's key.")]
    ) -> JSON:
        return JSON([run.as_json() for run in context.statistics.attempts(batch_id, key)])


def _add_results(routes: APIRouter, context: Context) -> None:
    @routes.get(
        "/batches/{batch_id}/results",
        operation_id="streamResults",
        summary="All results of a batch, streamed",
        description=(
            "As JSON lines, or as CSV when `text/csv` is accepted or asked for by `format`. In CSV, a cell that a "
            "spreadsheet could take for a formula has an apostrophe before it. A stream that ends early has no proper "
            "end of its transfer: clients notice. Payloads are for operators."
        ),
        responses={**_RESULTS, **UNKNOWN},
        response_class=StreamingResponse,
    )
    def results(
        request: Request,
        batch_id: BatchId,
        state: Annotated[list[ProfileState] | None, Query(description="Only these profiles; repeatable.")] = None,
        payload: Annotated[bool, Query(description="Also what was submitted: lines that amendments take.")] = False,
        format: Annotated[Literal["jsonl", "csv"] | None, Query(description="In place of `Accept`.")] = None,  # noqa: A002 - the parameter's name
    ) -> StreamingResponse:
        kind = _kind(request, format)
        if payload and context.identity(request).role is not Role.OPERATOR:
            raise Problem(403, "forbidden", "payloads are for operators: leave `payload` out, or use such a token")
        if payload and kind == TABLE:
            raise Problem(406, "not-acceptable", "payloads are not told as CSV: leave `payload` or the format out")
        lines = context.statistics.results(batch_id, payloads=payload)
        pieces = _pieces(lines, frozenset(state or ProfileState), kind)
        return StreamingResponse(in_pieces(context, pieces), media_type=kind)


def _pieces(lines: Iterator[ResultLine], states: frozenset[ProfileState], kind: str) -> Iterator[bytes]:
    header = True
    while stretch := list(islice(lines, _STRETCH)):
        chosen = [line for line in stretch if line.state in states]
        if kind == TABLE:
            yield b"".join(csv_records(chosen, header=header))
            header = False
        else:
            yield b"".join(encode(line.as_json()) + b"\n" for line in chosen)


def _kind(request: Request, asked: str | None) -> str:
    if asked is not None:
        return TABLE if asked == "csv" else LINES
    accepted = [each.partition(";")[0].strip().lower() for each in request.headers.get("accept", "*/*").split(",")]
    for each in accepted:
        if each == TABLE:
            return TABLE
        if each in {LINES, "application/jsonl", "application/json", "application/*", "*/*", ""}:
            return LINES
    raise Problem(406, "not-acceptable", f"results are told as {LINES} or {TABLE}, and the request accepts neither")
