"""How Redis or Valkey is reached, and the doorbell on it: a hint that something is to do. Never trusted with more."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from batching.errors import BrokerUnavailableError, ConfigurationError
from batching.settings import mask_url

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

#: Seconds: a Redis that does not answer must hold nobody up for long.
CONNECT_TIMEOUT = 3.0
SOCKET_TIMEOUT = 5.0

_SOCKET_SCHEMES = frozenset({"redis+socket", "unix", "valkey+socket", "redis+unix"})
#: Celery's documentation spells them so; kombu takes both, redis-py these.
_PLAIN_REQUIREMENT = {"CERT_REQUIRED": "required", "CERT_OPTIONAL": "optional", "CERT_NONE": "none"}
_REQUIREMENTS = ("required", "optional", "none")
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
    try:
        pool = redis.ConnectionPool.from_url(_plain_url(url), **(bounds | options))
    except ValueError:  # it quotes what it could not read, which may be a part of the password
        raise ConfigurationError(
            f"cannot read the broker's URL {mask_url(url)!r}: a port is a number, and special characters of a password "
            "are percent-encoded; set BATCHING_BROKER_URL"
        ) from None
    return redis.Redis(connection_pool=pool)


def _plain_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme in _SOCKET_SCHEMES and parts.path:
        query = parse_qs(parts.query)
        database = (query.get("virtual_host") or query.get("db") or ["0"])[0].strip("/")
        login = f"{parts.username or ''}:{parts.password}@" if parts.password else ""
        return f"unix://{login}{parts.path}?db={database}"
    if parts.scheme in _TCP_SCHEMES and parts.hostname:
        plain = {name: _PLAIN_REQUIREMENT.get(value, value) for name, value in parse_qsl(parts.query)}
        if plain.get("ssl_cert_reqs", "required") not in _REQUIREMENTS:
            raise ConfigurationError(
                f"cannot use the broker {mask_url(url)!r}: ssl_cert_reqs is one of {', '.join(_REQUIREMENTS)}"
            )
        return parts._replace(scheme=_TCP_SCHEMES[parts.scheme], query=urlencode(plain)).geturl()
    raise ConfigurationError(
        f"cannot use the broker {mask_url(url)!r}: lanes need Redis or Valkey, as redis://host:6379/0, rediss://… or "
        "redis+socket:///path/to/socket; set BATCHING_BROKER_URL"
    )


def tls_options(url: str) -> dict[str, Any] | None:
    """What Celery's `broker_use_ssl` has to say for a broker URL; None without TLS. Verifies unless told otherwise."""
    parts = urlsplit(_plain_url(url))
    if parts.scheme != "rediss":
        return None
    given = {name: value for name, value in parse_qsl(parts.query) if name.startswith("ssl_")}
    options: dict[str, Any] = {"ssl_cert_reqs": "required", **given}
    options["ssl_cert_reqs"] = ssl.VerifyMode[f"CERT_{options['ssl_cert_reqs'].upper()}"]
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = options["ssl_check_hostname"].lower() != "false"
    return options


def with_tls_options(url: str, use_ssl: object) -> str:
    """A broker's URL with what Celery's `broker_use_ssl` says of it; what the URL says itself goes before."""
    parts = urlsplit(url)
    if parts.scheme not in {"rediss", "valkeys"} or not isinstance(use_ssl, dict):
        return url
    said = {
        name: _spelled(value) for name, value in use_ssl.items() if str(name).startswith("ssl_") and value is not None
    }
    return parts._replace(query=urlencode(said | dict(parse_qsl(parts.query)))).geturl()


def _spelled(value: object) -> object:
    """`ssl.CERT_REQUIRED` as a URL says it; everything else as it is."""
    return value.name.removeprefix("CERT_").lower() if isinstance(value, ssl.VerifyMode) else value


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
            encrypted = urlsplit(self._url).scheme in {"rediss", "valkeys"}
            raise BrokerUnavailableError(
                f"cannot reach the broker {mask_url(self._url)}: {error}; check that it runs"
                f"{', speaks TLS' if encrypted else ''} and that BATCHING_BROKER_URL names it"
            ) from error


def exchange(client: redis.Redis, *commands: tuple[Any, ...], aside: Sequence[tuple[Any, ...]] = ()) -> list[Any]:
    """Send commands in one round trip and return their answers: what a pipeline does, without making one.

    Whoever submits, or dispatches, a single profile waits for this.

    Args:
        client: Of `redis_client`: nothing is tried again.
        commands: Each its name and its arguments.
        aside: Sent before them in the same round trip. A server that refuses one of these (an access list may be older
            than they are) refuses nothing else.

    Raises:
        RedisError: Of the connection, or the first that the server answered with.
    """
    pool: Any = client.connection_pool
    connection = pool.get_connection()
    try:
        connection.send_packed_command(connection.pack_commands((*aside, *commands)))
        for _ in aside:
            with suppress(redis.ResponseError):
                connection.read_response()
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

    def ring(self, *aside: tuple[str, ...]) -> None:
        """Hint that there is something to do; raises BrokerUnavailableError, which callers may ignore.

        Args:
            aside: Commands that go along, such as a notice of `batching.live`.
        """
        with translated_errors(self._url):
            exchange(self._client, *self._ring, aside=aside)

    def wait(self, timeout: float, *aside: tuple[str, ...]) -> bool:
        """Wait for a hint, at most so many seconds; whether there was one. `aside` is as for `ring`, sent at once."""
        with translated_errors(self._url):
            return exchange(self._client, ("BLPOP", self._key, timeout), aside=aside) != [None]

    def tell(self, *aside: tuple[str, ...]) -> None:
        """Send only what would go along."""
        with translated_errors(self._url):
            exchange(self._client, aside=aside)

    def ping(self) -> None:
        """Raise BrokerUnavailableError when the broker does not answer."""
        with translated_errors(self._url):
            self._client.ping()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


__all__ = ["CONNECT_TIMEOUT", "SOCKET_TIMEOUT", "Doorbell", "exchange", "redis_client", "translated_errors"]
