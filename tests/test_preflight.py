"""Preflight: payloads against what handlers take, who serves them, how long it may take; and nothing is written."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from pydantic import BaseModel, field_validator
from sqlalchemy import func, select

from batching import handlers, schemas
from batching.cli.main import cli
from batching.errors import ConfigurationError, InvalidInputError, PayloadError
from batching.handlers import Handler, Profile, profile_handler
from batching.models import batches, handler_schemas, profiles
from batching.queue_manager import QueueManager
from batching.registry import WorkerRegistry
from batching.settings import Settings
from batching.states import BatchState
from tests.accounting import HANDLER, Desk
from workers.tasks import _parsed

if TYPE_CHECKING:
    from pathlib import Path

    from batching.database import Database

SECRET = "a secret"


class Person(BaseModel):
    name: str
    age: int = 0

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value == SECRET:
            raise ValueError(f"unknown person {value}")
        return value


@pytest.fixture(autouse=True)
def marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The marks of this module, in a registry of their own."""
    monkeypatch.setattr(handlers, "_registry", {})

    @profile_handler(name="people.greet")
    def greet(profile: Profile[Person]) -> str:
        return f"hello {profile.payload.name}, {profile.payload.age + 1} soon"

    @profile_handler(name="people.any")
    def anything(profile: Profile) -> None: ...

    @profile_handler(name="people.list", payload=list[int])
    def numbers(profile: Profile) -> int:
        return sum(profile.payload)


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


@pytest.fixture
def queue(database: Database) -> QueueManager:
    return QueueManager(database)


