"""The shipped SQL roles on a real PostgreSQL: each does its whole work, and nothing more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import create_engine, func, make_url, select

from batching import migration
from batching.database import Database
from batching.doctor import examine
from batching.errors import BatchingError, InvalidInputError, NotPermittedError, QueueFullError
from batching.figures import Figures
from batching.measure import Measurer
from batching.metrics import exposition
from batching.models import batches, metadata, profiles
from batching.outlook import look
from batching.queue_manager import QueueManager
from batching.registry import WorkerRegistry
from batching.states import BatchState, StopTarget
from tests.accounting import FAILED, HANDLER, Desk, assert_accounted
from tests.sql_roles import ROLES, install, upgrade, url_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import PostgresServer


_FINISHED = (
    "INSERT INTO batches (id, queue, name, handler, state, position, options, finished_at) "
    "VALUES (gen_random_uuid(), 'default', 'n', 'h', 'succeeded', 1, '{}', now())"
)


@pytest.fixture(scope="module")
def url(postgres_server: PostgresServer) -> str:
    """A store with roles, for the superuser; shared, since no test needs it empty."""
    return install(postgres_server)


@pytest.fixture
def producer(url: str) -> Iterator[QueueManager]:
    yield from _manager(url_of("batching_producer", url))


@pytest.fixture
def desk(url: str) -> Iterator[Desk]:
    database = Database(url_of("batching_worker", url))
    desk = Desk(database)
    yield desk
    desk.states.resign(desk.term)
    database.close()


@pytest.fixture
def reader(url: str) -> Iterator[QueueManager]:
    yield from _manager(url_of("batching_reader", url))


def _manager(url: str) -> Iterator[QueueManager]:
    database = Database(url)
    yield QueueManager(database)
    database.close()


def refusal(url: str, role: str, statement: str) -> str:
    """What the server says to a statement of a role; empty when it was executed."""
    with psycopg.connect(url_of(role, url).replace("+psycopg", ""), autocommit=True) as connection:
        try:
            connection.execute(statement)
        except psycopg.Error as error:
            return str(error)
    return ""


def everything(manager: QueueManager, batch_id: str) -> list[Any]:
    """Every read there is."""
    reads = manager.statistics
    return [
        reads.batches(),
        reads.batch(batch_id).as_json(),
        reads.history(batch_id),
        list(reads.results(batch_id)),
        reads.failures(batch_id),
        [
            reads.attempts(batch_id, "k1"),
            reads.profiles(batch_id),
            reads.profile(batch_id, "k1"),
            reads.peers(batch_id),
            [view.id for view in reads.finished("read")],
        ],
        reads.workers(),
        reads.led(),
        reads.throughput(batch_id),
        reads.throughput(),
        reads.durations(),
        reads.situation(),
        reads.runs(),
        exposition(manager.database, manager.settings),
    ]


# --- producers


def test_a_producer_submits_small_and_large_batches(producer: QueueManager, desk: Desk) -> None:
    small = producer.submit(HANDLER, ["a", "b"], key="small", tags=["nightly"])
    large = producer.submit(HANDLER, (f"k{number}" for number in range(2_500)), queue="another", tags=["x"])

    assert producer.submit(HANDLER, ["a"], key="small").id == small.id
    assert (small.total, large.total) == (2, 2_500)
    for batch in (small, large):
        assert desk.state(batch.id) is BatchState.QUEUED
        assert_accounted(desk.database, batch.id)


def test_a_producer_is_held_to_the_limits_of_a_queue(producer: QueueManager, desk: Desk) -> None:
    QueueManager(desk.database).queues.set("narrow", intake_batches=1, intake_profiles=2_000)
    producer.submit(HANDLER, (f"k{number}" for number in range(1_500)), queue="narrow")

    with pytest.raises(QueueFullError):
        producer.submit(HANDLER, ["a"], queue="narrow")
    with pytest.raises(NotPermittedError):
        producer.queues.set("narrow", intake_batches=2)


def test_a_producer_fills_open_batches_and_seals_them(producer: QueueManager, desk: Desk) -> None:
    batch = producer.submit(HANDLER, ["a"], queue="open", key="open", seal=False)
    assert desk.states.promote("open", desk.term) == batch.id
    desk.work(batch.id)

    assert producer.append(batch.id, ["b", "a"]).new == 1
    assert producer.submit(HANDLER, ["c"], queue="open", key="open").total == 3
    desk.work(batch.id)
    assert producer.seal(batch.id) == 3

    # Its end is not the producer's to write; the managers see to it.
    assert desk.state(batch.id) is BatchState.RUNNING
    desk.states.conclude([batch.id])
    assert desk.state(batch.id) is BatchState.SUCCEEDED


def test_a_producer_writes_in_its_own_transaction(producer: QueueManager, desk: Desk, url: str) -> None:
    engine = create_engine(url_of("batching_producer", url))
    with engine.begin() as connection:
        batch = producer.submit(HANDLER, ["a"], session=connection)
    engine.dispose()

    assert desk.state(batch.id) is BatchState.QUEUED


def test_a_submission_that_fails_says_why_and_leaves_the_rest_to_the_sweep(producer: QueueManager, desk: Desk) -> None:
    keys = [f"k{number}" for number in range(1_500)]

    with pytest.raises(InvalidInputError, match=r"item 1501: its key 'k3' was used before"):
        producer.submit(HANDLER, [*keys, "k3"], key="twice")

    # Its key is free at once; the rows are the sweep's, since a producer deletes nothing.
    assert producer.submit(HANDLER, ["a"], key="twice").created
    assert len(desk.states.sweep_abandoned()) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT result FROM profiles",
        "SELECT target FROM callbacks",
        "SELECT error FROM attempts",
        "UPDATE profiles SET state = 'succeeded'",
        "UPDATE batches SET finished_at = now()",
        "UPDATE queues SET paused = true",
        "DELETE FROM profiles",
        "DELETE FROM batches",
        _FINISHED,
        "UPDATE leases SET epoch = 0",
        "CREATE TABLE own (id int)",
        "TRUNCATE profiles",
    ],
)
def test_a_producer_does_nothing_else(url: str, statement: str) -> None:
    assert "permission denied" in (said := refusal(url, "batching_producer", statement)) or "row-level" in said


def test_a_producer_moves_no_batch_that_is_in_line(producer: QueueManager, desk: Desk, url: str) -> None:
    batch = producer.submit(HANDLER, ["a"])

    assert not refusal(url, "batching_producer", f"UPDATE batches SET position = -9 WHERE id = '{batch.id}'")
    with pytest.raises(BatchingError, match=r"may not.*grants\.sql"):
        producer.cancel(batch.id)

    with desk.database.read() as connection:
        row = connection.execute(select(batches.c.position, batches.c.state).where(batches.c.id == batch.id)).one()
    assert row.position > 0
    assert row.state == BatchState.QUEUED


def test_a_producer_reads_results_once_it_is_granted_to(producer: QueueManager, desk: Desk, url: str) -> None:
    batch = producer.submit(HANDLER, ["a"])
    desk.register()
    assert batch.progress().total == 1
    with pytest.raises(BatchingError, match="may not"):
        list(batch.results())

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute("GRANT batching_reader TO batching_producer")
        try:
            assert [line.key for line in batch.results()] == ["a"]
        finally:
            admin.execute("REVOKE batching_reader FROM batching_producer")


# --- workers, managers, and people who steer


def test_a_worker_leads_runs_settles_and_steers(desk: Desk) -> None:
    manager = QueueManager(desk.database)
    migration.check(desk.database)
    desk.register()
    done = desk.start(3, queue="works")
    desk.work(done)
    failed = desk.start(2, queue="works", max_passes=1)
    desk.work(failed, lambda _: FAILED)
    counted = Figures()
    counted.ended(HANDLER, done, {"succeeded": 3})
    counted.ran(HANDLER, done, 0.1)
    assert WorkerRegistry(desk.database).beat(desk.worker, counted=counted, gauges={"active": 0})
    Measurer(desk.database).measure(desk.term, look(desk.database, 10.0), {"messages": {}})
    assert manager.statistics.durations(done).runs == 1

    assert (desk.state(done), desk.state(failed)) == (BatchState.SUCCEEDED, BatchState.FAILED)
    manager.retry(failed)
    manager.pause(failed)
    manager.resume(failed)
    manager.move(failed, "front")
    manager.process(failed)
    desk.states.stop(failed, StopTarget.CANCELLED, "for the test")
    desk.rewrite(failed)
    assert examine(desk.database, fix=True).repaired == []
    everything(manager, done)
    assert manager.prune(0) >= 2
    with desk.database.read() as connection:
        assert not connection.execute(select(profiles.c.number).where(profiles.c.batch_id == done)).all()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE own (id int)",
        "ALTER TABLE profiles ADD COLUMN own int",
        "DROP TABLE profiles",
        "TRUNCATE profiles",
        "CREATE INDEX own ON profiles (key)",
        "UPDATE batching_version SET version_num = 'x'",
        "ALTER TABLE batches DISABLE ROW LEVEL SECURITY",
        "DROP POLICY everybody ON batches",
        "CREATE ROLE own",
        "SET ROLE batching_owner",
        "COPY profiles TO PROGRAM 'cat'",
    ],
)
@pytest.mark.parametrize("role", ["batching_worker", "batching_producer", "batching_reader"])
def test_nobody_but_the_owner_changes_the_schema(url: str, role: str, statement: str) -> None:
    said = refusal(url, role, statement)

    assert "permission denied" in said or "must be owner" in said, said


# --- readers


def test_a_reader_reads_everything_but_payloads(desk: Desk, reader: QueueManager, url: str) -> None:
    desk.register()
    batch_id = desk.start(2, queue="read", max_passes=1)
    desk.work(batch_id, lambda _: FAILED)
    migration.check(reader.database)

    seen = everything(reader, batch_id)
    assert seen[:6] == everything(QueueManager(desk.database), batch_id)[:6]
    assert desk.worker in {worker.id for worker in seen[6]}
    assert reader.statistics.payload(batch_id, 1) is None, "a page says so, and shows the rest"
    assert QueueManager(desk.database).statistics.payload(batch_id, 1) is not None
    assert examine(reader.database).problems == examine(desk.database).problems
    assert "permission denied" in refusal(url, "batching_reader", "SELECT payload FROM profiles")
    assert "permission denied" in refusal(url, "batching_reader", "SELECT * FROM profiles")


def test_a_reader_writes_nothing(desk: Desk, reader: QueueManager, url: str) -> None:
    batch_id = desk.submit(1)

    with pytest.raises(BatchingError, match="may not"):
        reader.cancel(batch_id)
    for table in metadata.sorted_tables:
        assert "permission denied" in refusal(url, "batching_reader", f"DELETE FROM {table.name}")
    assert desk.state(batch_id) is BatchState.QUEUED


# --- the files


def test_running_the_file_again_changes_nothing(postgres_server: PostgresServer, url: str, desk: Desk) -> None:
    before = rights(desk)

    upgrade(postgres_server, str(make_url(url).database))

    assert rights(desk) == before


def test_workers_have_every_table_and_readers_see_it(desk: Desk) -> None:
    found = rights(desk)

    for table in metadata.sorted_tables:
        assert found["batching_worker", table.name] >= {"SELECT", "INSERT", "UPDATE", "DELETE"}, table.name
        assert found["batching_reader", table.name] == (set() if table is profiles else {"SELECT"}), table.name
        assert not found["batching_producer", table.name] & {"UPDATE", "DELETE"}, table.name
    for hidden in ("profiles", "attempts", "callbacks"):
        assert not found["batching_producer", hidden], hidden


def rights(desk: Desk) -> dict[tuple[str, str], set[str]]:
    """What each role may do with whole tables."""
    kinds = ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"]
    with desk.database.read() as reading:
        return {
            (role, table.name): {
                kind for kind in kinds if reading.scalar(select(func.has_table_privilege(role, table.name, kind)))
            }
            for role in ROLES
            for table in metadata.sorted_tables
        }
