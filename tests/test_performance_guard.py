"""What the hot path costs, in what can be counted: statements, rows, Redis commands, allocations. Never in seconds."""

from __future__ import annotations

import gc
import re
import sys
import uuid
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from sqlalchemy import event, insert, text

from batching.database import Database
from batching.dialects import now
from batching.execution_manager import BatchExecutionManager
from batching.figures import Figures
from batching.interfaces import Claimed, Dispatch, Lane, RunId, Terms
from batching.models import batches
from batching.moves import profile, promotion, statements
from batching.options import BatchOptions
from batching.outlook import look
from batching.registry import Asked, Heard, WorkerRegistry
from batching.states import StopTarget
from tests.accounting import DONE, FAILED, HANDLER, Desk, assert_accounted, end, plant_batch
from tests.recording import RecordingPublisher
from workers.offers import Reader
from workers.publisher import CHUNK, RedisPublisher, lane_key, message
from workers.requests import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

    from tests.servers import PostgresServer, ValkeyServer

#: Statements of one group, BEGIN and COMMIT included. SQLite counts in a statement of its own, and makes no round trip.
MOST = {
    "postgresql": {"dispatch": 4, "claim": 4, "settle": 4, "settle failures": 4, "look": 6},
    "sqlite": {"dispatch": 5, "claim": 5, "settle": 6, "settle failures": 7, "look": 6},
}
MILLION = 1_000_000
GROUP = 500


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


