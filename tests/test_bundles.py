"""Runs that travel together: the board, a bundle before a pool that records, and the consumer with Celery's threads."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import Celery
from celery.app.trace import setup_worker_optimizations
from celery.exceptions import TaskRevokedError
from celery.worker import state as celery_state

from batching import BatchOptions
from batching.handlers import Handler, Profile
from batching.interfaces import Claimed, Ending, Lane, Outcome, RunId, Terms
from batching.states import BatchState, StopTarget
from tests.support import eventually
from tests.test_consumer import HANDLER, Bench
from workers import board
from workers.bundles import Bundle
from workers.executors import PoolExecutor
from workers.requests import RunRequest
from workers.tasks import bind
from workers.tracing import Assignment as Given
from workers.tracing import Own, Shared, trace_run, trace_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from batching.database import Database

LANE = Lane("default", "tests.bundled")
PID = 4_000_000  # beyond any process that could get a signal by mistake
DEATH = WorkerLostError("Worker exited prematurely: signal 9 (SIGKILL) Job: 1.")


@pytest.fixture(autouse=True)
def cells() -> Iterator[None]:
    """Whatever happens to bundles, no cell of the board is lost, and none is returned twice."""
    board.open_board()
    before = sorted(board._free)
    yield
    assert sorted(board._free) == before


# --- the board


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr("workers.tracing.BUNDLE_TIME", 60.0)  # on a busy machine every run may take longer than planned
    cell = board.take()
    yield cell
    board.give(cell)


def test_a_cell_tells_what_has_begun_and_what_came_of_it(cell: int) -> None:
    assert (board.begun(cell), board.answers(cell)) == (board.NOTHING, [])
    assert board.begin(cell, 0)
    assert board.keep(cell, ("ü\ud800", None, 1.5))
    assert board.begin(cell, 1)
    assert (board.begun(cell), board.answers(cell)) == (1, [("ü\ud800", None, 1.5)])


def test_a_cell_that_was_used_is_empty_for_the_next(cell: int) -> None:
    used = board.take()
    board.begin(used, 7)
    board.keep(used, ("old",))
    board.halt(used)
    board.give(used)
    again = board.take()
    assert again == used
    assert (board.begun(again), board.answers(again), board.begin(again, 0)) == (board.NOTHING, [], True)
    board.give(again)


def test_nothing_begins_after_a_halt_and_other_bundles_are_not_touched(cell: int) -> None:
    other = board.take()
    board.begin(cell, 0)
    board.halt(cell)
    assert not board.begin(cell, 1)
    assert board.begun(cell) == 0
    assert board.begin(other, 1)
    board.give(other)


def test_what_has_no_room_is_not_kept_and_leaves_the_others_alone(cell: int) -> None:
    neighbour = board.take()
    board.keep(neighbour, ("mine",))
    kept = 0
    while board.keep(cell, ("x" * 30_000,)):
        kept += 1
    assert board.answers(cell) == [("x" * 30_000,)] * kept
    assert kept == 4
    assert board.answers(neighbour) == [("mine",)]
    board.give(neighbour)


def test_without_a_cell_runs_begin_and_nothing_is_kept() -> None:
    taken = [board.take() for _ in range(len(board._free))]
    assert board.take() == board.NOTHING
    for cell in taken:
        board.give(cell)
    assert board.begin(board.NOTHING, 3)
    assert not board.keep(board.NOTHING, ("answer",))
    assert (board.begun(board.NOTHING), board.answers(board.NOTHING)) == (board.NOTHING, [])
    board.halt(board.NOTHING)
    board.give(board.NOTHING)


# --- a bundle, before a pool that records


class RecordingPool:
    """The border to the children: keeps what it was given, and plays the child as far as a test says."""

    uses_semaphore = True

    def __init__(self) -> None:
        self.job: dict[str, Any] = {}
        self.signals: list[tuple[int, Any]] = []
        self.answers: list[Any] = []

    def apply_async(self, target: Any, **job: Any) -> RecordingPool:
        assert target is trace_runs
        self.job = job
        return self

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        self.signals.append((pid, signal))

    def terminate(self, signal: Any) -> None:
        """What Celery calls on the pool's job, which this is too."""

    @property
    def keys(self) -> list[str]:
        return [Own(*own).key for own in self.job["args"][2]]

    def accept(self) -> None:
        self.job["accept_callback"](PID, 0.0)

    def run(self, until: int) -> None:
        """Run to the end those before this index, and begin with it."""
        cell, shared, owns = self.job["args"]
        for index in range(len(self.answers), until):
            assert board.begin(cell, index)
            self.answers.append(trace_run(Given(*shared, *owns[index])))
            assert board.keep(cell, self.answers[-1])
        if until < len(owns):
            board.begin(cell, until)

    def die(self, error: BaseException = DEATH) -> None:
        try:
            _raise(error)
        except BaseException:  # noqa: BLE001 - what billiard does with whatever it is
            self.job["error_callback"](ExceptionInfo())

    def answer(self) -> None:
        self.job["callback"](self.answers)


