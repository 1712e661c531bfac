"""Policies are pure: every ending, every back-off and every budget, by table."""

from __future__ import annotations

import pytest

from batching.interfaces import Claimed, Ending, Lane, Outcome, RunId, Terms
from batching.options import BatchOptions
from batching.policies import allowed_failures, lane_window, pass_delay, retry_delay, settlement, worker_lost
from batching.states import ProfileState
from tests.accounting import BROKEN

RUN = RunId("0192f0c0-0000-7000-8000-000000000001", 7, 3)


def claimed(attempt: int = 1, losses: int = 0, **options: object) -> Claimed:
    terms = Terms(Lane("default", "h"), 2, BatchOptions.from_dict(options))
    return Claimed(RUN, "k", "{}", attempt, losses, terms)


@pytest.mark.parametrize(
    ("ending", "state", "label", "charge", "losses"),
    [
        (Ending.SUCCEEDED, ProfileState.SUCCEEDED, "succeeded", 1, 0),
        (Ending.SKIPPED, ProfileState.SKIPPED, "skipped", 1, 0),
        (Ending.REVOKED, ProfileState.CANCELLED, "cancelled", 1, 0),
        (Ending.RETRY, ProfileState.PENDING, "retried", 1, 0),
        (Ending.FAILED, ProfileState.PENDING, "retried", 1, 0),
        (Ending.FAILED_BATCH, ProfileState.FAILED, "failed", 1, 0),
        (Ending.LOST, ProfileState.PENDING, "lost", 0, 1),
        (Ending.GIVEN_BACK, ProfileState.PENDING, "given back", 0, 0),
    ],
)
def test_every_ending_becomes_one_settlement(
    ending: Ending, state: ProfileState, label: str, charge: int, losses: int
) -> None:
    made = settlement(claimed(), Outcome(ending, error=BROKEN), 2, 0.5)
    assert (made.state, made.label, made.charge, made.losses) == (state, label, charge, losses)
    assert (made.run, made.attempt, made.pass_number) == (RUN, 1, 2)
    assert made.fails_pass is (ending is Ending.FAILED_BATCH)


@pytest.mark.parametrize("ending", [Ending.FAILED, Ending.RETRY])
def test_the_last_attempt_fails(ending: Ending) -> None:
    assert settlement(claimed(2), Outcome(ending, error=BROKEN), 2, 0.5).state is ProfileState.PENDING
    assert settlement(claimed(3), Outcome(ending, error=BROKEN), 2, 0.5).state is ProfileState.FAILED


def test_a_loss_fails_only_the_profile_that_ran_alone() -> None:
    lost = Outcome(Ending.LOST, error=worker_lost("gone"))
    assert [settlement(claimed(1, losses), lost, 2, 0).state for losses in (0, 1, 2)] == [
        ProfileState.PENDING,
        ProfileState.PENDING,
        ProfileState.FAILED,
    ]
    assert settlement(claimed(99, 0), lost, 2, 0).state is ProfileState.PENDING  # attempts are not what it used up


def test_the_asked_for_delay_wins_over_the_back_off() -> None:
    assert settlement(claimed(), Outcome(Ending.RETRY, error=BROKEN, delay=0.0), 2, 0.5).delay == 0.0
    assert settlement(claimed(), Outcome(Ending.RETRY, error=BROKEN), 2, 0.5).delay == 0.5
    assert settlement(claimed(), Outcome(Ending.GIVEN_BACK), 2, 0.5).delay is None


def test_retry_back_off_doubles_under_its_ceiling_with_full_jitter() -> None:
    options = BatchOptions(retry_backoff=2, retry_backoff_max=10)
    assert [retry_delay(attempt, options, 1.0) for attempt in (1, 2, 3, 4, 1000)] == [2, 4, 8, 10, 10]
    assert retry_delay(3, options, 0.0) == 0.0
    assert retry_delay(3, options, 0.25) == 2.0


def test_pass_back_off_doubles_under_its_ceiling() -> None:
    options = BatchOptions(pass_backoff=1, pass_backoff_max=5)
    assert [pass_delay(number, options) for number in (1, 2, 3, 4, 1000)] == [1, 2, 4, 5, 5]


@pytest.mark.parametrize(
    ("budget", "total", "allowed"),
    [(0, 100, 0), (3, 2, 3), (0.0, 100, 0), (0.5, 3, 1), (0.02, 49, 0), (0.02, 50, 1), (0.999, 1, 0), (0.5, 0, 0)],
)
def test_the_budget_is_a_count_or_a_ratio_rounded_down(budget: float, total: int, allowed: int) -> None:
    assert allowed_failures(BatchOptions(failure_budget=budget), total) == allowed


@pytest.mark.parametrize(("budget", "allowed"), [(0.29, 29), (0.57, 57), (0.58, 58), (0.07, 7)])
def test_a_ratio_means_what_it_says_in_decimals(budget: float, allowed: int) -> None:
    # As binary fractions, 0.29 x 100 and 0.57 x 100 are a little less than 29 and 57.
    assert allowed_failures(BatchOptions(failure_budget=budget), 100) == allowed


def test_the_window_covers_a_quarter_of_a_second_or_two_rounds_of_the_slots() -> None:
    assert lane_window(4, 0.0) == 8
    assert lane_window(4, 100.2) == 28
    assert lane_window(4, 100.0, exhausted=20) == 80  # the workers could do with more than was measured
    assert lane_window(4, 100.0, exhausted=5_000) == 2_500
    assert lane_window(4, 20_000.0, exhausted=5_000) == 5_400
    assert lane_window(4, 100.0, fixed=7) == 7
    assert lane_window(0, 0.0) == 0