@contextmanager
def counted(database: Database) -> Iterator[list[str]]:
    """Collects every statement that goes to the database, those that begin and end transactions too."""
    seen: list[str] = []

    def execute(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    def begin(connection: Connection) -> None:
        if database.dialect == "postgresql":  # SQLite's is a statement that we send ourselves
            seen.append("BEGIN")

    def commit(connection: Connection) -> None:
        seen.append("COMMIT")

    listeners: dict[str, Callable[..., None]] = {"before_cursor_execute": execute, "begin": begin, "commit": commit}
    for name, listener in listeners.items():
        event.listen(database.engine, name, listener)
    try:
        yield seen
    finally:
        for name, listener in listeners.items():
            event.remove(database.engine, name, listener)


@pytest.mark.parametrize("size", [5, GROUP])
def test_a_group_of_any_size_takes_so_many_statements(desk: Desk, size: int) -> None:
    desk.register()
    batch_id = desk.start(3 * size, failure_budget=2 * size)
    desk.settle(desk.claim(batch_id, size))  # makes the tickets
    found: dict[str, list[str]] = {}

    def measure(name: str, move: Callable[[], Any]) -> Any:
        with counted(desk.database) as found[name]:
            return move()

    runs = measure("dispatch", lambda: desk.dispatch(batch_id, 2 * size))
    claimed = measure("claim", lambda: desk.states.claim(desk.worker, runs)).claimed
    assert len(claimed) == 2 * size
    measure("settle", lambda: desk.settle(claimed[:size]))
    measure("settle failures", lambda: desk.settle(claimed[size:], FAILED))
    measure("look", lambda: look(desk.database, 10.0))

    most = MOST[desk.database.dialect]
    assert {name: seen for name, seen in found.items() if len(seen) > most[name]} == {}
    assert assert_accounted(desk.database, batch_id)[3:5] == (2 * size, size)


def test_a_batch_in_full_swing_is_settled_without_a_look_at_its_end(desk: Desk) -> None:
    execution = BatchExecutionManager(desk.states, RecordingPublisher())
    batch_id = desk.start(20)
    taken = desk.claim(batch_id)
    with counted(desk.database) as seen:
        execution.complete(desk.worker, [(each, DONE) for each in taken[:10]], holding={batch_id})
    assert len(seen) <= MOST[desk.database.dialect]["settle"]


def test_a_sign_of_life_is_one_transaction_whatever_there_is_to_hear(desk: Desk) -> None:
    """Each statement is a round trip in which the worker does nothing else."""
    desk.register()
    batch_id = desk.start(3)
    stopped, offer = desk.start(2), desk.dispatch(batch_id, 1)[0]
    held = [each.run for each in desk.claim(stopped, 1)]
    desk.states.stop(stopped, StopTarget.PAUSED, "p")
    process = Figures()
    process.ran(HANDLER, batch_id, 0.1)
    with counted(desk.database) as seen:
        heard = WorkerRegistry(desk.database).beat(
            desk.worker, counted=process, gauges={"active": 1}, asked=Asked({batch_id, stopped}, offer, queues=True)
        )
    assert heard == Heard(drain=False, queues=["default"], running=held, stopping={stopped}, stands=True)
    # BEGIN, what was counted, the queues, what runs, what stops, the offer, the sign itself, COMMIT
    assert len(seen) <= 8


@pytest.fixture(scope="module")
def large(postgres_server: PostgresServer, postgres_template: str) -> Iterator[tuple[Desk, str]]:
    """A batch of a million profiles on PostgreSQL, freshly filled: nothing has told the planner about it yet."""
    name = postgres_server.create_database(postgres_template)
    database = Database(postgres_server.url(name))
    desk = Desk(database)
    batch_id = desk.submit(0)
    fill = """INSERT INTO profiles (batch_id, number, key, payload)
              SELECT CAST(:batch AS uuid), number, 'k' || number, '1' FROM generate_series(1, :size) AS number"""
    with database.begin() as connection:
        connection.execute(text(fill), {"batch": batch_id, "size": MILLION})
        connection.execute(text("UPDATE counters SET pending = :size"), {"size": MILLION})
    plant_batch(database, batch_id, total=MILLION)
    desk.states.promote("default", desk.term)
    yield desk, batch_id
    database.close()
    postgres_server.drop_database(name)


def touched(connection: Connection) -> dict[str, tuple[int, int]]:
    """By table: whole walks, and rows that were fetched through an index, in this transaction."""
    rows = connection.execute(
        text("SELECT relname, seq_scan, coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables")
    ).all()
    return {name: (walks, fetched) for name, walks, fetched in rows}


def test_a_group_out_of_a_million_touches_only_its_own_rows(large: tuple[Desk, str]) -> None:
    """Also after the tenth time, when PostgreSQL has made a plan for good."""
    desk, batch_id = large
    for _ in range(12):
        desk.settle(desk.claim(batch_id, 20))
    offered: list[Dispatch] = []
    claimed: list[Any] = []

    def dispatch(connection: Connection) -> None:
        offered.extend(profile.dispatch(connection, batch_id, GROUP, desk.term, 2))

    def claim(connection: Connection) -> None:
        claimed.extend(profile.claim(connection, desk.worker, [each.run for each in offered]).claimed)

    def settle(connection: Connection) -> None:
        ends = [end(each) for each in claimed]
        assert len(profile.settle(connection, desk.worker, desk.worker, ends).applied) == GROUP

    for move in (dispatch, claim, settle):
        with desk.database.begin() as connection:
            move(connection)
            found = touched(connection)
        assert [name for name, (walks, _) in found.items() if walks] == [], move.__name__
        # Some versions of each row: an index leads to those that are over, too, until somebody has found them dead.
        assert found["profiles"][1] <= 5 * GROUP, move.__name__
    assert len(claimed) == GROUP


#: Rows of a table that a move of some profiles may fetch: theirs, and versions of others that are over, beside them.
FEW = 60
LARGE = 100_000


def fetched(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> dict[str, int]:
    """Rows that were fetched through an index between two looks: PostgreSQL adds up some transactions of a session."""
    return {name: count - before.get(name, (0, 0))[1] for name, (_, count) in after.items()}


def plant_large(database: Database, batch_id: str) -> None:
    """Many more profiles for a batch that has one, without a word to the planner."""
    fill = """INSERT INTO profiles (batch_id, number, key, payload)
              SELECT CAST(:batch AS uuid), number, 'k' || number, '1' FROM generate_series(2, :size) AS number"""
    with database.begin() as connection:
        connection.execute(text(fill), {"batch": batch_id, "size": LARGE})
        more = {"batch": batch_id, "more": LARGE - 1}
        connection.execute(
            text("UPDATE counters SET pending = pending + :more WHERE batch_id = CAST(:batch AS uuid)"), more
        )
    plant_batch(database, batch_id, total=LARGE)


def test_a_group_is_moved_by_what_the_tables_are_and_not_by_what_they_were(postgresql_url: str) -> None:
    """A plan for good, made when there were a few small batches, would look at all of a large one for each profile."""
    database = Database(postgresql_url)
    desk = Desk(database)
    small = desk.start(100)
    for _ in range(15):  # psycopg prepares a statement after five, PostgreSQL makes a plan for good after five more
        desk.settle(desk.claim(small, 3))
    large = desk.start(1)
    plant_large(database, large)
    claimed: list[Any] = []

    def dispatch(connection: Connection) -> None:
        claimed.extend(profile.dispatch(connection, large, 3, desk.term, 2))

    def claim(connection: Connection) -> None:
        claimed[:] = profile.claim(connection, desk.worker, [each.run for each in claimed]).claimed

    def settle(connection: Connection) -> None:
        profile.settle(connection, desk.worker, desk.worker, [end(each) for each in claimed])

    for move in (dispatch, claim, settle):
        with database.begin() as connection:
            before = touched(connection)
            move(connection)
            found = fetched(before, touched(connection))
        assert len(claimed) == 3
        assert found["profiles"] <= FEW, move.__name__
    database.close()


def test_what_keeps_its_plans_for_good_finds_its_way_in_a_table_that_has_grown(postgresql_url: str) -> None:
    """The first profiles of a batch are on their way by statements that nobody plans anew: see `Direct`."""
    database = Database(postgresql_url)
    desk = Desk(database)
    desk.register()
    plan = promotion.Plan(None, {HANDLER: 2}, 2)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("SET plan_cache_mode = force_generic_plan")
        connection.commit()
        for _ in range(10):
            desk.submit(1)
            with connection.begin():
                started = promotion.start_at_once(connection, "default", desk.term, plan, 2)
            assert started is not None
            with connection.begin():
                runs = [each.run for each in started.dispatches]
                won = profile.claim_first(connection, desk.worker, started.batch_id, runs).claimed
            desk.settle(won)
            desk.states.conclude([started.batch_id])
        kept = {"queue": "default", "name": "b", "handler": HANDLER, "state": "succeeded", "options": {}}
        with database.begin() as planting:
            rows = [{**kept, "id": str(uuid.uuid4()), "position": number, "sealed": True} for number in range(3_000)]
            planting.execute(insert(batches).values(finished_at=now()), rows)
        large = desk.submit(1)
        plant_large(database, large)
        with connection.begin():
            before = touched(connection)
            started = promotion.start_at_once(connection, "default", desk.term, plan, 2)
            found = fetched(before, touched(connection))
        assert started is not None
        assert len(started.dispatches) == 2
        assert max(found.values()) <= FEW, found
        with connection.begin():
            before = touched(connection)
            runs = [each.run for each in started.dispatches]
            assert len(profile.claim_first(connection, desk.worker, large, runs).claimed) == 2
            found = fetched(before, touched(connection))
        assert max(found.values()) <= FEW, found
    database.close()


@pytest.mark.parametrize(
    "statement",
    [
        statements.dispatch("postgresql"),
        statements.claim("postgresql"),
        statements.settle("postgresql", successes=True),
        statements.settle("postgresql", successes=False),
    ],
    ids=["dispatch", "claim", "settle", "settle failures"],
)
def test_the_plan_for_good_walks_over_nothing_and_sorts_no_backlog(large: tuple[Desk, str], statement: Any) -> None:
    desk, _ = large
    compiled = str(statement.compile(dialect=desk.database.engine.dialect))
    numbers: dict[str, int] = {}
    numbered = re.sub(r"%\((\w+)\)s", lambda found: f"${numbers.setdefault(found[1], len(numbers) + 1)}", compiled)
    with desk.database.begin() as connection:
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN (GENERIC_PLAN) {numbered}").scalars())
    # A join filter compares each row of one side with each of the other: right for a few counters and for one batch,
    # not for runs.
    right = r"\(counters\.|\(profiles_\d\.generation <= batch\."
    assert re.findall(rf"Seq Scan.*|Sort Key: .*profiles.*|Join Filter: (?!{right}).*", plan) == [], plan


def test_a_thousand_messages_of_a_lane_take_a_few_commands(valkey_server: ValkeyServer, desk: Desk) -> None:
    publisher = RedisPublisher(valkey_server.url, "guard:")
    dispatches = desk.dispatches(desk.start(1_000), 1_000)
    publisher.client.ping()
    before = publisher.client.info("commandstats")
    publisher.publish(dispatches)
    after = publisher.client.info("commandstats")
    publisher.close()

    def calls(stats: dict[str, Any]) -> int:
        return sum(int(each["calls"]) for name, each in stats.items() if name != "cmdstat_info")

    assert len(dispatches) == 1_000
    assert calls(after) - calls(before) <= 1_000 // CHUNK


# --- memory: what is held for one run, in blocks of Python's allocator, whatever their size


def blocks(make: Callable[[], Any]) -> tuple[int, Any]:
    """Blocks that the result of a call holds."""
    gc.collect()
    gc.disable()
    try:
        before = sys.getallocatedblocks()
        made = make()
        return sys.getallocatedblocks() - before, made
    finally:
        gc.enable()


def offers(count: int) -> list[bytes]:
    batch_id = str(uuid.uuid4())
    lane = Lane("default", HANDLER)
    dispatches = [Dispatch(RunId(batch_id, n, 1), f"k{n}", lane, 1, 1, alone=False) for n in range(1, count + 1)]
    return [message(each, lane_key("guard:", lane), "1@host").encode() for each in dispatches]


def test_a_message_is_short() -> None:
    assert max(map(len, offers(1_000))) <= 900


def test_reading_a_message_holds_little() -> None:
    raws = offers(1_000)
    reader = Reader({HANDLER})
    key = lane_key("guard:", Lane("default", HANDLER))
    reader.read(key, raws[0])
    held, read = blocks(lambda: [reader.read(key, raw) for raw in raws])
    assert len(read) == 1_000
    assert None not in read
    assert held <= 7 * 1_000


def test_a_claimed_run_holds_little() -> None:
    app = Celery("guard", broker="memory://", set_as_current=False)
    task = app.task(name=HANDLER, shared=False)(lambda: None)
    consumer = SimpleNamespace(app=app, hostname="guard@host", event_dispatcher=None)
    terms = Terms(Lane("default", HANDLER), 1, BatchOptions())
    runs = [Claimed(RunId(str(uuid.uuid4()), n, 1), f"k{n}", '"go"', 1, 0, terms) for n in range(1_000)]

    def request(run: Claimed) -> RunRequest:
        nobody: Any = None
        return RunRequest(run, "me", task=task, consumer=consumer, sink=nobody, result_limit=65_536)

    request(runs[0])
    held, _ = blocks(lambda: [request(run) for run in runs])
    assert held <= 7 * 1_000


def test_settling_successes_sends_each_text_once(desk: Desk) -> None:
    """What travels for a group of successes is their ids and results, and nothing that all of them have in common."""
    desk.register()
    batch_id = desk.start(GROUP)
    claimed = desk.claim(batch_id, GROUP)
    sizes: list[int] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        given = parameters.values() if isinstance(parameters, dict) else parameters
        sizes.append(sum(len(each) for each in given if isinstance(each, str)))

    event.listen(desk.database.engine, "before_cursor_execute", note)
    desk.settle(claimed)
    event.remove(desk.database.engine, "before_cursor_execute", note)
    result = len('{"ok":true}') + 4  # and its quotes
    assert max(sizes) <= GROUP * (36 + 8 + 8 + result) + 200
