"""The OpenAPI document, and a fuzzer that goes by it: no answer that is not described, and none that says 5xx."""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import schemathesis
from fastapi.routing import iter_route_contexts
from hypothesis import HealthCheck, Phase
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
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
EXAMPLES = int(os.environ.get("BATCHING_FUZZ_EXAMPLES", "12"))
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
    return app_of(store, web_hosts=("testserver",))


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


class Fuzzer:
    """Tries operations with what may be sent, and with what may not."""

    def __init__(self, ids: list[str]) -> None:
        self._ids = hypothesis.strategies.sampled_from([*ids, None])
        self.answers: dict[str, Counter[int]] = defaultdict(Counter)
        """Statuses by operation."""
        self.failures: dict[str, str] = {}

    def fuzz(self, operation: Any) -> None:
        for mode in GenerationMode:
            try:
                self._try(operation, mode)
            except Unsatisfiable:  # there is nothing that may not be sent
                continue
            except Exception as error:  # noqa: BLE001 - all operations are tried before any of them is told
                inside = "".join(f"\n{each}" for each in getattr(error, "exceptions", ()))
                self.failures[f"{operation.label} ({mode})"] = f"{error}{inside}"[:3_000]

    def _try(self, operation: Any, mode: GenerationMode) -> None:
        @hypothesis.seed(SEED)
        @hypothesis.settings(
            max_examples=EXAMPLES,
            database=None,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode), chosen=self._ids)
        def attempt(case: Any, chosen: str | None) -> None:
            if chosen is not None and "batch_id" in (case.path_parameters or {}):
                case.path_parameters["batch_id"] = chosen
            answer = case.call(headers={"Authorization": f"Bearer {OPERATOR}"})
            self.answers[operation.label][answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS)

        attempt()


def test_a_fuzzer_finds_no_answer_that_is_not_described(app: FastAPI, batches: dict[str, str], store: Database) -> None:
    sys.stdout.write(f"BATCHING_FUZZ_SEED={SEED} BATCHING_FUZZ_EXAMPLES={EXAMPLES}\n")
    schema = schemathesis.openapi.from_asgi(f"{API}/openapi.json", app, headers={"Authorization": f"Bearer {VIEWER}"})
    fuzzer = Fuzzer(list(batches.values()))
    for result in schema.exclude(operation_id=sorted(STREAMS)).get_all_operations():
        assert isinstance(result, Ok)
        fuzzer.fuzz(result.ok())

    assert not fuzzer.failures, "\n\n".join(f"{name}: {text}" for name, text in fuzzer.failures.items())
    answers = fuzzer.answers
    assert len(answers) > 30
    assert sum(sum(each.values()) for each in answers.values()) > 40 * EXAMPLES
    refused = [name for name, statuses in answers.items() if not any(status < 300 for status in statuses)]
    assert len(refused) < 8, f"the fuzzer meets nothing but refusals: {refused}"
    for view in QueueManager(store).statistics.batches(limit=1_000):
        assert_accounted(store, view.id)
