"""How profiles are written: copied, by statements, or whole in one; always the same rows, or none."""

from __future__ import annotations

import sqlite3
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, event, func, literal, select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from batching import migration, submission
from batching.copying import can_copy
from batching.database import Database
from batching.dialects import later
from batching.errors import DatabaseUnavailableError, IllegalMoveError, InvalidInputError
from batching.intake import Limits, from_iterable
from batching.models import NOBODY, batches, counters, history, profiles, queues
from batching.moves import loading, whole
from batching.options import BatchOptions, BatchSpec, ProfileInput
from batching.queue_manager import QueueManager
from batching.states import BatchState
from tests.accounting import HANDLER, assert_accounted, plant_batch, read_batch, statements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from tests.servers import PostgresServer

#: What a text format would have to escape, and a binary one must not.
ODD = [
    "\\.",
    "\\N",
    "\\",
    "a\\tb",
    'say "x"',
    "{a,b}",
    "NULL",
    "'",
    "a\u00a0b",
    "👩\u200d🚀",
    "é",
    "\u0661",
    "$1 %s ?1",
    " x ",
]
IN_PAYLOADS = [*ODD, "", "\t", "\n", "\r\n", "\0", "\x7f", "\u2028", "\x1f\\n"]


@pytest.fixture
def queue(database: Database) -> QueueManager:
    return QueueManager(database)


