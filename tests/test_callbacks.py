"""The outbox: which rows an ending writes, in its own transaction and once; how deliveries take and settle them."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import literal, select

from batching.dialects import later
from batching.errors import IllegalMoveError, InvalidInputError, UnknownBatchError, UnknownCallbackError
from batching.interfaces import Ending, Outcome
from batching.models import callbacks, profiles
from batching.moves import batch as batch_moves
from batching.moves import callbacks as outbox
from batching.moves import profile, retention
from batching.options import BatchOptions
from batching.policies import callback_delay
from batching.states import BatchState, CallbackState, StopTarget
from tests.accounting import BROKEN, FAILED, Desk, end, plant_batch, statements
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batching.callbacks import Callback
    from batching.database import Database

ASKED: dict[str, Any] = {"on_success": "app.good", "on_failure": "app.bad", "on_finish": "app.over"}
OTHER = str(uuid.UUID(int=2))


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def told(desk: Desk, batch_id: str) -> list[tuple[str, int, str]]:
    """What is told of a batch: event, pass, and the state that it says."""
    return [(row.event, row.pass_number, row.document["state"]) for row in rows(desk, batch_id)]


def rows(desk: Desk, batch_id: str) -> list[Any]:
    with desk.database.read() as connection:
        found = select(callbacks).where(callbacks.c.batch_id == batch_id).order_by(callbacks.c.id)
        return list(connection.execute(found))


def take_one(desk: Desk, lease: float = 60.0) -> Callback:
    [taken] = desk.states.take_callbacks(10, lease)
    return taken


def one_that_waits(desk: Desk) -> str:
    """A finished batch of which one callback waits."""
    batch_id = desk.start(1, on_finish="app.over")
    desk.work(batch_id)
    return batch_id


# --- which endings tell what


def test_a_success_tells_success_and_finish(desk: Desk) -> None:
    batch_id = desk.start(2, **ASKED)
    desk.work(batch_id, limit=1)
    assert told(desk, batch_id) == []
    desk.work(batch_id)
    assert told(desk, batch_id) == [("success", 1, "succeeded"), ("finish", 1, "succeeded")]


def test_each_failed_pass_tells_failure_once_and_the_last_one_also_finish(desk: Desk) -> None:
    batch_id = desk.start(2, max_passes=2, **ASKED)
    desk.work(batch_id, lambda _: FAILED)
    assert told(desk, batch_id) == [("failure", 1, "queued")]
    desk.rewrite(batch_id)
    assert desk.states.promote("default", desk.term) == batch_id
    desk.work(batch_id, lambda _: FAILED)
    assert told(desk, batch_id)[1:] == [("failure", 2, "failed"), ("finish", 2, "failed")]
    desk.states.conclude([batch_id])
    assert len(rows(desk, batch_id)) == 3


def test_a_parked_batch_tells_of_its_failed_pass(desk: Desk) -> None:
    batch_id = desk.start(1, requeue="park", **ASKED)
    desk.work(batch_id, lambda _: FAILED)
    assert told(desk, batch_id) == [("failure", 1, "paused")]


@pytest.mark.parametrize("target", [StopTarget.CANCELLED, StopTarget.EXPIRED])
@pytest.mark.parametrize("state", ["queued", "paused", "running", "last pending"])
def test_a_batch_that_is_cancelled_or_expires_tells_finish_alone(desk: Desk, target: StopTarget, state: str) -> None:
    batch_id = desk.submit(2, **ASKED)
    if state == "paused":
        desk.states.stop(batch_id, StopTarget.PAUSED, "p")
    if state in {"running", "last pending"}:
        desk.states.promote("default", desk.term)
    if state == "last pending":
        desk.work(batch_id, limit=1)
    desk.states.stop(batch_id, target, "no more")
    assert told(desk, batch_id) == [("finish", 1, target)]
    assert rows(desk, batch_id)[0].document["reason"] == "no more"


def test_a_batch_whose_last_profile_is_revoked_still_tells(desk: Desk) -> None:
    batch_id = desk.start(1, **ASKED)
    desk.work(batch_id, lambda _: Outcome(Ending.REVOKED, error=BROKEN))
    assert told(desk, batch_id) == [("success", 1, "succeeded"), ("finish", 1, "succeeded")]


@pytest.mark.parametrize("how", ["concluded", "completed by hand"])
def test_an_empty_batch_tells_too(desk: Desk, how: str) -> None:
    batch_id = desk.submit(0, **ASKED)
    if how == "concluded":
        desk.states.promote("default", desk.term)
        desk.states.conclude([batch_id])
    else:
        desk.states.mark_completed(batch_id)
        desk.states.mark_completed(batch_id)
    assert told(desk, batch_id) == [("success", 1, "succeeded"), ("finish", 1, "succeeded")]


def test_a_retry_that_succeeds_tells_again_in_its_own_pass(desk: Desk) -> None:
    batch_id = desk.start(1, max_passes=1, **ASKED)
    desk.work(batch_id, lambda _: FAILED)
    desk.states.retry(batch_id)
    desk.rewrite(batch_id)
    desk.states.promote("default", desk.term)
    desk.work(batch_id)
    assert told(desk, batch_id) == [
        ("failure", 1, "failed"),
        ("finish", 1, "failed"),
        ("success", 2, "succeeded"),
        ("finish", 2, "succeeded"),
    ]


def test_who_did_not_ask_is_not_told_and_costs_no_statement(desk: Desk) -> None:
    batch_id, neighbour = desk.start(1), desk.submit(1, **ASKED)
    with statements(desk.database) as seen:
        desk.work(batch_id)
    assert [one for one in seen if "callbacks" in one] == []
    assert told(desk, batch_id) == told(desk, neighbour) == []


def test_what_is_told_says_what_happened_and_nothing_of_the_payloads(desk: Desk) -> None:
    batch_id = desk.start(3, failure_budget=1, **ASKED)
    desk.work(batch_id, lambda number: FAILED if number == 2 else Outcome(Ending.SUCCEEDED, result='"secret"'))
    taken = {each.document["event"]: each for each in desk.states.take_callbacks(10, 60)}
    document = taken["finish"].document
    assert document["id"] == taken["finish"].id
    assert document["batch_id"] == batch_id
    assert document["at"].endswith("+00:00")
    assert (document["pass"], document["state"], document["total"]) == (1, "succeeded", 3)
    assert document["counts"]["succeeded"] == 2
    assert document["counts"]["failed"] == 1
    assert sum(document["counts"].values()) == 3
    assert "secret" not in str(document)


def test_the_failures_told_are_those_of_the_pass_that_failed(desk: Desk) -> None:
    batch_id = desk.start(3, fail_fast=False, on_failure="app.bad")
    desk.work(batch_id, lambda _: FAILED)
    assert rows(desk, batch_id)[0].document["counts"]["failed"] == 3


# --- with the ending, or not at all; and once


def test_a_rolled_back_ending_tells_nobody(desk: Desk) -> None:
    batch_id = desk.start(1, **ASKED)
    desk.settle(desk.claim(batch_id))

    def crash() -> None:
        with desk.database.begin() as connection:
            assert batch_moves.conclude(connection, batch_id)
            raise RuntimeError("the process dies here")

    with pytest.raises(RuntimeError, match="dies here"):
        crash()
    assert desk.state(batch_id) is BatchState.RUNNING
    assert told(desk, batch_id) == []
    desk.states.conclude([batch_id])
    assert len(rows(desk, batch_id)) == 2


def test_the_last_two_finishers_tell_once(desk: Desk, pool: ThreadPoolExecutor) -> None:
    batch_id = desk.start(2, **ASKED)
    runs = desk.dispatch(batch_id)
    ends = {worker: [end(each) for each in desk.states.claim(worker, [run]).claimed]
            for worker, run in zip((desk.worker, OTHER), runs, strict=True)}  # fmt: skip
    settled, concluding = threading.Barrier(2), threading.Barrier(2)

    def finish(worker: str) -> list[str]:
        with desk.database.begin() as connection:
            profile.settle(connection, worker, worker, ends[worker])
            if desk.database.dialect == "postgresql":
                settled.wait(10)  # neither sees the other's, before either commits
        concluding.wait(10)
        return desk.states.conclude([batch_id])

    assert sorted(each.result() for each in [pool.submit(finish, worker) for worker in ends]) == [[], [batch_id]]
    assert told(desk, batch_id) == [("success", 1, "succeeded"), ("finish", 1, "succeeded")]


# --- deliveries


def test_a_delivery_is_taken_once_and_again_when_its_lease_is_over(desk: Desk) -> None:
    one_that_waits(desk)
    first = take_one(desk, lease=0.2)
    assert desk.states.take_callbacks(10, 60) == []
    again = eventually(lambda: desk.states.take_callbacks(10, 60))[0]
    assert (again.id, again.document) == (first.id, first.document)
    assert (again.run, again.attempt) == (2, 2)


def test_two_managers_take_each_callback_once(desk: Desk, pool: ThreadPoolExecutor) -> None:
    for _ in range(12):
        one_that_waits(desk)
    together = threading.Barrier(4)

    def take() -> list[str]:
        together.wait(10)
        return [each.id for _ in range(4) for each in desk.states.take_callbacks(3, 60)]

    taken = [each for future in [pool.submit(take) for _ in range(4)] for each in future.result()]
    assert len(taken) == len(set(taken)) == 12


def test_a_delivery_that_took_too_long_settles_nothing(desk: Desk) -> None:
    batch_id = one_that_waits(desk)
    slow = take_one(desk, lease=0.0)
    quick = take_one(desk)
    assert not desk.states.callback_failed(slow, "too slow", None)
    assert desk.states.callback_delivered(quick)
    assert not desk.states.callback_delivered(slow)
    [row] = rows(desk, batch_id)
    assert (row.state, row.error, row.attempts) == ("delivered", None, 2)


def test_a_failed_delivery_is_due_again_after_its_delay_and_dead_without_one(desk: Desk) -> None:
    batch_id, neighbour = one_that_waits(desk), one_that_waits(desk)
    mine = {each.document["batch_id"]: each for each in desk.states.take_callbacks(10, 60)}[batch_id]
    assert desk.states.callback_failed(mine, "503", 0.0)
    again = take_one(desk)
    assert (again.id, again.attempt) == (mine.id, 2)
    assert desk.states.callback_failed(again, "503 still", None)
    assert desk.states.take_callbacks(10, 60) == []
    [row] = rows(desk, batch_id)
    assert (row.state, row.error) == ("dead", "503 still")
    assert rows(desk, neighbour)[0].state == "waiting"


def test_only_a_dead_callback_is_made_to_wait_again_with_all_its_attempts(desk: Desk) -> None:
    batch_id = one_that_waits(desk)
    taken = take_one(desk)
    with pytest.raises(IllegalMoveError, match="it is waiting; only dead callbacks"):
        desk.states.retry_callback(taken.id)
    desk.states.callback_failed(taken, "gone", None)
    desk.states.retry_callback(taken.id)
    again = take_one(desk)
    assert (again.id, again.run, again.attempt) == (taken.id, 2, 1)
    desk.states.callback_delivered(again)
    with pytest.raises(IllegalMoveError, match="it is delivered"):
        desk.states.retry_callback(taken.id)
    assert rows(desk, batch_id)[0].state == "delivered"


@pytest.mark.parametrize("callback_id", ["nonsense", OTHER])
def test_an_unknown_callback_is_named(desk: Desk, callback_id: str) -> None:
    with pytest.raises(UnknownCallbackError, match=callback_id):
        desk.states.retry_callback(callback_id)


def test_back_off_doubles_up_to_an_hour_and_ends() -> None:
    assert [callback_delay(number, 4, 5.0) for number in range(1, 5)] == [5.0, 10.0, 20.0, None]
    assert callback_delay(40, 100, 5.0) == 3_600.0


# --- a batch stays while somebody is still to be told


def test_a_batch_is_not_pruned_while_a_callback_waits(desk: Desk) -> None:
    waits, silent = one_that_waits(desk), desk.finish(BatchState.SUCCEEDED)
    for batch_id in (waits, silent):
        plant_batch(desk.database, batch_id, finished_at=later(literal(-3 * 86_400.0)))
    assert desk.states.prune(2) == 1
    taken = take_one(desk)
    with desk.database.begin() as connection:
        assert not retention.condemn(connection, waits)
    assert desk.states.prune(2) == 0
    desk.states.callback_delivered(taken)
    assert desk.states.prune(2) == 1
    with desk.database.read() as connection:
        assert connection.execute(select(profiles.c.number)).all() == connection.execute(select(callbacks)).all() == []


def test_a_callback_of_a_batch_that_is_being_deleted_is_gone(desk: Desk) -> None:
    batch_id = one_that_waits(desk)
    taken = take_one(desk)
    desk.states.callback_failed(taken, "gone", None)
    with desk.database.begin() as connection:
        assert retention.condemn(connection, batch_id)
    with pytest.raises(UnknownBatchError):
        desk.states.retry_callback(taken.id)


def test_a_prune_that_waits_for_a_retry_of_a_callback_leaves_the_batch(desk: Desk, pool: ThreadPoolExecutor) -> None:
    batch_id = one_that_waits(desk)
    taken = take_one(desk)
    desk.states.callback_failed(taken, "gone", None)
    with desk.database.begin() as connection:
        outbox.revive(connection, taken.id)
        pruning = pool.submit(desk.states.prune, -1.0)
        assert desk.database.dialect == "sqlite" or not pruning.done()
    assert pruning.result() == 0
    assert rows(desk, batch_id)[0].state == CallbackState.WAITING


# --- where a callback may go


@pytest.mark.parametrize("target", ["https://example.org/hook?x=1", "http://[::1]:8080/", "reports.tasks.mail", None])
def test_targets_that_are_taken(target: str | None) -> None:
    assert BatchOptions(on_finish=target).on_finish == target


@pytest.mark.parametrize(
    "target",
    [
        "ftp://example.org/", "https://", "https://user:secret@example.org/", "https://example.org/#f", 7,
        "https://example.org/a b", "https://example.org:port/", "no task", "https://exämple.org/", "x" * 3_000,
        "https://example.org/\r\nX: y",
    ],
)  # fmt: skip
def test_targets_that_are_refused_are_not_shown(target: Any) -> None:
    with pytest.raises(InvalidInputError, match="option on_finish") as refused:
        BatchOptions(on_finish=target)
    assert "secret" not in str(refused.value)
