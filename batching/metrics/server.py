"""`/metrics` over HTTP, for a manager: a small server in a thread of its own."""

from __future__ import annotations

import ipaddress
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

from batching.database import Database
from batching.errors import BatchingError, ConfigurationError
from batching.logs import Log
from batching.metrics.exposition import CONTENT_TYPE, Exporter

if TYPE_CHECKING:
    from batching.settings import Settings

log = Log("batching.metrics")

#: Seconds until an address that is in use is tried again: the other manager of this machine may end.
_AGAIN: Final = 5.0
#: Seconds that whoever asks may take to say so, and to take the answer.
_PATIENCE: Final = 10.0
#: Seconds for one statement.
_STATEMENT: Final = 10.0
_LOOPBACK: Final = "127.0.0.1"


def parse_address(address: str) -> tuple[str, int]:
    """Host and port; a port alone is one of the loopback address.

    Raises:
        ConfigurationError: The port is none.
    """
    host, _, port = address.rpartition(":")
    if int(port) > 65_535:
        raise ConfigurationError(
            f"cannot serve metrics at {address!r}: {port} is no port; set BATCHING_METRICS_ADDRESS"
        )
    return host.strip("[]") or _LOOPBACK, int(port)


class MetricsServer:
    """Serves `/metrics` for as long as the manager runs. Whoever leads, each manager can tell.

    Where several managers are on one machine, the first has the address, and another takes it when that one ends.

    Args:
        settings: The address and the database.

    Raises:
        ConfigurationError: The address is none.
    """

    def __init__(self, settings: Settings) -> None:
        assert settings.metrics_address is not None  # noqa: S101 - who makes one has looked
        assert settings.database_url is not None  # noqa: S101 - a manager has one
        self._address = parse_address(settings.metrics_address)
        self._database = Database(settings.database_url, timeout=_STATEMENT)
        self._exporter = Exporter(self._database, settings.worker_lease)
        self._stopping = threading.Event()
        self._server: _Server | None = None
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    @property
    def port(self) -> int | None:
        """Where it listens; None while it does not."""
        return None if self._server is None else int(self._server.server_address[1])

    def start(self) -> None:
        """Begin; once. An address that is in use stops nobody: it is tried again."""
        self._thread.start()

    def stop(self) -> None:
        """End it, and what is being answered. Safe to call twice."""
        self._stopping.set()
        if self._server is not None:
            self._server.shutdown()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)
        self._database.close()

    def _run(self) -> None:
        told = False
        while not self._stopping.is_set():
            try:
                server = _Server(self._address, self._exporter)
            except OSError as error:
                if not told:
                    log.warning("cannot serve metrics yet", address=self._address, error=str(error), retry_in=_AGAIN)
                    told = True
                self._stopping.wait(_AGAIN)
                continue
            self._serve(server)

    def _serve(self, server: _Server) -> None:
        self._server = server
        log.info("serves metrics", address=self._address[0], port=self.port)
        with server:
            if not self._stopping.is_set():
                server.serve_forever(poll_interval=0.2)


class _Server(ThreadingHTTPServer):
    """Answers each in a thread, so that one who is slow keeps nobody waiting."""

    daemon_threads = True
    block_on_close = False
    # Two managers must not share the port: what one that is stopped leaves behind is no reason to wait, though.
    allow_reuse_address = True
    allow_reuse_port = False

    def __init__(self, address: tuple[str, int], exporter: Exporter) -> None:
        self.exporter = exporter
        if _is_ipv6(address[0]):
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Somebody went away in the middle of it: nothing to tell."""


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of `/metrics`."""

    server: _Server
    timeout = _PATIENCE
    server_version = "batching"
    sys_version = ""

    def do_GET(self) -> None:
        """Tell."""
        if self.path.partition("?")[0] != "/metrics":
            self._answer(HTTPStatus.NOT_FOUND, b"only /metrics is here\n", "text/plain; charset=utf-8")
            return
        try:
            text = self.server.exporter.text()
        except BatchingError as error:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode(), "text/plain; charset=utf-8")
        except Exception:
            log.exception("cannot tell the metrics")
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"see the manager's log\n", "text/plain; charset=utf-8")
        else:
            self._answer(HTTPStatus.OK, text, CONTENT_TYPE)

    do_HEAD = do_GET  # noqa: N815 - the standard library's name

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """A line for each scrape would say nothing."""
