"""What errors say of URLs and parameters: never a password, never a payload."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from batching.broker import redis_client
from batching.database import Database
from batching.errors import ConfigurationError
from batching.queue_manager import QueueManager
from batching.settings import mask_url

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://user:secret@h:6379/0", "redis://user:***@h:6379/0"),
        ("redis://:secret@h/0", "redis://:***@h/0"),
        ("rediss://u:se:cr@et@h/0?ssl_ca_certs=/ca.pem", "rediss://u:***@h/0?ssl_ca_certs=/ca.pem"),
        ("redis+socket://u:secret@/run/v.sock?virtual_host=0", "redis+socket://u:***@/run/v.sock?virtual_host=0"),
        ("redis://h/0?password=secret&db=1", "redis://h/0?password=***&db=1"),
        ("rediss://h/0?ssl_password=secret", "rediss://h/0?ssl_password=***"),
        ("postgresql+psycopg:///d?host=/run&PASSWORD=secret", "postgresql+psycopg:///d?host=/run&PASSWORD=***"),
        (
            "postgresql+psycopg://h/d?sslpassword=secret&sslmode=verify-full",
            "postgresql+psycopg://h/d?sslpassword=***&sslmode=verify-full",
        ),
        ("sqlite:////var/lib/batching.db", "sqlite:////var/lib/batching.db"),
    ],
)
def test_secrets_of_urls_are_masked(url: str, masked: str) -> None:
    assert mask_url(url) == masked


def open_database(url: str) -> object:
    return Database(url).engine


@pytest.mark.parametrize(
    ("open_it", "url"),
    [
        (redis_client, "redis://:secret/word@h:6379/0"),
        (redis_client, "redis://:secret@h:port/0"),
        (redis_client, "redis://[:secret@h/0"),
        (redis_client, "redis://:secret@h/0?ssl_cert_reqs=sometimes"),
        (redis_client, "amqp://u:secret@h"),
        (open_database, "postgresql+psycopg://u:secret@h:port/d"),
        (open_database, "u:secret@h"),
        (open_database, "mysql://u:secret@h/d"),
        (open_database, "postgresql+other://u:secret@h/d"),
    ],
)
def test_a_url_that_cannot_be_read_is_not_quoted_with_its_password(open_it: Callable[[str], object], url: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        open_it(url)
    shown = "".join(traceback.format_exception(told.value))

    assert "secret" not in shown


def test_payloads_are_not_in_errors_of_the_callers_own_transaction(sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    manager = QueueManager(Database(sqlite_url))
    with engine.begin() as connection:
        connection.execute(text("CREATE TRIGGER broken BEFORE INSERT ON profiles BEGIN SELECT RAISE(FAIL, 'no'); END"))

    with pytest.raises(DBAPIError) as told, engine.begin() as connection:
        manager.submit("tests.handler", [("k", "canary")], session=connection)

    assert "canary" not in str(told.value)
    engine.dispose()
    manager.close()
