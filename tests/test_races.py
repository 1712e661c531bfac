"""Two at once, with two real connections: who waits, who wins, and that nothing is lost or counted twice.

On PostgreSQL the second is known to wait for the first (its lock is seen to be waited for) before the first commits.
SQLite lets nobody look at its one lock, and needs no look: whoever comes second waits at BEGIN.
"""

from __future__ import annotations

import random
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import literal, select, text, update

from batching.database import Database
from batching.dialects import later
from batching.errors import IllegalMoveError, UnknownBatchError
from batching.interfaces import Ending, LeaderTerm, Outcome
from batching.models import batches, history, leases, profiles, workers
from batching.moves import batch as batch_moves
from batching.moves import counters, leadership, profile, promotion, queue_order, retention, submission, sweep, whole
from batching.options import BatchSpec, ProfileInput
from batching.states import TERMINAL_BATCH_STATES, BatchState, ProfileState, StopTarget
from tests.accounting import (
    DONE,
    FAILED,
    GIVEN_BACK,
    HANDLER,
    MAX_LOSSES,
    Desk,
    assert_accounted,
    effective_states,
    end,
    plant_batch,
    read_batch,
    read_counts,
)
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from typing import Any, TypeVar

    from sqlalchemy import Connection

    from batching.interfaces import ClaimResult

    T = TypeVar("T")

OTHER = str(uuid.UUID(int=2))
LOST = Outcome(Ending.LOST, error=FAILED.error)


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def waits_for_lock(database: Database) -> bool:
    """Whether some session of this store waits for another's lock; always true where that cannot be seen."""
    if database.dialect == "sqlite":
        return True
    with database.engine.connect() as connection:
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(connection.scalar(waiting))


def race(
    desk: Desk, pool: ThreadPoolExecutor, first: Callable[[Connection], object], second: Callable[[], T]
) -> Future[T]:
    """Do `first` in an open transaction, let `second` come and wait for it, then commit the first."""
    with desk.database.begin() as connection:
        first(connection)
        running = pool.submit(second)
        eventually(lambda: running.done() or waits_for_lock(desk.database))
        assert desk.database.dialect == "sqlite" or not running.done(), "it did not wait"
    return running


def terminal_moves(desk: Desk, batch_id: str) -> list[str]:
    with desk.database.read() as connection:
        return list(
            connection.scalars(
                select(history.c.to_state).where(
                    history.c.batch_id == batch_id, history.c.to_state.in_(list(TERMINAL_BATCH_STATES))
                )
            )
        )


def test_two_claims_of_one_run(desk: Desk, pool: ThreadPoolExecutor) -> None:
    batch_id = desk.start(3)
    runs = desk.dispatch(batch_id)
    second = race(desk, pool, lambda one: profile.claim(one, desk.worker, runs), lambda: desk.states.claim(OTHER, runs))
    assert second.result().claimed == []
    counts = assert_accounted(desk.database, batch_id)
    assert (counts.running, counts.duplicates) == (3, 3)


@pytest.mark.parametrize("known", [True, False], ids=["with a ticket", "with its first ticket"])
def test_a_pause_waits_for_a_claim_and_counts_it(desk: Desk, pool: ThreadPoolExecutor, known: bool) -> None:
    batch_id = desk.start(3)
    runs = desk.dispatch(batch_id)

    def claim(one: Connection) -> ClaimResult:
        if known or desk.database.dialect == "sqlite":
            return profile.claim(one, desk.worker, runs[:1])
        return profile.claim_first(one, desk.worker, batch_id, runs[:1])

    second = race(desk, pool, claim, lambda: desk.states.stop(batch_id, StopTarget.PAUSED, "p"))
    assert second.result() is BatchState.STOPPING
    counts = assert_accounted(desk.database, batch_id)
    assert (counts.pending, counts.dispatched, counts.running) == (2, 0, 1)


