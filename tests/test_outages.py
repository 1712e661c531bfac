"""What goes wrong around us: a frozen or read-only PostgreSQL, junk in Redis, workers that vanish, forks that fail."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import uuid
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from psycopg import sql
from sqlalchemy import func, select, text
from sqlalchemy.engine import make_url

from batching import state_manager
from batching.database import Database
from batching.dialects import later
from batching.errors import DatabaseUnavailableError
from batching.execution_manager import BatchExecutionManager
from batching.interfaces import Lane
from batching.models import batches, profiles
from batching.options import BatchSpec, ProfileInput
from batching.registry import WorkerRegistry
from batching.settings import Settings
from batching.states import BatchState
from tests.accounting import DONE, HANDLER, Desk, assert_accounted, plant_batch
from tests.support import eventually
from tests.test_consumer import LANE, Bench
from tests.test_dispatcher import Leader
from workers.companion import Companion
from workers.loops import Loop
from workers.manager import Manager
from workers.publisher import RedisPublisher, lane_key
from workers.settling import Outcomes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import PostgresServer
    from workers.requests import RunRequest

LANE_OF_DESK = Lane("default", HANDLER)


@contextmanager
def opened(url: str, timeout: float) -> Iterator[Database]:
    """A `Database` with a bound of the test's own."""
    store = Database(url, timeout=timeout)
    try:
        yield store
    finally:
        store.close()


def backend(store: Database) -> int:
    with store.begin() as connection:
        return int(connection.scalars(select(func.pg_backend_pid())).one())


def database_of(url: str) -> str:
    return str(make_url(url).database)


# --- PostgreSQL


def test_a_frozen_backend_is_given_up_and_the_next_call_finds_another(own_postgres: PostgresServer) -> None:
    with opened(own_postgres.url("postgres"), 1.0) as store:
        frozen = backend(store)
        os.kill(frozen, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(DatabaseUnavailableError, match="no answer within 2 s"), store.begin() as connection:
                connection.execute(text("SELECT 1"))
            assert time.monotonic() - started < 4.0
            assert backend(store) != frozen
        finally:
            os.kill(frozen, signal.SIGCONT)


@contextmanager
def read_only(server: PostgresServer, name: str) -> Iterator[None]:
    """A database as a standby shows it; sessions begin anew on both sides."""
    change = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}")
    with server.connect() as connection:
        connection.execute(change.format(sql.Identifier(name), sql.SQL("on")))
        server.disconnect(name)
        yield
        connection.execute(change.format(sql.Identifier(name), sql.SQL("off")))
        server.disconnect(name)


def test_outcomes_wait_while_the_database_is_read_only(postgresql_url: str, postgres_server: PostgresServer) -> None:
    with opened(postgresql_url, 2.0) as store:
        desk = Desk(store)
        batch_id = desk.start(3)
        outcomes = Outcomes(BatchExecutionManager(desk.states), size=500, interval=0.05, held=Counter())
        for claimed in desk.claim(batch_id):
            outcomes.add(cast("RunRequest", SimpleNamespace(holder=desk.worker, claimed=claimed)), DONE)
        with read_only(postgres_server, database_of(postgresql_url)):
            store.close()
            with pytest.raises(DatabaseUnavailableError, match="read-only"):
                outcomes.settle()
            assert len(outcomes) == 3
        store.close()
        assert len(outcomes.settle()) == 3
        assert (len(outcomes), outcomes.late, desk.state(batch_id)) == (0, 0, BatchState.SUCCEEDED)


def test_a_transaction_that_was_ended_for_its_idleness_counts_as_an_outage(
    postgresql_url: str, postgres_server: PostgresServer
) -> None:
    with opened(postgresql_url, 0.3) as store, postgres_server.connect() as other:

        def ended(pid: int) -> bool:
            return not other.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchall()

        def speak_too_late() -> None:
            with store.begin() as connection:
                pid = connection.scalars(select(func.pg_backend_pid())).one()
                eventually(lambda: ended(pid))
                connection.execute(text("SELECT 1"))

        with pytest.raises(DatabaseUnavailableError):
            speak_too_late()
        assert backend(store)