@pytest.fixture(params=["whole", "in chunks", "in a session"])
def write(request: pytest.FixtureRequest, queue: QueueManager, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Submits by each of the ways in turn."""

    def submit(rows: list[Any], **named: Any) -> str:
        if request.param == "in a session":
            with queue.database.begin() as connection:
                return queue.submit(HANDLER, rows, session=connection, **named).id
        return queue.submit(HANDLER, rows, **named).id

    if request.param == "in chunks":
        monkeypatch.setattr(submission, "FIRST_PROFILES", 1)
        monkeypatch.setattr(submission, "CHUNK_PROFILES", 7)
    return submit


def stored(database: Database, batch_id: str) -> list[tuple[int, str, str]]:
    with database.read() as connection:
        chosen = select(profiles.c.number, profiles.c.key, profiles.c.payload).where(profiles.c.batch_id == batch_id)
        return [tuple(row) for row in connection.execute(chosen.order_by(profiles.c.number))]


def nothing_is_left(database: Database) -> bool:
    with database.read() as connection:
        return not any(connection.execute(select(table)).all() for table in (batches, profiles, counters, history))


# --- the same rows, whichever way


def test_every_character_arrives(queue: QueueManager, write: Callable[..., str]) -> None:
    rows = [
        (key, {"x": text, text: [text]}) for key, text in zip([*ODD, *map(str, range(9))], IN_PAYLOADS, strict=False)
    ]
    batch_id = write(rows)
    encoded = [(profile.key, profile.payload) for profile in from_iterable(rows, Limits(999, 99))]
    assert stored(queue.database, batch_id) == [(at, *each) for at, each in enumerate(encoded, 1)]
    assert [line.key for line in queue.statistics.results(batch_id)] == [key for key, _ in rows]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=30))
def test_any_text_arrives(postgresql_url: str, texts: list[str]) -> None:
    database = Database(postgresql_url)
    batch_id = database_batch(database)
    chunk = [ProfileInput(f"k{at}", text.replace("\0", "")) for at, text in enumerate(texts)]
    with database.begin() as connection:
        assert can_copy(connection)
        assert loading.add_profiles(connection, batch_id, iter(chunk)) == len(chunk)
    assert stored(database, batch_id) == [(at, *each) for at, each in enumerate(chunk, 1)]
    database.close()


def database_batch(database: Database) -> str:
    return QueueManager(database).state_manager.create_batch(BatchSpec(HANDLER, "b")).id


@pytest.mark.parametrize("count", [0, 1, 6, 20, 600])
def test_all_else_is_the_same_too(queue: QueueManager, write: Callable[..., str], count: int) -> None:
    queue.submit(HANDLER, ["before"], queue="q")
    options = BatchOptions(max_passes=7, failure_budget=0.5)
    batch_id = write([f"k{at}" for at in range(count)], name="n", key="nightly", queue="q", priority=3, options=options)
    batch = read_batch(queue.database, batch_id)
    assert (batch.queue, batch.handler, batch.state, batch.target) == ("q", HANDLER, BatchState.QUEUED, None)
    assert (batch.priority, batch.position, batch.pass_number, batch.last_pass) == (3, 2, 1, 7)
    assert (batch.generation, batch.rewritten, batch.sealed, batch.total) == (0, 0, True, count)
    assert batch.options == options
    assert assert_accounted(queue.database, batch_id).pending == count
    with queue.database.read() as connection:
        row = connection.execute(select(batches).where(batches.c.id == batch_id)).one()
        assert (row.name, row.key, row.loading_until, row.reason, row.urgent) == ("n", "nightly", None, None, False)
        told = connection.execute(select(history).where(history.c.batch_id == batch_id)).one()
        assert (told.from_state, told.to_state, told.pass_number, told.position) == ("loading", "queued", 1, 2)
        assert (told.generation, told.reason) == (0, "submitted")
        assert list(connection.scalars(select(counters.c.worker_id).where(counters.c.batch_id == batch_id))) == [NOBODY]
        assert set(connection.scalars(select(queues.c.name))) >= {"q"}


@pytest.mark.parametrize(("first", "second"), [(1, 2), (3, 5), (3, 20), (1, 30)])
def test_a_key_twice_leaves_nothing(queue: QueueManager, write: Callable[..., str], first: int, second: int) -> None:
    keys = [f"k{first}" if at == second else f"k{at}" for at in range(1, 31)]
    with pytest.raises(InvalidInputError) as refused:
        write(keys)
    assert f"cannot take item {second}: its key 'k{first}' was used before, item {first};" in str(refused.value)
    assert nothing_is_left(queue.database)


def test_a_session_in_another_encoding_writes_the_same(postgresql_url: str) -> None:
    engine = create_engine(postgresql_url, connect_args={"client_encoding": "LATIN1"})
    database = Database(postgresql_url)
    with Session(engine) as session:
        assert not can_copy(session.connection())
        batch_id = QueueManager(database).submit(HANDLER, [("ü", "é")], session=session).id
        session.commit()
    assert stored(database, batch_id) == [(1, "ü", '"é"')]
    engine.dispose()
    database.close()


# --- whole: one transaction


@contextmanager
def transactions(database: Database) -> Iterator[list[str]]:
    """The transactions that are begun and ended inside."""
    seen: list[str] = []
    listeners = {name: (lambda _, name=name: seen.append(name)) for name in ("begin", "commit", "rollback")}
    for name, listener in listeners.items():
        event.listen(database.engine, name, listener)
    try:
        yield seen
    finally:
        for name, listener in listeners.items():
            event.remove(database.engine, name, listener)


@pytest.mark.parametrize("count", [1, 200])
def test_a_small_batch_costs_one_statement(postgresql_url: str, count: int) -> None:
    database = Database(postgresql_url)
    queue = QueueManager(database)
    queue.submit(HANDLER, ["warm"])
    with statements(database) as seen, transactions(database) as begun:
        queue.submit(HANDLER, [f"k{at}" for at in range(count)])
    assert len(seen) == 1
    assert begun == []  # two round trips less
    database.close()


def test_a_small_batch_is_announced_as_soon_as_it_is_seen_and_on_the_disk_when_submit_returns(
    postgresql_url: str,
) -> None:
    """The leader begins while the disk is waited for; the last statement is what waits."""
    database, other = Database(postgresql_url), Database(postgresql_url)
    queue = QueueManager(database)
    heard: list[tuple[int, int]] = []

    with statements(database) as executed:

        def announce() -> None:
            with other.read() as connection:
                seen = connection.scalar(select(func.count()).select_from(batches).where(batches.c.state == "queued"))
            heard.append((int(seen or 0), len(executed)))

        spec = BatchSpec(HANDLER, "b")
        queue.state_manager.submit_whole(spec, [ProfileInput("a", "1")], announce)
        assert heard == [(1, 1)]
        assert ["pg_logical_emit_message" in each for each in executed] == [False, True]
    database.close()
    other.close()


def test_a_small_batch_costs_one_transaction(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    with transactions(database) as begun, statements(database) as seen:
        QueueManager(database).submit(HANDLER, ["a", "b"])
    assert begun == ["begin", "commit"]
    assert len(seen) == 7  # BEGIN, what the queue may hold, then one for each table
    database.close()


def test_a_large_batch_costs_few_statements(queue: QueueManager) -> None:
    with statements(queue.database) as seen:
        queue.submit(HANDLER, (f"k{at}" for at in range(20_000)))
    if queue.database.dialect == "postgresql":
        assert len(seen) <= 30  # a copy is none of these: 3 chunks
    else:
        assert len(seen) <= 30 + 20_000 // 250 + 3


def test_a_place_at_the_end_is_found_without_a_walk(queue: QueueManager) -> None:
    kept = {"queue": "default", "name": "b", "handler": HANDLER, "state": "queued", "options": {}, "sealed": True}
    queue.submit(HANDLER, ["a"])
    with queue.database.begin() as connection:
        connection.execute(batches.insert(), [{**kept, "id": str(uuid.uuid4()), "position": at} for at in range(3_000)])
        connection.execute(text("ANALYZE"))
    with queue.database.read() as connection:
        asked = select(whole._tail()).params(queue="default", batch=NOBODY)
        sql = asked.compile(connection, compile_kwargs={"literal_binds": True})
        explain = "EXPLAIN QUERY PLAN" if queue.database.dialect == "sqlite" else "EXPLAIN"
        plan = "\n".join(str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {sql}"))
        assert connection.scalar(asked) == 3_000
    assert "batches_position_idx" in plan
    assert not any(word in plan for word in ("Seq Scan", "Sort", "SCAN batches"))


def test_a_transaction_that_is_rolled_back_leaves_nothing(queue: QueueManager) -> None:
    with queue.database.engine.connect() as connection:
        whole.write_whole(connection, BatchSpec(HANDLER, "b", key="k"), [ProfileInput("a", "1")])
        connection.rollback()
    assert nothing_is_left(queue.database)


def test_another_error_is_not_taken_for_a_key(queue: QueueManager) -> None:
    with pytest.raises(IntegrityError):  # the table's own check, below whatever the border lets through
        queue.state_manager.submit_whole(BatchSpec(HANDLER, "b", priority=None), [ProfileInput("a", "1")])  # type: ignore[arg-type]
    assert nothing_is_left(queue.database)


def test_an_existing_key_leaves_the_batch_as_it_is(queue: QueueManager) -> None:
    first = queue.submit(HANDLER, ["a"], key="nightly")
    assert queue.submit(HANDLER, ["b"], key="nightly").id == first.id
    assert [key for _, key, _ in stored(queue.database, first.id)] == ["a"]


# --- the source, while it is read


def large(at: int, act: Callable[[], object], total: int = 3_000) -> Iterator[str]:
    """Profiles of a batch that takes more than one chunk; something happens in between."""
    for number in range(total):
        if number == at:
            act()
        yield f"k{number}"


@pytest.mark.parametrize("at", [10, 1_500])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("mine"),
        KeyboardInterrupt(),
        psycopg.OperationalError("the server of the source is gone"),
        OperationalError("SELECT 1", {}, sqlite3.OperationalError("the source's own database is locked")),
    ],
)
def test_what_a_source_raises_arrives_as_it_is(queue: QueueManager, at: int, error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        queue.submit(HANDLER, large(at, fail))
    assert raised.value is error
    assert raised.value.__context__ is None
    assert nothing_is_left(queue.database)


def test_a_source_may_write_to_the_same_store(queue: QueueManager) -> None:
    inner: list[Any] = []
    outer = queue.submit(HANDLER, large(1_500, lambda: inner.append(queue.submit(HANDLER, ["x"]))))
    assert assert_accounted(queue.database, outer.id).pending == 3_000
    assert assert_accounted(queue.database, inner[0].id).pending == 1


def test_a_batch_that_is_swept_under_its_producer_takes_nothing_more(queue: QueueManager) -> None:
    def lapse_and_sweep() -> None:
        with queue.database.read() as connection:
            (batch_id,) = connection.scalars(select(batches.c.id))
        plant_batch(queue.database, batch_id, loading_until=later(literal(-1.0)))
        assert queue.state_manager.sweep_abandoned() == [batch_id]

    with pytest.raises(IllegalMoveError, match="it does not load any more"):
        queue.submit(HANDLER, large(1_500, lapse_and_sweep))
    assert nothing_is_left(queue.database)


def test_a_lease_that_ends_under_a_chunk_refuses_it(queue: QueueManager) -> None:
    batch_id = database_batch(queue.database)

    def chunk() -> Iterator[ProfileInput]:
        yield ProfileInput("a", "1")
        with queue.database.begin() as connection:
            connection.execute(batches.update().values(loading_until=None))

    with pytest.raises(IllegalMoveError, match="it does not load any more"):
        queue.state_manager.add_profiles(batch_id, chunk())
    assert stored(queue.database, batch_id) == []


def test_a_chunk_is_not_added_twice_when_two_add_at_once(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    manager = QueueManager(database).state_manager
    batch_id = database_batch(database)

    def chunk() -> Iterator[ProfileInput]:
        # The second reads the total before the first has written it: both would number from 1.
        manager.add_profiles(batch_id, [])
        with database.begin() as connection:
            connection.execute(batches.update().values(total=5))
        yield ProfileInput("a", "1")

    with pytest.raises(IllegalMoveError):
        manager.add_profiles(batch_id, chunk())
    assert stored(database, batch_id) == []
    database.close()


def test_a_server_that_dies_under_a_chunk(own_postgres: PostgresServer) -> None:
    database = Database(own_postgres.url(own_postgres.create_database()))
    migration.upgrade(database)
    queue = QueueManager(database)
    with pytest.raises(DatabaseUnavailableError, match="cannot reach the database"):
        queue.submit(HANDLER, large(1_500, own_postgres.kill), key="nightly")
    own_postgres.start()
    with database.read() as connection:
        (batch_id,) = connection.scalars(select(batches.c.id))
    assert len(stored(database, batch_id)) == 1_000  # what was committed; its lease ends, and the sweep deletes it
    plant_batch(database, batch_id, loading_until=later(literal(-1.0)))
    assert queue.state_manager.sweep_abandoned() == [batch_id]
    assert queue.submit(HANDLER, large(0, lambda: None), key="nightly").total == 3_000
    database.close()


def test_a_store_with_a_time_out_gathers_a_chunk_first(postgresql_url: str) -> None:
    database = Database(postgresql_url, timeout=5)
    held: list[int] = []

    def look() -> None:
        held.append(database.engine.pool.checkedout())  # type: ignore[attr-defined]

    assert QueueManager(database).submit(HANDLER, large(1_500, look)).total == 3_000
    assert held == [0]
    database.close()