def test_a_rewrite_that_waited_for_a_republication_leaves_nothing_behind(desk: Desk, pool: ThreadPoolExecutor) -> None:
    """It finds rows by where they lie, and those are somewhere else then."""
    batch_id = desk.start(7)
    desk.dispatch(batch_id)

    def republish(one: Connection) -> None:
        assert len(sweep._mark_republished(one, batch_id, [1, 2], desk.term, 2)) == 2

    def pause_and_rewrite() -> None:
        desk.states.stop(batch_id, StopTarget.PAUSED, "p")
        desk.rewrite(batch_id, 3)

    race(desk, pool, republish, pause_and_rewrite).result()
    with desk.database.read() as connection:
        states = connection.scalars(select(profiles.c.state).where(profiles.c.batch_id == batch_id)).all()
    assert states == ["pending"] * 7


@pytest.mark.parametrize("known", [True, False], ids=["with a ticket", "with its first ticket"])
def test_a_claim_waits_for_a_pause_and_is_refused(desk: Desk, pool: ThreadPoolExecutor, known: bool) -> None:
    batch_id = desk.start(3)
    if known:
        desk.settle(desk.claim(batch_id, 1))
    runs = desk.dispatch(batch_id)
    second = race(
        desk,
        pool,
        lambda one: batch_moves.stop(one, batch_id, StopTarget.PAUSED, "p"),
        lambda: desk.states.claim(desk.worker, runs),
    )
    assert second.result().claimed == []
    assert desk.state(batch_id) is BatchState.PAUSED
    assert assert_accounted(desk.database, batch_id).dispatched == 0


def test_a_dispatch_waits_for_a_cancel_and_sends_nothing(desk: Desk, pool: ThreadPoolExecutor) -> None:
    batch_id = desk.start(3)
    second = race(
        desk,
        pool,
        lambda one: batch_moves.stop(one, batch_id, StopTarget.CANCELLED, "c"),
        lambda: desk.dispatch(batch_id),
    )
    assert second.result() == []
    assert assert_accounted(desk.database, batch_id).cancelled == 3


@pytest.mark.parametrize("outcome", [DONE, FAILED], ids=["succeeded", "failed"])
def test_a_settlement_that_holds_its_ticket_never_waits_for_the_stop_that_waits_for_it(
    desk: Desk, pool: ThreadPoolExecutor, outcome: Outcome
) -> None:
    # What failed is also written to `attempts`, whose foreign key looks at the batch that the stop has locked.
    batch_id = desk.start(2)
    taken = desk.claim(batch_id)

    with desk.database.begin() as connection:
        counters.take_ticket(connection, desk.worker, [batch_id])
        stopped = pool.submit(desk.states.stop, batch_id, StopTarget.PAUSED, "p")
        eventually(lambda: waits_for_lock(desk.database))
        ends = [end(taken[0], outcome)]
        assert len(profile.settle(connection, desk.worker, desk.worker, ends).applied) == 1
    assert stopped.result() is BatchState.STOPPING
    assert assert_accounted(desk.database, batch_id).running == 1


def test_a_pause_waits_for_the_last_settlement_and_finds_the_batch_done(desk: Desk, pool: ThreadPoolExecutor) -> None:
    batch_id = desk.start(1)
    ends = [end(each) for each in desk.claim(batch_id)]
    second = race(
        desk,
        pool,
        lambda one: profile.settle(one, desk.worker, desk.worker, ends),
        lambda: desk.states.stop(batch_id, StopTarget.PAUSED, "p"),
    )
    assert second.result() is BatchState.SUCCEEDED
    assert_accounted(desk.database, batch_id)


def test_a_settlement_waits_for_a_pause_and_still_counts(desk: Desk, pool: ThreadPoolExecutor) -> None:
    batch_id = desk.start(2)
    ends = [end(each) for each in desk.claim(batch_id, 1)]
    second = race(
        desk,
        pool,
        lambda one: batch_moves.stop(one, batch_id, StopTarget.PAUSED, "p"),
        lambda: desk.states.settle(desk.worker, ends),
    )
    assert len(second.result().applied) == 1
    assert desk.states.conclude([batch_id]) == [batch_id]
    assert desk.state(batch_id) is BatchState.PAUSED
    assert assert_accounted(desk.database, batch_id).succeeded == 1