@dataclass
class Rig:
    """An application with one handler, and a sink that keeps what it is told."""

    app: Celery
    pool: RecordingPool = field(default_factory=RecordingPool)
    ended: list[tuple[str, Ending]] = field(default_factory=list)
    returned: list[str] = field(default_factory=list)
    over: list[Bundle] = field(default_factory=list)

    def runs_ended(self, ended: Sequence[tuple[RunRequest, Outcome]]) -> None:
        self.ended += [(request.claimed.key, outcome.ending) for request, outcome in ended]

    def tell_in_time(self, eventer: Any, events: Sequence[dict[str, Any]]) -> None:
        raise AssertionError("nobody watches")

    def bundle_ended(self, bundle: Bundle, unrun: Sequence[RunRequest]) -> None:
        self.over.append(bundle)
        self.runs_returned(unrun)

    def runs_returned(self, unrun: Sequence[RunRequest]) -> None:
        self.returned += [request.claimed.key for request in unrun]

    def requests(self, count: int) -> list[RunRequest]:
        batch_id = str(uuid.uuid4())
        consumer = SimpleNamespace(app=self.app, hostname="rig@host", event_dispatcher=None)
        terms = Terms(LANE, 1, BatchOptions())
        runs = [Claimed(RunId(batch_id, n, 1), f"k{n}", '"go"', 1, 0, terms) for n in range(count)]
        task = self.app.tasks[LANE.handler]
        return [RunRequest(run, "me", task=task, consumer=consumer, sink=self, result_limit=65_536) for run in runs]

    def bundle(self, count: int, done: int | None = None) -> tuple[Bundle, list[RunRequest]]:
        """In the pool's hands; when `done` is given, so many have ended and the next has begun."""
        requests = self.requests(count)
        bundle = Bundle(requests, self)
        bundle.execute_using_pool(self.pool)
        if done is not None:
            self.pool.accept()
            self.pool.run(done)
        return bundle, requests

    def of(self, ending: Ending) -> list[str]:
        return [key for key, how in self.ended if how is ending]


@pytest.fixture
def rig() -> Iterator[Rig]:
    app = Celery("rig", broker="memory://", set_as_current=False)
    setup_worker_optimizations(app, "rig@host")
    app.finalize()
    bind(app, [Handler(LANE.handler, lambda profile: profile.key)])
    yield Rig(app)
    celery_state.reset_state()
    app.close()


def test_each_run_has_its_own_answer(rig: Rig) -> None:
    _, requests = rig.bundle(3, done=3)
    rig.pool.answer()
    assert rig.ended == [("k0", Ending.SUCCEEDED), ("k1", Ending.SUCCEEDED), ("k2", Ending.SUCCEEDED)]
    assert len(rig.over) == 1
    assert not rig.returned
    assert all(request.runtime is not None for request in requests)
    assert not celery_state.active_requests


def test_a_bundle_that_is_recalled_before_the_pool_has_it_begins_with_nothing(rig: Rig) -> None:
    """A thread of the pool may take it while the loop recalls its runs."""
    bundle = Bundle(rig.requests(3), rig)
    bundle.halt()
    bundle.execute_using_pool(rig.pool)
    cell, shared, owns = rig.pool.job["args"]
    rig.pool.accept()
    rig.pool.job["callback"](trace_runs(cell, shared, owns))
    assert rig.returned == ["k0", "k1", "k2"]
    assert rig.ended == []


