"""One conformance suite over the state manager, on both engines: what moves, what stays, what is refused and how."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import literal, select, update

from batching.dialects import later
from batching.errors import IllegalMoveError, InvalidInputError, UnknownBatchError
from batching.interfaces import Ending, IBatchStateManager, LeaderTerm, Outcome, RunId
from batching.models import attempts, batches, history, profiles, queues
from batching.options import BatchSpec, ProfileInput
from batching.states import TERMINAL_BATCH_STATES, BatchState, ProfileState, StopTarget
from tests.accounting import (
    BROKEN,
    DONE,
    FAILED,
    GIVEN_BACK,
    HANDLER,
    Desk,
    assert_accounted,
    effective_states,
    end,
    plant,
    plant_batch,
    read_batch,
    read_counts,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from batching.database import Database

LOST = Outcome(Ending.LOST, error=BROKEN)
FAILED_BATCH = Outcome(Ending.FAILED_BATCH, error=BROKEN)
REVOKED = Outcome(Ending.REVOKED, error=BROKEN)
SKIPPED = Outcome(Ending.SKIPPED, error=BROKEN)
RETRY = Outcome(Ending.RETRY, error=BROKEN, delay=0.0)


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


def implements(manager: IBatchStateManager) -> IBatchStateManager:
    """For the type checker: the class keeps the contract."""
    return manager


def reasons(desk: Desk, batch_id: str) -> list[str]:
    with desk.database.read() as connection:
        return list(
            connection.scalars(select(history.c.reason).where(history.c.batch_id == batch_id).order_by(history.c.id))
        )


def row(desk: Desk, batch_id: str, number: int) -> Any:
    with desk.database.read() as connection:
        return connection.execute(
            select(profiles).where(profiles.c.batch_id == batch_id, profiles.c.number == number)
        ).one()


def outcomes(desk: Desk, batch_id: str) -> list[str]:
    with desk.database.read() as connection:
        rows = connection.scalars(
            select(attempts.c.outcome)
            .where(attempts.c.batch_id == batch_id)
            .order_by(attempts.c.number, attempts.c.run)
        )
        return list(rows)


def test_it_keeps_the_contract(desk: Desk) -> None:
    assert implements(desk.states) is desk.states


# --- promote


def test_promote_takes_the_first_in_line_and_no_other(desk: Desk) -> None:
    first, second = desk.submit(1), desk.submit(1)
    assert desk.states.promote("default", desk.term) == first
    assert (desk.state(first), desk.state(second)) == (BatchState.RUNNING, BatchState.QUEUED)


def test_promote_goes_by_urgency_then_priority_then_position(desk: Desk) -> None:
    low, high, high_later = desk.submit(1), desk.submit(1, priority=5), desk.submit(1, priority=5)
    urgent = desk.submit(1, priority=-1)
    desk.states.request_promotion(urgent)
    order = [desk.states.promote("default", desk.term) for _ in range(5)]
    assert order == [urgent, high, high_later, low, None]


def test_promote_passes_over_what_backs_off_and_what_is_paused_or_of_another_queue(desk: Desk) -> None:
    waits, paused, other = desk.submit(1), desk.submit(1), desk.submit(1, queue="other")
    plant_batch(desk.database, waits, not_before=later(literal(60)))
    desk.states.stop(paused, StopTarget.PAUSED, "later")
    assert desk.states.promote("default", desk.term) is None
    assert desk.states.promote("other", desk.term) == other
    assert desk.state(waits) is BatchState.QUEUED


def test_promote_takes_nothing_from_a_paused_queue(desk: Desk) -> None:
    batch_id = desk.submit(1)
    with desk.database.begin() as connection:
        connection.execute(update(queues).values(paused=True))
    assert desk.states.promote("default", desk.term) is None
    assert desk.state(batch_id) is BatchState.QUEUED


def test_promote_can_be_told_the_handlers(desk: Desk) -> None:
    unserved, served = desk.submit(1, handler="tests.unserved"), desk.submit(1)
    assert desk.states.promote("default", desk.term, [HANDLER]) == served
    assert desk.states.promote("default", desk.term, [HANDLER]) is None
    assert desk.states.promote("default", desk.term) == unserved


def test_a_leader_whose_term_is_over_moves_nothing(desk: Desk) -> None:
    running, waiting = desk.start(2), desk.submit(1)
    old = desk.term
    desk.states.resign(old)
    assert desk.states.lead(str(uuid.uuid4()), 60) is not None
    assert desk.states.promote("default", old) is None
    assert desk.states.dispatch(running, 10, old) == []
    assert desk.states.take_back(desk.worker, None, old) is None
    assert desk.states.promote("default", LeaderTerm(old.holder, old.epoch + 1)) is None
    assert desk.state(waiting) is BatchState.QUEUED
    assert_accounted(desk.database, running)


# --- dispatch


def test_dispatch_goes_in_order_up_to_the_limit(desk: Desk) -> None:
    batch_id = desk.start(5)
    assert [run.number for run in desk.dispatch(batch_id, 2)] == [1, 2]
    assert [run.number for run in desk.dispatch(batch_id, 2)] == [3, 4]
    counts = assert_accounted(desk.database, batch_id)
    assert (counts.pending, counts.dispatched) == (1, 4)


def test_dispatch_leaves_alone_what_is_not_due(desk: Desk) -> None:
    batch_id = desk.start(3)
    plant(desk.database, batch_id, {"not_before": later(literal(60))}, 1, 3)
    assert [run.number for run in desk.dispatch(batch_id)] == [2]


def test_dispatch_offers_the_run_that_a_claim_grants_and_carries_no_payload(desk: Desk) -> None:
    batch_id = desk.start(1)
    (offer,) = desk.dispatches(batch_id)
    assert (offer.run.run, offer.key, offer.attempt, offer.pass_number, offer.alone) == (1, "k1", 1, 1, False)
    (won,) = desk.states.claim(desk.worker, [offer.run]).claimed
    assert (won.run, won.key, won.payload, won.attempt) == (offer.run, "k1", "1", 1)


@pytest.mark.parametrize("state", [BatchState.QUEUED, BatchState.PAUSED, *TERMINAL_BATCH_STATES])
def test_nothing_is_dispatched_of_a_batch_that_does_not_run(desk: Desk, state: BatchState) -> None:
    batch_id = desk.submit(2) if state in {BatchState.QUEUED, BatchState.PAUSED} else desk.finish(state)
    if state is BatchState.PAUSED:
        desk.states.stop(batch_id, StopTarget.PAUSED, "p")
    assert desk.dispatch(batch_id) == []
    assert_accounted(desk.database, batch_id)


def test_nothing_is_dispatched_of_an_unknown_batch(desk: Desk) -> None:
    assert desk.dispatch(str(uuid.uuid4())) == []


def test_nothing_is_dispatched_while_a_bulk_move_is_unwritten(desk: Desk) -> None:
    batch_id = desk.start(3)
    desk.dispatch(batch_id, 2)
    desk.states.stop(batch_id, StopTarget.PAUSED, "p")
    desk.states.resume(batch_id)
    desk.states.promote("default", desk.term)
    assert desk.dispatch(batch_id) == []
    desk.rewrite(batch_id)
    assert [run.number for run in desk.dispatch(batch_id)] == [1, 2, 3]


def test_a_profile_runs_alone_after_its_losses(desk: Desk) -> None:
    batch_id = desk.start(2)
    for alone in (False, False, True):
        first, second = desk.dispatches(batch_id)
        assert (first.alone, second.alone) == (alone, False)
        taken = desk.states.claim(desk.worker, [first.run, second.run]).claimed
        desk.settle(taken[:1], LOST)
        desk.settle(taken[1:], GIVEN_BACK)
    assert effective_states(desk.database, batch_id) == {1: ProfileState.FAILED, 2: ProfileState.PENDING}


# --- claim


def test_claim_grants_each_run_once(desk: Desk) -> None:
    runs = desk.dispatch(batch_id := desk.start(3))
    assert len(desk.states.claim(desk.worker, [*runs, *runs]).claimed) == 3
    again = desk.states.claim(str(uuid.uuid4()), runs)
    assert (again.claimed, again.refused) == ([], 3)
    counts = assert_accounted(desk.database, batch_id)
    assert (counts.running, counts.duplicates) == (3, 3)


def test_claim_refuses_older_and_later_runs_and_pending_profiles(desk: Desk) -> None:
    batch_id = desk.start(3)
    offered = desk.dispatch(batch_id, 1)[0]
    wrong = [offered._replace(run=0), offered._replace(run=2), RunId(batch_id, 2, 1), RunId(batch_id, 99, 1)]
    assert desk.states.claim(desk.worker, [*wrong, RunId(str(uuid.uuid4()), 1, 1)]).claimed == []
    assert effective_states(desk.database, batch_id)[1] is ProfileState.DISPATCHED
    assert len(desk.states.claim(desk.worker, [offered]).claimed) == 1


@pytest.mark.parametrize("target", [StopTarget.PAUSED, StopTarget.CANCELLED, StopTarget.EXPIRED])
def test_claim_is_refused_from_the_stop_on(desk: Desk, target: StopTarget) -> None:
    batch_id = desk.start(3)
    runs = desk.dispatch(batch_id)
    desk.states.claim(desk.worker, runs[:1])
    assert desk.states.stop(batch_id, target, "s") is BatchState.STOPPING
    assert desk.states.claim(desk.worker, runs[1:]).claimed == []
    assert_accounted(desk.database, batch_id)


def test_a_message_from_before_a_pause_is_refused_after_the_resume(desk: Desk) -> None:
    batch_id = desk.start(2)
    runs = desk.dispatch(batch_id)
    desk.states.stop(batch_id, StopTarget.PAUSED, "p")
    desk.states.resume(batch_id)
    desk.states.promote("default", desk.term)
    assert desk.states.claim(desk.worker, runs).claimed == []
    desk.rewrite(batch_id)
    assert desk.dispatch(batch_id) == runs  # the same run is offered again; the old message now serves as well
    assert len(desk.states.claim(desk.worker, runs).claimed) == 2
    assert_accounted(desk.database, batch_id)


# --- settle


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (DONE, ProfileState.SUCCEEDED),
        (FAILED, ProfileState.FAILED),
        (FAILED_BATCH, ProfileState.FAILED),
        (SKIPPED, ProfileState.SKIPPED),
        (REVOKED, ProfileState.CANCELLED),
        (LOST, ProfileState.PENDING),
        (GIVEN_BACK, ProfileState.PENDING),
    ],
)
def test_settle_moves_its_runs_and_no_neighbour(desk: Desk, outcome: Outcome, state: ProfileState) -> None:
    batch_id = desk.start(3)
    taken = desk.claim(batch_id, 2)
    desk.settle(taken[:1], outcome)
    expected = {1: state, 2: ProfileState.RUNNING, 3: ProfileState.PENDING}
    assert effective_states(desk.database, batch_id) == expected
    assert_accounted(desk.database, batch_id)


def test_a_late_result_changes_nothing_and_is_counted(desk: Desk) -> None:
    batch_id = desk.start(1)
    (first,) = desk.claim(batch_id)
    desk.settle([first], GIVEN_BACK)
    (second,) = desk.claim(batch_id)
    late = desk.states.settle(desk.worker, [end(first, FAILED)])
    assert (late.applied, late.late) == ([], [first.run])
    stranger = desk.states.settle(str(uuid.uuid4()), [end(second, FAILED)])
    assert stranger.late == [second.run]
    desk.settle([second])
    assert desk.states.settle(desk.worker, [end(second, FAILED)]).late == [second.run]
    counts = assert_accounted(desk.database, batch_id)
    assert (counts.succeeded, counts.failed, counts.late) == (1, 0, 3)
    assert outcomes(desk, batch_id) == ["given back"]


def test_one_run_that_ends_twice_in_one_group_counts_once(desk: Desk) -> None:
    # Celery reports a hard time limit twice.
    batch_id = desk.start(2)
    first, second = desk.claim(batch_id)
    result = desk.states.settle(desk.worker, [end(first, FAILED), end(second), end(first)])
    assert result.applied == [first.run, second.run]
    assert effective_states(desk.database, batch_id) == {1: ProfileState.FAILED, 2: ProfileState.SUCCEEDED}
    assert_accounted(desk.database, batch_id)


def test_a_failure_without_an_error_is_still_stored(desk: Desk) -> None:
    # One row that breaks a CHECK would keep its whole group from being settled, again and again.
    batch_id = desk.start(1)
    desk.settle(desk.claim(batch_id), Outcome(Ending.FAILED))
    assert row(desk, batch_id, 1).fingerprint == "unknown"


def test_attempts_count_within_a_pass_and_runs_for_ever(desk: Desk) -> None:
    batch_id = desk.start(1, max_attempts=2, max_passes=2)
    seen = []
    for _ in range(4):
        (claimed,) = desk.claim(batch_id)
        seen.append((claimed.attempt, claimed.run.run, claimed.terms.pass_number))
        desk.settle([claimed], Outcome(Ending.FAILED, error=BROKEN, delay=0.0))
        if desk.states.conclude([batch_id]):
            desk.rewrite(batch_id)
            desk.states.promote("default", desk.term)
    assert seen == [(1, 1, 1), (2, 2, 1), (1, 3, 2), (2, 4, 2)]
    assert desk.state(batch_id) is BatchState.FAILED
    assert outcomes(desk, batch_id) == ["retried", "failed", "retried", "failed"]


def test_losses_are_forgotten_when_a_run_ends_by_itself(desk: Desk) -> None:
    batch_id = desk.start(1, max_attempts=5)
    desk.settle(desk.claim(batch_id), LOST)
    assert row(desk, batch_id, 1).losses == 1
    desk.settle(desk.claim(batch_id), RETRY)
    assert (row(desk, batch_id, 1).losses, row(desk, batch_id, 1).attempts) == (0, 1)
    desk.settle(desk.claim(batch_id), GIVEN_BACK)
    assert (row(desk, batch_id, 1).losses, row(desk, batch_id, 1).attempts) == (0, 1)


@pytest.mark.parametrize(
    ("target", "state"),
    [
        (StopTarget.CANCELLED, ProfileState.CANCELLED),
        (StopTarget.EXPIRED, ProfileState.EXPIRED),
        (StopTarget.PAUSED, ProfileState.PENDING),
    ],
)
def test_what_would_wait_again_ends_with_a_batch_that_ends(desk: Desk, target: StopTarget, state: ProfileState) -> None:
    batch_id = desk.start(3)
    taken = desk.claim(batch_id, 2)
    desk.states.stop(batch_id, target, "s")
    desk.settle(taken[:1], GIVEN_BACK)
    desk.settle(taken[1:], DONE)
    assert desk.states.conclude([batch_id]) == [batch_id]
    assert desk.state(batch_id).value == target.value
    assert effective_states(desk.database, batch_id) == {1: state, 2: ProfileState.SUCCEEDED, 3: state}
    assert_accounted(desk.database, batch_id)


# --- conclude


def test_a_batch_finishes_when_its_last_profile_settles_and_not_before(desk: Desk) -> None:
    batch_id = desk.start(2)
    first, second = desk.claim(batch_id)
    desk.settle([first])
    assert desk.states.conclude([batch_id]) == []
    desk.settle([second], SKIPPED)
    assert desk.states.conclude([batch_id, batch_id]) == [batch_id]
    assert desk.states.conclude([batch_id]) == []
    assert desk.state(batch_id) is BatchState.SUCCEEDED


def test_an_empty_batch_succeeds(desk: Desk) -> None:
    batch_id = desk.start(0)
    assert desk.states.conclude([batch_id]) == [batch_id]
    assert desk.state(batch_id) is BatchState.SUCCEEDED


def test_conclude_passes_over_unknown_and_waiting_batches(desk: Desk) -> None:
    batch_id = desk.submit(0)
    assert desk.states.conclude([batch_id, str(uuid.uuid4())]) == []
    assert desk.states.conclude([]) == []
    assert desk.state(batch_id) is BatchState.QUEUED


def test_within_the_budget_a_batch_succeeds_failures_and_all(desk: Desk) -> None:
    batch_id = desk.start(4, failure_budget=1)
    desk.work(batch_id, lambda number: FAILED if number == 2 else DONE)
    assert desk.state(batch_id) is BatchState.SUCCEEDED
    assert assert_accounted(desk.database, batch_id).failed == 1


def test_revoked_and_skipped_profiles_do_not_fail_the_pass(desk: Desk) -> None:
    batch_id = desk.start(2)
    desk.work(batch_id, lambda number: REVOKED if number == 1 else SKIPPED)
    assert desk.state(batch_id) is BatchState.SUCCEEDED


def test_a_failed_batch_goes_to_the_end_and_runs_only_what_is_not_done(desk: Desk) -> None:
    batch_id, other = desk.start(3), desk.submit(1)
    desk.work(batch_id, lambda number: FAILED if number == 2 else DONE)
    assert desk.state(batch_id) is BatchState.QUEUED
    desk.rewrite(batch_id)
    assert desk.states.promote("default", desk.term) == other
    assert desk.states.promote("default", desk.term) == batch_id
    assert [run.number for run in desk.dispatch(batch_id)] == [2]
    assert read_batch(desk.database, batch_id).pass_number == 2


def test_a_spent_budget_stops_the_pass_at_once_and_what_runs_may_settle(desk: Desk) -> None:
    batch_id = desk.start(4)
    first, second, third = desk.claim(batch_id, 3)
    desk.settle([first], FAILED)
    assert desk.states.conclude([batch_id]) == [batch_id]
    assert desk.state(batch_id) is BatchState.STOPPING
    desk.settle([second])
    assert desk.states.conclude([batch_id]) == []
    desk.settle([third], FAILED)
    assert desk.states.conclude([batch_id]) == [batch_id]
    assert desk.state(batch_id) is BatchState.QUEUED
    counts = assert_accounted(desk.database, batch_id)
    assert (counts.pending, counts.succeeded) == (3, 1)


def test_without_fail_fast_the_pass_runs_to_its_end(desk: Desk) -> None:
    batch_id = desk.start(3, fail_fast=False, max_passes=1)
    first, second, third = desk.claim(batch_id)
    desk.settle([first], FAILED)
    assert desk.states.conclude([batch_id]) == []
    desk.settle([second, third])
    assert desk.states.conclude([batch_id]) == [batch_id]
    assert desk.state(batch_id) is BatchState.FAILED
    assert assert_accounted(desk.database, batch_id).succeeded == 2


def test_fail_batch_fails_the_pass_whatever_the_budget(desk: Desk) -> None:
    batch_id = desk.start(3, failure_budget=3, max_passes=2)
    desk.work(batch_id, lambda number: FAILED_BATCH if number == 1 else DONE)
    assert desk.state(batch_id) is BatchState.QUEUED
    assert read_counts(desk.database, batch_id).aborts == 0  # the next pass begins without them
    desk.rewrite(batch_id)
    desk.states.promote("default", desk.term)
    desk.work(batch_id)
    assert desk.state(batch_id) is BatchState.SUCCEEDED


def test_the_last_pass_fails_the_batch_and_what_never_ran_is_cancelled(desk: Desk) -> None:
    batch_id = desk.start(3, max_passes=1)
    taken = desk.claim(batch_id, 1)
    desk.settle(taken, FAILED)
    desk.states.conclude([batch_id])
    assert desk.state(batch_id) is BatchState.FAILED
    counts = assert_accounted(desk.database, batch_id)
    assert (counts.failed, counts.cancelled) == (1, 2)


@pytest.mark.parametrize(
    ("policy", "state", "order"),
    [
        ("tail", BatchState.QUEUED, [1, 2, 0]),
        ("front", BatchState.QUEUED, [0, 1, 2]),
        ("keep", BatchState.QUEUED, [0, 1, 2]),
        ("park", BatchState.PAUSED, [1, 2]),
    ],
)
def test_where_a_failed_batch_goes_is_its_policy(desk: Desk, policy: str, state: BatchState, order: list[int]) -> None:
    line = [desk.start(1, requeue=policy), desk.submit(1), desk.submit(1)]
    desk.work(line[0], lambda _: FAILED)
    assert desk.state(line[0]) is state
    promoted = [desk.states.promote("default", desk.term) for _ in order]
    assert promoted == [line[index] for index in order]


def test_a_batch_backs_off_between_passes(desk: Desk) -> None:
    batch_id = desk.start(1, pass_backoff=600, pass_backoff_max=600)
    desk.work(batch_id, lambda _: FAILED)
    assert desk.states.promote("default", desk.term) is None
    desk.states.request_promotion(batch_id)
    assert desk.states.promote("default", desk.term) == batch_id


# --- stop


@pytest.mark.parametrize("target", [StopTarget.PAUSED, StopTarget.CANCELLED, StopTarget.EXPIRED])
@pytest.mark.parametrize("start", ["queued", "paused", "idle", "dispatched"])
def test_a_stop_of_what_does_not_run_is_done_at_once(desk: Desk, target: StopTarget, start: str) -> None:
    batch_id = desk.start(3) if start in {"idle", "dispatched"} else desk.submit(3)
    neighbour = desk.submit(2)
    if start == "dispatched":
        desk.dispatch(batch_id, 2)
    if start == "paused":
        desk.states.stop(batch_id, StopTarget.PAUSED, "first")
    assert desk.states.stop(batch_id, target, "s").value == target.value
    expected = ProfileState.PENDING if target is StopTarget.PAUSED else ProfileState(target.value)
    assert set(effective_states(desk.database, batch_id).values()) == {expected}
    assert_accounted(desk.database, batch_id)
    desk.rewrite(batch_id)
    assert set(effective_states(desk.database, batch_id).values()) == {expected}
    assert desk.state(neighbour) is BatchState.QUEUED
    assert assert_accounted(desk.database, neighbour).pending == 2


def test_a_stronger_stop_replaces_a_weaker_one_and_never_the_other_way(desk: Desk) -> None:
    batch_id = desk.start(2)
    taken = desk.claim(batch_id, 1)
    assert desk.states.stop(batch_id, StopTarget.PAUSED, "pause") is BatchState.STOPPING
    assert desk.states.stop(batch_id, StopTarget.CANCELLED, "cancel") is BatchState.STOPPING
    assert desk.states.stop(batch_id, StopTarget.PAUSED, "pause again") is BatchState.STOPPING
    assert read_batch(desk.database, batch_id).target is StopTarget.CANCELLED
    desk.settle(taken)
    desk.states.conclude([batch_id])
    assert desk.state(batch_id) is BatchState.CANCELLED
    counts = assert_accounted(desk.database, batch_id)
    assert (counts.succeeded, counts.cancelled) == (1, 1)


def test_the_reason_is_that_of_the_stop_that_holds(desk: Desk) -> None:
    batch_id = desk.start(2)
    taken = desk.claim(batch_id, 1)
    desk.states.stop(batch_id, StopTarget.CANCELLED, "wrong input")
    desk.settle(taken)
    assert desk.states.stop(batch_id, StopTarget.PAUSED, "too early") is BatchState.CANCELLED
    assert reasons(desk, batch_id)[-1] == "wrong input"


def test_a_pause_that_meets_the_last_settlements_finishes_the_batch(desk: Desk) -> None:
    batch_id = desk.start(1)
    taken = desk.claim(batch_id)
    desk.states.stop(batch_id, StopTarget.PAUSED, "p")
    desk.settle(taken)
    desk.states.conclude([batch_id])
    assert desk.state(batch_id) is BatchState.SUCCEEDED


def test_a_pause_that_meets_the_last_failure_still_requeues_the_batch(desk: Desk) -> None:
    batch_id = desk.start(1, max_passes=2)
    taken = desk.claim(batch_id)
    desk.states.stop(batch_id, StopTarget.PAUSED, "p")
    desk.settle(taken, FAILED)
    desk.states.conclude([batch_id])
    assert (desk.state(batch_id), read_batch(desk.database, batch_id).pass_number) == (BatchState.QUEUED, 2)
    assert assert_accounted(desk.database, batch_id).pending == 1


def test_pausing_twice_is_no_error(desk: Desk) -> None:
    batch_id = desk.submit(1)
    assert desk.states.stop(batch_id, StopTarget.PAUSED, "p") is BatchState.PAUSED
    assert desk.states.stop(batch_id, StopTarget.PAUSED, "p") is BatchState.PAUSED


@pytest.mark.parametrize("state", sorted(TERMINAL_BATCH_STATES))
@pytest.mark.parametrize(("target", "verb"), [(StopTarget.PAUSED, "pause"), (StopTarget.CANCELLED, "cancel")])
def test_a_finished_batch_cannot_be_stopped(desk: Desk, state: BatchState, target: StopTarget, verb: str) -> None:
    batch_id = desk.finish(state)
    with pytest.raises(IllegalMoveError) as refused:
        desk.states.stop(batch_id, target, "s")
    assert str(refused.value) == (f"cannot {verb} batch {batch_id}: it is {state}; finished batches stay as they are")
    assert desk.state(batch_id) is state


# --- resume, retry, move, mark_completed, request_promotion


def test_resume_returns_a_batch_to_its_old_position(desk: Desk) -> None:
    first, second = desk.submit(1), desk.submit(1)
    desk.states.stop(first, StopTarget.PAUSED, "p")
    assert desk.states.resume(first) is BatchState.QUEUED
    assert [desk.states.promote("default", desk.term) for _ in range(2)] == [first, second]


def test_only_paused_batches_can_be_resumed(desk: Desk) -> None:
    for state in (BatchState.QUEUED, BatchState.RUNNING, *sorted(TERMINAL_BATCH_STATES)):
        batch_id = in_state(desk, state)
        with pytest.raises(IllegalMoveError) as refused:
            desk.states.resume(batch_id)
        assert str(refused.value) == (
            f"cannot resume batch {batch_id}: it is {state}; only paused batches can be resumed"
        )
        assert desk.state(batch_id) is state


def test_resume_says_that_a_pause_is_on_its_way(desk: Desk) -> None:
    batch_id = desk.start(2)
    desk.claim(batch_id)
    desk.states.stop(batch_id, StopTarget.PAUSED, "p")
    with pytest.raises(IllegalMoveError, match="it is on its way to paused, try again in a moment"):
        desk.states.resume(batch_id)


@pytest.mark.parametrize("state", [BatchState.FAILED, BatchState.CANCELLED, BatchState.EXPIRED])
def test_retry_opens_a_new_pass_at_the_end_over_what_is_not_done(desk: Desk, state: BatchState) -> None:
    batch_id, other = desk.finish(state, 3), desk.submit(1)
    assert desk.states.retry(batch_id, "again") == 2
    assert desk.state(batch_id) is BatchState.QUEUED
    assert assert_accounted(desk.database, batch_id).pending == 3
    assert reasons(desk, batch_id)[-1] == "again"
    assert [desk.states.promote("default", desk.term) for _ in range(2)] == [other, batch_id]
    desk.rewrite(batch_id)
    desk.work(batch_id)
    assert desk.state(batch_id) is BatchState.SUCCEEDED
    assert_accounted(desk.database, batch_id)


def test_retry_gives_back_all_the_passes(desk: Desk) -> None:
    batch_id = desk.start(1, max_passes=2)
    for _ in range(2):
        desk.work(batch_id, lambda _: FAILED)
        desk.rewrite(batch_id)
        desk.states.promote("default", desk.term)
    assert desk.state(batch_id) is BatchState.FAILED
    assert desk.states.retry(batch_id) == 3
    batch = read_batch(desk.database, batch_id)
    assert (batch.pass_number, batch.last_pass) == (3, 4)


def test_retry_leaves_what_succeeded_alone(desk: Desk) -> None:
    batch_id = desk.start(3, failure_budget=1)
    desk.work(batch_id, lambda number: FAILED if number == 2 else DONE)
    desk.states.retry(batch_id)
    assert effective_states(desk.database, batch_id) == {
        1: ProfileState.SUCCEEDED,
        2: ProfileState.PENDING,
        3: ProfileState.SUCCEEDED,
    }
    assert_accounted(desk.database, batch_id)


def test_only_finished_batches_can_be_retried(desk: Desk) -> None:
    for state in (BatchState.QUEUED, BatchState.RUNNING, BatchState.PAUSED):
        batch_id = in_state(desk, state)
        with pytest.raises(IllegalMoveError) as refused:
            desk.states.retry(batch_id)
        assert str(refused.value) == (
            f"cannot retry batch {batch_id}: it is {state}; only finished batches can be retried"
        )
        assert read_batch(desk.database, batch_id).pass_number == 1


def test_a_batch_that_is_all_done_cannot_be_retried(desk: Desk) -> None:
    batch_id = desk.finish(BatchState.SUCCEEDED)
    with pytest.raises(IllegalMoveError, match="all of its 2 profiles are done; submit a new batch"):
        desk.states.retry(batch_id)
    assert desk.state(batch_id) is BatchState.SUCCEEDED


@pytest.mark.parametrize(
    ("place", "order"),
    [
        ("front", [2, 0, 1, 3]),
        ("end", [0, 1, 3, 2]),
        (1, [2, 0, 1, 3]),
        (2, [0, 2, 1, 3]),
        (3, [0, 1, 2, 3]),
        (99, [0, 1, 3, 2]),
    ],
)
def test_move_puts_a_batch_in_its_place_and_keeps_the_others_in_order(
    desk: Desk, place: int | str, order: list[int]
) -> None:
    line = [desk.submit(1) for _ in range(4)]
    position = desk.states.move(line[2], place)
    assert read_batch(desk.database, line[2]).position == position
    assert [desk.states.promote("default", desk.term) for _ in line] == [line[index] for index in order]


def test_move_deals_equal_positions_out_again(desk: Desk) -> None:
    line = [desk.submit(1) for _ in range(3)]
    for batch_id in line:
        plant_batch(desk.database, batch_id, position=5)
    desk.states.move(line[0], 3)
    assert [desk.states.promote("default", desk.term) for _ in line] == [line[1], line[2], line[0]]


def test_move_stays_inside_its_priority_and_queue(desk: Desk) -> None:
    other = desk.submit(1, queue="other")
    high, low, low_later = desk.submit(1, priority=1), desk.submit(1), desk.submit(1)
    before = read_batch(desk.database, other)
    desk.states.move(low_later, 1)
    assert [desk.states.promote("default", desk.term) for _ in range(3)] == [high, low_later, low]
    assert read_batch(desk.database, other) == before


def test_only_waiting_batches_can_be_moved(desk: Desk) -> None:
    for state in (BatchState.RUNNING, *sorted(TERMINAL_BATCH_STATES)):
        batch_id = in_state(desk, state)
        position = read_batch(desk.database, batch_id).position
        with pytest.raises(IllegalMoveError) as refused:
            desk.states.move(batch_id, 1)
        assert str(refused.value) == (
            f"cannot move batch {batch_id}: it is {state}; only queued and paused batches have a place to change"
        )
        assert read_batch(desk.database, batch_id).position == position


def test_a_place_must_be_one(desk: Desk) -> None:
    places: tuple[Any, ...] = (0, -1, True, "first", 1.5, None)
    for place in places:
        batch_id = desk.submit(1)
        with pytest.raises(InvalidInputError, match=r"a place is front, end, or 1, 2, 3, …"):
            desk.states.move(batch_id, place)


def test_mark_completed_finishes_what_is_settled_and_is_idempotent(desk: Desk) -> None:
    batch_id = desk.start(1)
    desk.settle(desk.claim(batch_id))
    assert desk.states.mark_completed(batch_id) is BatchState.SUCCEEDED
    assert desk.states.mark_completed(batch_id) is BatchState.SUCCEEDED
    assert reasons(desk, batch_id).count("") == 1


def test_mark_completed_leaves_a_finished_batch_as_it_is(desk: Desk) -> None:
    for state in sorted(TERMINAL_BATCH_STATES):
        batch_id = in_state(desk, state)
        assert desk.states.mark_completed(batch_id) is state


def test_mark_completed_is_refused_while_profiles_are_unsettled(desk: Desk) -> None:
    for state in (BatchState.QUEUED, BatchState.RUNNING, BatchState.PAUSED):
        batch_id = in_state(desk, state)
        with pytest.raises(IllegalMoveError) as refused:
            desk.states.mark_completed(batch_id)
        assert str(refused.value) == (
            f"cannot complete batch {batch_id}: 2 of its 2 profiles are unsettled; wait for them, or cancel the batch"
        )
        assert desk.state(batch_id) is state


def test_mark_completed_does_not_whitewash_a_failed_pass(desk: Desk) -> None:
    batch_id = desk.start(1, max_passes=1)
    desk.settle(desk.claim(batch_id), FAILED)
    assert desk.states.mark_completed(batch_id) is BatchState.FAILED


def test_asking_for_promotion_is_durable_and_harmless_while_running(desk: Desk) -> None:
    running = desk.start(1)
    assert desk.states.request_promotion(running) is BatchState.RUNNING
    first, second = desk.submit(1), desk.submit(1)
    assert desk.states.request_promotion(second) is BatchState.QUEUED
    assert [desk.states.promote("default", desk.term) for _ in range(2)] == [second, first]


@pytest.mark.parametrize(
    ("state", "advice"),
    [(BatchState.PAUSED, "Resume it first")]
    + [(state, "Retry it to open a new pass") for state in sorted(TERMINAL_BATCH_STATES)],
)
def test_only_queued_batches_can_be_asked_to_run(desk: Desk, state: BatchState, advice: str) -> None:
    batch_id = in_state(desk, state)
    with pytest.raises(IllegalMoveError) as refused:
        desk.states.request_promotion(batch_id)
    assert str(refused.value) == (
        f"cannot execute batch {batch_id}: it is {state}; only queued batches can be asked to run. {advice}"
    )


VERBS: dict[str, Callable[[Desk, str], object]] = {
    "stop": lambda desk, batch_id: desk.states.stop(batch_id, StopTarget.CANCELLED, "s"),
    "resume": lambda desk, batch_id: desk.states.resume(batch_id),
    "retry": lambda desk, batch_id: desk.states.retry(batch_id),
    "move": lambda desk, batch_id: desk.states.move(batch_id, 1),
    "mark_completed": lambda desk, batch_id: desk.states.mark_completed(batch_id),
    "request_promotion": lambda desk, batch_id: desk.states.request_promotion(batch_id),
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_sees_an_unknown_batch_or_one_that_loads(desk: Desk, verb: str) -> None:
    loading = desk.states.create_batch(BatchSpec(HANDLER, "b")).id
    for unknown in (str(uuid.UUID(int=7)), "nightly", "", "0192", loading):
        with pytest.raises(UnknownBatchError) as refused:
            VERBS[verb](desk, unknown)
        assert str(refused.value) == f"there is no batch {unknown}; `batching list` shows those there are"
    assert desk.state(loading) is BatchState.LOADING


# --- loading, and the end of keeping


def test_a_sealed_batch_takes_nothing_more(desk: Desk) -> None:
    batch_id = desk.submit(1)
    with pytest.raises(IllegalMoveError, match=f"cannot add profiles to batch {batch_id}: it does not load any more"):
        desk.states.add_profiles(batch_id, [ProfileInput("x", "1")])
    with pytest.raises(IllegalMoveError, match=f"cannot seal batch {batch_id}: it does not load any more"):
        desk.states.seal(batch_id)
    assert desk.states.abandon(batch_id) is False
    assert assert_accounted(desk.database, batch_id).pending == 1


def test_an_abandoned_batch_is_gone_and_its_neighbour_is_not(desk: Desk) -> None:
    loading, kept = desk.states.create_batch(BatchSpec(HANDLER, "b", key="k")).id, desk.submit(1)
    desk.states.add_profiles(loading, [ProfileInput("x", "1")])
    assert desk.states.abandon(loading) is True
    with desk.database.read() as connection:
        assert list(connection.scalars(select(batches.c.id))) == [kept]
        assert len(connection.execute(select(profiles.c.number)).all()) == 1
    assert desk.states.create_batch(BatchSpec(HANDLER, "b", key="k")).created


def test_prune_deletes_old_finished_batches_in_steps_and_nothing_else(desk: Desk) -> None:
    old = desk.finish(BatchState.FAILED, 7)
    plant_batch(desk.database, old, finished_at=later(literal(-3 * 86_400.0)))
    kept = [desk.finish(BatchState.SUCCEEDED), desk.submit(1), desk.start(1, queue="other")]
    assert desk.states.prune(2, step=3) == 1
    assert desk.states.prune(2) == 0
    with desk.database.read() as connection:
        assert set(connection.scalars(select(batches.c.id))) == set(kept)
        assert Counter(connection.scalars(select(profiles.c.batch_id)))[old] == 0
        assert outcomes(desk, old) == []


def test_a_prune_that_is_killed_half_way_is_finished_by_the_sweep(desk: Desk) -> None:
    from batching.moves import retention, submission

    old = desk.finish(BatchState.FAILED, 7)
    with desk.database.begin() as connection:
        assert retention.condemn(connection, old)
        assert submission.delete_some(connection, old, 3)
    with pytest.raises(UnknownBatchError):
        desk.states.retry(old)
    assert desk.states.sweep_abandoned() == [old]
    with desk.database.read() as connection:
        assert connection.execute(select(batches.c.id)).all() == []


def in_state(desk: Desk, state: BatchState) -> str:
    """A batch of two profiles in a state, beside whatever others there are."""
    while desk.states.promote("default", desk.term):
        pass  # what waits is out of the way
    if state in TERMINAL_BATCH_STATES:
        return desk.finish(state)
    if state is BatchState.RUNNING:
        return desk.start(2)
    batch_id = desk.submit(2)
    if state is BatchState.PAUSED:
        desk.states.stop(batch_id, StopTarget.PAUSED, "p")
    return batch_id
