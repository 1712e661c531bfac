"""One webhook: a signed POST to an address that was looked at first, within a time limit, and no further.

The host is resolved once; every address that it has must be public, and the connection goes to the very address that
was checked, so a name that resolves differently a moment later (DNS rebinding) gains nothing. TLS is verified for the
name in the URL. Redirects are not followed, and no more of the answer is read than its status and headers.

`http.client` and not a larger library: the address has to be pinned below TLS and above TCP, and the time limit has to
end a connection in whatever phase it is, which takes the socket itself.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

from batching import __version__
from batching.errors import BatchingError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Public by registration, and answered by the host that a cloud's machine runs on.
_METADATA: Final = frozenset({ipaddress.ip_address("168.63.129.16"), ipaddress.ip_address("192.0.0.192")})
#: IPv6 that a gateway turns into IPv4 (RFC 6052, RFC 8215): the IPv4 address is in the last 32 bits.
_TRANSLATED: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))


class DeliveryError(BatchingError):
    """A callback could not be delivered; the message is kept with it and shown."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a webhook may do.

    Args:
        timeout: Seconds for all of it.
        allow_http: Whether without TLS.
        allow_private: Whether to addresses that are not public.
    """

    timeout: float = 10.0
    allow_http: bool = False
    allow_private: bool = False


def send(url: str, body: bytes, headers: Mapping[str, str], rules: Rules) -> None:
    """POST a body; returns when the receiver has answered with 2xx.

    Raises:
        DeliveryError: It did not, or the URL, its host or its address is refused.
    """
    parts = urlsplit(url)
    host = str(parts.hostname)
    if parts.scheme != "https" and not rules.allow_http:
        raise DeliveryError("its URL is http, which is refused: use https, or set BATCHING_WEBHOOK_ALLOW_HTTP")
    until = time.monotonic() + rules.timeout
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = resolve(host, port, allow_private=rules.allow_private)
    with _Deadline(until, rules.timeout) as deadline:
        connection = _Pinned(host, port, address, deadline, tls=parts.scheme == "https")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        status = _exchange(connection, path, body, headers)
    if not 200 <= status < 300:
        moved = "; redirects are not followed" if 300 <= status < 400 else ""
        raise DeliveryError(f"{host} answered {status} {http.client.responses.get(status, '')}".rstrip() + moved)


def resolve(host: str, port: int, *, allow_private: bool) -> str:
    """The one address that a delivery goes to.

    Raises:
        DeliveryError: The host has none, or one of those that it has is not public.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise DeliveryError(f"its host {host} cannot be resolved: {error}") from None
    addresses = [str(each[4][0]) for each in found]
    # All of them: a name with a public and a private address is a trick, or a mistake that works half of the time.
    refused = [] if allow_private else [each for each in addresses if not is_public(each)]
    if refused or not addresses:
        raise DeliveryError(
            f"its host {host} is at {', '.join(refused) or 'no address'}, which is not public; "
            "BATCHING_WEBHOOK_ALLOW_PRIVATE allows it"
        )
    return addresses[0]


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet, whatever it is wrapped in."""
    address = _unwrapped(ipaddress.ip_address(text.partition("%")[0]))
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_unspecified
        and address not in _METADATA
    )


def _unwrapped(address: _Address) -> _Address:
    """The IPv4 address inside an IPv6 one, where there is one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return inner
        if any(address in network for network in _TRANSLATED):
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


class _Deadline:
    """Ends a connection when its time is over, in whatever phase it is: a receiver may send a byte now and then.

    Args:
        until: Monotonic seconds.
        timeout: Seconds that it had in all, for the message.
    """

    def __init__(self, until: float, timeout: float) -> None:
        self._timeout = timeout
        self._handle: socket.socket | None = None
        self._timer = threading.Timer(max(0.0, until - time.monotonic()), self._cut)
        self._timer.daemon = True
        self.until = until
        self.over = False

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._timer.join()  # or it would shut down a number that is somebody else's by then
        if self._handle is not None:
            self._handle.close()
        # Without an error too: half of an answer that was cut off reads like a whole one without headers. With one, the
        # socket's own limit may have come first: this process can have more to do than to wake the timer.
        late = self.over or (error is not None and time.monotonic() >= self.until)
        if late and (error is None or isinstance(error, DeliveryError)):
            raise DeliveryError(f"it took longer than {self._timeout:g} s") from None

    def watch(self, connected: socket.socket) -> None:
        """End this one."""
        # A handle of its own on the same connection: TLS takes the socket's number away.
        self._handle = socket.socket(fileno=os.dup(connected.fileno()))

    def left(self) -> float:
        """Seconds."""
        return max(0.01, self.until - time.monotonic())

    def _cut(self) -> None:
        self.over = True
        if self._handle is not None:
            with suppress(OSError):
                self._handle.shutdown(socket.SHUT_RDWR)


class _Pinned(http.client.HTTPConnection):
    """A connection to one address, under the name in the URL: in `Host`, in SNI and in the certificate."""

    def __init__(self, host: str, port: int, address: str, deadline: _Deadline, *, tls: bool) -> None:
        super().__init__(host, port, timeout=deadline.left())
        self._pinned = address
        self._deadline = deadline
        self._tls = tls
        if tls:
            self.default_port = http.client.HTTPS_PORT  # so that `Host` names no port which goes without saying

    def connect(self) -> None:
        """Connect to the address that was checked; the name is not resolved again."""
        plain = socket.create_connection((self._pinned, self.port), self._deadline.left())
        self._deadline.watch(plain)
        self.sock = plain
        if self._tls:
            self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)


def _exchange(connection: _Pinned, path: str, body: bytes, headers: Mapping[str, str]) -> int:
    told = {"Content-Type": "application/json", "User-Agent": f"batching/{__version__}", "Connection": "close"}
    try:
        connection.request("POST", path, body, {**told, **headers})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DeliveryError(f"{connection.host} did not answer: {type(error).__name__}: {error}") from None
    finally:
        connection.close()
