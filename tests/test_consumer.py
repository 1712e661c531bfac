"""The consumer against real SQL, a real Valkey and Celery's real thread pool, in this process."""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from celery import Celery
from celery.app.trace import setup_worker_optimizations
from celery.concurrency.thread import TaskPool
from celery.worker import state as celery_state
from kombu.asynchronous import Hub
from sqlalchemy import select, text

from batching import BatchOptions
from batching.database import Database
from batching.errors import DatabaseUnavailableError
from batching.execution_manager import BatchExecutionManager
from batching.handlers import Handler, Profile
from batching.interfaces import Dispatch, Lane, RunId
from batching.live import PAUSE, Listener
from batching.models import profiles, workers
from batching.options import BatchSpec, ProfileInput
from batching.registry import WorkerRegistry
from batching.settings import Settings
from batching.state_manager import BatchStateManager
from tests.support import eventually
from workers.consumer import LaneConsumer
from workers.drain import Drain
from workers.executors import ThreadsExecutor
from workers.hubs import HubBridge
from workers.interrupter import Interrupter
from workers.loops import Loop
from workers.offers import Reader
from workers.ports import Ports
from workers.publisher import RedisPublisher, lane_key
from workers.tasks import bind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from batching.interfaces import Claimed, ClaimResult, Outcome, SettleResult
    from tests.servers import ValkeyServer
    from workers.bundles import Bundle

HANDLER = "tests.bench"
LANE = Lane("default", HANDLER)