@pytest.mark.parametrize("at", [0, 1, 3])
def test_only_the_run_that_a_child_died_in_is_lost(rig: Rig, at: int) -> None:
    rig.bundle(4, done=at)
    rig.pool.die()
    # Those before it have ended and are not run again; those behind it cost nothing.
    assert rig.of(Ending.SUCCEEDED) == [f"k{n}" for n in range(at)]
    assert rig.of(Ending.LOST) == [f"k{at}"]
    assert rig.of(Ending.GIVEN_BACK) == [f"k{n}" for n in range(at + 1, 4)]


def test_nobody_is_lost_when_a_child_dies_behind_its_last_run(rig: Rig) -> None:
    rig.bundle(4, done=4)
    rig.pool.die()
    assert rig.of(Ending.SUCCEEDED) == ["k0", "k1", "k2", "k3"]
    assert len(rig.ended) == 4


@pytest.mark.parametrize("count", [1, 4])
def test_somebody_is_lost_when_a_child_dies_before_it_noted_anything(rig: Rig, count: int) -> None:
    rig.bundle(count)
    rig.pool.accept()
    rig.pool.die()
    # Or a handler that kills its child in some other thread would be given back for ever.
    assert rig.of(Ending.LOST) == ["k0"]
    assert len(rig.ended) == count


def test_callbacks_that_come_twice_or_late_end_nothing_twice(rig: Rig) -> None:
    bundle, _ = rig.bundle(4, done=2)
    rig.pool.die()
    rig.pool.answer()
    rig.pool.die(Terminated(-15))
    bundle.give_back()
    bundle.withdrawn()
    assert not bundle.relieve()
    assert Counter(key for key, _ in rig.ended) == {"k0": 1, "k1": 1, "k2": 1, "k3": 1}
    assert rig.over == [bundle]
    assert not rig.returned


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.bundles._PATIENCE", 0.0)
    monkeypatch.setattr("workers.bundles._SEEN", 0.0)


def test_a_slow_run_holds_up_neither_those_before_it_nor_those_behind(rig: Rig, impatient: None) -> None:
    bundle, requests = rig.bundle(5, done=2)
    eventually(lambda: not bundle.relieve())
    assert rig.ended == [("k0", Ending.SUCCEEDED), ("k1", Ending.SUCCEEDED)]
    assert rig.returned == ["k3", "k4"]
    assert [request.waits for request in requests[2:]] == [False, True, True]
    assert list(celery_state.active_requests) == [requests[2]]
    # The slow one goes on, and its child begins nothing else.
    assert not rig.over
    assert not board.begin(rig.pool.job["args"][0], 3)
    rig.pool.run(2)
    rig.pool.answers.append(trace_run(Given(*requests[2].shared, *requests[2].own)))
    rig.pool.answer()
    assert rig.ended[2:] == [("k2", Ending.SUCCEEDED)]
    assert rig.returned == ["k3", "k4"]
    assert rig.over == [bundle]


def test_a_run_that_its_child_refused_to_begin_comes_back_too(rig: Rig, impatient: None) -> None:
    bundle, _ = rig.bundle(4, done=1)
    eventually(lambda: not bundle.relieve())
    rig.pool.answer()
    assert rig.returned == ["k2", "k3", "k1"]
    assert rig.of(Ending.SUCCEEDED) == ["k0"]


def test_a_slow_run_that_dies_is_lost_alone(rig: Rig, impatient: None) -> None:
    bundle, _ = rig.bundle(4, done=1)
    eventually(lambda: not bundle.relieve())
    rig.pool.die()
    assert rig.ended == [("k0", Ending.SUCCEEDED), ("k1", Ending.LOST)]
    assert rig.returned == ["k2", "k3"]