def test_a_result_that_comes_while_its_run_is_taken_back_is_late(desk: Desk, pool: ThreadPoolExecutor) -> None:
    batch_id = desk.start(2)
    ends = [end(each) for each in desk.claim(batch_id)]
    second = race(
        desk,
        pool,
        lambda one: sweep.take_back(one, desk.worker, None, desk.term, MAX_LOSSES),
        lambda: desk.states.settle(desk.worker, ends),
    )
    assert (len(second.result().applied), len(second.result().late)) == (0, 2)
    counts = assert_accounted(desk.database, batch_id)
    assert (counts.pending, counts.succeeded, counts.late) == (2, 0, 2)


def test_a_run_that_settles_while_it_is_taken_back_is_not_lost(desk: Desk, pool: ThreadPoolExecutor) -> None:
    batch_id = desk.start(2)
    ends = [end(each) for each in desk.claim(batch_id)]
    second = race(
        desk,
        pool,
        lambda one: profile.settle(one, desk.worker, desk.worker, ends),
        lambda: desk.states.take_back(desk.worker, None, desk.term),
    )
    assert second.result() == []
    assert assert_accounted(desk.database, batch_id).succeeded == 2


def test_a_heartbeat_at_the_last_moment_saves_a_worker(desk: Desk, pool: ThreadPoolExecutor) -> None:
    desk.register()
    batch_id = desk.start(1)
    desk.claim(batch_id)
    with desk.database.read() as connection:
        seen = leadership.heartbeats(connection)[desk.worker]
    second = race(
        desk,
        pool,
        lambda one: leadership.beat(one, desk.worker, draining=False),
        lambda: desk.states.take_back(desk.worker, seen, desk.term),
    )
    assert second.result() is None
    assert assert_accounted(desk.database, batch_id).running == 1
    with desk.database.read() as connection:
        assert list(connection.scalars(select(workers.c.id))) == [desk.worker]


def test_the_last_two_finishers_finish_exactly_once(desk: Desk, pool: ThreadPoolExecutor) -> None:
    batch_id = desk.start(2)
    runs = desk.dispatch(batch_id)
    ends = {worker: [end(each) for each in desk.states.claim(worker, [run]).claimed]
            for worker, run in zip((desk.worker, OTHER), runs, strict=True)}  # fmt: skip
    settled, concluding = threading.Barrier(2), threading.Barrier(2)

    def finish(worker: str) -> list[str]:
        with desk.database.begin() as connection:
            assert len(profile.settle(connection, worker, worker, ends[worker]).applied) == 1
            if desk.database.dialect == "postgresql":
                settled.wait(10)  # neither sees the other's, before either commits
        concluding.wait(10)
        return desk.states.conclude([batch_id])

    results = [each.result() for each in [pool.submit(finish, worker) for worker in ends]]
    assert sorted(results) == [[], [batch_id]]
    assert terminal_moves(desk, batch_id) == ["succeeded"]
    assert_accounted(desk.database, batch_id)


def test_two_conclusions_requeue_a_failed_batch_once(desk: Desk, pool: ThreadPoolExecutor) -> None:
    batch_id = desk.start(2)
    desk.settle(desk.claim(batch_id), FAILED)
    second = race(desk, pool, lambda one: batch_moves.conclude(one, batch_id), lambda: desk.states.conclude([batch_id]))
    assert second.result() == []
    assert read_batch(desk.database, batch_id).pass_number == 2
    assert assert_accounted(desk.database, batch_id).pending == 2


