"""How Redis or Valkey is reached, and the doorbell on it: a hint that something is to do. Never trusted with more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from batching.errors import BrokerUnavailableError, ConfigurationError
from batching.settings import mask_url

if TYPE_CHECKING:
    from types import TracebackType

#: Seconds: a Redis that does not answer must hold nobody up for long.
CONNECT_TIMEOUT = 3.0
SOCKET_TIMEOUT = 5.0

_SOCKET_SCHEMES = frozenset({"redis+socket", "unix", "valkey+socket", "redis+unix"})
_TCP_SCHEMES = {"redis": "redis", "valkey": "redis", "rediss": "rediss", "valkeys": "rediss"}


def redis_client(url: str, **options: Any) -> redis.Redis:
    """A client for a broker URL as Celery writes it; nothing is connected yet, and nothing is ever retried silently.

    Args:
        url: `redis://`, `rediss://` (TLS; `ssl_cert_reqs`, `ssl_ca_certs`, … in the query) or
            `redis+socket:///path?virtual_host=0`, which kombu and Flower read the same way.
        **options: For the connection pool; override the time-outs.

    Raises:
        ConfigurationError: The URL names no Redis or Valkey.
    """
    bounds: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_timeout": SOCKET_TIMEOUT,
        "retry": Retry(NoBackoff(), 0),
    }
    return redis.Redis(connection_pool=redis.ConnectionPool.from_url(_plain_url(url), **(bounds | options)))


def _plain_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme in _SOCKET_SCHEMES and parts.path:
        query = parse_qs(parts.query)
        database = (query.get("virtual_host") or query.get("db") or ["0"])[0].strip("/")
        login = f"{parts.username or ''}:{parts.password}@" if parts.password else ""
        return f"unix://{login}{parts.path}?db={database}"
    if parts.scheme in _TCP_SCHEMES and parts.hostname:
        return parts._replace(scheme=_TCP_SCHEMES[parts.scheme]).geturl()
    raise ConfigurationError(
        f"cannot use the broker {mask_url(url)!r}: lanes need Redis or Valkey, as redis://host:6379/0, rediss://… or "
        "redis+socket:///path/to/socket; set BATCHING_BROKER_URL"
    )


class translated_errors:  # noqa: N801 - used as a statement: `with translated_errors(url):`
    """Turns redis-py's errors into `BrokerUnavailableError`, with the URL masked."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, redis.RedisError | OSError):
            raise BrokerUnavailableError(
                f"cannot reach the broker {mask_url(self._url)}: {error}; check that it runs and that "
                "BATCHING_BROKER_URL names it"
            ) from error


def exchange(client: redis.Redis, *commands: tuple[Any, ...]) -> list[Any]:
    """Send commands in one round trip and return their answers: what a pipeline does, without making one.

    Whoever submits, or dispatches, a single profile waits for this.

    Args:
        client: Of `redis_client`: nothing is tried again.
        commands: Each its name and its arguments.

    Raises:
        RedisError: Of the connection, or the first that the server answered with.
    """
    pool: Any = client.connection_pool
    connection = pool.get_connection()
    try:
        connection.send_packed_command(connection.pack_commands(commands))
        return [connection.read_response() for _ in commands]
    except BaseException:
        connection.disconnect()  # an answer may still come: nobody must take it for another's
        raise
    finally:
        pool.release(connection)


class Doorbell:
    """Wakes the leader: a list of at most one element, pushed by who has news and popped by who waits.

    Args:
        url: The broker.
        key_prefix: Before the key.
        timeout: Seconds for one answer; None for the usual bound.
    """

    def __init__(self, url: str, key_prefix: str, *, timeout: float | None = None) -> None:
        self._url = url
        self._key = f"{key_prefix}hint"
        self._ring = (("LPUSH", self._key, "1"), ("LTRIM", self._key, "0", "0"))
        bounds = {} if timeout is None else {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        self._client = redis_client(url, **bounds)

    def ring(self) -> None:
        """Hint that there is something to do; raises BrokerUnavailableError, which callers may ignore."""
        with translated_errors(self._url):
            exchange(self._client, *self._ring)

    def wait(self, timeout: float) -> bool:
        """Wait for a hint, at most so many seconds; whether there was one."""
        with translated_errors(self._url):
            return exchange(self._client, ("BLPOP", self._key, timeout)) != [None]

    def ping(self) -> None:
        """Raise BrokerUnavailableError when the broker does not answer."""
        with translated_errors(self._url):
            self._client.ping()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


__all__ = ["CONNECT_TIMEOUT", "SOCKET_TIMEOUT", "Doorbell", "exchange", "redis_client", "translated_errors"]