def test_a_bundle_that_is_in_time_is_not_touched(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.bundles._PATIENCE", 60.0)
    bundle, _ = rig.bundle(3, done=1)
    assert bundle.relieve()
    assert not rig.ended
    assert not rig.returned
    rig.pool.run(3)  # it begins what is left
    rig.pool.answer()
    assert len(rig.ended) == 3


def test_a_run_revoked_in_its_bundle_does_not_begin_again_and_its_neighbours_do(rig: Rig) -> None:
    _, requests = rig.bundle(4, done=1)
    celery_state.revoked.add(requests[2].id)
    rig.pool.die()
    assert rig.of(Ending.REVOKED) == ["k2"]
    assert rig.of(Ending.GIVEN_BACK) == ["k3"]


def test_whoever_is_terminated_dies_alone(rig: Rig) -> None:
    _, requests = rig.bundle(4, done=1)
    # One that waits: its neighbour, which runs, is not to die for it, and it does not begin any more.
    celery_state.revoked.add(requests[3].id)
    requests[3].terminate(rig.pool, "TERM")
    assert not rig.pool.signals
    assert not board.begin(rig.pool.job["args"][0], 2)
    # One that runs: its child gets the signal, once.
    celery_state.revoked.add(requests[1].id)
    requests[1].terminate(rig.pool, "TERM")
    assert [pid for pid, _ in rig.pool.signals] == [PID]
    rig.pool.die(Terminated(-15))
    assert rig.of(Ending.REVOKED) == ["k1", "k3"]
    assert rig.of(Ending.SUCCEEDED) == ["k0"]
    assert rig.of(Ending.GIVEN_BACK) == ["k2"]


def test_a_worker_that_stops_at_once_only_takes_note_in_its_signal_handler(rig: Rig) -> None:
    _, requests = rig.bundle(4, done=1)
    for request in requests:
        request.cancel(rig.pool, "TERM")
    # The drain asks the child: it takes a second polite signal for the last one.
    assert rig.pool.signals == []
    rig.pool.die(Terminated(-15))
    assert rig.of(Ending.SUCCEEDED) == ["k0"]
    assert rig.of(Ending.GIVEN_BACK) == ["k1", "k2", "k3"]


def test_what_was_withdrawn_or_revoked_before_its_slot_is_not_handed_over(rig: Rig) -> None:
    requests = rig.requests(4)
    bundle = Bundle(requests, rig)
    celery_state.revoked.add(requests[0].id)
    requests[1].finish(Outcome(Ending.GIVEN_BACK))
    requests[2].withdrawn()
    bundle.execute_using_pool(rig.pool)
    assert rig.pool.keys == ["k3"]
    bundle.withdrawn()
    assert rig.returned == ["k3"]


def test_a_bundle_of_which_nothing_is_left_frees_its_slot(rig: Rig) -> None:
    bundle = Bundle(rig.requests(3), rig)
    bundle.withdrawn()
    with pytest.raises(TaskRevokedError):
        bundle.execute_using_pool(rig.pool)
    assert not rig.pool.job
    assert rig.returned == ["k0", "k1", "k2"]
    assert rig.over == [bundle]


def test_a_time_limit_counts_for_one_run_alone(rig: Rig) -> None:
    task = rig.app.tasks[LANE.handler]
    task.time_limit, task.soft_time_limit = 9, 5
    rig.bundle(1)
    assert (rig.pool.job["timeout"], rig.pool.job["soft_timeout"]) == (9, 5)
    rig.pool.accept()
    rig.pool.die(TimeLimitExceeded(9))
    rig.pool.job["timeout_callback"](False, 9)
    assert rig.ended == [("k0", Ending.FAILED)]
    # A limit that was set while a bundle waited must not end those who had no time to run.
    bundle, _ = rig.bundle(2)
    assert (rig.pool.job["timeout"], rig.pool.job["soft_timeout"]) == (None, None)
    bundle.give_back()


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("task", "time_limit"),
        ("task", "soft_time_limit"),
        ("worker", "time_limit"),
        ("worker", "soft_time_limit"),
        ("worker", "max_tasks_per_child"),
    ],
)
def test_what_the_pool_counts_by_the_job_makes_runs_travel_alone(rig: Rig, place: str, name: str) -> None:
    nothing = {"time_limit": None, "soft_time_limit": None, "max_tasks_per_child": None}
    controller = SimpleNamespace(app=rig.app, hostname="rig@host", **nothing)
    executor = PoolExecutor(controller, "prefork", 65_536)
    assert not executor.one_by_one(LANE.handler)
    setattr(rig.app.tasks[LANE.handler] if place == "task" else controller, name, 3)
    assert executor.one_by_one(LANE.handler)


# --- in the child


def runs(rig: Rig, cell: int, function: Callable[[Profile], Any], payloads: Sequence[Any]) -> list[Any]:
    handler = Handler(f"tests.{uuid.uuid4().hex}", function)
    bind(rig.app, [handler])
    shared = Shared(handler.name, str(uuid.uuid4()), 1, 65_536, "rig@host", "w1", None)
    owns = [tuple(Own(n, 1, f"k{n}", json.dumps(payload), 1)) for n, payload in enumerate(payloads)]
    return trace_runs(cell, tuple(shared), owns)


