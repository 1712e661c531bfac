"""`batching callbacks`: who was told what, and trying again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from batching.cli.main import cli
from batching.database import Database
from batching.settings import get_settings
from tests.accounting import Desk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result


@pytest.fixture
def desk(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("BATCHING_DATABASE_URL", sqlite_url)
    get_settings.cache_clear()
    database = Database(sqlite_url)
    yield Desk(database)
    database.close()


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["callbacks", *arguments])


def dead(desk: Desk, target: str) -> tuple[str, str]:
    """A batch with one dead callback: both ids."""
    batch_id = desk.start(1, on_finish=target)
    desk.work(batch_id)
    [taken] = desk.states.take_callbacks(10, 60)
    desk.states.callback_failed(taken, "example.org answered 503", None)
    return batch_id, taken.id


def test_they_are_listed_with_what_went_wrong_and_without_tokens(desk: Desk) -> None:
    assert call("list").exit_code == 0
    batch_id, callback_id = dead(desk, "https://example.org/hook?token=hidden")
    other, _ = dead(desk, "app.over")
    said = call("list", "--batch", batch_id)
    assert callback_id in said.output
    assert "example.org answered 503" in said.output
    assert "hidden" not in said.output
    [row] = json.loads(call("list", "--batch", other, "--state", "dead", "--json").stdout)
    assert (row["target"], row["event"], row["pass"], row["attempts"]) == ("app.over", "finish", 1, 1)
    assert json.loads(call("list", "--state", "delivered", "--json").stdout) == []


def test_dead_ones_are_delivered_again_and_others_are_left(desk: Desk) -> None:
    (mine, first), (_, second) = dead(desk, "app.over"), dead(desk, "app.over")
    assert json.loads(call("retry", first, "--json").stdout) == {"retried": [first]}
    again = call("retry", first)
    assert again.exit_code == 1
    assert "it is waiting; only dead callbacks can be retried" in again.output
    assert "0 callbacks will be delivered" in call("retry", "--batch", mine).output
    assert "1 callback will be delivered again" in call("retry", "--all").output
    assert {each.id for each in desk.states.take_callbacks(10, 60)} == {first, second}


def test_show_says_that_somebody_could_not_be_told(desk: Desk) -> None:
    batch_id, callback_id = dead(desk, "app.over")
    assert "callbacks   1 dead; see `batching callbacks list`" in CliRunner().invoke(cli, ["show", batch_id]).output
    desk.states.retry_callback(callback_id)
    assert "callbacks   1 waiting\n" in CliRunner().invoke(cli, ["show", batch_id]).output


@pytest.mark.parametrize("arguments", [(), ("--all", "--batch", "x" * 8)])
def test_it_must_be_said_which(desk: Desk, arguments: tuple[str, ...]) -> None:
    said = call("retry", *arguments)
    assert said.exit_code == 2
    assert "say which" in said.output
