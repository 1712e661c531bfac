"""What the leader and the workers ask in every tick costs what is active, not what is kept: no table is walked."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, insert, text

from batching.database import Database
from batching.dialects import now
from batching.measure import Measurer
from batching.models import batches
from batching.moves import sweep
from batching.outlook import look
from batching.queue_manager import QueueManager
from batching.settings import Settings
from batching.states import BatchState, StopTarget
from batching.statistics import Statistics
from tests.accounting import FAILED, HANDLER, Desk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEPT = 3_000


@pytest.fixture
def desk(database: Database) -> Desk:
    return kept(Desk(database))


def kept(desk: Desk) -> Desk:
    """A batch of some size, among many that are finished and kept."""
    desk.register()
    like = {"queue": "default", "name": "b", "handler": HANDLER, "state": "succeeded", "options": {}, "sealed": True}
    desk.submit(10_000)
    database = desk.database
    with database.begin() as connection:
        rows = [{**like, "id": str(uuid.uuid4()), "position": number} for number in range(KEPT)]
        connection.execute(insert(batches).values(finished_at=now()), rows)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if database.dialect == "postgresql":
            connection.execute(text("VACUUM ANALYZE"))  # as autovacuum does within a minute
    return desk


@contextmanager
def walks(database: Database) -> Iterator[list[str]]:
    """Collects the statements that would read a whole table of batches or profiles, or its dead rows each time anew.

    An index scan marks what it finds dead, a bitmap scan does not: see `Database`.
    """
    found: list[str] = []
    explain = "EXPLAIN QUERY PLAN " if database.dialect == "sqlite" else "EXPLAIN "
    signs = [f"{walk} on {name}" for walk in ("Seq Scan", "Bitmap Heap Scan") for name in ("profiles", "batches")]
    signs += ["SCAN profiles", "SCAN batches"]

    def look_at(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if many or not statement.startswith(("SELECT", "UPDATE", "DELETE")):
            return
        asking = cursor.connection.cursor()
        if database.dialect == "postgresql":
            # This table is small enough for a walk to be the right choice; so ask whether there is another way.
            asking.execute("SET LOCAL enable_seqscan = off")
        asking.execute(explain + statement, parameters)
        plan = [str(row[-1]) for row in asking.fetchall()]
        # A walk through a partial index is what that index is for: it holds what is active, and nothing else.
        walked = [line.strip() for line in plan if "_idx" not in line and any(sign in line for sign in signs)]
        found.extend(f"{line}: {statement}" for line in walked)

    event.listen(database.engine, "before_cursor_execute", look_at)
    try:
        yield found
    finally:
        event.remove(database.engine, "before_cursor_execute", look_at)


def test_no_statement_of_a_tick_walks_a_table(desk: Desk) -> None:
    measurer = Measurer(desk.database)
    with walks(desk.database) as found:
        batch_id = desk.states.promote("default", desk.term)
        assert batch_id is not None
        taken = desk.claim(batch_id, 100)
        desk.dispatch(batch_id, 50)
        desk.settle(taken[:50])
        outlook = look(desk.database, 10.0)
        measurer.measure(desk.term, outlook)
        measurer.measure(desk.term, look(desk.database, 10.0))
        with desk.database.begin() as connection:
            assert sweep.take_suspects(connection, desk.term, sweep.LostEvidence(0.0, everything=True), 2)
        desk.states.take_back(desk.worker, None, desk.term)
        desk.states.sweep_abandoned()
        desk.states.prune(1.0)
        desk.settle(desk.claim(batch_id, 20), FAILED)
        assert desk.states.conclude([batch_id]) == [batch_id]
        desk.states.move(batch_id, 1)
        desk.states.stop(batch_id, StopTarget.CANCELLED, "c")
    assert found == []


def rows_read(database: Database, action: Callable[[], object]) -> int:
    """Rows of batches that an action fetches through indexes."""
    watching = Database(database.url)

    def read() -> int:
        with database.begin() as connection:  # the server adds up what a session reads, and tells it once a second
            connection.execute(text("SELECT pg_stat_force_next_flush()"))
        asked = text("SELECT coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = 'batches'")
        with watching.begin() as connection:
            return int(connection.scalar(asked) or 0)

    before = read()
    action()
    found = read() - before
    watching.close()
    return found


@pytest.mark.parametrize(
    "look",
    [
        lambda reads, batch_id: reads.batch(batch_id),
        lambda reads, batch_id: reads.batches(states=[BatchState.RUNNING, BatchState.STOPPING, BatchState.QUEUED]),
        lambda reads, batch_id: reads.batches(limit=20),
        lambda reads, batch_id: reads.batches(queue="default", limit=20, offset=5),
        lambda reads, batch_id: reads.unserved(),
        lambda reads, batch_id: reads.state(batch_id),
        lambda reads, batch_id: reads.queues(),
    ],
    ids=["a batch", "what goes on", "the first page", "the next page", "unserved", "a state", "queues"],
)
def test_what_people_look_at_reads_what_goes_on_and_not_what_is_kept(
    postgresql_url: str, look: Callable[[Statistics, str], object]
) -> None:
    database = Database(postgresql_url)
    desk = kept(Desk(database))
    batch_id = desk.states.promote("default", desk.term)
    desk.submit(3)
    assert batch_id is not None
    assert rows_read(database, lambda: look(Statistics(database, Settings()), batch_id)) <= 200
    database.close()


def test_room_in_a_queue_is_counted_without_what_is_kept(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    desk = kept(Desk(database))
    QueueManager(database).queues.set("default", intake_batches=5, intake_profiles=100_000)
    assert rows_read(database, lambda: desk.submit(3)) <= 100
    database.close()