class Manager(BatchExecutionManager):
    """The real one; remembers the sizes of its groups, and fails as a database would when a test says so."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.claims: list[int] = []
        self.settles: list[int] = []
        self.unanswered_claims = self.unanswered_settles = 0
        self.poison: int | None = None

    def claim(self, worker_id: str, runs: Sequence[RunId]) -> ClaimResult:
        result = super().claim(worker_id, runs)
        self.claims.append(len(runs))
        if self.unanswered_claims:
            self.unanswered_claims -= 1
            raise DatabaseUnavailableError("the answer to the COMMIT was lost")
        return result

    def complete(
        self, worker_id: str, outcomes: Sequence[tuple[Claimed, Outcome]], holding: Collection[str] = ()
    ) -> SettleResult:
        if any(claimed.run.number == self.poison and outcome.result for claimed, outcome in outcomes):
            raise ValueError("a row that the database refuses")
        result = super().complete(worker_id, outcomes, holding)
        self.settles.append(len(outcomes))
        if self.unanswered_settles:
            self.unanswered_settles -= 1
            raise DatabaseUnavailableError("the answer to the COMMIT was lost")
        return result


@dataclass
class Bench:
    """One consumer in a thread, and what a leader would do, by hand."""

    database: Database
    broker_url: str
    key_prefix: str
    slots: int = 4
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)
    gates: dict[str, threading.Event] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    """Further settings."""
    leads: bool = True

    def __post_init__(self) -> None:
        usual: dict[str, Any] = {
            "key_prefix": self.key_prefix,
            "heartbeat_interval": 0.2,
            "sql_timeout": 0.3,
            "flush_size": 100,
        }
        self.settings = Settings(**(usual | self.more))
        self.own = Database(self.database.url, timeout=self.settings.sql_timeout)
        self.publisher = RedisPublisher(self.broker_url, self.key_prefix)
        self.state = BatchStateManager(self.database)
        self.leader = BatchExecutionManager(self.state, RedisPublisher(self.broker_url, self.key_prefix))
        self.manager = Manager(BatchStateManager(self.own))
        self.app = Celery("bench", broker="memory://", set_as_current=False)
        # As a worker does at boot: pool threads find the application through this.
        setup_worker_optimizations(self.app, "bench@host")
        bind(self.app, [Handler(HANDLER, self.handle)])
        self.pool = TaskPool(self.slots, app=self.app)
        self.pool.start()
        controller = SimpleNamespace(
            pool=self.pool, app=self.app, hostname="bench@host", concurrency=self.slots,
            time_limit=None, soft_time_limit=None, max_tasks_per_child=None,
        )  # fmt: skip
        controller.consumer = SimpleNamespace(app=self.app, hostname="bench@host", event_dispatcher=None)
        self.loop = Loop()
        self.consumer = LaneConsumer(
            Ports(
                self.loop,
                ThreadsExecutor(controller, "threads", 65_536),
                self.manager,
                WorkerRegistry(self.own),
                self.publisher,
                self.settings,
                frozenset({HANDLER}),
            )
        )
        self.thread = threading.Thread(target=self.loop.run_forever)
        if self.leads:
            term = self.state.lead(str(uuid.uuid4()), 600)
            assert term is not None
            self.term = term

    def handle(self, profile: Profile) -> Any:
        started = time.monotonic()
        if profile.payload == "wait":
            assert self.gates[profile.key].wait(20)
        self.spans[profile.key] = (started, time.monotonic())
        return {"run": profile.run}

    def start(self) -> None:
        self.loop.call_soon(self.consumer.start)
        self.thread.start()
        eventually(lambda: self.consumer.life.registered)

    def batch(self, payloads: Sequence[str]) -> str:
        receipt = self.state.create_batch(BatchSpec(HANDLER, "bench", options=BatchOptions(max_passes=1)))
        rows = [ProfileInput(str(number), payload) for number, payload in enumerate(payloads, 1)]
        self.gates |= {row.key: threading.Event() for row in rows if row.payload == '"wait"'}
        self.state.add_profiles(receipt.id, rows)
        self.state.seal(receipt.id)
        assert self.state.promote("default", self.term) == receipt.id
        return receipt.id

    def dispatch(self, batch_id: str) -> list[Dispatch]:
        dispatches = self.state.dispatch(batch_id, 10_000, self.term)
        self.leader.republish(dispatches)
        return dispatches

    def states(self, batch_id: str) -> list[tuple[str, int, int]]:
        columns = (profiles.c.state, profiles.c.run, profiles.c.attempts)
        with self.database.read() as reading:
            rows = reading.execute(select(*columns).where(profiles.c.batch_id == batch_id).order_by(profiles.c.number))
            return [(row.state, row.run, row.attempts) for row in rows]

    def finished(self, batch_id: str, run: int = 1) -> None:
        def check() -> None:
            assert set(self.states(batch_id)) == {("succeeded", run, 1)}

        eventually(check, 20)

    def close(self) -> None:
        for gate in self.gates.values():
            gate.set()
        done = threading.Event()
        if self.thread.is_alive():
            self.loop.call_soon(Drain(self.consumer, 5.0, done.set).begin)
            assert done.wait(20)
            self.loop.stop()
            self.thread.join(5)
        self.pool.stop()
        self.loop.close()
        self.publisher.close()
        self.own.close()
        self.app.close()


@pytest.fixture
def bench(database: Database, broker_url: str, key_prefix: str) -> Iterator[Bench]:
    made = Bench(database, broker_url, key_prefix)
    yield made
    made.close()


@contextmanager
def locked(database: Database) -> Iterator[None]:
    """Nobody else can write the profiles meanwhile."""
    with database.begin() as connection:
        if database.dialect == "postgresql":
            connection.execute(text("LOCK TABLE profiles, workers IN ACCESS EXCLUSIVE MODE"))
        yield


def test_profiles_are_claimed_and_settled_in_groups(bench: Bench) -> None:
    batch_id = bench.batch(['"go"'] * 600)
    bench.dispatch(batch_id)
    bench.start()
    bench.finished(batch_id)
    eventually(lambda: not bench.consumer.held)
    assert sum(bench.manager.claims) == sum(bench.manager.settles) == 600
    assert len(bench.manager.claims) < 200
    assert max(bench.manager.settles) <= 100


class StillLoop:
    """A loop in which nothing happens by itself."""

    def __init__(self) -> None:
        self.later: list[Any] = []

    def call_soon(self, function: Any, *arguments: Any) -> None:
        function(*arguments)

    def call_later(self, delay: float, function: Any) -> None:
        self.later.append(function)

    def pass_time(self) -> None:
        due, self.later = self.later, []
        for function in due:
            function()


def test_while_runs_end_one_after_the_other_the_loop_keeps_quiet(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does takes the interpreter from the threads that it waits for; but the pool must not run dry."""
    consumer, loop = bench.consumer, StillLoop()
    monkeypatch.setattr(consumer, "loop", loop)
    consumer.bundles = {cast("Bundle", object()) for _ in range(3 * bench.slots)}
    noted: list[int] = []

    def told(number: int) -> None:
        consumer._tell(noted.append, number)

    told(1)
    told(2)
    loop.pass_time()
    assert noted == []
    told(3)
    loop.pass_time()
    assert noted == [], "another came meanwhile"
    loop.pass_time()
    assert noted == [1, 2, 3]
    for number in range(4 * bench.slots):  # two of its slots' worth: as much as waits at its door
        told(number)
    loop.pass_time()
    assert len(noted) == 3 + 4 * bench.slots
    monkeypatch.setattr("workers.consumer._LISTEN", 0.0)
    told(4)
    told(5)
    loop.pass_time()
    assert noted[-2:] == [4, 5], "for no longer than that"
    consumer.bundles = {cast("Bundle", object())}
    told(6)
    assert noted[-1] == 6, "at once: the pool has nothing else to do"
    consumer.bundles = set()


