"""Open batches, and submitting twice: what is new, what was there; appended from anywhere, sealed once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import literal, select
from sqlalchemy.orm import Session

from batching.database import Database
from batching.dialects import later
from batching.errors import IllegalMoveError, InvalidInputError, UnknownBatchError
from batching.models import batches, profiles
from batching.moves import appending
from batching.options import BatchOptions
from batching.parameters import encode_rows
from batching.queue_manager import QueueManager
from batching.states import BatchState, ProfileState
from tests.accounting import (
    DONE,
    FAILED,
    HANDLER,
    Desk,
    assert_accounted,
    effective_states,
    plant_batch,
    read_batch,
    statements,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = "00000000-0000-7000-8000-000000000000"


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


@pytest.fixture
def queue(database: Database) -> QueueManager:
    return QueueManager(database)


def keys(database: Database, batch_id: str) -> list[tuple[int, str]]:
    with database.read() as connection:
        chosen = select(profiles.c.number, profiles.c.key).where(profiles.c.batch_id == batch_id)
        return [(row.number, row.key) for row in connection.execute(chosen.order_by(profiles.c.number))]


def options(**given: Any) -> BatchOptions:
    return BatchOptions(**{"max_attempts": 1, "pass_backoff": 0, **given})


# --- the same key again


def test_the_same_key_reports_what_is_new_same_and_changed(queue: QueueManager) -> None:
    first = queue.submit(HANDLER, [("a", {"x": 1, "y": 2}), ("b", 1), ("c", 1)], key="nightly")
    assert first.difference == (3, 0, 0)
    again = queue.submit(HANDLER, [("a", {"y": 2, "x": 1}), ("b", True), ("d", 1)], key="nightly")
    assert (again.id, again.created, again.total) == (first.id, False, 3)
    assert again.difference._asdict() == {"new": 1, "same": 1, "changed": 1}
    assert [key for _, key in keys(queue.database, first.id)] == ["a", "b", "c"]
    assert next(iter(first.results())).state is ProfileState.PENDING
    assert queue.submit(HANDLER, (), key="nightly").difference == (0, 0, 0)


def test_a_large_batch_is_compared_in_chunks_and_nothing_is_written(queue: QueueManager) -> None:
    def stream(last: int) -> Iterator[tuple[str, int]]:
        yield from ((f"k{number}", number % 7) for number in range(last))

    first = queue.submit(HANDLER, stream(2_500), key="nightly")
    with statements(queue.database) as seen:
        again = queue.submit(HANDLER, stream(2_600), key="nightly")
    assert again.difference == (100, 2_500, 0)
    assert not [each for each in seen if each.startswith(("INSERT", "UPDATE", "DELETE"))]
    assert len(seen) < 40  # a few for each chunk
    assert assert_accounted(queue.database, first.id).pending == 2_500


def test_each_key_is_looked_up_through_the_index_of_keys(queue: QueueManager) -> None:
    """Also in a batch that has just come, of which PostgreSQL has no statistics."""
    batch = queue.submit(HANDLER, map(str, range(3_000)))
    dialect = queue.database.dialect
    given = encode_rows(dialect, "wanted", appending._KEYS, [("1",), ("2",)])
    asked = appending._look_up(dialect, "payload").params(batch=batch.id, **given)
    with queue.database.read() as connection:
        sql = asked.compile(connection, compile_kwargs={"literal_binds": True})
        explain = "EXPLAIN QUERY PLAN" if dialect == "sqlite" else "EXPLAIN"
        plan = "\n".join(str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {sql}"))
        assert appending.payloads(connection, batch.id, ["1", "no", 'a"\\{}', "2"]) == {"1": "null", "2": "null"}
    assert "profiles_batch_id_key_key" in plan


def test_a_key_that_stands_twice_in_what_is_compared_is_refused(queue: QueueManager) -> None:
    queue.submit(HANDLER, ["a"], key="nightly")
    with pytest.raises(InvalidInputError, match="item 3: its key 'x' was used before, item 1"):
        queue.submit(HANDLER, ["x", "y", "x"], key="nightly")


def test_an_open_batch_takes_what_is_new_of_its_key(queue: QueueManager) -> None:
    first = queue.submit(HANDLER, ["a", "b"], key="nightly", seal=False)
    again = queue.submit(HANDLER, ["b", "c"], key="nightly")
    assert (again.id, again.total, again.open, again.difference) == (first.id, 3, True, (1, 1, 0))
    assert keys(queue.database, first.id) == [(1, "a"), (2, "b"), (3, "c")]
    assert not read_batch(queue.database, first.id).sealed


def test_a_session_reports_and_appends_in_its_own_transaction(queue: QueueManager, database: Database) -> None:
    first = queue.open(HANDLER, key="nightly", tags=["t"])
    for commits in (False, True):
        with Session(database.engine) as session:
            again = queue.submit(HANDLER, ["a", "b"], key="nightly", session=session)
            assert (again.id, again.difference) == (first.id, (2, 0, 0))
            session.commit() if commits else session.rollback()
        assert len(keys(database, first.id)) == (2 if commits else 0)
    with Session(database.engine) as session:
        rolled_back = queue.open(HANDLER, session=session)
        session.rollback()
    with pytest.raises(UnknownBatchError):
        queue.append(rolled_back.id, ["a"])


# --- open, append, seal


def test_an_open_batch_runs_and_does_not_end_before_it_is_sealed(queue: QueueManager, desk: Desk) -> None:
    batch = queue.open(HANDLER, name="stream")
    assert desk.states.promote("default", desk.term) == batch.id
    assert desk.states.conclude([batch.id]) == []
    assert batch.progress().reason == "open: waits for more profiles, or to be sealed"
    assert batch.append([("a", 1), ("b", 2)]) == (2, 0, 0)
    desk.work(batch.id)
    assert desk.state(batch.id) is BatchState.RUNNING
    assert batch.progress().percent == 99
    assert queue.append(batch.id, [("b", 2), ("c", 3)]) == (1, 1, 0)
    desk.work(batch.id)
    assert batch.seal(expect=3) == 3
    assert desk.state(batch.id) is BatchState.SUCCEEDED  # everything was settled: sealing concluded it
    assert assert_accounted(queue.database, batch.id).succeeded == 3


def test_a_sealed_batch_ends_with_its_last_profile_and_takes_no_more(queue: QueueManager, desk: Desk) -> None:
    batch = queue.submit(HANDLER, ["a"], seal=False)
    desk.states.promote("default", desk.term)
    assert queue.seal(batch.id) == queue.seal(batch.id, expect=1) == 1
    for more in (["b"], ["a"], []):
        if more:
            with pytest.raises(IllegalMoveError, match=r"it is sealed, with 1 profiles; submit what is new"):
                queue.append(batch.id, more)
    desk.work(batch.id)
    assert desk.state(batch.id) is BatchState.SUCCEEDED
    with pytest.raises(IllegalMoveError, match="it is succeeded; finished batches take nothing more"):
        queue.append(batch.id, ["b"])
    assert [entry.reason for entry in queue.statistics.history(batch.id)][:1] == ["opened"]


def test_a_seal_that_expects_another_number_is_refused_and_changes_nothing(queue: QueueManager) -> None:
    batch = queue.submit(HANDLER, ["a", "b"], seal=False)
    with pytest.raises(IllegalMoveError, match=r"it has 2 profiles, 3 were expected; append what is missing"):
        queue.seal(batch.id, expect=3)
    assert queue.append(batch.id, ["c"]) == (1, 0, 0)
    assert queue.seal(batch.id, expect=3) == 3
    with pytest.raises(IllegalMoveError, match="4 were expected"):
        queue.seal(batch.id, expect=4)


def test_a_large_open_batch_is_loaded_like_any_other(queue: QueueManager) -> None:
    batch = queue.submit(HANDLER, map(str, range(2_500)), seal=False)
    assert (batch.open, batch.total, read_batch(queue.database, batch.id).sealed) == (True, 2_500, False)
    assert queue.append(batch.id, map(str, range(2_400, 3_600))) == (1_100, 100, 0)
    assert [number for number, _ in keys(queue.database, batch.id)] == list(range(1, 3_601))
    assert assert_accounted(queue.database, batch.id).pending == 3_600


@pytest.mark.parametrize("ended", [BatchState.CANCELLED, BatchState.EXPIRED])
def test_an_open_batch_that_was_stopped_takes_no_more_and_a_retry_ends_it(
    queue: QueueManager, desk: Desk, ended: BatchState
) -> None:
    batch = queue.submit(HANDLER, ["a", "b"], seal=False)
    if ended is BatchState.CANCELLED:
        queue.cancel(batch.id)
    else:
        plant_batch(queue.database, batch.id, deadline=later(literal(-1.0)))
        assert desk.states.expire(batch.id)
    with pytest.raises(IllegalMoveError, match=f"it is {ended}"):
        batch.append(["c"])
    assert set(effective_states(queue.database, batch.id).values()) == {ProfileState(ended.value)}
    queue.retry(batch.id)
    desk.rewrite(batch.id)
    desk.states.promote("default", desk.term)
    desk.work(batch.id)
    assert desk.state(batch.id) is BatchState.SUCCEEDED


def test_an_open_batch_is_not_abandoned_and_can_be_paused(queue: QueueManager, desk: Desk) -> None:
    batch = queue.open(HANDLER)
    plant_batch(queue.database, batch.id, created_at=later(literal(-86_400.0)))
    assert desk.states.sweep_abandoned() == []
    queue.pause(batch.id)
    assert batch.append(["a"]) == (1, 0, 0)
    queue.resume(batch.id)
    assert desk.states.promote("default", desk.term) == batch.id
    assert len(desk.claim(batch.id)) == 1


def test_what_is_refused_is_not_appended(queue: QueueManager) -> None:
    batch, other = queue.open(HANDLER), queue.submit(HANDLER, ["a"])
    with pytest.raises(InvalidInputError, match="item 2: its key 'a' was used before, item 1"):
        batch.append(["a", "a"])
    with pytest.raises(InvalidInputError, match="item 2"):
        batch.append(["a", {"key": "b", "payload": {1}}])
    with pytest.raises(UnknownBatchError):
        queue.append(NOBODY, ["a"])
    assert keys(queue.database, batch.id) == []
    assert assert_accounted(queue.database, other.id).pending == 1


# --- budgets of open batches


def test_a_ratio_is_judged_once_the_total_is_known(queue: QueueManager, desk: Desk) -> None:
    batch = queue.submit(HANDLER, ["a", "b"], seal=False, options=options(failure_budget=0.5, max_passes=1))
    desk.states.promote("default", desk.term)
    assert desk.work(batch.id, lambda _: FAILED) == []  # 2 of 2: too many, if no more came
    batch.append(["c", "d"])
    desk.work(batch.id)
    batch.seal()
    assert desk.state(batch.id) is BatchState.SUCCEEDED  # 2 of 4


def test_a_count_is_judged_at_once_but_does_not_end_an_open_batch(queue: QueueManager, desk: Desk) -> None:
    batch = queue.submit(HANDLER, ["a"], seal=False, options=options(max_passes=2))
    desk.states.promote("default", desk.term)
    assert desk.work(batch.id, lambda _: FAILED) == [batch.id]
    assert desk.state(batch.id) is BatchState.QUEUED  # its second pass
    desk.rewrite(batch.id)
    desk.states.promote("default", desk.term)
    assert desk.work(batch.id, lambda _: FAILED) == []
    assert desk.state(batch.id) is BatchState.RUNNING
    batch.append(["b"])
    batch.seal()
    assert desk.state(batch.id) is BatchState.FAILED
    assert_accounted(queue.database, batch.id)


# --- races


def test_several_producers_at_once_write_each_key_once(queue: QueueManager) -> None:
    batch = queue.open(HANDLER)
    start = Barrier(4)

    def produce(number: int) -> Any:
        mine = Database(queue.database.url)
        try:
            start.wait(10)
            # Half of the keys are everybody's, half its own.
            return QueueManager(mine).append(
                batch.id, [*(f"all{at}" for at in range(300)), *(f"own{number}-{at}" for at in range(300))]
            )
        finally:
            mine.close()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(produce, range(4)))
    assert sum(each.new for each in found) == 300 + 4 * 300
    assert sum(each.same for each in found) == 3 * 300
    stored = keys(queue.database, batch.id)
    assert [number for number, _ in stored] == list(range(1, 1_501))
    assert len({key for _, key in stored}) == 1_500
    assert assert_accounted(queue.database, batch.id).pending == 1_500


def test_one_is_appended_while_the_last_one_finishes(queue: QueueManager, desk: Desk) -> None:
    """Settlements, conclusions and appends from two sides, and a seal in the end: nothing is lost, it ends once."""
    batch = queue.submit(HANDLER, ["first"], seal=False, options=options())
    desk.states.promote("default", desk.term)
    start = Barrier(2)

    def produce() -> None:
        mine = Database(queue.database.url)
        start.wait(10)
        producer = QueueManager(mine)
        for number in range(40):
            producer.append(batch.id, [f"k{number}"])
        producer.seal(batch.id, expect=41)
        mine.close()

    with ThreadPoolExecutor(1) as pool:
        producing = pool.submit(produce)
        start.wait(10)
        while not producing.done() or desk.state(batch.id) is BatchState.RUNNING:
            desk.settle(desk.claim(batch.id), DONE)
            desk.states.conclude([batch.id])
        producing.result()
    assert desk.state(batch.id) is BatchState.SUCCEEDED
    assert assert_accounted(queue.database, batch.id).succeeded == 41
    with queue.database.read() as connection:
        assert connection.scalar(select(batches.c.sealed).where(batches.c.id == batch.id))
    ends = [entry for entry in queue.statistics.history(batch.id) if entry.to_state is BatchState.SUCCEEDED]
    assert len(ends) == 1