def test_of_two_operators_who_retry_one_is_told(desk: Desk, pool: ThreadPoolExecutor) -> None:
    batch_id = desk.finish(BatchState.FAILED)
    second = race(desk, pool, lambda one: batch_moves.reopen(one, batch_id, "one"), lambda: desk.states.retry(batch_id))
    with pytest.raises(IllegalMoveError, match="it is queued; only finished batches can be retried"):
        second.result()
    assert read_batch(desk.database, batch_id).pass_number == 2
    assert assert_accounted(desk.database, batch_id).pending == 2


def test_a_cancel_and_a_pause_end_in_the_cancel(desk: Desk, pool: ThreadPoolExecutor) -> None:
    batch_id = desk.start(2)
    desk.claim(batch_id, 1)
    second = race(
        desk,
        pool,
        lambda one: batch_moves.stop(one, batch_id, StopTarget.CANCELLED, "c"),
        lambda: desk.states.stop(batch_id, StopTarget.PAUSED, "p"),
    )
    assert second.result() is BatchState.STOPPING
    assert read_batch(desk.database, batch_id).target is StopTarget.CANCELLED


def test_two_leaders_dispatch_every_profile_once(desk: Desk, pool: ThreadPoolExecutor) -> None:
    batch_id = desk.start(4)
    old = desk.term
    successor = LeaderTerm(OTHER, old.epoch + 1)

    def take_over_and_dispatch() -> list[Any]:
        with desk.database.begin() as connection:
            connection.execute(update(leases).values(holder=successor.holder, epoch=successor.epoch))
        return desk.states.dispatch(batch_id, 4, successor)

    sent: list[Any] = []
    second = race(
        desk, pool, lambda one: sent.extend(profile.dispatch(one, batch_id, 2, old, 2)), take_over_and_dispatch
    )
    numbers = [each.run.number for each in [*sent, *second.result()]]
    assert sorted(numbers) == [1, 2, 3, 4]
    assert assert_accounted(desk.database, batch_id).dispatched == 4


def test_two_leaders_promote_two_batches_and_not_one_twice(desk: Desk, pool: ThreadPoolExecutor) -> None:
    first, second = desk.submit(1), desk.submit(1)
    term = desk.term
    promoted: list[str | None] = []
    with desk.database.begin() as connection:
        batch = promotion.promote(connection, "default", term)
        promoted.append(None if batch is None else batch.id)
        running = pool.submit(desk.states.promote, "default", term)
        if desk.database.dialect == "postgresql":
            running.result(10)  # it does not wait: it takes the next in line
    assert [*promoted, running.result()] == [first, second]


def test_a_seal_beats_the_sweep_of_abandoned_batches(desk: Desk, pool: ThreadPoolExecutor) -> None:
    batch_id = desk.states.create_batch(BatchSpec(HANDLER, "b")).id
    plant_batch(desk.database, batch_id, loading_until=later(literal(-1.0)))
    second = race(desk, pool, lambda one: submission.seal(one, batch_id), desk.states.sweep_abandoned)
    assert second.result() == []
    assert desk.state(batch_id) is BatchState.QUEUED


def test_the_sweep_of_abandoned_batches_beats_a_seal(desk: Desk, pool: ThreadPoolExecutor) -> None:
    batch_id = desk.states.create_batch(BatchSpec(HANDLER, "b")).id
    plant_batch(desk.database, batch_id, loading_until=later(literal(-1.0)))
    second = race(
        desk,
        pool,
        lambda one: submission.lapse(one, batch_id, overdue_only=True),
        lambda: desk.states.seal(batch_id),
    )
    with pytest.raises(IllegalMoveError, match="it does not load any more; submit it again"):
        second.result()
    assert desk.states.sweep_abandoned() == [batch_id]


def test_two_producers_with_one_key_make_one_batch(desk: Desk, pool: ThreadPoolExecutor) -> None:
    spec = BatchSpec(HANDLER, "b", key="nightly")
    made: list[Any] = []
    second = race(
        desk,
        pool,
        lambda one: made.append(submission.create_batch(one, spec)),
        lambda: desk.states.create_batch(spec),
    )
    assert (made[0].created, second.result().created) == (True, False)
    assert second.result().id == made[0].id


