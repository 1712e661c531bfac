"""The short way to PostgreSQL: values and errors as by SQLAlchemy, and no connection that is of no use any more."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Integer, Text, bindparam, func, insert, literal, literal_column, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError

from batching.database import Database
from batching.dialects import JSONText
from batching.errors import DatabaseUnavailableError
from batching.models import queues
from batching.moves import promotion, statements
from tests.accounting import HANDLER, Desk
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batching.direct import Direct

ASKED = select(
    bindparam("number", type_=Integer()),
    bindparam("options", type_=JSONText()),
    literal(7).label("seven"),
    bindparam("name", type_=Text()),
)
BACKEND = select(text("pg_backend_pid()"))
QUEUE = insert(queues).values(name=bindparam("queue", type_=Text()))


@pytest.fixture
def database(postgresql_url: str) -> Iterator[Database]:
    made = Database(postgresql_url, timeout=2.0)
    yield made
    made.close()


def execute(database: Database, statement: Any, **values: Any) -> list[Any]:
    with database.direct() as direct:
        return list(direct.execute(statement, values).all())


def backend(database: Database) -> int:
    return int(execute(database, BACKEND)[0][0])


def end(database: Database, pid: int) -> None:
    """Let the server close a connection, and wait until its process is gone."""
    with database.begin() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    def gone() -> bool:
        with database.read() as connection:
            asked = text("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = :pid)")
            return bool(connection.scalar(asked, {"pid": pid}))

    eventually(gone)


def test_values_come_and_go_as_their_types_say(database: Database) -> None:
    rows = execute(database, ASKED, number=1, options={"a": [1, None]}, name=None)
    assert rows == [(1, {"a": [1, None]}, 7, None)]
    assert execute(database, ASKED, number=2, options=None, name="ü") == [(2, None, 7, "ü")]


def test_a_value_that_stands_twice_goes_to_both_places_and_a_sign_of_drivers_is_a_sign(database: Database) -> None:
    name = bindparam("name", type_=Text())
    asked = select(name, literal_column("'100% of %s'"), name.op("||")(literal(" and ")), func.concat(name, "%", name))
    for value in ("a", "%s", "$1"):
        assert execute(database, asked, name=value) == [(value, "100% of %s", f"{value} and ", f"{value}%{value}")]
    long: Any = select(name, literal_column(f"'{'x' * 5_000}'"))
    assert execute(database, long, name="n") == [("n", "x" * 5_000)]


def test_a_statement_is_committed_when_it_returns(database: Database, postgresql_url: str) -> None:
    assert execute(database, QUEUE, queue="night") == []
    other = Database(postgresql_url)
    with other.read() as connection:
        assert connection.scalar(select(queues.c.name).where(queues.c.name == "night")) == "night"
    other.close()


def test_a_refused_row_is_an_integrity_error_without_its_values(database: Database) -> None:
    execute(database, QUEUE, queue="secret-canary")
    with pytest.raises(IntegrityError) as refused:
        execute(database, QUEUE, queue="secret-canary")
    assert "[parameters:" not in str(refused.value)
    assert backend(database) > 0  # the connection is as good as before


def test_a_missing_parameter_is_no_null(database: Database) -> None:
    with pytest.raises(KeyError, match="options"):
        execute(database, ASKED, number=1, name="n")


def test_one_connection_is_held(database: Database) -> None:
    first = backend(database)
    assert {backend(database) for _ in range(5)} == {first}


def test_a_connection_that_the_server_closed_is_replaced(database: Database) -> None:
    first = backend(database)
    end(database, first)
    with pytest.raises(DatabaseUnavailableError, match="cannot reach the database"):
        backend(database)
    assert backend(database) != first


def test_a_statement_over_its_time_is_given_up(postgresql_url: str) -> None:
    database = Database(postgresql_url, timeout=0.2)
    with pytest.raises(DatabaseUnavailableError):
        execute(database, select(text("pg_sleep(30)")))
    assert backend(database) > 0
    database.close()


def test_threads_do_not_wait_for_each_other(database: Database) -> None:
    lock = select(text("pg_advisory_lock(1)"))
    unlock = select(text("pg_advisory_unlock(1)"))
    with database.engine.connect() as holder:
        holder.execute(lock)
        waiting = threading.Thread(target=execute, args=(database, lock))
        waiting.start()

        def waits() -> bool:
            with database.read() as connection:
                return bool(connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))

        eventually(waits)
        assert backend(database) > 0  # meanwhile, on another connection
        holder.execute(unlock)
        waiting.join(10)
    assert not waiting.is_alive()


def test_a_forked_child_leaves_the_parents_connection_alone(database: Database) -> None:
    first = backend(database)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if backend(database) != first else 3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert backend(database) == first


def test_closing_closes_everything(database: Database, postgresql_url: str) -> None:
    pid = backend(database)
    database.close()
    database.close()
    other = Database(postgresql_url)

    def gone() -> bool:
        with other.read() as connection:
            asked = text("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = :pid)")
            return bool(connection.scalar(asked, {"pid": pid}))

    eventually(gone)
    other.close()


def test_what_was_held_for_long_goes_back_to_the_pool(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    backend(database)
    with database.direct() as direct:
        held: Direct = direct
        ((connection, since),) = held._held
        held._held[:] = [(connection, since - 10_000)]
    assert backend(database) > 0
    ((_, renewed),) = held._held
    assert renewed >= since


def compiled(statement: Any) -> str:
    dialect: Any = postgresql
    return str(statement.compile(dialect=dialect.dialect()))


@pytest.mark.parametrize("slow", [True, False])
def test_a_plan_that_took_long_is_not_used_again(
    database: Database, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    """It may be of the time when a table was small."""
    monkeypatch.setattr("batching.direct._SLOW", -1.0 if slow else 60.0)
    asked, pid = select(literal(7)), backend(database)
    assert execute(database, asked) == [(7,)]
    with database.read() as connection:
        said = connection.scalar(text("SELECT query FROM pg_stat_activity WHERE pid = :pid"), {"pid": pid})
    assert (said == "DISCARD PLANS") == slow


def test_what_a_slow_statement_did_is_done_even_if_the_connection_ends_then(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batching.direct._SLOW", -1.0)
    pid = backend(database)
    monkeypatch.setattr("batching.direct._PLAN_ANEW", "SELECT pg_terminate_backend(pg_backend_pid())")
    assert execute(database, select(literal(7))) == [(7,)]
    monkeypatch.setattr("batching.direct._SLOW", 60.0)
    assert backend(database) != pid


def test_claims_and_settlements_wait_for_the_disk_and_dispatches_need_not() -> None:
    """A dispatch that a crash took back is made again; on a claim and on an outcome, others rely."""
    relied_upon = [statements.claim("postgresql"), statements.claim_first()]
    relied_upon += [statements.settle("postgresql", successes=successes) for successes in (True, False)]
    assert not any("set_config" in compiled(each) for each in relied_upon)
    repeated = [statements.dispatch("postgresql")]
    repeated += [promotion._start_statement(chosen=chosen) for chosen in (True, False)]
    assert all("set_config" in compiled(each) for each in repeated)


def test_not_waiting_for_the_disk_ends_with_the_transaction(database: Database) -> None:
    desk = Desk(database)
    desk.submit(3)
    asked = select(func.current_setting("synchronous_commit"))
    started = desk.states.start("default", desk.term, promotion.Plan(None, {HANDLER: 10}, 10))
    assert started is not None
    assert len(started.dispatches) == 3
    assert execute(database, asked) == [("on",)]
