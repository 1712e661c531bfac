"""The command line's verbs about how batches run: groups, queues, caps, rates, dependencies."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.command_line import call, document
from tests.test_cli_reading import HANDLER, submit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from batching.queue_manager import QueueManager


def test_groups_take_turns_in_the_places_that_are_shown(
    run: Callable[..., Result],
    manager: QueueManager,
    tmp_path: Path,
) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("one\n")
    ids = [document(run("submit", HANDLER, file, "--group", group, "--json"))["id"] for group in ("a", "a", "b")]

    shown = {each["id"]: (each["place"], each["group"]) for each in document(run("list", "--json"))}
    assert [shown[each] for each in ids] == [(1, "a"), (3, "a"), (2, "b")]
    assert [each["id"] for each in document(run("list", "--json"))] == [ids[0], ids[2], ids[1]]
    assert "group b" in run("show", ids[2]).output
    assert re.search(r"options +defaults", run("show", ids[2]).output)
    assert manager.get(ids[1]).progress().place == 3


def test_a_batch_is_executed_ahead_of_its_turn(
    run: Callable[..., Result],
    manager: QueueManager,
) -> None:
    first, second = submit(manager, priority=9), submit(manager)
    assert document(run("execute", second.id, "--json"))["place"] == 1
    assert manager.get(first.id).progress().place == 2
    assert run("execute", "0" * 8).exit_code == 1
    assert call("cancel", first.id).exit_code == 0
    refused = run("execute", first.id)
    assert refused.exit_code == 1
    assert "it is cancelled" in refused.stderr


def test_a_group_that_is_none_is_wrong_use(
    run: Callable[..., Result],
    tmp_path: Path,
) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("one\n")
    assert run("submit", HANDLER, file, "--group", "a\nb").exit_code == 2
    assert run("submit", HANDLER, file, "--group", "x" * 256).exit_code == 2


def test_queues_are_set_paused_drained_and_resumed(
    run: Callable[..., Result],
    manager: QueueManager,
) -> None:
    assert "there are no queues" in run("queue", "list").stderr
    made = document(run("queue", "set", "night", "--max-running", "3", "--max-concurrency", "8", "--json"))
    assert (made["name"], made["max_running"], made["max_concurrency"]) == ("night", 3, 8)
    assert document(run("queue", "pause", "night", "--json"))["paused"] is True
    assert "paused" in run("queue", "list").output
    assert document(run("queue", "drain", "night", "--json"))["draining"] is True
    waited = run("queue", "drain", "night", "--wait", "--json")
    assert (document(waited)["running"], waited.stderr) == (0, "")
    assert run("queue", "drain", "night", "--timeout", "1").exit_code == 2
    resumed = document(run("queue", "resume", "night", "--json"))
    assert (resumed["paused"], resumed["draining"]) == (False, False)
    assert "night" in run("queue", "show", "night").output
    unknown = run("queue", "pause", "day")
    assert (unknown.exit_code, "there is no queue 'day'" in unknown.stderr) == (1, True)
    assert run("queue", "set", "night", "--max-running", "0").exit_code == 2
    assert run("queue", "set", "night", "--burst", "3").exit_code == 2


def test_limits_are_set_listed_and_removed(
    run: Callable[..., Result],
    manager: QueueManager,
) -> None:
    assert "there are no rate limits" in run("limit", "list").stderr
    assert "limited key crm-api to 10/s, 20 at once" in run("limit", "set", "crm-api", "600/m", "--burst", "20").output
    assert run("limit", "set", HANDLER, "5", "--of", "handler").exit_code == 0
    assert run("queue", "set", "night", "--rate", "2/s").exit_code == 0
    listed = document(run("limit", "list", "--json"))
    assert [(each["kind"], each["name"], each["per_second"]) for each in listed] == [
        ("handler", HANDLER, 5.0),
        ("key", "crm-api", 10.0),
        ("queue", "night", 2.0),
    ]
    assert run("queue", "set", "night", "--rate", "0").exit_code == 0
    assert document(run("limit", "remove", "crm-api", "--json")) == {"removed": True}
    assert "there is no limit" in run("limit", "remove", "crm-api").output
    assert [each["kind"] for each in document(run("limit", "list", "--json"))] == ["handler"]
    assert run("limit", "set", "crm-api", "fast").exit_code == 2


def test_a_batch_is_submitted_after_others(
    run: Callable[..., Result],
    manager: QueueManager,
    tmp_path: Path,
) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("one\n")
    first, keyed = submit(manager), submit(manager, key="nightly")
    after = ("--after", f"{first.id}:any", "--after", "nightly")
    sent = document(run("submit", HANDLER, file, *after, "--json"))
    shown = document(run("show", sent["id"], "--json"))
    assert shown["waits_for"] == sorted([first.id, keyed.id])
    assert f"waits for batch {min(first.id, keyed.id)} to " in run("show", sent["id"]).output
    refused = run("submit", HANDLER, file, "--after", "yesterday")
    assert (refused.exit_code, "there is no batch" in refused.stderr) == (2, True)
