"""The JSON API on real stores: it answers what the command line prints, and its verbs are the queue manager's."""

from __future__ import annotations

import csv
import io
import json
import threading
import uuid
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from batching import errors, statistics
from batching.cli.main import cli
from batching.database import Database
from batching.figures import Figures
from batching.models import profiles
from batching.moves import figures as figure_moves
from batching.queue_manager import QueueManager
from batching.settings import get_settings
from batching.states import BatchState, ProfileState
from batching.statistics import Statistics
from batching.statistics.views import _AsJSON
from batching.web.api import common
from batching.web.problems import STATUS, slug_of
from tests.accounting import BROKEN, DONE, FAILED, HANDLER, Desk, assert_accounted, plant
from tests.web import API, client_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.testclient import TestClient


LINES = {"Content-Type": "application/x-ndjson"}


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


@pytest.fixture
def client(database: Database) -> Iterator[TestClient]:
    with client_of(database) as client:
        yield client


def good(answer: Any, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json()


def problem(answer: Any, status: int, slug: str) -> str:
    """Its detail."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document = answer.json()
    assert (document["status"], document["type"]) == (status, f"urn:batching:problem:{slug}"), answer.text
    assert answer.status_code == status
    return str(document["detail"])


def printed(monkeypatch: pytest.MonkeyPatch, database: Database, *arguments: str) -> Any:
    """What the command line prints."""
    monkeypatch.setenv("BATCHING_DATABASE_URL", database.url)
    get_settings.cache_clear()
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# Reads


def test_it_answers_what_the_command_line_prints(
    database: Database, client: TestClient, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = desk.finish(BatchState.FAILED, 3)
    waits = desk.submit(2)
    QueueManager(database).limits.set("crm", "10/s")

    pairs = {
        f"batches/{done}": ("show", done),
        f"batches/{done}/history": ("show", done, "--history"),
        f"batches/{done}/attempts?key=k1": ("show", done, "--profile", "k1"),
        f"batches/{done}/failures": ("failures", done),
        "batches?order=line": ("list",),
        "batches?state=queued": ("list", "--state", "queued", "--name", "b"),
        "queues": ("queue", "list"),
        "queues/default": ("queue", "show", "default"),
        "limits": ("limit", "list"),
        "callbacks": ("callbacks", "list"),
    }
    for path, arguments in pairs.items():
        answered = good(client.get(f"{API}/{path}"))
        answered = answered["items"] if path.startswith(("batches?", "callbacks")) else answered
        assert answered == printed(monkeypatch, database, *arguments), path
    assert good(client.get(f"{API}/batches/{waits[:13]}"))["id"] == waits


def test_failures_are_compared_from_pass_to_pass(client: TestClient, desk: Desk) -> None:
    batch_id = desk.start(3, max_passes=3, fail_fast=False)
    desk.work(batch_id, lambda number: FAILED if number < 3 else DONE)
    desk.rewrite(batch_id)
    desk.states.promote("default", desk.term)
    desk.work(batch_id, lambda number: FAILED if number == 1 else DONE)

    found = good(client.get(f"{API}/batches/{batch_id}/failures/changes"))
    assert (found["from"], found["to"]) == (1, 2)
    assert found["failures"][0] | {"before": 2, "fixed": 1, "same": 1, "now": 1} == found["failures"][0]
    first = good(client.get(f"{API}/batches/{batch_id}/failures?pass=1"))
    assert [group["count"] for group in first] == [2]
    problem(client.get(f"{API}/batches/{batch_id}/failures?pass=9"), 422, "invalid-input")


def test_a_list_is_read_page_by_page(client: TestClient, desk: Desk) -> None:
    made = [desk.submit(1) for _ in range(7)]
    found: list[str] = []
    cursor: str | None = None
    for _ in range(4):
        asked = {"limit": "3"} | ({} if cursor is None else {"cursor": cursor})
        page = good(client.get(f"{API}/batches", params=asked))
        found += [batch["id"] for batch in page["items"]]
        if len(found) == 3:
            desk.submit(1)  # what is made meanwhile neither doubles nor hides anything
        cursor = page["next"]
        if cursor is None:
            break
    assert found == made[::-1]


@pytest.mark.parametrize("cursor", ["x", "e30", "W10", "bnVsbA", "é", "eyJiYXRjaCI6MX0", "eyJiYXRjaCI6IngifQ"])
def test_a_cursor_that_nobody_made_is_refused(client: TestClient, cursor: str) -> None:
    problem(client.get(f"{API}/batches", params={"cursor": cursor}), 422, "invalid-input")


def test_callbacks_are_read_page_by_page(client: TestClient, desk: Desk) -> None:
    made = []
    for _ in range(5):
        batch_id = desk.start(1, on_finish="app.over")
        desk.work(batch_id)
        made.append(batch_id)
    found: list[str] = []
    page = good(client.get(f"{API}/callbacks?limit=2"))
    while True:
        assert len(page["items"]) <= 2
        found += [callback["batch_id"] for callback in page["items"]]
        if page["next"] is None:
            break
        page = good(client.get(f"{API}/callbacks", params={"limit": "2", "cursor": page["next"]}))
    assert found == made[::-1]
    for cursor in ("e30", "eyJjYWxsYmFjayI6IngifQ"):  # {} and {"callback":"x"}
        problem(client.get(f"{API}/callbacks?cursor={cursor}"), 422, "invalid-input")


def test_what_was_measured_is_what_the_statistics_tell(client: TestClient, desk: Desk, database: Database) -> None:
    batch_id = desk.submit(5)
    process = Figures()
    process.ran("h", batch_id, 0.02)
    process.ended("h", batch_id, {"succeeded": 1})
    news = process.news()
    assert news is not None
    figure_moves._known.clear()
    with database.begin() as connection:
        assert figure_moves.tell(connection, news)
        assert figure_moves.fold(connection) == 1

    reads = Statistics(database)
    (point,) = (each for each in good(client.get(f"{API}/throughput?minutes=5")) if each["settled"])
    assert (point["succeeded"], point["failed"], point["seconds"]) == (1, 0, 10)
    assert good(client.get(f"{API}/batches/{batch_id}/throughput"))[0]["settled"] == 1
    assert good(client.get(f"{API}/durations")) == reads.durations().as_json()
    found = good(client.get(f"{API}/batches/{batch_id[:13]}/durations"))
    assert found == reads.durations(batch_id).as_json()
    assert (found["runs"], found["bounds"][-1]) == (1, None)
    problem(client.get(f"{API}/batches/{uuid.uuid4()}/durations"), 404, "unknown-batch")
    problem(client.get(f"{API}/throughput?minutes=0"), 422, "invalid-request")


def test_batches_are_searched(client: TestClient) -> None:
    for customer in (17, 18):
        body = {
            "handler": "h",
            "profiles": ["k"],
            "name": f"Nightly {customer}",
            "key": f"n-{customer}",
            "tags": ["eu"],
            "properties": {"customer": customer},
        }
        good(client.post(f"{API}/batches", json=body), 201)
    for asked, found in (
        ({"tag": "eu"}, 2),
        ({"property": "customer=17"}, 1),
        ({"name": "nightly"}, 2),
        ({"key": "n-18"}, 1),
        ({"since": "1h", "until": "0"}, 2),
        ({"until": "2026-01-01T00:00Z"}, 0),
        ({"state": ["queued", "failed"], "handler": "h", "queue": "default"}, 2),
        ({"state": "failed"}, 0),
    ):
        assert len(good(client.get(f"{API}/batches", params=asked))["items"]) == found, asked
    for wrong in ({"since": "soon"}, {"property": "x"}, {"order": "line", "tag": "eu"}):
        problem(client.get(f"{API}/batches", params=wrong), 422, "invalid-input")
    for wrong in ({"limit": "0"}, {"limit": "1001"}, {"state": "lost"}, {"colour": "red"}):
        problem(client.get(f"{API}/batches", params=wrong), 422, "invalid-request")


def test_results_are_streamed_as_lines_or_as_a_table(client: TestClient, desk: Desk, database: Database) -> None:
    batch_id = desk.finish(BatchState.SUCCEEDED, 700)
    plant(database, batch_id, {"result": json.dumps("=1+1")}, 2)
    plant(database, batch_id, {"result": '"\\ud800"'}, 3)
    path = f"{API}/batches/{batch_id}/results"

    answer = client.get(path)
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["key"] for line in lines] == [f"k{number}" for number in range(1, 701)]
    assert lines[0] == {"key": "k1", "state": "succeeded", "attempts": 1, "result": {"ok": True}, "error": None}
    assert lines[2]["result"] == "\ud800"

    table = client.get(path, headers={"Accept": "text/csv"})
    assert table.headers["content-type"].startswith("text/csv")
    records = list(csv.reader(io.StringIO(table.content.decode(), newline="")))
    assert (len(records), records[0]) == (701, ["key", "state", "attempts", "result", "error"])
    assert records[2][3] == '"=1+1"'
    assert client.get(path, params={"format": "csv"}).content == table.content

    assert client.get(path, params={"state": ["failed", "expired"]}).content == b""
    problem(client.get(path, headers={"Accept": "image/png"}), 406, "not-acceptable")
    problem(client.get(path, params={"format": "csv", "payload": "true"}), 406, "not-acceptable")


def test_profiles_are_read_page_by_page_and_filtered(client: TestClient, desk: Desk) -> None:
    batch_id = desk.start(25, max_passes=1, failure_budget=20)
    desk.work(batch_id, lambda number: FAILED if number % 5 == 0 else DONE)
    path = f"{API}/batches/{batch_id}/profiles"

    def every(**asked: Any) -> list[str]:
        keys: list[str] = []
        for _ in range(20):
            page = good(client.get(path, params={"limit": "4", **asked}))
            keys += [profile["key"] for profile in page["items"]]
            if page["next"] is None:
                return keys
            asked["cursor"] = page["next"]
        raise AssertionError("the pages have no end")

    assert every() == [f"k{number}" for number in range(1, 26)]
    assert every(state="failed") == ["k5", "k10", "k15", "k20", "k25"]
    assert every(fingerprint=BROKEN.fingerprint) == ["k5", "k10", "k15", "k20", "k25"]
    assert sorted(every(state=["succeeded", "failed"])) == sorted(every())
    assert every(key="k2")[0] == "k2"
    assert set(every(key="k2")) == {"k2", *(f"k2{digit}" for digit in range(6))}
    assert every(state="running") == []
    first = good(client.get(path, params={"limit": "1"}))["items"][0]
    assert (first["number"], first["state"], first["attempts"], first["error"]) == (1, "succeeded", 1, None)
    assert "payload" not in first
    problem(client.get(path, params={"cursor": "x"}), 422, "invalid-input")
    problem(client.get(path, params={"state": "lost"}), 422, "invalid-request")
    problem(client.get(f"{API}/batches/{uuid.uuid4()}/profiles"), 404, "unknown-batch")


def test_what_does_not_exist_is_said_so(client: TestClient) -> None:
    nobody = str(uuid.uuid4())
    for path in ("", "/results", "/history", "/failures", "/events", "/attempts?key=k"):
        assert nobody in problem(client.get(f"{API}/batches/{nobody}{path}"), 404, "unknown-batch")
    for verb in ("pause", "resume", "cancel", "retry", "execute", "seal"):
        problem(client.post(f"{API}/batches/{nobody}/{verb}"), 404, "unknown-batch")
    problem(client.get(f"{API}/queues/none"), 404, "unknown-queue")
    problem(client.post(f"{API}/callbacks/{nobody}/retry"), 404, "unknown-callback")
    problem(client.get(f"{API}/batches/xyz"), 404, "unknown-batch")
    problem(client.get(f"{API}/batches/0192"), 422, "invalid-input")
    problem(client.get(f"{API}/nothing"), 404, "not-found")
    problem(client.put(f"{API}/batches"), 405, "method-not-allowed")


# Submitting


def test_a_document_is_a_batch_once_per_key(client: TestClient, database: Database) -> None:
    body = {
        "handler": HANDLER,
        "key": "nightly",
        "name": "Nightly",
        "priority": 5,
        "group": "eu",
        "options": {"max_attempts": 5, "failure_budget": 0.5},
        "start_at": 60,
        "deadline": "2h",
        "profiles": [{"key": "a", "payload": {"n": 1}}, ["b", [1]], "c", 4],
    }
    answer = client.post(f"{API}/batches", json=body)
    first = good(answer, 201)
    assert first | {"total": 4, "created": True, "new": 4, "same": 0, "changed": 0} == first
    shown = good(client.get(answer.headers["location"]))
    assert (shown["priority"], shown["group"], shown["options"]["max_attempts"]) == (5, "eu", 5)
    assert shown["deadline"] > shown["start_at"] > shown["created_at"]

    again = good(client.post(f"{API}/batches", json=body | {"profiles": [["a", 2], ["b", [1]], "d"]}), 200)
    assert again == first | {"created": False, "new": 1, "same": 1, "changed": 1}
    assert_accounted(database, first["id"])


def test_lines_are_a_batch_and_the_address_says_the_rest(client: TestClient) -> None:
    lines = b'{"id": "a", "text": "x"}\n\n{"id": "b", "text": "y"}\r\n'
    asked = {
        "handler": HANDLER,
        "key": "n",
        "tag": ["eu", "crm"],
        "property": "customer=17",
        "option": ["max_attempts=5", "requeue=park"],
        "key_column": "text",
        "open": "true",
        "start_at": "2030-01-01T00:00:00Z",
    }
    made = good(client.post(f"{API}/batches", params=asked, content=lines, headers=LINES), 201)
    shown = good(client.get(f"{API}/batches/{made['id']}"))
    assert (shown["total"], shown["tags"], shown["properties"]) == (2, ["eu", "crm"], {"customer": 17})
    assert (shown["options"]["requeue"], shown["sealed"], shown["start_at"][:4]) == ("park", False, "2030")
    payloads = client.get(f"{API}/batches/{made['id']}/results?payload=true").text.splitlines()
    assert [json.loads(line)["key"] for line in payloads] == ["x", "y"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"handler": "no such name"}, "handler"),
        ({"options": {"max_attempts": 0}}, "max_attempts"),
        ({"options": {"colour": 1}}, "no option"),
        ({"profiles": [{"payload": 1}]}, "item 1"),
        ({"profiles": ["a", "a"]}, "was used before"),
        ({"profiles": []}, "without profiles"),
        ({"profiles": [["a", 1, 2]]}, "item 1"),
        ({"profiles": [{"key": "a", "payload": "x" * 70_000}]}, "BATCHING_PAYLOAD_LIMIT"),
        ({"start_at": "tomorrow"}, "no moment"),
        ({"deadline": -1}, "deadline"),
        ({"tags": ["\n"]}, "tag"),
        ({"queue": "a b"}, "queue"),
        ({"after": ["nobody"]}, "nobody"),
    ],
)
def test_what_is_not_acceptable_leaves_nothing(client: TestClient, change: dict[str, Any], word: str) -> None:
    answer = client.post(f"{API}/batches", json={"handler": "h", "profiles": ["a"]} | change)
    assert answer.status_code in {404, 422}, answer.text
    assert word in answer.json()["detail"]
    assert good(client.get(f"{API}/batches"))["items"] == []


@pytest.mark.parametrize(
    "change", [{"handler": 1}, {"priority": "5"}, {"colour": "red"}, {"profiles": "a"}, {"open": 1}, {"tags": "a"}]
)
def test_a_field_of_another_type_is_named_and_not_quoted(client: TestClient, change: dict[str, Any]) -> None:
    answer = client.post(f"{API}/batches", json={"handler": "h", "profiles": ["a"]} | change)
    problem(answer, 422, "invalid-request")
    assert [each["at"] for each in answer.json()["errors"]] == list(change)
    assert "red" not in answer.text


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"NaN", b"\xff", b"[" * 100_000, b'"x"', b"null"])
def test_what_is_no_document_is_refused(client: TestClient, body: bytes) -> None:
    for path in ("batches", "preflight", "prune", f"batches/{uuid.uuid4()}/pause"):
        answer = client.post(f"{API}/{path}", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in {200, 404, 400, 422}, (path, answer.text)
        assert answer.status_code != 200 or path == "prune"


def test_bodies_are_json_or_lines(client: TestClient) -> None:
    problem(
        client.post(f"{API}/batches", content=b"a,b", headers={"Content-Type": "text/csv"}),
        415,
        "unsupported-media-type",
    )
    problem(client.post(f"{API}/batches?queue=x", json={"handler": "h", "profiles": ["a"]}), 422, "invalid-input")
    assert "?handler=" in problem(client.post(f"{API}/batches", content=b"1\n", headers=LINES), 422, "invalid-input")
    at = problem(client.post(f"{API}/batches?handler=h", content=b"1\n{\n", headers=LINES), 422, "invalid-input")
    assert "line 2 of the request" in at


def test_a_rehearsal_writes_nothing(client: TestClient, desk: Desk) -> None:
    desk.register()
    found = good(client.post(f"{API}/preflight", json={"handler": HANDLER, "profiles": ["a", "b"]}))
    assert (found["ok"], found["profiles"], found["workers"]) == (True, 2, 1)
    lines = client.post(f"{API}/preflight?handler=nobody", content=b'{"key": 1}\n{\n', headers=LINES)
    assert [good(lines)["ok"], len(lines.json()["problems"])] == [False, 2]
    assert good(client.get(f"{API}/batches"))["items"] == []


def test_a_full_queue_says_so(client: TestClient) -> None:
    good(client.patch(f"{API}/queues/default", json={"intake_batches": 1}))
    good(client.post(f"{API}/batches", json={"handler": "h", "profiles": ["a"]}), 201)
    answer = client.post(f"{API}/batches", json={"handler": "h", "profiles": ["a"]})
    assert "its limit is 1" in problem(answer, 429, "queue-full")
    assert answer.headers["retry-after"]


def test_two_submitters_with_one_key_make_one_batch(client: TestClient, database: Database) -> None:
    profiles_ = [[f"k{number}", number] for number in range(300)]
    body = {"handler": "h", "key": "once", "profiles": profiles_}
    ready = threading.Barrier(6)
    answers: list[Any] = []

    def submit() -> None:
        ready.wait()
        answers.append(client.post(f"{API}/batches", json=body))

    threads = [threading.Thread(target=submit) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert {(each["new"], each["same"]) for each in map(good_any, answers) if not each["created"]} == {(0, 300)}
    assert_accounted(database, answers[0].json()["id"])


def good_any(answer: Any) -> Any:
    return answer.json()


def test_an_open_batch_is_filled_and_sealed(client: TestClient, database: Database) -> None:
    made = good(client.post(f"{API}/batches", json={"handler": "h", "open": True}), 201)
    path = f"{API}/batches/{made['id']}"
    appended = good(client.post(f"{path}/profiles", json={"profiles": [["a", 1], "b"]}))
    assert appended == {"id": made["id"], "new": 2, "same": 0, "changed": 0}
    again = good(client.post(f"{path}/profiles", content=b'{"key":"a","payload":2}\n{"key":"c"}\n', headers=LINES))
    assert again == {"id": made["id"], "new": 1, "same": 0, "changed": 1}
    problem(client.post(f"{path}/seal", json={"expect": 4}), 409, "illegal-move")
    assert good(client.post(f"{path}/seal", json={"expect": 3}))["sealed"]
    assert good(client.post(f"{path}/seal"))["total"] == 3
    problem(client.post(f"{path}/profiles", json={"profiles": ["d"]}), 409, "illegal-move")
    assert_accounted(database, made["id"])


def test_failures_are_amended_with_the_lines_of_the_results(client: TestClient, desk: Desk) -> None:
    batch_id = desk.finish(BatchState.FAILED, 2)
    path = f"{API}/batches/{batch_id}"
    lines = client.get(f"{path}/results?payload=true&state=failed").text.replace('"payload":1}', '"payload":10}')
    done = good(client.post(f"{path}/amendments", content=lines.encode(), headers=LINES))
    assert done == {"id": batch_id, "amended": 1, "same": 1, "pass": 2}
    answer = client.post(f"{path}/amendments", json={"profiles": [["nobody", 1]]})
    assert "nobody" in problem(answer, 422, "invalid-input")
    assert good(client.post(f"{path}/amendments", json={"profiles": [["k1", 11]]}))["amended"] == 1


# Verbs


def test_the_verbs_of_a_batch(client: TestClient, desk: Desk, database: Database) -> None:
    first, second = desk.submit(3), desk.submit(3)
    path = f"{API}/batches/{second}"

    assert good(client.post(f"{path}/move", json={"to": "front"}))["place"] == 1
    assert good(client.post(f"{path}/move", json={"to": 2}))["place"] == 2
    assert good(client.post(f"{path}/execute"))["place"] == 1
    paused = good(client.post(f"{path}/pause", json={"reason": "the source is down"}))
    assert (paused["state"], paused["reason"]) == ("paused", "the source is down")
    assert good(client.post(f"{path}/resume"))["state"] == "queued"
    assert good(client.post(f"{path}/pause"))["reason"] == "paused by oscar"
    assert good(client.post(f"{path}/cancel", json={"running": "terminate"}))["state"] == "cancelled"
    problem(client.post(f"{path}/cancel"), 409, "illegal-move")
    problem(client.post(f"{path}/resume"), 409, "illegal-move")
    assert good(client.post(f"{path}/retry"))["state"] == "queued"
    for wrong in ({"to": 0}, {"to": "middle"}, {"to": True}, {}, {"to": 1.5}):
        problem(client.post(f"{path}/move", json=wrong), 422, "invalid-request")
    assert good(client.get(f"{API}/batches/{first}"))["state"] == "queued", "the other one is as it was"
    assert_accounted(database, second)


def test_remedies_take_what_failed_alike(client: TestClient, desk: Desk, database: Database) -> None:
    batch_id = desk.finish(BatchState.FAILED, 4)
    path = f"{API}/batches/{batch_id}"
    skipped = good(client.post(f"{path}/skip", json={"profile": "k1"}))
    assert (skipped["profiles"], skipped["skipped"], skipped["failed"]) == (1, 1, 3)
    cancelled = good(client.post(f"{path}/cancel", json={"profile": "k2"}))
    assert (cancelled["profiles"], cancelled["cancelled"], cancelled["state"]) == (1, 1, "failed")
    retried = good(client.post(f"{path}/retry", json={"fingerprint": BROKEN.fingerprint}))
    assert (retried["profiles"], retried["pending"], retried["state"]) == (2, 2, "queued")
    problem(client.post(f"{path}/skip", json={}), 422, "invalid-input")
    problem(client.post(f"{path}/skip", json={"profile": "k1", "fingerprint": "f"}), 422, "invalid-input")
    assert_accounted(database, batch_id)


def test_prune_deletes_what_is_old_and_nothing_else(client: TestClient, desk: Desk) -> None:
    done, waits = desk.finish(BatchState.SUCCEEDED), desk.submit(1)
    assert good(client.post(f"{API}/prune", json={"older_than_days": 1}))["deleted"] == 0
    assert good(client.post(f"{API}/prune", json={"older_than_days": 0, "states": ["failed"]}))["deleted"] == 0
    assert good(client.post(f"{API}/prune", json={"older_than_days": 0}))["deleted"] == 1
    problem(client.get(f"{API}/batches/{done}"), 404, "unknown-batch")
    assert good(client.get(f"{API}/batches/{waits}"))["state"] == "queued"
    problem(client.post(f"{API}/prune", json={"states": ["running"]}), 422, "invalid-request")


def test_queues_and_limits_are_set(client: TestClient) -> None:
    assert good(client.patch(f"{API}/queues/night", json={"max_running": 3, "max_concurrency": 20}))["max_running"] == 3
    assert good(client.patch(f"{API}/queues/night", json={"max_concurrency": 0}))["max_concurrency"] is None
    assert good(client.post(f"{API}/queues/night/pause"))["paused"]
    assert good(client.post(f"{API}/queues/night/resume"))["paused"] is False
    assert good(client.post(f"{API}/queues/night/drain"))["draining"]
    assert [queue["name"] for queue in good(client.get(f"{API}/queues"))] == ["night"]
    problem(client.patch(f"{API}/queues/a%20b", json={}), 422, "invalid-input")
    problem(client.patch(f"{API}/queues/night", json={"max_running": 0}), 422, "invalid-request")
    problem(client.post(f"{API}/queues/none/pause"), 404, "unknown-queue")

    made = good(client.put(f"{API}/limits/key/crm", json={"rate": "600/m", "burst": 7}))
    assert made == {"kind": "key", "name": "crm", "per_second": 10.0, "burst": 7, "available": 7.0}
    assert good(client.put(f"{API}/limits/queue/night", json={"rate": 5}))["per_second"] == 5.0
    assert good(client.delete(f"{API}/limits/key/crm")) == {"removed": True}
    assert good(client.delete(f"{API}/limits/key/crm")) == {"removed": False}
    assert [limit["name"] for limit in good(client.get(f"{API}/limits"))] == ["night"]
    problem(client.put(f"{API}/limits/key/crm", json={"rate": "fast"}), 422, "invalid-input")
    problem(client.put(f"{API}/limits/batch/crm", json={"rate": 1}), 422, "invalid-request")


def test_workers_and_this_dashboard(client: TestClient, desk: Desk) -> None:
    desk.register()
    (worker,) = good(client.get(f"{API}/workers"))
    assert (worker["id"], worker["handlers"], worker["live"]) == (desk.worker, [HANDLER], True)
    standing = good(client.get(f"{API}/status"))
    assert (standing["name"], standing["role"], standing["read_only"]) == ("oscar", "operator", False)
    assert (standing["live"], standing["stale"]) == (False, False)
    assert "no broker is configured" in standing["reason"]


# Errors


def test_every_error_of_the_library_has_a_status_and_a_name_of_its_own() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.BatchingError) and kind is not errors.BatchingError
    ]
    assert len({slug_of(kind) for kind in kinds}) == len(kinds) > 15
    assert slug_of(errors.ResultNotJSONError) == "result-not-json"
    assert slug_of(errors.IllegalMoveError) == "illegal-move"
    assert set(STATUS) <= {*kinds, errors.BatchingError}


def test_what_nobody_foresaw_is_a_problem_too(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("canary")

    app: Any = client.app
    app.state.context.statistics.workers = fail
    detail = problem(client.get(f"{API}/workers"), 500, "internal")
    assert "canary" not in detail
    assert detail.split()[-1] in caplog.text
    assert "ZeroDivisionError: canary" in caplog.text
    assert client.get(f"{API}/workers").headers["x-content-type-options"] == "nosniff"


# The description is that of the documents


def test_every_view_is_described_as_it_is_sent(desk: Desk, database: Database) -> None:
    desk.register()
    batch_id = desk.finish(BatchState.FAILED)
    read = QueueManager(database).statistics
    views = {
        common.Batch: read.batch(batch_id),
        common.Move: read.history(batch_id)[0],
        common.Attempt: read.attempts(batch_id, "k1")[0],
        common.Failures: read.failures(batch_id)[0],
        common.Queue: read.queues()[0],
        common.Result: next(read.results(batch_id, payloads=True)),
        common.Worker: read.workers()[0],
    }
    for model, view in views.items():
        assert list(model.model_fields) == list(view.as_json()) or set(model.model_fields) == set(view.as_json())
        model.model_validate(view.as_json())
        assert model.model_json_schema()["description"]
    assert "counted from 1" in common.Batch.model_json_schema()["properties"]["pass"]["description"]


def test_no_view_is_left_out(client: TestClient) -> None:
    schemas = good(client.get(f"{API}/openapi.json"))["components"]["schemas"].values()
    shapes = [set(schema.get("properties", ())) for schema in schemas]
    kinds = {kind for kind in vars(statistics).values() if isinstance(kind, type) and issubclass(kind, _AsJSON)}
    for kind in kinds - {statistics.Excerpt, statistics.RunView, statistics.Situation}:  # pages alone show these
        document = {"pass" if each.name == "pass_number" else each.name for each in fields(kind)}  # type: ignore[arg-type]  # they are dataclasses
        assert any(document <= shape for shape in shapes), kind


def test_effective_states_are_those_of_the_rows(client: TestClient, desk: Desk, database: Database) -> None:
    """A cancelled batch of which no row was written yet reads as cancelled."""
    batch_id = desk.submit(2)
    good(client.post(f"{API}/batches/{batch_id}/cancel"))
    lines = client.get(f"{API}/batches/{batch_id}/results").text.splitlines()
    assert {json.loads(line)["state"] for line in lines} == {"cancelled"}
    with database.read() as connection:
        stored = {row.state for row in connection.execute(profiles.select())}
    assert stored == {ProfileState.PENDING}


# Probes and figures


def test_probes_need_no_token_and_tell_no_secret(database: Database, desk: Desk) -> None:
    with client_of(database, None) as nobody, client_of(database) as operator:
        assert good(nobody.get("/livez", headers={"Host": "10.0.0.7"})) == {
            "ok": True,
            "checks": {"dashboard": {"ok": True}},
        }
        ready = good(nobody.get("/readyz"))
        assert (ready["ok"], ready["checks"]["database"], ready["checks"]["manager"]) == (
            False,
            {"ok": True},
            {"ok": False},
        )
        assert "no manager leads" in good(operator.get("/readyz"))["checks"]["manager"]["detail"]
        assert nobody.get("/metrics").status_code == 401
        figures = operator.get("/metrics")
        assert figures.headers["content-type"].startswith("text/plain")
        assert "# TYPE batching_" in figures.text


def test_a_dashboard_without_its_database_is_not_ready_and_lives(tmp_path: Any) -> None:
    lost = Database(f"sqlite:///{tmp_path}/no/such/folder/batching.db")
    with client_of(lost, None) as client:
        assert client.get("/readyz").status_code == 503
        assert str(tmp_path) not in client.get("/readyz").text
        assert client.get("/livez").status_code == 200
    lost.close()
