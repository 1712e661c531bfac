"""PostgreSQL is killed, or a connection is cut, between a commit and the disk: what was promised is there all the same.

The server's log writer is told to sleep, so what was committed without waiting for the disk is really lost by a kill:
each "this survives" stands beside a "this does not, and is healed".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy.engine import make_url

from batching import faults
from batching.database import Database
from batching.errors import DatabaseUnavailableError
from batching.moves.promotion import Plan
from batching.options import BatchOptions, BatchSpec, ProfileInput
from batching.states import BatchState
from batching.submission import FIRST_PROFILES
from tests.accounting import HANDLER, Desk, assert_accounted, effective_states
from tests.servers import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SPEC = BatchSpec(HANDLER, "durable", key="once", options=BatchOptions(max_attempts=1))
CHUNK = [ProfileInput(f"k{number}", "1") for number in range(1, 4)]
PLAN = Plan(None, {HANDLER: 2}, 10)


class Machine:
    """A PostgreSQL that loses what is not on the disk when it is killed, and one process that uses it."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        with server.connect() as connection:
            connection.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
        server.restart()
        self.url = server.url(server.create_database())
        from batching import migration

        self.database = Database(self.url)
        migration.upgrade(self.database)
        self.desk = Desk(self.database)
        assert self.desk.term

    def kill(self) -> None:
        """`kill -9` at this moment; then it comes back with what is on its disk."""
        self.server.kill()
        self.server.start()

    def disconnect(self) -> None:
        """End every session."""
        self.server.disconnect(str(make_url(self.url).database))


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with PostgresServer() as server:
        made = Machine(server)
        yield made
        made.database.close()


@pytest.fixture(autouse=True)
def tidy(machine: Machine) -> Iterator[None]:
    yield
    faults.disarm()
    machine.database.close()
    desk = machine.desk
    with machine.database.begin() as connection:
        for table in ("profiles", "batches"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    assert not desk.states.find_key("default", "once")


def submitted(machine: Machine, announce: Callable[[], object] | None) -> str:
    return machine.desk.states.submit_whole(SPEC, CHUNK, announce).id


def test_what_was_reported_as_submitted_survives(machine: Machine) -> None:
    batch_id = submitted(machine, lambda: None)
    machine.kill()
    machine.database.close()
    assert machine.desk.state(batch_id) is BatchState.QUEUED
    assert assert_accounted(machine.database, batch_id).pending == 3


def test_what_was_announced_only_is_lost_and_submitted_again(machine: Machine) -> None:
    with pytest.raises(DatabaseUnavailableError):
        submitted(machine, machine.kill)
    machine.database.close()
    assert machine.desk.states.find_key("default", "once") is None  # or this test proves nothing
    batch_id = submitted(machine, lambda: None)
    assert assert_accounted(machine.database, batch_id).pending == 3


def test_a_claim_takes_its_batch_to_the_disk(machine: Machine) -> None:
    """The leader began with what was announced, and a worker with what the leader dispatched; then all is lost."""
    desk = machine.desk
    runs = []

    def begin_and_die() -> None:
        started = desk.states.start("default", desk.term, PLAN)
        assert started is not None
        runs.extend(desk.states.claim(desk.worker, [each.run for each in started.dispatches]).claimed)
        machine.kill()

    with pytest.raises(DatabaseUnavailableError):
        submitted(machine, begin_and_die)
    machine.database.close()
    assert len(runs) == 2
    batch_id = runs[0].run.batch_id
    assert list(effective_states(machine.database, batch_id).values()) == ["running", "running", "pending"]
    desk.settle(runs)
    assert not desk.states.submit_whole(SPEC, CHUNK, None).created


def test_a_dispatch_that_never_reached_the_disk_is_made_again(machine: Machine) -> None:
    desk = machine.desk
    batch_id = submitted(machine, lambda: None)
    started = desk.states.start("default", desk.term, PLAN)
    assert started is not None
    published = [each.run for each in started.dispatches]
    machine.kill()
    machine.database.close()
    assert desk.state(batch_id) is BatchState.QUEUED  # or this test proves nothing
    # The messages are in the broker; nobody is granted what they offer, until it is dispatched again.
    assert desk.states.claim(desk.worker, published).claimed == []
    again = desk.states.start("default", desk.term, PLAN)
    assert again is not None
    assert [each.run for each in again.dispatches] == published
    assert len(desk.states.claim(desk.worker, published).claimed) == 2
    assert desk.states.claim(desk.worker, published).claimed == []
    assert_accounted(machine.database, batch_id)


def test_a_later_dispatch_that_never_reached_the_disk_is_made_again(machine: Machine) -> None:
    desk = machine.desk
    batch_id = submitted(machine, lambda: None)
    started = desk.states.start("default", desk.term, PLAN)
    assert started is not None
    desk.states.claim(desk.worker, [each.run for each in started.dispatches])
    assert len(desk.dispatch(batch_id)) == 1
    machine.kill()
    machine.database.close()
    counts = assert_accounted(machine.database, batch_id)
    assert (counts.pending, counts.dispatched, counts.running) == (1, 0, 2)
    assert len(desk.dispatch(batch_id)) == 1


@pytest.mark.parametrize("known", [False, True], ids=["first", "ticket"])
def test_what_was_claimed_survives(machine: Machine, known: bool) -> None:
    """Or the same run would be granted again, to another worker."""
    desk = machine.desk
    batch_id = submitted(machine, lambda: None)
    started = desk.states.start("default", desk.term, PLAN)
    assert started is not None
    first, second = (each.run for each in started.dispatches)
    if known:
        desk.states.claim(desk.worker, [first])
    assert desk.states.claim(desk.worker, [second]).claimed
    machine.kill()
    machine.database.close()
    assert effective_states(machine.database, batch_id)[second.number] == "running"
    assert desk.states.claim("00000000-0000-0000-0000-000000000009", [second]).claimed == []


def test_what_was_settled_survives(machine: Machine) -> None:
    desk = machine.desk
    batch_id = submitted(machine, lambda: None)
    started = desk.states.start("default", desk.term, PLAN)
    assert started is not None
    desk.settle(desk.states.claim(desk.worker, [each.run for each in started.dispatches]).claimed)
    machine.kill()
    machine.database.close()
    assert assert_accounted(machine.database, batch_id).succeeded == 2


@pytest.mark.parametrize("point", ["submit.written", "submit.announced"])
def test_a_connection_that_is_cut_before_the_flush_leaves_a_whole_batch(machine: Machine, point: str) -> None:
    faults.arm(point, lambda _: machine.disconnect())
    with pytest.raises(DatabaseUnavailableError):
        submitted(machine, lambda: None)
    machine.database.close()  # its other connections were cut as well
    receipt = machine.desk.states.submit_whole(SPEC, CHUNK, lambda: None)
    assert not receipt.created
    assert assert_accounted(machine.database, receipt.id).pending == len(CHUNK) == receipt.total < FIRST_PROFILES


def test_a_large_batch_that_was_reported_as_sealed_survives(machine: Machine) -> None:
    states = machine.desk.states
    batch_id = states.create_batch(SPEC).id
    states.add_profiles(batch_id, CHUNK)
    states.seal(batch_id)
    machine.kill()
    machine.database.close()
    assert assert_accounted(machine.database, batch_id).pending == 3