def test_a_conclusion_that_fails_leaves_its_outcomes_settled_and_not_late(
    postgresql_url: str, postgres_server: PostgresServer
) -> None:
    with (
        opened(postgresql_url, 0.5) as store,
        postgres_server.connect(database_of(postgresql_url)) as other,
    ):
        desk = Desk(store)
        batch_id = desk.start(1)
        claimed = desk.claim(batch_id)
        execution = BatchExecutionManager(desk.states)
        with other.transaction():
            other.execute("SELECT 1 FROM queues WHERE name = 'default' FOR NO KEY UPDATE")
            result = execution.complete(desk.worker, [(claimed[0], DONE)])
            assert (result.applied, result.late) == ([claimed[0].run], [])
            assert desk.state(batch_id) is BatchState.RUNNING
        desk.states.conclude([batch_id])  # as the sweep does
        assert desk.state(batch_id) is BatchState.SUCCEEDED
        assert_accounted(store, batch_id)


def test_a_large_abandoned_batch_is_deleted_in_slices(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_manager, "_SLICE", 0.02)
    desk = Desk(database)
    large = desk.states.create_batch(BatchSpec(HANDLER, "large")).id
    for first in range(0, 30_000, 10_000):
        desk.states.add_profiles(large, [ProfileInput(f"k{first + n}", "1") for n in range(10_000)])
    plant_batch(database, large, loading_until=later(-1.0))
    kept = desk.submit(2)
    sizes: list[int] = []

    def swept() -> bool:
        gone = desk.states.sweep_abandoned()
        with database.read() as connection:
            sizes.append(connection.scalars(select(func.count()).where(profiles.c.batch_id == large)).one())
        return gone == [large]

    eventually(swept, 20)
    assert len(sizes) > 1
    assert sizes[-1] == 0
    with database.read() as connection:
        assert list(connection.scalars(select(batches.c.id))) == [kept]
    assert_accounted(database, kept)


# --- the leader


def test_a_holder_takes_its_own_lease_again_at_once(database: Database) -> None:
    states = Desk(database).states
    one, two = str(uuid.uuid4()), str(uuid.uuid4())
    first = states.lead(one, 600)
    assert first is not None
    assert states.lead(two, 600) is None
    again = states.lead(one, 600)
    assert again is not None
    assert again.epoch > first.epoch
    assert not states.renew(first, 600)
    assert states.renew(again, 600)


@contextmanager
def managing(store: Database, publisher: RedisPublisher) -> Iterator[None]:
    """A manager that runs in a thread, and still does at the end."""
    manager = Manager(Settings(poll_interval=0.05), store, publisher)
    thread = threading.Thread(target=manager.run)
    thread.start()
    try:
        yield
        assert thread.is_alive()
    finally:
        manager.stop()
        thread.join(20)
        publisher.close()