def test_a_producer_gets_the_key_that_another_rolled_back(desk: Desk, pool: ThreadPoolExecutor) -> None:
    spec = BatchSpec(HANDLER, "b", key="nightly")

    with desk.database.engine.connect() as connection:
        submission.create_batch(connection, spec)
        running = pool.submit(desk.states.create_batch, spec)
        eventually(lambda: waits_for_lock(desk.database))
        connection.rollback()
    assert running.result().created


WHOLE = [ProfileInput("a", "1"), ProfileInput("b", "2")]


def test_two_producers_with_one_key_and_a_whole_batch_make_one(desk: Desk, pool: ThreadPoolExecutor) -> None:
    spec = BatchSpec(HANDLER, "b", key="nightly")
    made: list[str] = []
    second = race(
        desk,
        pool,
        lambda one: made.append(whole.write_whole(one, spec, WHOLE)),
        lambda: desk.states.submit_whole(spec, WHOLE[:1]),
    )
    assert second.result()[:3] == (made[0], 2, False)
    assert assert_accounted(desk.database, made[0]).pending == 2


def test_a_whole_batch_gets_the_key_that_another_rolled_back(desk: Desk, pool: ThreadPoolExecutor) -> None:
    spec = BatchSpec(HANDLER, "b", key="nightly")
    with desk.database.engine.connect() as connection:
        whole.write_whole(connection, spec, WHOLE)
        running = pool.submit(desk.states.submit_whole, spec, WHOLE[:1])
        eventually(lambda: waits_for_lock(desk.database))
        connection.rollback()
    assert running.result()[1:3] == (1, True)
    assert assert_accounted(desk.database, running.result().id).pending == 1


def test_two_fresh_batches_for_one_key_leave_one_that_has_it(desk: Desk, pool: ThreadPoolExecutor) -> None:
    fresh = BatchSpec(HANDLER, "b", key="nightly", replace_key=True)
    old = desk.states.submit_whole(fresh, WHOLE).id
    made: list[str] = []
    second = race(
        desk,
        pool,
        lambda one: made.append(whole.write_whole(one, fresh, WHOLE)),
        lambda: desk.states.submit_whole(fresh, WHOLE),
    )
    answered = second.result().id
    with desk.database.read() as connection:
        assert list(connection.scalars(select(batches.c.id).where(batches.c.key == "nightly"))) == [answered]
    assert answered != old
    assert assert_accounted(desk.database, old).pending == 2


def test_two_whole_batches_of_a_new_queue_make_it_once(desk: Desk, pool: ThreadPoolExecutor) -> None:
    spec = BatchSpec(HANDLER, "b", queue="new")
    second = race(
        desk,
        pool,
        lambda one: whole.write_whole(one, spec, WHOLE),
        lambda: desk.states.submit_whole(spec, WHOLE),
    )
    assert second.result().created


def test_a_key_that_is_given_up_between_two_looks_is_taken(desk: Desk, pool: ThreadPoolExecutor) -> None:
    # Two producers ask for a fresh batch at once: the second waits for the first's, which then is there and sealed.
    fresh = BatchSpec(HANDLER, "b", key="nightly", replace_key=True)
    old = desk.states.create_batch(fresh).id
    desk.states.seal(old)
    second = race(
        desk,
        pool,
        lambda one: submission.seal(one, submission.create_batch(one, fresh).id),
        lambda: desk.states.create_batch(fresh),
    )
    assert second.result().id != old


def test_a_fresh_batch_for_an_old_key_never_waits_for_the_stop_of_the_old_one(
    desk: Desk, pool: ThreadPoolExecutor
) -> None:
    # The stop holds the queue's lock and waits for the row; the new batch refers to the queue by a foreign key.
    spec = BatchSpec(HANDLER, "b", key="nightly", replace_key=True)
    old = desk.states.create_batch(spec).id
    desk.states.add_profiles(old, [])
    desk.states.seal(old)
    with desk.database.begin() as connection:
        submission.release_key(connection, "default", "nightly")
        stopped = pool.submit(desk.states.stop, old, StopTarget.CANCELLED, "c")
        eventually(lambda: waits_for_lock(desk.database))
        assert submission.create_batch(connection, spec).created
    assert stopped.result() is BatchState.CANCELLED


