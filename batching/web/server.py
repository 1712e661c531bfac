"""Serves the application: on which address, and how it ends."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import uvicorn

from batching import migration
from batching.database import Database
from batching.errors import ConfigurationError
from batching.queue_manager import QueueManager
from batching.web.app import create_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batching.settings import Settings
    from batching.web.context import Context

logger = logging.getLogger(__name__)

#: Seconds for one statement: nobody looks at a page for longer.
SQL_TIMEOUT: Final = 15.0
#: Seconds that open requests get after SIGTERM. Streams of events are told at once, and need none of it.
_GRACE: Final = 5
#: Connections that wait to be accepted.
_BACKLOG: Final = 2_048
_ANY: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - to tell them, not to bind them


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_address(host: str, settings: Settings) -> None:
    """Refuse an address that others reach while nobody has to say who they are.

    Raises:
        ConfigurationError: There are no tokens.
    """
    if not is_loopback(host) and not settings.web_tokens:
        raise ConfigurationError(
            f"cannot serve the dashboard on {host}: whoever reaches that address could steer every batch; set "
            "BATCHING_WEB_TOKENS (`batching dashboard token NAME --role operator` makes one), or bind 127.0.0.1"
        )


def bind(host: str, port: int) -> socket.socket:
    """Listen.

    Args:
        host: An address of this machine, or a name of one.
        port: 0 takes a free one.

    Raises:
        ConfigurationError: It cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with ExitStack() as unless_bound:
            listener = unless_bound.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)  # before the address is told: whoever comes at once waits in line
            unless_bound.pop_all()
            return listener
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigurationError(
            f"cannot listen on {host} port {port}: {error}; choose another with --host or --port (0 takes a free one)"
        ) from None


class Server(uvicorn.Server):
    """Ends streams first: they would last for ever, and a stop waits for what is open."""

    def __init__(self, config: uvicorn.Config, context: Context) -> None:
        super().__init__(config)
        self._context = context

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT. The base sends them to this process once more in the end; to stop is no error."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell whoever waits, then stop as ever."""
        self._context.stopping = True
        self._context.feed.end_streams()
        await super().shutdown(sockets)


def serve(settings: Settings, database_url: str, host: str, port: int, ready: Callable[[str], object]) -> None:
    """Serve until SIGTERM or SIGINT, which end it within seconds.

    Args:
        settings: Of this process.
        database_url: The store.
        host: Where to listen.
        port: 0 takes a free one.
        ready: Called with the address once requests are taken.

    Raises:
        ConfigurationError: The address cannot be had, or must not without tokens.
        SchemaVersionError: The schema is not the one that this version needs.
        DatabaseUnavailableError: The database does not answer.
    """
    check_address(host, settings)
    database = Database(database_url, timeout=SQL_TIMEOUT)
    try:
        migration.check(database)
        access = QueueManager(database, settings.broker_url, settings)
        app = create_app(access, settings, names=set() if host in _ANY else {host})
        listener = bind(host, port)
        config = uvicorn.Config(
            app,
            log_config=None,  # the process's own
            access_log=False,  # addresses have what people search for
            proxy_headers=False,  # anybody could send them
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
        )
        with listener:
            ready(_address(host, listener.getsockname()[1]))
            Server(config, app.state.context).run([listener])
        access.close()
    finally:
        database.close()


def _address(host: str, port: int) -> str:
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{name}:{port}/"
