"""Retry, back-off, budget and dispatch policies as pure functions: no SQL, no clock, no randomness of their own."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Final, NamedTuple

from batching.brakes import Brakes, Limit, LimitKey, burst_of
from batching.interfaces import Claimed, Ending, ErrorInfo, Outcome, Settlement
from batching.states import LimitKind, ProfileState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from batching.options import BatchOptions


def retry_delay(attempt: int, options: BatchOptions, jitter: float) -> float:
    """Seconds until the next attempt after `attempt` (counted from 1) failed.

    Exponential with full jitter: a uniform share of base x 2^(attempt - 1), under the ceiling
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).

    Args:
        attempt: The attempt that just failed.
        options: The batch's options.
        jitter: Uniform in [0, 1).
    """
    return jitter * min(options.retry_backoff_max, options.retry_backoff * 2.0 ** min(attempt - 1, 32))


def pass_delay(pass_number: int, options: BatchOptions) -> float:
    """Seconds that a batch waits after pass `pass_number` (counted from 1) failed. No jitter: batches are few."""
    return min(options.pass_backoff_max, options.pass_backoff * 2.0 ** min(pass_number - 1, 32))


def callback_delay(attempt: int, attempts: int, backoff: float) -> float | None:
    """Seconds until a callback is tried again after `attempt` (counted from 1) failed; None: it is dead.

    Exponential, an hour at most.

    Args:
        attempt: The attempt that just failed.
        attempts: So many in all.
        backoff: Seconds after the first.
    """
    if attempt >= attempts:
        return None
    return min(3_600.0, backoff * 2.0 ** min(attempt - 1, 32))


def allowed_failures(options: BatchOptions, total: int) -> int:
    """How many profiles of a pass may fail: the count, or the ratio of the total rounded down."""
    return _allowed(options.failure_budget, total)


def _allowed(budget: float, total: int) -> int:
    if isinstance(budget, int):
        return budget
    # Of the ratio as people write it: as a binary fraction, 0.29 of 100 would be a little less than 29.
    return math.floor(Fraction(str(budget)) * total)


def least_allowed(options: BatchOptions, total: int) -> int:
    """So many failures are within every budget, whatever their classes."""
    budgets = (options.failure_budget, *options.failure_budgets.values())
    return min(_allowed(each, total) for each in budgets)


class Overspent(NamedTuple):
    """A budget that is used up."""

    failed: int
    allowed: int
    where: str
    """Which one, as it goes on after "failed"."""


def overspent(options: BatchOptions, total: int, failed: Mapping[str, int]) -> Overspent | None:
    """The first budget that a pass has used up; None: it is within all of them.

    A failure counts against the budget of its class, and against the general one when its class has none.

    Args:
        options: The batch's.
        total: Profiles of the batch.
        failed: Failed profiles by the class of their error, `module.Class` or a bare name.
    """
    budgets = options.failure_budgets
    spent = dict.fromkeys(("", *budgets), 0)
    for name, number in failed.items():
        spent[_budget_of(name, budgets)] += number
    for name, number in spent.items():
        allowed = _allowed(budgets[name] if name else options.failure_budget, total)
        if number > allowed:
            beside = " with errors that have no budget of their own" if budgets else ""
            return Overspent(number, allowed, f" with {name}" if name else beside)
    return None


def _budget_of(name: str, budgets: Mapping[str, float]) -> str:
    """A class is named in full, or by its last part."""
    return name if name in budgets else last if (last := name.rpartition(".")[2]) in budgets else ""


#: Seconds of a lane's rate that are in the broker: the leader looks again before half of it is consumed.
WINDOW_TIME = 0.27
#: Messages up to which the window of a lane that ran dry grows beyond what was measured.
_GROWN = 2_500


def lane_window(slots: int, rate: float, fixed: int = 0, *, exhausted: int = 0) -> int:
    """Messages of one lane that may be in the broker at once.

    Args:
        slots: Pool slots of the live workers that serve the lane.
        rate: Profiles consumed in the lane, per second, measured.
        fixed: A setting that overrides the measurement; 0 for none.
        exhausted: The window that the workers have just emptied, so that the rate is no more than what they were given;
            0 when they have not.
    """
    return fixed or max(2 * slots, math.ceil(WINDOW_TIME * rate), min(_GROWN, 4 * exhausted))


def names_of(options: BatchOptions) -> tuple[LimitKey, ...]:
    """The shared limits that a batch names."""
    return tuple(LimitKey(LimitKind.KEY, name) for name in options.rate_limits)


def brakes_of(
    batch_id: str, options: BatchOptions, queue_cap: int | None = None, shared: Collection[LimitKey] = ()
) -> Brakes:
    """All that holds one batch back.

    Args:
        batch_id: Whose.
        options: Its own cap and rate.
        queue_cap: Its queue's.
        shared: The limits that there are of its queue, its handler, and the keys that it names.
    """
    own, limits = None, set(shared)
    if options.rate_limit is not None:
        burst = burst_of(options.rate_limit)
        own = Limit(LimitKey(LimitKind.BATCH, batch_id), options.rate_limit, burst, burst)
        limits.add(own.key)
    return Brakes(options.max_concurrency, queue_cap, own, tuple(sorted(limits)))


def worker_lost(message: str) -> ErrorInfo:
    """The error of a profile whose worker or pool child died under it too often."""
    return ErrorInfo("WorkerLost", message, "worker-lost")


_DONE: Final = ProfileState.SUCCEEDED


def settlement(  # noqa: C901, PLR0911 - a table of endings, read best in one place
    claimed: Claimed, outcome: Outcome, max_losses: int, jitter: float
) -> Settlement:
    """What to write for a run that ended: the one place where an ending becomes a state.

    Args:
        claimed: The run, with the attempts and losses that it started with.
        outcome: How it ended.
        max_losses: Losses after which a profile runs alone, and one more fails it.
        jitter: Uniform in [0, 1), for the back-off.
    """
    ending = outcome.ending
    if ending is Ending.SUCCEEDED:  # first, and without what the others need: nearly all end so
        run, attempt, terms = claimed.run, claimed.attempt, claimed.terms
        return Settlement(run, _DONE, _DONE.value, attempt, terms.pass_number, outcome.result, charge=1)
    options = claimed.terms.options

    def to(state: ProfileState, label: str, **more: object) -> Settlement:
        return Settlement(claimed.run, state, label, claimed.attempt, claimed.terms.pass_number, **more)  # type: ignore[arg-type]

    match ending:
        case Ending.SKIPPED:
            return to(ProfileState.SKIPPED, "skipped", error=outcome.error, charge=1)
        case Ending.REVOKED:
            return to(ProfileState.CANCELLED, "cancelled", error=outcome.error, charge=1)
        case Ending.GIVEN_BACK:
            return to(ProfileState.PENDING, "given back")
        case Ending.FAILED_BATCH:
            return to(ProfileState.FAILED, "failed", error=outcome.error, charge=1, fails_pass=True)
        case Ending.LOST:
            if claimed.losses >= max_losses:
                return to(ProfileState.FAILED, "failed", error=outcome.error, losses=1)
            return to(ProfileState.PENDING, "lost", error=outcome.error, losses=1)
        case Ending.RETRY | Ending.FAILED:
            if claimed.attempt >= options.max_attempts:
                return to(ProfileState.FAILED, "failed", error=outcome.error, charge=1)
            delay = outcome.delay
            if delay is None:
                delay = retry_delay(claimed.attempt, options, jitter)
            return to(ProfileState.PENDING, "retried", error=outcome.error, charge=1, delay=delay)