def test_an_open_transaction_of_a_producer_holds_up_nobody(postgresql_url: str, pool: ThreadPoolExecutor) -> None:
    database = Database(postgresql_url, timeout=5)
    desk = Desk(database)
    batch_id, line = desk.start(1), [desk.submit(1), desk.submit(1)]
    desk.settle(desk.claim(batch_id))
    with database.begin() as connection:
        mine = submission.create_batch(connection, BatchSpec(HANDLER, "b")).id
        submission.seal(connection, mine)
        # None of these may wait until this transaction ends, or they fail after the time-out.
        assert pool.submit(desk.states.conclude, [batch_id]).result() == [batch_id]
        pool.submit(desk.states.move, line[1], 1).result()
        pool.submit(desk.states.stop, line[0], StopTarget.CANCELLED, "c").result()
        assert pool.submit(desk.states.promote, "default", desk.term).result() == line[1]
    assert desk.states.promote("default", desk.term) == mine
    database.close()


def test_two_moves_leave_one_order(desk: Desk, pool: ThreadPoolExecutor) -> None:
    line = [desk.submit(1) for _ in range(3)]
    second = race(desk, pool, lambda one: queue_order.move(one, line[2], 1), lambda: desk.states.move(line[1], 1))
    second.result()
    assert [desk.states.promote("default", desk.term) for _ in line] == [line[1], line[2], line[0]]


def test_a_move_and_the_first_tickets_of_a_worker_lock_in_one_order(desk: Desk, pool: ThreadPoolExecutor) -> None:
    line = [desk.submit(1) for _ in range(2)]
    desk.states.move(line[1], "front")
    with desk.database.begin() as connection:
        counters.take_ticket(connection, OTHER, [line[0]])
        moved = pool.submit(desk.states.move, line[1], 2)
        eventually(lambda: waits_for_lock(desk.database))
        assert counters.take_ticket(connection, OTHER, line) == set(line)
    moved.result()


def test_a_retry_finds_a_batch_gone_that_is_pruned(desk: Desk, pool: ThreadPoolExecutor) -> None:
    batch_id = desk.finish(BatchState.FAILED)
    second = race(desk, pool, lambda one: retention.condemn(one, batch_id), lambda: desk.states.retry(batch_id))
    with pytest.raises(UnknownBatchError):
        second.result()


def test_a_prune_leaves_a_batch_alone_that_is_retried(desk: Desk, pool: ThreadPoolExecutor) -> None:
    batch_id = desk.finish(BatchState.FAILED, 3)
    second = race(desk, pool, lambda one: batch_moves.reopen(one, batch_id, "r"), lambda: desk.states.prune(-1.0))
    assert second.result() == 0
    assert assert_accounted(desk.database, batch_id).pending == 3


