"""The OpenAPI document, and a fuzzer that goes by it: no answer that is not described, and none that says 5xx."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import schemathesis
from fastapi.routing import iter_route_contexts
from hypothesis import HealthCheck, Phase
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from batching.database import Database
from batching.queue_manager import QueueManager
from batching.states import BatchState
from tests.accounting import HANDLER, Desk, assert_accounted
from tests.web import API, OPERATOR, VIEWER, app_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

#: Another one with BATCHING_FUZZ_SEED=n; examples of each operation with BATCHING_FUZZ_EXAMPLES=n.
SEED = int(os.environ.get("BATCHING_FUZZ_SEED", "20261130"))
EXAMPLES = int(os.environ.get("BATCHING_FUZZ_EXAMPLES", "25"))
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)
#: Streams have no end of their own; `tests/test_web_streams.py` reads them.
STREAMS = {"streamEvents", "streamBatchEvents"}


@schemathesis.serializer("application/x-ndjson")
def lines(ctx: Any, value: Any) -> bytes:
    """Whatever was made up, one on a line."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Any) -> Iterator[Database]:
    path = tmp_path_factory.mktemp("fuzz") / "batching.db"
    path.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{path}")
    yield database
    database.close()


@pytest.fixture(scope="module")
def batches(store: Database) -> dict[str, str]:
    """One of each kind, for the fuzzer to be about something."""
    desk = Desk(store)
    desk.register()
    QueueManager(store).limits.set("crm", "10/s")
    manager = QueueManager(store)
    return {
        "failed": desk.finish(BatchState.FAILED, 4),
        "succeeded": desk.finish(BatchState.SUCCEEDED, 3),
        "queued": desk.submit(3),
        "open": manager.open(HANDLER).id,
    }


@pytest.fixture(scope="module")
def app(store: Database) -> FastAPI:
    return app_of(store)


@pytest.fixture(scope="module")
def document(app: FastAPI) -> dict[str, Any]:
    made: dict[str, Any] = app.openapi()
    return made


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_the_document_is_complete(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    found = operations(document)
    ids = [operation["operationId"] for _, _, operation in found]
    assert len(set(ids)) == len(ids) > 30
    for method, path, operation in found:
        assert path.startswith(f"{API}/")
        assert operation["summary"], path
        assert operation["operationId"][0].islower()
        for status, answer in operation["responses"].items():
            assert answer["description"], (path, status)
            if status.startswith(("4", "5", "default")):
                assert list(answer["content"]) == ["application/problem+json"], (path, status)
        for parameter in operation.get("parameters", []):
            assert parameter["in"] in {"path", "query"}, (method, path)
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert document["components"]["schemas"]["Batch"]["properties"]["state"]


def test_every_route_of_the_api_is_in_it(app: FastAPI, document: dict[str, Any]) -> None:
    routes = {route.path for route in iter_route_contexts(app.routes) if (route.path or "").startswith(f"{API}/")}
    assert routes - set(document["paths"]) == {f"{API}/openapi.json"}


def test_a_fuzzer_finds_no_answer_that_is_not_described(
    app: FastAPI, document: dict[str, Any], batches: dict[str, str], store: Database
) -> None:
    sys.stdout.write(f"BATCHING_FUZZ_SEED={SEED} BATCHING_FUZZ_EXAMPLES={EXAMPLES}\n")
    schema = schemathesis.openapi.from_asgi(
        f"{API}/openapi.json", app, base_url="http://localhost", headers={"Authorization": f"Bearer {VIEWER}"}
    )
    tried = 0
    for result in schema.exclude(operation_id=sorted(STREAMS)).get_all_operations():
        assert isinstance(result, Ok)
        tried += fuzz(result.ok(), list(batches.values()))
    assert tried > 30 * EXAMPLES // 2
    for batch_id in batches.values():
        assert_accounted(store, batch_id)


def fuzz(operation: Any, ids: list[str]) -> int:
    """Try one operation with what may be sent and with what may not; returns how often."""
    tried = 0

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(), chosen=hypothesis.strategies.sampled_from([*ids, None]))
    def attempt(case: Any, chosen: str | None) -> None:
        nonlocal tried
        tried += 1
        if chosen is not None and "batch_id" in (case.path_parameters or {}):
            case.path_parameters["batch_id"] = chosen
        answer = case.call(headers={"Authorization": f"Bearer {OPERATOR}", "Host": "localhost"})
        case.validate_response(answer, checks=CHECKS)

    attempt()
    return tried
