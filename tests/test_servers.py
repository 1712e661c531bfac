"""The servers and stores that the other tests stand on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import insert, select

from batching import migration
from batching.errors import DatabaseUnavailableError
from batching.models import queues
from batching.settings import get_settings
from tests.support import eventually

if TYPE_CHECKING:
    from batching.database import Database
    from tests.servers import PostgresServer, ValkeyServer


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_gets_a_store_that_nobody_wrote_to(database: Database, turn: int) -> None:
    with database.begin() as connection:
        connection.execute(insert(queues).values(name="left by this test"))
        names = list(connection.scalars(select(queues.c.name)))
    assert names.count("left by this test") == 1


def test_a_store_has_the_schema_that_a_worker_asks_for(database: Database) -> None:
    migration.check(database)


def test_the_broker_is_empty_and_the_prefix_is_in_the_settings(
    broker_url: str, key_prefix: str, valkey_server: ValkeyServer
) -> None:
    assert broker_url == valkey_server.url
    assert get_settings().key_prefix == key_prefix
    with valkey_server.client() as client:
        assert client.dbsize() == 0


def test_postgresql_comes_back_after_kill_9_with_what_was_committed(own_postgres: PostgresServer) -> None:
    name = own_postgres.create_database()
    with own_postgres.connect(name) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS number")
    own_postgres.kill()
    with pytest.raises(psycopg.OperationalError):
        own_postgres.connect(name)
    own_postgres.start()
    with own_postgres.connect(name) as connection:
        assert connection.execute("SELECT number FROM kept").fetchall() == [(1,)]


def test_a_restart_of_postgresql_ends_open_sessions(own_postgres: PostgresServer) -> None:
    with own_postgres.connect() as connection:
        own_postgres.restart()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_a_store_that_lost_its_sessions_says_so_and_connects_again(
    postgres_server: PostgresServer, postgresql_url: str
) -> None:
    from batching.database import Database

    store = Database(postgresql_url)
    with store.begin() as connection:
        current = str(connection.exec_driver_sql("SELECT current_database()").scalar())
    assert postgres_server.disconnect(current) >= 1

    def works_again() -> bool:
        try:
            with store.begin() as again:
                return bool(again.exec_driver_sql("SELECT true").scalar())
        except DatabaseUnavailableError:
            return False

    assert eventually(works_again)
    store.close()


def test_eventually_raises_the_last_assertion_as_it_was() -> None:
    with pytest.raises(AssertionError, match="the reason"):
        eventually(_never, timeout=0.05)
    with pytest.raises(AssertionError, match="still returned 0"):
        eventually(lambda: 0, timeout=0.05)


def _never() -> None:
    raise AssertionError("the reason")