class Crowd:
    """Workers, a leader and an operator who do at random what they may, all at once."""

    BATCHES = 4
    SIZE = 40

    def __init__(self, url: str, rounds: int) -> None:
        self.database = Database(url, timeout=60)
        self.desk = Desk(self.database)
        self.rounds = rounds
        self.workers = [str(uuid.uuid4()) for _ in range(4)]
        terms: dict[str, Any] = {"max_attempts": 2, "max_passes": 2, "failure_budget": 0.25}
        self.ids = [self.desk.submit(self.SIZE, retry_backoff=0, **terms) for _ in range(self.BATCHES)]
        self.offers: list[Any] = []
        self.going, self.done = threading.Event(), threading.Event()
        self.desk.term  # noqa: B018 - elected before the threads start

    def run(self) -> None:
        with ThreadPoolExecutor(8) as threads:
            busy = [threads.submit(self.work, worker, seed) for seed, worker in enumerate(self.workers)]
            busy.append(threads.submit(self.steer, 77))
            leading = threads.submit(self.lead)
            try:
                for each in busy:
                    each.result()
            finally:
                self.done.set()
            leading.result()

    def lead(self) -> None:
        states = self.desk.states
        while not self.done.is_set():
            states.promote("default", self.desk.term)
            for batch_id in self.ids:
                states.rewrite(batch_id, 7)
                # Each offer stays for good: old ones are the duplicates and the late messages of this test.
                self.offers += [each.run for each in states.dispatch(batch_id, 10, self.desk.term)]
            states.conclude(self.ids)
            self.done.wait(0.002)

    def work(self, worker: str, seed: int) -> None:
        chance = random.Random(seed)
        eventually(lambda: self.offers)
        endings = [
            DONE,
            DONE,
            DONE,
            FAILED,
            GIVEN_BACK,
            Outcome(Ending.SKIPPED),
            Outcome(Ending.LOST, error=FAILED.error),
        ]
        for _ in range(self.rounds):
            offers = self.offers[-60:]
            runs = chance.sample(offers, min(len(offers), 12))
            ends = [end(each, chance.choice(endings)) for each in self.desk.states.claim(worker, runs).claimed]
            chance.shuffle(ends)
            self.desk.states.settle(worker, ends)
            if ends and (chance.random() < 0.3 or not self.going.is_set()):
                self.desk.states.settle(worker, ends)  # late, all of it
                self.going.set()
            self.desk.states.conclude({each.run.batch_id for each in ends})

    def steer(self, seed: int) -> None:
        chance = random.Random(seed)
        states = self.desk.states
        verbs: list[Callable[[str], object]] = [
            lambda each: states.stop(each, StopTarget.PAUSED, "p"),
            states.resume,
            states.resume,
            lambda each: states.stop(each, StopTarget.CANCELLED, "c"),
            states.retry,
            states.retry,
            lambda each: states.move(each, chance.randint(1, 4)),
            lambda _: states.take_back(chance.choice(self.workers), None, self.desk.term),
            states.request_promotion,
        ]
        assert self.going.wait(30)  # something has run before the first batch is cancelled
        for _ in range(self.rounds):
            with suppress(IllegalMoveError):  # as an operator who is too late
                chance.choice(verbs)(chance.choice(self.ids))


def test_a_crowd_never_deadlocks_and_every_profile_is_accounted_for(database_url: str) -> None:
    crowd = Crowd(database_url, 150 if database_url.startswith("postgresql") else 60)
    try:
        crowd.run()  # a deadlock raises DatabaseUnavailableError in one of the two
        for worker in crowd.workers:
            crowd.desk.states.take_back(worker, None, crowd.desk.term)
        for batch_id in crowd.ids:
            assert assert_accounted(crowd.database, batch_id).running == 0
            crowd.desk.rewrite(batch_id)
            counts = assert_accounted(crowd.database, batch_id)
            assert min(counts) >= 0
            stored = effective_states(crowd.database, batch_id)
            assert len(stored) == Crowd.SIZE
            assert ProfileState.RUNNING not in stored.values()
        assert sum(read_counts(crowd.database, batch_id).late for batch_id in crowd.ids) > 0
        assert_settled_once(crowd.database)
    finally:
        crowd.database.close()


def assert_settled_once(database: Database) -> None:
    """A profile that succeeded has no other end at that run, and finished batches have what finished batches have."""
    with database.read() as connection:
        odd = connection.execute(
            select(batches.c.id, batches.c.state, profiles.c.state)
            .join(profiles, profiles.c.batch_id == batches.c.id)
            .where(
                batches.c.state.in_(list(TERMINAL_BATCH_STATES)),
                profiles.c.state.in_(["pending", "dispatched", "running"]),
            )
        ).all()
    assert odd == []
