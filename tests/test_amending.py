"""`amend`, and `prune` by age, state and queue: what moves, what stays, and who wins a race."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from sqlalchemy import literal, select

from batching.cli.following import write_lines
from batching.cli.main import cli
from batching.dialects import later
from batching.errors import IllegalMoveError, InvalidInputError
from batching.models import attempts, batches, profiles
from batching.queue_manager import QueueManager
from batching.states import BatchState, ProfileState
from tests.accounting import DONE, FAILED, HANDLER, Desk, assert_accounted, effective_states, plant_batch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batching.database import Database


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


@pytest.fixture
def queue(database: Database) -> QueueManager:
    return QueueManager(database)


@pytest.fixture
def run(database: Database) -> Callable[..., Any]:
    def invoke(*arguments: str, code: int = 0) -> Any:
        done = CliRunner().invoke(cli, ["--database", database.url, *arguments])
        assert done.exit_code == code, done.output
        return done

    return invoke


def payloads(database: Database, batch_id: str) -> dict[str, Any]:
    with database.read() as connection:
        rows = connection.execute(select(profiles.c.key, profiles.c.payload).where(profiles.c.batch_id == batch_id))
        return {row.key: json.loads(row.payload) for row in rows}


def failed_batch(desk: Desk, **options: Any) -> str:
    """k1 failed, k2 and k3 succeeded."""
    batch_id = desk.start(3, max_passes=1, fail_fast=False, **options)
    desk.work(batch_id, lambda number: FAILED if number == 1 else DONE)
    assert desk.state(batch_id) is BatchState.FAILED
    return batch_id


def test_an_ended_batch_begins_a_new_pass_over_what_was_amended(queue: QueueManager, desk: Desk) -> None:
    batch_id = failed_batch(desk)
    done = queue.amend(batch_id, [("k1", {"fixed": True})])
    assert (done.amended, done.same, done.pass_number) == (1, 0, 2)
    assert payloads(queue.database, batch_id) == {"k1": {"fixed": True}, "k2": 2, "k3": 3}
    assert list(effective_states(queue.database, batch_id).values()) == [
        ProfileState.PENDING,
        ProfileState.SUCCEEDED,
        ProfileState.SUCCEEDED,
    ]
    assert_accounted(queue.database, batch_id)
    desk.rewrite(batch_id)
    desk.states.promote("default", desk.term)
    [claimed] = desk.claim(batch_id)
    assert (claimed.key, claimed.payload, claimed.terms.pass_number) == ("k1", '{"fixed":true}', 2)
    desk.settle([claimed])
    desk.states.conclude([batch_id])
    assert desk.state(batch_id) is BatchState.SUCCEEDED
    assert [run.outcome for run in queue.statistics.attempts(batch_id, "k1")] == ["failed", "succeeded"]
    assert {"amended by a person", "amended 1 of its profiles"} <= {
        entry.reason for entry in queue.statistics.history(batch_id)
    }


def test_what_else_is_not_done_runs_too(queue: QueueManager, desk: Desk) -> None:
    batch_id = desk.finish(BatchState.CANCELLED, 4)
    assert queue.amend(batch_id, [("k2", "new")]).amended == 1
    assert set(effective_states(queue.database, batch_id).values()) == {ProfileState.PENDING}
    assert payloads(queue.database, batch_id) == {"k1": 1, "k2": "new", "k3": 3, "k4": 4}


def test_one_that_waits_takes_new_payloads_without_another_pass(queue: QueueManager, desk: Desk) -> None:
    batch_id, other = desk.submit(2), desk.submit(2)
    assert queue.amend(batch_id, [("k1", 1), ("k2", "new")]) == (1, 1, None)
    assert payloads(queue.database, batch_id) == {"k1": 1, "k2": "new"}
    assert payloads(queue.database, other) == {"k1": 1, "k2": 2}
    assert queue.get(batch_id).progress().pass_number == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([("k1", 0), ("nobody", 1)], "profile 'nobody' of batch .*: the batch has no such profile"),
        ([("k1", 0), ("k2", "other")], "profile 'k2' of batch .*: it is succeeded for good"),
        ([("k1", 0), ("k1", 1)], "the key 'k1' stands twice"),
        ([], "no profile was given"),
    ],
)
def test_what_cannot_be_amended_amends_nothing(
    queue: QueueManager, desk: Desk, given: list[tuple[str, Any]], words: str
) -> None:
    batch_id = failed_batch(desk)
    with pytest.raises(InvalidInputError, match=words):
        queue.amend(batch_id, given)
    assert payloads(queue.database, batch_id) == {"k1": 1, "k2": 2, "k3": 3}
    assert desk.state(batch_id) is BatchState.FAILED
    with queue.database.read() as connection:
        assert len(connection.execute(select(attempts)).all()) == 1


@pytest.mark.parametrize("state", ["running", "stopping", "done"])
def test_a_batch_that_runs_or_is_done_is_not_amended(queue: QueueManager, desk: Desk, state: str) -> None:
    batch_id = desk.start(2)
    if state == "done":
        desk.work(batch_id)
    elif state == "stopping":
        desk.claim(batch_id, 1)
        queue.pause(batch_id)
    words = "all of its 2 profiles are done" if state == "done" else f"it is {state}; pause it"
    with pytest.raises(IllegalMoveError, match=words):
        queue.amend(batch_id, [("k2", "new")])
    assert payloads(queue.database, batch_id) == {"k1": 1, "k2": 2}


def test_a_failure_of_the_present_pass_waits_for_its_end(queue: QueueManager, desk: Desk) -> None:
    batch_id = desk.start(3, failure_budget=2)
    desk.settle(desk.claim(batch_id, 1), FAILED)
    queue.pause(batch_id)
    assert queue.amend(batch_id, [("k2", "new")]).amended == 1
    with pytest.raises(InvalidInputError, match="it is failed in this pass; amend it when the batch has ended"):
        queue.amend(batch_id, [("k1", "new")])


def test_two_amendments_of_an_ended_batch_open_one_pass(queue: QueueManager, desk: Desk) -> None:
    batch_id = failed_batch(desk)
    assert queue.amend(batch_id, [("k1", "one")]).pass_number == 2
    assert queue.amend(batch_id, [("k1", "two")]).pass_number is None
    assert payloads(queue.database, batch_id)["k1"] == "two"


def test_the_errors_of_a_run_go_back_edited(
    queue: QueueManager, desk: Desk, run: Callable[..., Any], tmp_path: Path
) -> None:
    batch_id = failed_batch(desk)
    errors, out = tmp_path / "errors.jsonl", tmp_path / "out.jsonl"
    write_lines(batch_id, queue.statistics, str(out), str(errors))
    [line] = map(json.loads, errors.read_text().splitlines())
    assert (line["key"], line["payload"], line["error"]["type"]) == ("k1", 1, "ValueError")
    assert "payload" not in out.read_text()
    errors.write_text(json.dumps({**line, "payload": {"fixed": 1}}) + "\n")
    done = json.loads(run("amend", batch_id, str(errors), "--json").stdout)
    assert done == {"id": batch_id, "amended": 1, "same": 0, "pass": 2}
    # All results with their payloads are taken too: what is done and unchanged is passed over.
    printed = run("results", batch_id, "--payload").stdout
    assert [json.loads(each)["payload"] for each in printed.splitlines()] == [{"fixed": 1}, 2, 3]
    (tmp_path / "all.jsonl").write_text(printed)
    assert "0 payloads changed, 3 were the same" in run("amend", batch_id, str(tmp_path / "all.jsonl")).output
    only = run("results", batch_id, "--payload", "--state", "pending").stdout
    assert [json.loads(each)["key"] for each in only.splitlines()] == ["k1"]
    (tmp_path / "bad.jsonl").write_text('{"key": "k1"}\n')
    refused = run("amend", batch_id, str(tmp_path / "bad.jsonl"), code=2)
    assert "line 1 of" in refused.output
    assert "no object with the fields key and payload" in refused.output


# --- prune


def test_prune_takes_what_is_old_in_the_states_and_the_queue_that_are_asked_for(
    queue: QueueManager, desk: Desk
) -> None:
    kept = [desk.finish(BatchState.SUCCEEDED), desk.finish(BatchState.CANCELLED)]
    failed = failed_batch(desk)
    elsewhere = desk.submit(2, queue="other")
    queue.cancel(elsewhere)
    waits = desk.submit(1)
    for each in (*kept, failed, elsewhere):
        plant_batch(queue.database, each, finished_at=later(literal(-10 * 86_400.0)))
    seen: list[tuple[int, int]] = []
    told = lambda done, of: seen.append((done, of))  # noqa: E731
    assert queue.prune(30) == 0
    assert queue.prune(5, states=["failed", BatchState.EXPIRED], progress=told) == 1
    assert queue.prune(5, queue="other", progress=told) == 1
    assert seen == [(1, 1), (1, 1)]
    with queue.database.read() as connection:
        assert set(connection.scalars(select(batches.c.id))) == {*kept, waits}
    with pytest.raises(InvalidInputError, match="cannot prune batches that are 'running'"):
        queue.prune(5, states=["running"])


def test_prune_from_the_command_line(desk: Desk, run: Callable[..., Any]) -> None:
    done, failed = desk.finish(BatchState.SUCCEEDED), failed_batch(desk)
    pruned = run("prune", "--older-than", "0", "--state", "failed", "--json")
    assert json.loads(pruned.stdout) == {"deleted": 1}
    assert desk.state(done) is BatchState.SUCCEEDED
    assert failed not in run("list", "--json").stdout


def test_open_append_and_seal_from_the_command_line(desk: Desk, run: Callable[..., Any], tmp_path: Path) -> None:
    del desk
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"key": "1", "payload": "one"}\n{"key": "3", "payload": "three"}\n')
    opened = json.loads(run("submit", HANDLER, str(tmp_path / "a.txt"), "--open", "--key", "k", "--json").stdout)
    assert {name: opened[name] for name in ("total", "created", "new", "same", "changed")} == {
        "total": 2,
        "created": True,
        "new": 2,
        "same": 0,
        "changed": 0,
    }
    appended = run("append", opened["id"], str(tmp_path / "b.jsonl"))
    assert appended.stdout == f"appended to batch {opened['id']}: 1 new, 1 same, 0 changed\n"
    again = run("submit", HANDLER, str(tmp_path / "b.jsonl"), "--key", "k")
    assert "already: 0 new, 2 same, 0 changed; the new ones were appended" in again.stdout
    assert "it has 3 profiles, 2 were expected" in run("seal", opened["id"], "--expect", "2", code=1).output
    assert run("seal", opened["id"], "--expect", "3").stdout == f"sealed batch {opened['id']} with 3 profiles\n"
    assert "it is sealed" in run("append", opened["id"], str(tmp_path / "b.jsonl"), code=1).output