def test_settlements_are_told_to_whoever_watches_and_not_one_by_one(bench: Bench) -> None:
    heard: list[frozenset[str]] = []
    lines: list[bool] = []
    listener = Listener(bench.broker_url, bench.key_prefix, heard.append, lines.append)
    listener.start()
    eventually(lambda: lines == [True])
    batch_id = bench.batch(['"go"'] * 600)
    bench.dispatch(batch_id)
    began = time.monotonic()
    bench.start()
    bench.finished(batch_id)
    eventually(lambda: not bench.consumer.held and not bench.consumer.bell.news)
    eventually(lambda: frozenset({batch_id}) in heard)
    most = (time.monotonic() - began) / PAUSE + 1
    assert len([ids for ids in heard if ids]) <= most
    listener.stop()


def test_a_message_that_arrives_twice_runs_once(bench: Bench) -> None:
    batch_id = bench.batch(['"go"'] * 50)
    dispatches = bench.dispatch(batch_id)
    bench.leader.republish(dispatches)
    bench.start()
    bench.finished(batch_id)
    bench.leader.republish(dispatches)
    eventually(lambda: bench.consumer.intake.refused + bench.consumer.intake.duplicates == 100)
    assert set(bench.states(batch_id)) == {("succeeded", 1, 1)}


def test_long_profiles_are_not_hoarded(bench: Bench) -> None:
    batch_id = bench.batch(['"wait"'] * 50)
    bench.dispatch(batch_id)
    bench.start()
    eventually(lambda: len(bench.consumer.active) >= bench.slots)
    assert bench.publisher.lengths([LANE])[LANE] >= 50 - 2 * bench.slots
    assert sum(state == "running" for state, _, _ in bench.states(batch_id)) <= 2 * bench.slots


def test_a_suspect_runs_with_nothing_beside_it(bench: Bench) -> None:
    batch_id = bench.batch(['"wait"', '"wait"', '"wait"', *['"go"'] * 20])
    first, second, suspect, *rest = bench.state.dispatch(batch_id, 100, bench.term)
    bench.start()
    bench.leader.republish([first, second])
    eventually(lambda: len(bench.consumer.active) == 2)
    bench.leader.republish([suspect._replace(alone=True)])
    eventually(lambda: bench.publisher.lengths([LANE])[LANE] == 0)
    bench.leader.republish(rest)
    bench.gates["1"].set()
    eventually(lambda: "1" in bench.spans)
    assert bench.states(batch_id)[2][0] == "dispatched"
    bench.gates["2"].set()
    eventually(lambda: bench.states(batch_id)[2][0] == "running")
    assert [state for state, _, _ in bench.states(batch_id)[3:]] == ["dispatched"] * 20
    bench.gates["3"].set()
    bench.finished(batch_id)
    start, end = bench.spans["3"]
    assert all(began >= end or ended <= start for key, (began, ended) in bench.spans.items() if key != "3")


def test_while_sql_is_away_nothing_is_popped_and_outcomes_wait(bench: Bench) -> None:
    batch_id = bench.batch(['"wait"', '"wait"', *['"go"'] * 40])
    first, second, *rest = bench.state.dispatch(batch_id, 100, bench.term)
    bench.start()
    bench.leader.republish([first, second])
    eventually(lambda: len(bench.consumer.active) == 2)
    with locked(bench.database):
        for gate in bench.gates.values():
            gate.set()
        eventually(lambda: len(bench.consumer.outcomes) == 2 and not bench.consumer.gate.open)
        bench.leader.republish(rest)
        eventually(lambda: bench.consumer.intake.popper.outstanding == 0)
        # The last answer may be read, and its messages not yet taken note of.
        eventually(lambda: bench.publisher.lengths([LANE])[LANE] + len(bench.consumer.intake.pending) == 40)
    bench.finished(batch_id)


def test_a_claim_whose_answer_was_lost_is_given_back_uncharged(bench: Bench) -> None:
    batch_id = bench.batch(['"go"'] * 5)
    bench.manager.unanswered_claims = 1
    dispatches = bench.dispatch(batch_id)
    bench.start()
    eventually(lambda: bench.manager.unanswered_claims == 0)

    def all_done() -> None:
        bench.dispatch(batch_id)
        states = bench.states(batch_id)
        assert {state for state, _, _ in states} == {"succeeded"}
        # Given back at no charge: the run grew, the attempts did not.
        assert {attempts for _, _, attempts in states} == {1}
        assert 2 in {run for _, run, _ in states}

    eventually(all_done, 20, interval=0.1)
    assert len(dispatches) == 5