def forget_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a producer that does not import the handlers."""
    monkeypatch.setattr(handlers, "_registry", {})


def written(database: Database) -> list[int]:
    with database.read() as connection:
        return [connection.scalar(select(func.count()).select_from(table)) or 0 for table in (batches, profiles)]


GOOD = [("a", {"name": "Ada", "age": 36}), ("b", {"name": "Bob"})]
BAD = [*GOOD, ("c", {"age": "old"}), ("d", {"name": SECRET})]


def test_a_submission_without_fault_is_ok_and_nothing_is_written(queue: QueueManager, desk: Desk) -> None:
    desk.register(handlers=("people.greet",), slots=4)
    found = queue.preflight("people.greet", iter(GOOD))
    assert (found.ok, found.profiles, found.workers, found.slots, found.problems) == (True, 2, 1, 4, ())
    assert found.bytes == len('{"name":"Ada","age":36}') + len('{"name":"Bob"}')
    assert found.checked_by == "the type that handler people.greet names in this process"
    assert (found.estimated_seconds, found.basis) == (None, "unknown: no batch of this handler has been measured yet")
    assert written(queue.database) == [0, 0]


@pytest.mark.parametrize("here", [True, False], ids=["its own code", "what workers advertise"])
def test_flaws_are_named_by_place_key_and_field_and_never_quoted(
    queue: QueueManager, desk: Desk, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    desk.register(handlers=("people.greet",))
    if not here:
        forget_the_code(monkeypatch)
    found = queue.preflight("people.greet", BAD)
    assert not found.ok
    assert ("advertise" in found.checked_by) is not here
    first = found.problems[0]
    assert first.startswith("item 3, profile 'c': ")
    assert "name" in first
    assert "payload.age: " in first
    assert "old" not in "".join(found.problems)
    assert SECRET not in "".join(found.problems)
    assert len(found.problems) == (2 if here else 1)  # a validator of its own is in no JSON schema
    assert written(queue.database) == [0, 0]


def test_a_producer_without_the_package_is_told_so(
    queue: QueueManager, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.register(handlers=("people.greet",))
    forget_the_code(monkeypatch)
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    found = queue.preflight("people.greet", BAD)
    assert found.ok
    assert "the package jsonschema is missing" in found.checked_by


def test_a_handler_that_takes_any_payload_is_not_checked(
    queue: QueueManager, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.register(handlers=("people.any",))
    assert (
        queue.preflight("people.any", BAD).checked_by == "handler people.any takes any payload: its mark names no type"
    )
    forget_the_code(monkeypatch)
    assert "no worker has advertised a schema" in queue.preflight("people.any", BAD).checked_by


def test_what_cannot_be_read_asked_or_served_is_a_problem(queue: QueueManager) -> None:
    found = queue.preflight("people.greet", [("a", {"name": "x"}), ("b", {1})], priority=10_000_000)
    assert found.profiles == 1
    text = "\n".join(found.problems)
    for words in ("cannot submit with priority", "item 2", "no live worker serves handler people.greet"):
        assert words in text
    assert found.basis == "unknown: no live worker serves the handler"
    assert queue.preflight("people.greet", []).problems[0] == "there is no profile in it"
    many = queue.preflight("people.greet", [(str(number), 1) for number in range(30)])
    assert "and 10 more profiles whose payload the handler does not take" in many.problems


def test_limits_are_those_of_the_submission(database: Database, desk: Desk) -> None:
    desk.register(handlers=("people.any",))
    queue = QueueManager(database, settings=Settings(payload_limit=64))
    assert "the limit is 64" in queue.preflight("people.any", [("a", "x" * 100)]).problems[0]


def test_the_estimate_goes_by_what_was_measured(queue: QueueManager, desk: Desk) -> None:
    desk.register()
    done = desk.finish(BatchState.SUCCEEDED, 10)
    with queue.database.begin() as connection:
        started = select(batches.c.started_at).where(batches.c.id == done).scalar_subquery()
        connection.execute(batches.update().where(batches.c.id == done).values(started_at=started))
    found = queue.preflight(HANDLER, map(str, range(100)))
    assert found.estimated_seconds is not None
    assert found.basis.startswith("100 profiles at ")
    assert found.basis.endswith("as in the latest batch of this handler that succeeded")


def test_a_key_that_names_a_batch_is_told(queue: QueueManager, desk: Desk) -> None:
    desk.register()
    first = queue.submit(HANDLER, ["a"], key="nightly")
    assert queue.preflight(HANDLER, ["a"], key="nightly").batch_id == first.id
    assert queue.preflight(HANDLER, ["a"], key="nightly", new=True).batch_id is None


# --- a submission that is checked


def test_a_checked_submission_refuses_the_first_flaw_and_leaves_nothing(queue: QueueManager, desk: Desk) -> None:
    with pytest.raises(InvalidInputError, match=r"no live worker serves handler people\.greet"):
        queue.submit("people.greet", GOOD, check=True)
    desk.register(handlers=("people.greet",))
    many = [(f"k{number}", {"name": "x"}) for number in range(2_000)]
    with pytest.raises(InvalidInputError, match=r"cannot take item 2001: profile 'bad': payload\.name: "):
        queue.submit("people.greet", [*many, ("bad", {"age": 1})], check=True)
    assert written(queue.database) == [0, 0]
    assert queue.submit("people.greet", GOOD, check=True).total == 2
    assert queue.submit("people.greet", BAD).total == 4  # as ever: nobody asked


# --- what workers do with it


def test_handlers_get_instances_of_the_type_that_they_name() -> None:
    def profile(payload: Any) -> Profile:
        return Profile("k", payload, "b", 1, 1, 1, "b.1")

    marked = handlers.registered()
    assert _parsed(marked["people.greet"])(profile({"name": "Ada", "age": "36"})) == "hello Ada, 37 soon"
    assert _parsed(marked["people.list"])(profile([1, 2])) == 3
    assert _parsed(marked["people.any"]) is marked["people.any"].function
    with pytest.raises(PayloadError, match=r"not what handler people.greet takes: payload.name: Field required"):
        _parsed(marked["people.greet"])(profile({"age": 1}))
    with pytest.raises(PayloadError, match=r"payload.name: it is refused by a validator$"):
        _parsed(marked["people.greet"])(profile({"name": SECRET}))


def test_a_type_that_pydantic_does_not_know_is_refused_by_name() -> None:
    def odd(profile: Profile) -> None: ...

    with pytest.raises(ConfigurationError, match=r"cannot check payloads of .*odd as"):
        schemas.adapter_of(Handler("odd", odd, payload=object()))


def test_workers_advertise_what_changed(desk: Desk, queue: QueueManager, monkeypatch: pytest.MonkeyPatch) -> None:
    def known() -> dict[str, Any]:
        with queue.database.read() as connection:
            return {row.handler: row.schema for row in connection.execute(select(handler_schemas))}

    names = ("people.any", "people.greet", "people.list", "elsewhere")
    desk.register(handlers=names)
    assert set(known()) == {"people.greet", "people.list"}
    assert known()["people.list"] == {"items": {"type": "integer"}, "type": "array"}
    forget_the_code(monkeypatch)

    @profile_handler(name="people.greet")
    def anything(profile: Profile) -> None: ...

    @profile_handler(name="people.list", payload=list[str])
    def words(profile: Profile) -> None: ...

    other = desk.register("00000000-0000-4000-8000-000000000000", names)
    assert known() == {"people.list": {"items": {"type": "string"}, "type": "array"}}
    WorkerRegistry(queue.database).leave(other)
    assert set(known()) == {"people.list"}  # kept: a producer may check while no worker is there


def test_a_dry_run_from_the_command_line(desk: Desk, database: Database, tmp_path: Path) -> None:
    desk.register(handlers=("people.greet",))
    (tmp_path / "people.jsonl").write_text('{"key": "a", "payload": {"name": "Ada"}}\n{"key": "b", "payload": 1}\n')

    def run(*more: str) -> Any:
        file = str(tmp_path / "people.jsonl")
        return CliRunner().invoke(cli, ["--database", database.url, "submit", "people.greet", file, *more])

    told = run("--dry-run")
    assert told.exit_code == 1
    assert "estimate  unknown: no batch of this handler has been measured yet" in told.output
    assert "problem   line 2 of" in told.output or "problem   line 2, profile 'b'" in told.output
    found = json.loads(run("--dry-run", "--json").stdout)
    assert (found["ok"], found["profiles"], found["workers"], len(found["problems"])) == (False, 2, 1, 1)
    refused = run("--check")
    assert refused.exit_code == 2
    assert "cannot take line 2: profile 'b'" in refused.output
    assert written(database) == [0, 0]


def test_a_preflight_finds_keys_that_stand_twice(queue: QueueManager, database: Database) -> None:
    twice = [{"key": "a", "payload": 1}, {"key": "b", "payload": 2}, {"key": "a", "payload": 1}]
    found = queue.preflight("people.any", twice)
    assert not found.ok
    assert found.profiles == 3
    (problem,) = [each for each in found.problems if "'a'" in each]
    with pytest.raises(InvalidInputError) as refused:
        queue.submit("people.any", twice)
    assert str(refused.value) == problem
    assert written(database) == [0, 0]
    # Each key once is no problem, also in another case
    assert not [each for each in queue.preflight("people.any", ["a", "A", "b"]).problems if "key" in each]


def test_a_preflight_tells_the_first_keys_that_stand_twice_and_counts_the_others(queue: QueueManager) -> None:
    found = queue.preflight("people.any", (str(number % 10) for number in range(1_000)))
    assert len([each for each in found.problems if "was used before" in each and "more" not in each]) == 20
    assert "and 970 more profiles whose key was used before" in found.problems
