"""Search: by everything that can be said about a batch, the newest first, page by page; through an index for labels."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from sqlalchemy import literal, text

from batching.cli.main import cli
from batching.dialects import later
from batching.errors import InvalidInputError
from batching.queue_manager import QueueManager
from batching.states import BatchState
from batching.statistics import Search
from tests.accounting import HANDLER, plant_batch

if TYPE_CHECKING:
    from batching.database import Database


@pytest.fixture
def queue(database: Database) -> QueueManager:
    return QueueManager(database)


@pytest.fixture
def kept(queue: QueueManager) -> dict[str, str]:
    """Three batches, each of another kind."""
    one = queue.submit(HANDLER, ["a"], name="Nightly run", tags=["eu", "nightly"], properties={"customer": 17})
    two = queue.submit(
        "other.handler", ["a"], name="100% sure", queue="side", tags=["eu"], properties={"customer": "17"}
    )
    three = queue.submit(
        HANDLER, map(str, range(1_500)), key="k", tags=["us"], properties={"paid": True, "deep": {"a": 1}}
    )
    queue.cancel(two.id)
    plant_batch(queue.database, one.id, created_at=later(literal(-7_200.0)))
    return {"one": one.id, "two": two.id, "three": three.id}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, ["three", "two", "one"]),
        ({"tags": ("eu",)}, ["two", "one"]),
        ({"tags": ("eu", "nightly")}, ["one"]),
        ({"tags": ("e",)}, []),
        ({"properties": {"customer": 17}}, ["two", "one"]),
        ({"properties": {"paid": True}}, ["three"]),
        ({"properties": {"paid": True}, "tags": ("eu",)}, []),
        ({"properties": {"deep": "x"}}, []),
        ({"handler": HANDLER}, ["three", "one"]),
        ({"queue": "side"}, ["two"]),
        ({"states": (BatchState.CANCELLED,)}, ["two"]),
        ({"name": "NIGHT"}, ["one"]),
        ({"name": "0%"}, ["two"]),
        ({"name": "_"}, []),
        ({"key": "k"}, ["three"]),
        ({"since": 3_600.0}, ["three", "two"]),
        ({"until": 3_600.0}, ["one"]),
        ({"since": datetime.now(UTC) - timedelta(hours=1)}, ["three", "two"]),
        ({"limit": 1}, ["three"]),
    ],
)
def test_a_search_finds_what_is_all_of_it(
    queue: QueueManager, kept: dict[str, str], wanted: dict[str, Any], found: list[str]
) -> None:
    assert [view.id for view in queue.statistics.search(Search(**wanted))] == [kept[name] for name in found]


def test_pages_follow_each_other_without_a_gap(queue: QueueManager) -> None:
    made = [queue.submit(HANDLER, ["a"], tags=["t"]).id for _ in range(5)]
    seen: list[str] = []
    after = None
    while page := queue.statistics.search(Search(tags=("t",), after=after, limit=2)):
        seen += [view.id for view in page]
        after = page[-1].id
        queue.submit(HANDLER, ["a"], tags=["t"])  # what comes meanwhile is on no later page
    assert seen == made[::-1]


def test_labels_go_with_their_batch(queue: QueueManager, kept: dict[str, str]) -> None:
    assert queue.prune(0, limit=10) == 1
    assert [view.id for view in queue.statistics.search(Search(tags=("eu",)))] == [kept["one"]]
    with queue.database.read() as connection:
        assert connection.scalar(text("SELECT count(*) FROM labels")) == 5


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"properties": {"a": {"b": 1}}}, "cannot search for the property 'a' with this value"),
        ({"tags": ("",)}, "cannot take the tag ''"),
        ({"after": "01a2"}, "cannot go on after '01a2'"),
        ({"since": datetime(2026, 1, 1)}, "it has no time zone"),  # noqa: DTZ001 - that is refused
    ],
)
def test_what_cannot_be_searched_for_is_refused(queue: QueueManager, wanted: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        queue.statistics.search(Search(**wanted))


def test_a_label_leads_through_its_index(queue: QueueManager, kept: dict[str, str]) -> None:
    seen: list[str] = []
    with queue.database.read() as connection:
        asked = str(Search(tags=("eu",)).condition().compile(connection, compile_kwargs={"literal_binds": True}))
        explain = "EXPLAIN QUERY PLAN" if queue.database.dialect == "sqlite" else "EXPLAIN"
        rows = connection.exec_driver_sql(f"{explain} SELECT id FROM batches WHERE {asked}".replace("%", "%%"))
        seen = [str(row[-1]) for row in rows]
    assert any("labels_pkey" in line or "sqlite_autoindex_labels" in line or "PRIMARY KEY" in line for line in seen), (
        seen
    )
    assert not any("SCAN labels" in line or "Seq Scan on labels" in line for line in seen), seen


def test_search_from_the_command_line(database: Database, kept: dict[str, str]) -> None:
    def run(*arguments: str) -> Any:
        done = CliRunner().invoke(cli, ["--database", database.url, "list", *arguments])
        assert done.exit_code == 0, done.output
        return done

    def found(*arguments: str) -> list[str]:
        names = {batch_id: name for name, batch_id in kept.items()}
        return [names[each["id"]] for each in json.loads(run(*arguments, "--json").stdout)]

    assert found("--tag", "eu") == ["two", "one"]
    assert found("--property", "customer=17", "--queue", "side") == ["two"]
    assert found("--property", "paid=true", "--handler", HANDLER) == ["three"]
    assert found("--since", "1h", "--state", "queued") == ["three"]
    assert found("--name", "nightly", "--until", "2030-01-01T00:00Z") == ["one"]
    assert found("--tag", "eu", "--limit", "1", "--after", kept["two"]) == ["one"]
    page = run("--tag", "eu", "--limit", "1")
    assert f"--after {kept['two']}" in page.output
    assert "no batch was found" in run("--tag", "nowhere").output