def test_a_settlement_whose_answer_was_lost_is_repeated_and_counts_once(bench: Bench) -> None:
    batch_id = bench.batch(['"go"'] * 5)
    bench.manager.unanswered_settles = 1
    bench.dispatch(batch_id)
    bench.start()
    bench.finished(batch_id)
    eventually(lambda: not bench.consumer.held)
    assert bench.consumer.outcomes.late >= 1


def test_an_outcome_that_the_database_refuses_does_not_hold_up_its_neighbours(bench: Bench) -> None:
    batch_id = bench.batch(['"go"'] * 10)
    bench.manager.poison = 4
    bench.dispatch(batch_id)
    bench.start()

    def settled() -> None:
        states = [state for state, _, _ in bench.states(batch_id)]
        assert states.count("succeeded") == 9
        assert states[3] in {"pending", "failed"}

    eventually(settled)
    eventually(lambda: not bench.consumer.held)


def test_what_sql_counts_here_and_this_worker_does_not_know_is_given_back(bench: Bench) -> None:
    batch_id = bench.batch(['"go"'] * 3)
    bench.start()
    dispatches = bench.state.dispatch(batch_id, 10, bench.term)
    claimed = bench.state.claim(bench.consumer.worker_id, [dispatch.run for dispatch in dispatches])
    assert len(claimed.claimed) == 3
    eventually(lambda: bench.states(batch_id) == [("pending", 1, 0)] * 3)


def test_a_worker_that_was_declared_dead_goes_on_as_another(bench: Bench) -> None:
    batch_id = bench.batch(['"wait"'])
    bench.dispatch(batch_id)
    bench.start()
    eventually(lambda: bench.states(batch_id) == [("running", 1, 0)])
    first = bench.consumer.worker_id
    with bench.database.begin() as connection:
        connection.execute(workers.delete().where(workers.c.id == first))
    bench.state.give_back(first, [bench.consumer.held.copy().popitem()[0]])
    eventually(lambda: bench.consumer.worker_id != first)
    bench.gates["1"].set()
    eventually(lambda: bench.consumer.outcomes.late == 1)
    bench.dispatch(batch_id)
    bench.finished(batch_id, run=2)
    with bench.database.read() as connection:
        assert list(connection.scalars(select(workers.c.id))) == [bench.consumer.worker_id]


