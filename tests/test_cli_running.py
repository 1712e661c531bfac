"""The command line's verbs about how batches run: groups, queues, caps, rates, dependencies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.test_cli_reading import HANDLER, call, document, manager, run, submit  # noqa: F401 - fixtures among them

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from batching.queue_manager import QueueManager


def test_groups_take_turns_in_the_places_that_are_shown(
    run: Callable[..., Result],  # noqa: F811 - the fixture
    manager: QueueManager,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("one\n")
    ids = [document(run("submit", HANDLER, file, "--group", group, "--json"))["id"] for group in ("a", "a", "b")]

    shown = {each["id"]: (each["place"], each["group"]) for each in document(run("list", "--json"))}
    assert [shown[each] for each in ids] == [(1, "a"), (3, "a"), (2, "b")]
    assert [each["id"] for each in document(run("list", "--json"))] == [ids[0], ids[2], ids[1]]
    assert "group b" in run("show", ids[2]).output
    assert manager.get(ids[1]).progress().place == 3


def test_a_batch_is_executed_ahead_of_its_turn(
    run: Callable[..., Result],  # noqa: F811 - the fixture
    manager: QueueManager,  # noqa: F811 - the fixture
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
    run: Callable[..., Result],  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("one\n")
    assert run("submit", HANDLER, file, "--group", "a\nb").exit_code == 2
    assert run("submit", HANDLER, file, "--group", "x" * 256).exit_code == 2