def test_an_error_that_nobody_expected_does_not_end_the_manager(
    sqlite_url: str, broker_url: str, key_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = RedisPublisher(broker_url, key_prefix, timeout=2.0)
    with opened(sqlite_url, 2.0) as store:
        desk = Desk(store)
        desk.register()
        with managing(store, publisher):
            first = desk.submit(1)
            eventually(lambda: publisher.lengths([LANE_OF_DESK])[LANE_OF_DESK] == 1)
            with store.begin() as connection:
                connection.execute(text("ALTER TABLE workers RENAME TO elsewhere"))
            eventually(lambda: "turn failed" in caplog.text)
            with store.begin() as connection:
                connection.execute(text("ALTER TABLE elsewhere RENAME TO workers"))
            second = desk.submit(1)
            eventually(lambda: publisher.lengths([LANE_OF_DESK])[LANE_OF_DESK] >= 2)
        assert {desk.state(first), desk.state(second)} == {BatchState.RUNNING}


def test_junk_in_the_canary_is_as_good_a_canary_as_any(broker_url: str, key_prefix: str) -> None:
    publisher = RedisPublisher(broker_url, key_prefix, timeout=2.0)
    publisher.client.set(f"{key_prefix}canary", b"\xff\xfe")
    junk = publisher.incarnation()
    assert publisher.incarnation() == junk
    publisher.client.flushall()
    assert publisher.incarnation() != junk
    publisher.close()


def test_a_lane_key_of_a_wrong_type_counts_as_empty(broker_url: str, key_prefix: str) -> None:
    publisher = RedisPublisher(broker_url, key_prefix, timeout=2.0)
    wrong, right = Lane("default", "wrong"), Lane("default", "right")
    publisher.client.set(lane_key(key_prefix, wrong), b"x")
    publisher.client.lpush(lane_key(key_prefix, right), b"x")
    assert publisher.lengths([wrong, right]) == {wrong: 0, right: 1}
    publisher.close()


def test_messages_of_workers_that_are_gone_do_not_keep_the_next_batch_out(database: Database) -> None:
    leader = Leader(database)
    desk = leader.desk
    gone = desk.register(str(uuid.uuid4()), ("x",), slots=8)
    stuck = desk.submit(1_000, handler="x")
    assert leader.ticks(3) == [stuck]
    assert leader.sent(stuck) == 16
    WorkerRegistry(database).leave(gone)
    desk.register(str(uuid.uuid4()), ("y",), slots=8)
    batch_id = desk.submit(10, handler="y")
    assert leader.ticks() == [batch_id]
    assert leader.sent(batch_id) == 10


def test_few_workers_of_another_handler_do_not_keep_the_next_batch_out(database: Database) -> None:
    leader = Leader(database)
    desk = leader.desk
    desk.register(str(uuid.uuid4()), ("x",), slots=1)
    desk.register(str(uuid.uuid4()), ("y",), slots=8)
    wanted = [desk.submit(1_000, handler="x"), desk.submit(10, handler="y")]
    further = desk.submit(10, handler="x")
    assert leader.ticks() == wanted
    assert desk.state(further) is BatchState.QUEUED  # the one worker of x has enough


# --- the worker


@pytest.fixture
def bench(sqlite_url: str, broker_url: str, key_prefix: str) -> Iterator[Bench]:
    with opened(sqlite_url, 2.0) as store:
        made = Bench(store, broker_url, key_prefix)
        yield made
        made.close()


def test_an_offer_to_run_alone_that_another_worker_took_does_not_stop_this_one(bench: Bench) -> None:
    batch_id = bench.batch(['"wait"', *['"go"'] * 11])
    first, suspect, *rest = bench.state.dispatch(batch_id, 100, bench.term)
    assert bench.state.claim(str(uuid.uuid4()), [suspect.run]).claimed
    bench.start()
    bench.leader.republish([first])
    eventually(lambda: len(bench.consumer.active) == 1)
    bench.leader.republish([suspect._replace(alone=True)])
    eventually(lambda: bench.publisher.lengths([LANE])[LANE] == 0)
    bench.leader.republish(rest)
    # While the first still runs, and for however long: it is not waited for.
    eventually(lambda: [state for state, _, _ in bench.states(batch_id)].count("succeeded") == 10)
    assert "1" not in bench.spans


def test_a_companion_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / "manager"
    monkeypatch.setattr("workers.companion.python", lambda module: [str(program)])
    loop = Loop()
    companion = Companion(loop, {})
    with caplog.at_level(logging.ERROR, "workers.companion"):
        companion.start()
    assert companion.pid is None
    assert "could not be started" in caplog.text
    program.write_text("#!/bin/sh\nexec cat\n")
    program.chmod(0o755)

    def runs() -> bool:
        loop.run_once(0.05)
        return companion.pid is not None

    eventually(runs)
    companion.stop()
    loop.close()


def test_a_process_whose_connections_are_all_in_use_is_told_so_and_goes_on_when_one_is_free(database: Database) -> None:
    pool: Any = database.engine.pool
    pool._timeout = 0.05
    held = [database.engine.connect() for _ in range(pool.size() + pool._max_overflow)]
    with pytest.raises(DatabaseUnavailableError, match="all connections of this process are in use"), database.read():
        pass
    for each in held:
        each.close()
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(batches)) == 0
