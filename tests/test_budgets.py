"""Failure budgets by the class of the error, beside the general one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from batching.cli.submitting import parse_options
from batching.errors import InvalidInputError
from batching.interfaces import Ending, ErrorInfo, Outcome
from batching.models import batches
from batching.options import BatchOptions
from batching.policies import overspent
from batching.states import BatchState
from tests.accounting import DONE, Desk, assert_accounted, end, read_counts, statements

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.database import Database


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


def failing(*kinds: str | None) -> Callable[[int], Outcome]:
    """Profile 1 fails with the first class, and so on; None, and all that come after, are done."""

    def outcome(number: int) -> Outcome:
        kind = kinds[number - 1] if number <= len(kinds) else None
        if kind is None:
            return DONE
        return Outcome(Ending.FAILED, error=ErrorInfo(kind, "no", f"{hash(kind) % 10**16:016}"))

    return outcome


def reason(desk: Desk, batch_id: str) -> str | None:
    with desk.database.read() as connection:
        return connection.scalar(select(batches.c.reason).where(batches.c.id == batch_id))


@pytest.mark.parametrize(
    ("budgets", "general", "failed", "spent"),
    [
        ({}, 1, {"A": 1}, None),
        ({}, 1, {"A": 1, "B": 1}, (2, 1)),
        ({"A": 2}, 0, {"A": 2}, None),
        ({"A": 2}, 0, {"A": 3}, (3, 2)),
        ({"A": 2}, 0, {"B": 1}, (1, 0)),
        ({"A": 2}, 1, {"A": 2, "B": 1}, None),
        ({"A": 0}, 5, {"A": 1}, (1, 0)),
        ({"A": 0.02}, 0, {"A": 2}, None),
        ({"A": 0.02}, 0, {"A": 3}, (3, 2)),
        ({"Timeout": 1}, 0, {"httpx.Timeout": 1}, None),
        ({"Timeout": 1}, 0, {"httpx.Timeout": 1, "other.Timeout": 1}, (2, 1)),
        ({"httpx.Timeout": 1}, 0, {"other.Timeout": 1}, (1, 0)),
        ({"httpx.Timeout": 0, "Timeout": 9}, 0, {"httpx.Timeout": 1}, (1, 0)),
    ],
)
def test_a_failure_counts_against_the_budget_of_its_class_or_the_general_one(
    budgets: dict[str, Any], general: int, failed: dict[str, int], spent: tuple[int, int] | None
) -> None:
    found = overspent(BatchOptions(failure_budget=general, failure_budgets=budgets), 100, failed)
    assert (None if found is None else found[:2]) == spent


@pytest.mark.parametrize("budgets", [{"A": -1}, {"A": 1.0}, {"A": True}, {"": 1}, {1: 1}, ["A"], "A"])
def test_what_is_no_budget_is_refused(budgets: Any) -> None:
    with pytest.raises(InvalidInputError, match="failure_budget"):
        BatchOptions(failure_budgets=budgets)


def test_they_are_given_on_the_command_line_and_kept_with_the_batch() -> None:
    options = parse_options(['failure_budgets={"TimeoutError": 10, "ValueError": 0.01}'])
    assert options.failure_budgets == {"TimeoutError": 10, "ValueError": 0.01}
    assert BatchOptions.from_stored(options.as_dict()) == options
    assert len({options, BatchOptions.from_stored(options.as_dict())}) == 1  # they stay hashable


def test_a_pass_within_the_budget_of_its_class_succeeds_failures_and_all(desk: Desk) -> None:
    batch_id = desk.start(4, failure_budgets={"TimeoutError": 2})
    assert desk.work(batch_id, failing("TimeoutError", "TimeoutError"), limit=2) == []
    assert desk.state(batch_id) is BatchState.RUNNING
    desk.work(batch_id, failing())
    assert desk.state(batch_id) is BatchState.SUCCEEDED
    assert assert_accounted(desk.database, batch_id).failed == 2


def test_a_failure_of_another_class_fails_the_pass_at_once(desk: Desk) -> None:
    batch_id = desk.start(4, failure_budgets={"TimeoutError": 2}, max_passes=1)
    assert desk.work(batch_id, failing("TimeoutError", "ValueError"), limit=2) == [batch_id]
    assert desk.state(batch_id) is BatchState.FAILED
    assert read_counts(desk.database, batch_id).cancelled == 2
    assert (
        reason(desk, batch_id)
        == "pass 1 failed: 1 profile failed with errors that have no budget of their own, 0 allowed"
    )


def test_a_class_that_used_up_its_budget_is_named(desk: Desk) -> None:
    batch_id = desk.start(3, failure_budget=3, failure_budgets={"TimeoutError": 1}, fail_fast=False)
    desk.work(batch_id, failing("TimeoutError", "TimeoutError"))
    assert desk.state(batch_id) is BatchState.QUEUED
    assert reason(desk, batch_id) == "pass 1 failed: 2 profiles failed with TimeoutError, 1 allowed"


def test_the_next_pass_counts_anew(desk: Desk) -> None:
    batch_id = desk.start(3, failure_budgets={"TimeoutError": 1})
    desk.work(batch_id, failing("TimeoutError", "TimeoutError"))
    desk.rewrite(batch_id)
    assert desk.states.promote("default", desk.term) == batch_id
    desk.work(batch_id, failing("TimeoutError"))
    assert desk.state(batch_id) is BatchState.SUCCEEDED


def test_two_failures_at_the_same_instant_fail_the_pass_once(desk: Desk) -> None:
    batch_id = desk.start(3, failure_budgets={"TimeoutError": 1})
    claimed = desk.claim(batch_id, 2)
    together = threading.Barrier(2)

    def fail(each: Any) -> list[str]:
        together.wait(10)
        desk.states.settle(desk.worker, [end(each, failing("TimeoutError", "TimeoutError")(each.run.number))])
        together.wait(10)
        return desk.states.conclude([batch_id])

    with ThreadPoolExecutor(2) as pool:
        moved = [future.result() for future in [pool.submit(fail, each) for each in claimed]]
    assert sorted(moved) == [[], [batch_id]]
    assert desk.state(batch_id) is BatchState.QUEUED
    assert_accounted(desk.database, batch_id)


def test_a_batch_without_them_asks_nothing_about_classes(desk: Desk) -> None:
    batch_id = desk.start(3, failure_budget=1)
    with statements(desk.database) as seen:
        desk.work(batch_id, failing("TimeoutError", "TimeoutError"))
    assert [one for one in seen if "'type'" in one or "$.type" in one] == []
    assert desk.state(batch_id) is BatchState.QUEUED
