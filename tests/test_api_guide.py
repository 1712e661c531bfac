"""Every `curl` line of the guide, sent to a real dashboard; and what it says of answers and settings."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from batching.database import Database
from batching.queue_manager import QueueManager
from batching.settings import Settings
from batching.states import BatchState
from tests.accounting import HANDLER, Desk
from tests.web import API, OPERATOR, client_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2 as httpx
    from starlette.testclient import TestClient

GUIDE = (Path(__file__).parent.parent / "docs" / "guide" / "api.md").read_text()
#: Verbs that need the batch in another state than that in which the line before left it.
NEEDS = {"seal": "open", "profiles": "open", "events": "ended", "retry": "ended", "results": "failed"}


def sections() -> dict[str, list[str]]:
    """The commands of each section, continued lines joined."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^## ", GUIDE, flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```console\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
        text = "".join(blocks).replace("\\\n", " ")
        commands = re.findall(r"^\$ (curl (?:'[^']*'|\"[^\"]*\"|[^'\"\n])*)", text, flags=re.MULTILINE)
        found[section.splitlines()[0]] = [command.partition("  #")[0] for command in commands]
    return found


def send(client: TestClient, command: str, variables: dict[str, str], folder: Path) -> httpx.Response:
    """What curl would send, as far as the guide uses it."""
    for name, value in variables.items():
        command = command.replace(f"${name}", value)
    words = iter(shlex.split(command)[1:])
    method, address, content = "", "", b""
    headers: dict[str, str] = {}
    for word in words:
        if word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word == "-X":
            method = next(words)
        elif word == "--json":
            content = next(words).encode()
            headers |= {"Content-Type": "application/json", "Accept": "application/json"}
        elif word == "--data-binary":
            content = (folder / next(words).removeprefix("@")).read_bytes()
        elif word != "-N":
            assert not word.startswith("-"), f"the guide uses {word}, which this test does not know"
            address = word
    parts = urlsplit(address)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    return client.request(method or ("POST" if content else "GET"), path, headers=headers, content=content)


@pytest.fixture
def client(sqlite_url: str) -> Iterator[TestClient]:
    database = Database(sqlite_url)
    with client_of(database, None) as client:
        yield client
    database.close()


def batch_for(desk: Desk, verb: str) -> str:
    """A batch in the state that a command is about."""
    match NEEDS.get(verb):
        case "open":
            return QueueManager(desk.database).open(HANDLER).id
        case "ended":
            return desk.finish(BatchState.CANCELLED, 3)
        case "failed":
            manager = QueueManager(desk.database)
            for view in manager.statistics.batches(states=[BatchState.QUEUED, BatchState.RUNNING]):
                manager.cancel(view.id)  # so that it is its turn
            return desk.finish(BatchState.FAILED, 3)
        case _:
            return desk.submit(3)


def test_every_command_of_the_guide_does_what_it_says(client: TestClient, sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n')
    desk = Desk(Database(sqlite_url))
    variables = {"AUTH": f"Authorization: Bearer {OPERATOR}", "API": f"http://127.0.0.1:8080{API}"}
    found = sections()
    batch_id = ""
    for section, commands in found.items():
        for command in commands:
            verb = (re.search(r"\$ID/(\w+)", command) or ["", ""])[1]
            if "$ID" in command and not (verb == "seal" and batch_id) and verb != "resume":
                batch_id = batch_for(desk, verb)
            answer = send(client, command, variables | {"ID": batch_id}, tmp_path)
            assert answer.status_code in {200, 201}, (section, command, answer.text)
    assert [len(found[name]) for name in ("Who may ask", "Submitting", "Watching", "Steering")] == [1, 6, 12, 11]
    desk.database.close()


def test_the_documents_of_the_guide_have_the_fields_that_are_sent(client: TestClient) -> None:
    receipt, problem = (
        json.loads(text) for text in re.findall(r"^```json\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    )
    headers = {"Authorization": f"Bearer {OPERATOR}"}
    sent = client.post(f"{API}/batches", json={"handler": HANDLER, "profiles": ["a"]}, headers=headers).json()
    assert list(sent) == list(receipt)
    refused = client.post(f"{API}/batches/{sent['id']}/resume", headers=headers).json()
    assert list(refused) == list(problem)
    assert refused["type"] == problem["type"]


def test_the_settings_of_the_guide_are_all_there_are_with_their_defaults() -> None:
    table: dict[str, Any] = {}
    for names, default in re.findall(r"^\| (`BATCHING_WEB_.*?) \| (.*?) \|", GUIDE, flags=re.MULTILINE):
        for name, value in zip(re.findall(r"`(?:BATCHING_WEB)?_(\w+)`", names), default.split(", "), strict=True):
            table[f"web_{name.lower()}"] = value
    fields = {name: field.default for name, field in Settings.model_fields.items() if name.startswith("web_")}
    assert table.keys() == fields.keys()
    for name, default in fields.items():
        said = {None: "made at the start", (): "none", False: "false"}.get(default, str(default))
        assert table[name] == said, name