def _raise(error: BaseException) -> Any:
    raise error


def test_what_would_end_a_process_ends_its_own_run_alone(rig: Rig, cell: int) -> None:
    errors = [None, SystemExit(3), MemoryError(), KeyboardInterrupt(), ValueError()]

    def odd(profile: Profile) -> Any:
        error = errors[profile.payload]
        return profile.key if error is None else _raise(error)

    answers = runs(rig, cell, odd, [0, 1, 0, 2, 0, 3, 0, 4, 0])
    assert [answer[0] for answer in answers] == ["succeeded", "failed"] * 4 + ["succeeded"]
    assert [answer[1] for answer in answers[::2]] == [f'"k{n}"' for n in range(0, 9, 2)]
    assert board.answers(cell) == answers


def test_a_run_that_takes_longer_than_planned_is_the_last_of_its_bundle(
    rig: Rig, cell: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.tracing.BUNDLE_TIME", -1.0)
    assert len(runs(rig, cell, lambda profile: profile.key, [0] * 5)) == 1
    monkeypatch.setattr("workers.tracing.BUNDLE_TIME", 60.0)
    board.give(board.take())
    assert len(runs(rig, cell, lambda profile: profile.key, [0] * 5)) == 5


@pytest.mark.parametrize("fails", [False, True])
def test_large_answers_end_a_bundle_early(rig: Rig, cell: int, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.tracing.BUNDLE_TIME", 60.0)

    def large(_: Profile) -> Any:
        return _raise(ValueError("x" * 5_000)) if fails else "x" * 60_000

    answers = runs(rig, cell, large, [0] * 200)
    assert 1 < len(answers) < 100
    # All but the one that had no room any more can be told by the board.
    assert board.answers(cell) == answers[:-1]


# --- the consumer


@dataclass
class Recorded:
    """A consumer's bench whose pool has two slots, with a note of what went to it together."""

    bench: Bench
    bundles: list[list[RunRequest]] = field(default_factory=list)

    def __post_init__(self) -> None:
        executor = self.bench.consumer.executor
        hand_over = executor.execute

        def execute(bundle: Bundle) -> None:
            self.bundles.append(list(bundle.requests))
            hand_over(bundle)

        executor.execute = execute  # type: ignore[method-assign]

    def warm(self) -> None:
        """Let it learn that the handler is quick."""
        batch_id = self.bench.batch(['"go"'] * 100)
        self.bench.dispatch(batch_id)
        self.bench.finished(batch_id)
        self.bundles.clear()

    def sizes(self) -> list[int]:
        return [len(bundle) for bundle in self.bundles]

    @staticmethod
    def _hangs(request: RunRequest) -> bool:
        return request.claimed.payload == '"wait"' and not request.waits

    def stuck(self) -> str:
        """A batch of which one profile hangs with others behind it in its bundle, in the only slot."""
        batch_id = self.bench.batch(['"go"'] * 20 + ['"wait"'] + ['"go"'] * 20)
        self.bench.dispatch(batch_id)
        eventually(lambda: any(self._hangs(request) for request in list(self.bench.consumer.active.values())))
        return batch_id


@pytest.fixture
def recorded(database: Database, broker_url: str, key_prefix: str) -> Iterator[Recorded]:
    bench = Bench(database, broker_url, key_prefix, slots=1)
    recorded = Recorded(bench)
    bench.start()
    yield recorded
    bench.close()
    consumer = bench.consumer
    assert not consumer.bundles
    assert not consumer.active
    assert not consumer.ready


def test_quick_runs_travel_together_and_unknown_ones_alone(recorded: Recorded) -> None:
    batch_id = recorded.bench.batch(['"go"'] * 100)
    recorded.bench.dispatch(batch_id)
    recorded.bench.finished(batch_id)
    assert recorded.sizes()[0] == 1
    assert max(recorded.sizes()) > 1
    assert len(recorded.bundles) < 100


def test_runs_of_two_batches_travel_apart(recorded: Recorded) -> None:
    recorded.warm()
    bench = recorded.bench
    first = bench.batch(['"go"'] * 60)
    dispatches = bench.state.dispatch(first, 100, bench.term)
    second = bench.batch(['"go"'] * 60)
    both = zip(dispatches, bench.state.dispatch(second, 100, bench.term), strict=True)
    bench.leader.republish([dispatch for pair in both for dispatch in pair])
    for batch_id in (first, second):
        bench.finished(batch_id)
    assert all(len({request.claimed.run.batch_id for request in bundle}) == 1 for bundle in recorded.bundles)


def test_payloads_of_one_bundle_are_bounded_in_bytes(recorded: Recorded) -> None:
    recorded.warm()
    batch_id = recorded.bench.batch([json.dumps("x" * 60_000)] * 30)
    recorded.bench.dispatch(batch_id)
    recorded.bench.finished(batch_id)
    assert max(recorded.sizes()) <= 5


def test_whoever_hangs_holds_up_only_himself(recorded: Recorded) -> None:
    recorded.warm()
    bench = recorded.bench
    batch_id = recorded.stuck()
    # Those before it have settled although their bundle goes on, with the only slot there is.
    eventually(lambda: [state for state, _, _ in bench.states(batch_id)[:20]] == ["succeeded"] * 20)
    # Those behind it wait where they can be withdrawn.
    eventually(lambda: all(request.waits for request in list(bench.consumer.active.values())[1:]))
    bench.gates["21"].set()
    bench.finished(batch_id)


def test_a_pause_gives_back_what_is_behind_one_that_hangs(recorded: Recorded) -> None:
    recorded.warm()
    bench = recorded.bench
    batch_id = recorded.stuck()
    bench.spans.clear()
    assert bench.state.stop(batch_id, StopTarget.PAUSED, "for later") is BatchState.STOPPING
    # Then what this worker had claimed and not begun is pending again, uncharged, while one goes on to hang
    eventually(lambda: len(bench.consumer.active) == 1)
    eventually(lambda: "running" not in {state for state, _, _ in bench.states(batch_id)[21:]})
    assert bench.states(batch_id)[20] == ("running", 1, 0)
    assert {attempts for _, _, attempts in bench.states(batch_id)[21:]} == {0}
    bench.gates["21"].set()
    eventually(lambda: not bench.consumer.active)
    # Nothing began after the pause.
    assert set(bench.spans) == {"21"}


def test_draining_gives_back_what_is_behind_one_that_hangs(recorded: Recorded) -> None:
    recorded.warm()
    bench = recorded.bench
    batch_id = recorded.stuck()
    from threading import Event

    from workers.drain import Drain

    done = Event()
    bench.loop.call_soon(Drain(bench.consumer, 20.0, done.set).begin)
    eventually(lambda: len(bench.consumer.active) == 1)
    eventually(lambda: "running" not in {row[0] for row in bench.states(batch_id)[21:]})
    assert bench.states(batch_id)[20][0] == "running"
    assert not done.is_set()
    bench.gates["21"].set()
    assert done.wait(10)
    assert bench.states(batch_id)[20][0] == "succeeded"
    bench.loop.stop()
    bench.thread.join(5)


def test_nothing_of_a_bundle_begins_under_a_new_identity(recorded: Recorded) -> None:
    recorded.warm()
    bench = recorded.bench
    batch_id = recorded.stuck()
    eventually(lambda: not bench.consumer.outcomes)
    held = list(bench.consumer.held)
    first = bench.consumer.worker_id
    bench.spans.clear()
    # Given a worker that is declared dead, and whose runs others may have
    from batching.models import workers as rows

    with bench.database.begin() as connection:
        connection.execute(rows.delete().where(rows.c.id == first))
    bench.state.give_back(first, held)
    eventually(lambda: bench.consumer.worker_id != first)
    bench.gates["21"].set()
    eventually(lambda: not bench.consumer.active)
    # Then only what had begun came to its end here, too late
    assert set(bench.spans) == {"21"}
    assert {state for state, _, _ in bench.states(batch_id)[20:]} <= {"pending", "dispatched"}


def test_the_accounts_are_even_after_every_way_to_come_back(recorded: Recorded) -> None:
    recorded.warm()
    bench = recorded.bench
    for _ in range(3):
        batch_id = recorded.stuck()
        bench.gates["21"].set()
        bench.finished(batch_id)
    eventually(lambda: not bench.consumer.held)
    eventually(lambda: not bench.consumer.bundles)
    assert bench.consumer.appetite._active[HANDLER] == 0
