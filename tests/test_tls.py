"""TLS to both servers, by a real handshake: verified by default, and nothing less is taken in silence."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from flower.utils.broker import Broker  # type: ignore[import-untyped]  # it ships no types
from kombu import Connection
from sqlalchemy import select, text

from batching.broker import Doorbell, tls_options, translated_errors, with_tls_options
from batching.database import Database
from batching.errors import BatchingError, BrokerUnavailableError, ConfigurationError, DatabaseUnavailableError
from batching.interfaces import Lane
from tests.tls import Authority, TlsFront
from workers.loops import Loop
from workers.popper import Popper
from workers.publisher import RedisPublisher, lane_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.servers import PostgresServer, ValkeyServer

LANE = Lane("default", "tests.handler")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(scope="module")
def redis_front(valkey_server: ValkeyServer, authority: Authority) -> Iterator[TlsFront]:
    with TlsFront(valkey_server.socket, authority.issue("localhost")) as front:
        yield front


@pytest.fixture(scope="module")
def sql_front(postgres_server: PostgresServer, authority: Authority) -> Iterator[TlsFront]:
    with TlsFront(socket_of(postgres_server), authority.issue("localhost"), postgres=True) as front:
        yield front


def socket_of(server: PostgresServer) -> Any:
    return server.folder / ".s.PGSQL.5432"


def broker(front: TlsFront, authority: Authority, host: str = "localhost", **query: object) -> str:
    return f"rediss://{host}:{front.port}/0?{urlencode({'ssl_ca_certs': authority.certificate, **query})}"


def store(front: TlsFront, authority: Authority, host: str = "localhost", mode: str = "verify-full") -> str:
    query = urlencode({"sslmode": mode, "sslrootcert": authority.certificate})
    return f"postgresql+psycopg://postgres@{host}:{front.port}/postgres?{query}"


# --- every way in which we connect to Redis


def by_publisher(url: str) -> None:
    publisher = RedisPublisher(url, "tls:", timeout=2.0)
    try:
        publisher.check()
    finally:
        publisher.close()


def by_doorbell(url: str) -> None:
    bell = Doorbell(url, "tls:", timeout=2.0)
    try:
        bell.ring()
    finally:
        bell.close()


def by_celery(url: str) -> None:
    """As `workers.celery:app` connects."""
    bounds = {"socket_timeout": 2, "socket_connect_timeout": 2, "retry_on_timeout": False}
    with (
        translated_errors(url),
        Connection(url, ssl=tls_options(url) or False, transport_options=bounds) as connection,
        connection.channel() as channel,
    ):
        redis: Any = channel
        redis.client.ping()


def by_flower(url: str) -> None:
    """As Flower's page of the broker looks at it: it takes TLS from the application's `broker_use_ssl` alone."""
    looked_at: Any = Broker(url, broker_use_ssl=tls_options(url), broker_options={"global_keyprefix": "tls:"})
    with translated_errors(url):
        asyncio.run(looked_at.queues(["batching"]))


WAYS = [by_publisher, by_doorbell, by_celery, by_flower]


@pytest.mark.parametrize("connect", WAYS)
def test_redis_is_reached(connect: Callable[[str], None], redis_front: TlsFront, authority: Authority) -> None:
    before = redis_front.handshakes

    connect(broker(redis_front, authority))
    connect(broker(redis_front, authority, ssl_cert_reqs="CERT_REQUIRED"))

    assert redis_front.handshakes >= before + 2


@pytest.mark.parametrize("connect", WAYS)
def test_a_redis_with_another_authority_is_refused(
    connect: Callable[[str], None], redis_front: TlsFront, stranger: Authority
) -> None:
    with pytest.raises(BrokerUnavailableError, match="certificate verify failed"):
        connect(broker(redis_front, stranger))


@pytest.mark.parametrize("connect", WAYS)
def test_a_redis_with_another_name_is_refused(
    connect: Callable[[str], None], redis_front: TlsFront, authority: Authority
) -> None:
    with pytest.raises(BrokerUnavailableError, match=r"not valid for '127\.0\.0\.1'|IP address mismatch"):
        connect(broker(redis_front, authority, host="127.0.0.1"))


@pytest.mark.parametrize("connect", WAYS)
def test_a_redis_is_verified_unless_told_otherwise(connect: Callable[[str], None], redis_front: TlsFront) -> None:
    # kombu alone would take a bare rediss:// for "verify nothing".
    with pytest.raises(BrokerUnavailableError, match="certificate verify failed"):
        connect(f"rediss://localhost:{redis_front.port}/0")


@pytest.mark.parametrize("connect", WAYS)
def test_a_redis_without_tls_is_refused(
    connect: Callable[[str], None], valkey_server: ValkeyServer, authority: Authority
) -> None:
    with TlsFront(valkey_server.socket, None) as stripped, pytest.raises(BrokerUnavailableError, match="speaks TLS"):
        connect(broker(stripped, authority))


def test_redis_may_ask_for_a_certificate(valkey_server: ValkeyServer, authority: Authority) -> None:
    mine, key = authority.issue("worker.example")
    with TlsFront(valkey_server.socket, authority.issue("localhost"), clients=authority.certificate) as front:
        for connect in WAYS:
            connect(broker(front, authority, ssl_certfile=mine, ssl_keyfile=key))
            with pytest.raises(BrokerUnavailableError):
                connect(broker(front, authority))


def test_lanes_are_popped_over_tls(redis_front: TlsFront, authority: Authority) -> None:
    publisher = RedisPublisher(broker(redis_front, authority), "tls:", timeout=5.0)
    loop, got = Loop(), list[bytes]()

    def take(_: str, messages: Sequence[bytes], __: int) -> None:
        got.extend(messages)
        loop.stop()

    popper = Popper(loop, publisher, take)
    key = lane_key("tls:", LANE)
    big = [bytes([65 + number]) * 100_000 for number in range(5)]  # more than one TLS record each
    publisher.client.lpush(key, *big)

    loop.call_soon(lambda: popper.ask([key], 10))
    loop.call_later(10, loop.stop)
    loop.run_forever()

    assert got == big
    popper.close()
    publisher.close()
    loop.close()


def test_celery_and_flower_get_what_the_url_says(authority: Authority) -> None:
    url = f"rediss://h:1/0?ssl_ca_certs={authority.certificate}&ssl_check_hostname=False&ssl_cert_reqs=optional"

    assert tls_options(url) == {
        "ssl_ca_certs": str(authority.certificate),
        "ssl_check_hostname": False,
        "ssl_cert_reqs": ssl.CERT_OPTIONAL,
    }
    assert tls_options("redis://h:1/0") is None
    with pytest.raises(ConfigurationError, match="ssl_cert_reqs is one of required, optional, none"):
        tls_options("rediss://:secret@h:1/0?ssl_cert_reqs=sometimes")


def test_the_lanes_of_an_application_take_its_own_options() -> None:
    own = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "/ca.pem", "ssl_keyfile": None}

    assert with_tls_options("rediss://h:1/0", own) == "rediss://h:1/0?ssl_cert_reqs=required&ssl_ca_certs=%2Fca.pem"
    assert tls_options(with_tls_options("rediss://h:1/0", own)) == {
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
        "ssl_ca_certs": "/ca.pem",
    }
    assert with_tls_options("rediss://h?ssl_ca_certs=/mine.pem", own).endswith("&ssl_ca_certs=%2Fmine.pem")
    assert with_tls_options("rediss://h", True) == "rediss://h"
    assert with_tls_options("redis://h", own) == "redis://h"


# --- PostgreSQL


def test_postgresql_is_reached_by_both_ways(sql_front: TlsFront, authority: Authority) -> None:
    database = Database(store(sql_front, authority))
    with database.read() as connection:
        assert connection.scalar(select(1)) == 1
    with database.direct() as direct:
        assert direct.execute(text("SELECT 1"), {}).all() == [(1,)]
    database.close()

    assert sql_front.handshakes >= 2


@pytest.mark.parametrize(
    ("host", "flaw"),
    [("localhost", "certificate verify failed"), ("127.0.0.1", "certificate verify failed|does not match host name")],
)
def test_a_postgresql_that_is_not_the_one_is_refused(
    host: str, flaw: str, sql_front: TlsFront, authority: Authority, stranger: Authority
) -> None:
    trusted = stranger if host == "localhost" else authority

    assert flaw_of(store(sql_front, trusted, host), flaw)


def test_a_postgresql_without_tls_is_refused(postgres_server: PostgresServer, authority: Authority) -> None:
    with TlsFront(socket_of(postgres_server), None, postgres=True) as stripped:
        assert flaw_of(store(stripped, authority), "server does not support SSL")


def flaw_of(url: str, flaw: str) -> bool:
    database = Database(url)
    with pytest.raises(DatabaseUnavailableError, match=flaw) as told, database.read():
        pass
    assert "cannot reach the database postgresql+psycopg://postgres@" in str(told.value)
    database.close()
    return isinstance(told.value, BatchingError)