def test_a_look_that_takes_too_long_costs_no_worker_its_life(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a sign of life reads may be slow, or fail; the sign itself comes through on the next try."""
    bench.start()
    worker = bench.consumer.worker_id

    def seen() -> Any:
        with bench.database.read() as connection:
            return connection.scalar(select(workers.c.heartbeat_at).where(workers.c.id == worker))

    def slow(*_: object) -> Any:
        raise DatabaseUnavailableError("canceling statement due to statement timeout")

    with monkeypatch.context() as patch:
        patch.setattr("batching.moves.profile.running_of", slow)
        eventually(lambda: not bench.consumer.gate.open)
        first = seen()
        eventually(lambda: seen() > first)
        assert not bench.consumer.gate.open
    eventually(lambda: bench.consumer.gate.open)
    assert bench.consumer.worker_id == worker


def test_of_a_cancelled_batch_only_what_still_runs_is_interrupted() -> None:
    """The child of a run that is over, and was not taken note of yet, may be at another one."""
    told: list[str] = []

    def request(name: str, *, over: bool) -> Any:
        run = RunId("batch", 1 if over else 2, 1)
        return SimpleNamespace(
            id=name,
            over=over,
            waits=False,
            time_start=time.time() - 5,
            log_fields=dict,
            claimed=SimpleNamespace(run=run),
        )

    active = {each.claimed.run: each for each in (request("ended", over=True), request("running", over=False))}
    looker: Any = SimpleNamespace(
        active=active,
        gate=SimpleNamespace(open=True, run=lambda call: call()),
        registry=SimpleNamespace(interrupted=set),
        executor=SimpleNamespace(interrupt=lambda request, force: told.append(request.id)),
    )
    Interrupter(looker).look()
    assert told == ["running"]
    del active[RunId("batch", 2, 1)]
    looker.registry = None
    Interrupter(looker).look()  # nothing is asked for the sake of one that is over


def test_a_run_revoked_before_its_claim_does_not_run(bench: Bench) -> None:
    batch_id = bench.batch(['"go"', '"go"'])
    first, second = bench.state.dispatch(batch_id, 10, bench.term)
    celery_state.revoked.add(first.run.task_id)
    bench.leader.republish([first, second])
    bench.start()
    eventually(lambda: [state for state, _, _ in bench.states(batch_id)] == ["cancelled", "succeeded"])
    assert set(bench.spans) == {"2"}
    celery_state.revoked.discard(first.run.task_id)


def test_it_outlives_its_broker(database: Database, own_valkey: ValkeyServer, key_prefix: str) -> None:
    bench = Bench(database, own_valkey.url, key_prefix)
    bench.start()
    own_valkey.restart(empty=True)
    batch_id = bench.batch(['"go"'] * 10)
    bench.dispatch(batch_id)
    bench.finished(batch_id)
    own_valkey.freeze()
    own_valkey.thaw()
    again = bench.batch(['"go"'] * 10)
    bench.dispatch(again)
    bench.finished(again)
    bench.close()


def test_draining_puts_messages_back_and_gives_back_what_has_not_begun(bench: Bench) -> None:
    batch_id = bench.batch(['"wait"'] * 12)
    bench.dispatch(batch_id)
    bench.start()
    eventually(lambda: len(bench.spans) == 0 and len(bench.consumer.active) == 2 * bench.slots)
    done = threading.Event()
    bench.loop.call_soon(Drain(bench.consumer, 10.0, done.set).begin)

    def given_back() -> None:
        states = [state for state, _, _ in bench.states(batch_id)]
        assert states.count("running") == bench.slots
        assert states.count("pending") == 2 * bench.slots - bench.slots

    eventually(given_back)
    assert bench.publisher.lengths([LANE])[LANE] == 12 - 2 * bench.slots
    assert not done.is_set()
    for gate in bench.gates.values():
        gate.set()
    assert done.wait(10)
    states = bench.states(batch_id)
    assert sum(state == "succeeded" for state, _, _ in states) == bench.slots
    assert all(attempts == 0 for state, _, attempts in states if state != "succeeded")
    bench.loop.stop()
    bench.thread.join(5)


JUNK = [
    b"",
    b"no json",
    b"[" * 10_000,
    b"[]",
    b'{"headers": []}',
    b'{"headers": {}}',
    b'{"headers": {"task": 7, "id": "x"}}',
    b'{"headers": {"task": "tests.other", "id": "x"}}',
    b'{"headers": {"task": "tests.bench", "id": 7}}',
    b'{"headers": {"task": "tests.bench", "id": "a.b.c"}}',
    b'{"headers": {"task": "tests.bench", "id": "zzzzzzzz-zzzz-zzzz-zzzz-zzzzzzzzzzzz.1.1"}}',
    b'{"headers": {"task": "tests.bench", "id": "01234567-89ab-4def-8123-456789abcdef.1.99999999999"}}',
    b"x" * 20_000,
    "\ud800".encode("utf-8", "surrogatepass"),
]


@pytest.mark.parametrize("raw", JUNK)
def test_junk_is_counted_and_never_raises(raw: bytes) -> None:
    reader = Reader({HANDLER})
    key = lane_key("p:", LANE)
    assert reader.read(key, raw) is None
    assert reader.read(key, raw) is None
    assert sum(reader.junk.values()) == 2


def test_the_loop_runs_calls_of_other_threads_and_outlives_their_errors() -> None:
    loop = Loop()
    seen: list[Any] = []
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    loop.call_soon(lambda: 1 / 0)
    loop.call_soon(seen.append, "soon")
    loop.call_soon(loop.call_later, 0.02, seen.append, "later")
    loop.call_soon(loop.call_later, 0.01, seen.append, "sooner")
    eventually(lambda: seen == ["soon", "sooner", "later"])
    loop.stop()
    thread.join(5)
    loop.close()


def test_the_loop_turns_within_kombus_hub_and_outlives_its_reset() -> None:
    hub, loop = Hub(), Loop()
    bridge = HubBridge(loop)
    bridge.attach(hub)
    seen: list[str] = []
    ticks = loop.call_repeatedly(0.01, lambda: seen.append("tick"))
    loop.call_soon(seen.append, "soon")
    turns = hub.create_loop()

    def turned() -> int:
        next(turns)
        return seen.count("tick")

    eventually(lambda: turned() >= 3 and "soon" in seen)
    hub.reset()
    bridge.attach(hub)
    turns = hub.create_loop()
    before = len(seen)
    eventually(lambda: turned() >= before + 3)
    ticks.cancel()
    bridge.detach()
    loop.close()
    hub.close()
