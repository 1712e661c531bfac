"""Certificates made for a test, and TLS in front of servers whose wheels are built without it.

The handshake is a real one, between OpenSSL and OpenSSL; only the end of the tunnel is not inside the server.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import selectors
import socket
import ssl
import struct
import threading
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

_DAY = dt.timedelta(days=1)
#: https://www.postgresql.org/docs/current/protocol-message-formats.html: SSLRequest, GSSENCRequest.
_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104


class Authority:
    """A certificate authority in a folder.

    Args:
        folder: Of its certificate and of those that it issues; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority {folder.name}")])
        ca = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self.certificate = folder / "ca.pem"
        self._write(self.certificate, ca.add_extension(usage, True).sign(self._key, hashes.SHA256()))

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate for a host name, or an address, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            alternative = x509.DNSName(name)
        issued = self._builder(subject, key).add_extension(x509.SubjectAlternativeName([alternative]), False)
        certificate, private = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        self._write(certificate, issued.sign(self._key, hashes.SHA256()))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        private.chmod(0o600)
        return certificate, private

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
            # OpenSSL's strict mode, Python 3.13's default, wants both.
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False)
        )

    @staticmethod
    def _write(path: Path, certificate: x509.Certificate) -> None:
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


class TlsFront:
    """Listens on a port of 127.0.0.1, ends TLS there, and passes everything on to a unix socket.

    Args:
        upstream: The server's socket.
        certificate: Its certificate and key; None for a front that speaks no TLS, as whoever strips it would.
        postgres: Whether clients ask for TLS first, as PostgreSQL's do.
        clients: The authority whose certificates clients must show.
    """

    def __init__(
        self,
        upstream: Path,
        certificate: tuple[Path, Path] | None,
        *,
        postgres: bool = False,
        clients: Path | None = None,
    ) -> None:
        self._upstream = upstream
        self._postgres = postgres
        self._context: ssl.SSLContext | None = None
        self._open: set[socket.socket] = set()
        self.handshakes = 0
        """How many TLS handshakes succeeded."""
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*certificate)
            if clients is not None:
                self._context.load_verify_locations(clients)
                self._context.verify_mode = ssl.CERT_REQUIRED
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`, which `close` alone would not
        self._listener.close()
        for each in tuple(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        upstream = socket.socket(socket.AF_UNIX)
        try:
            client.settimeout(10)
            if self._postgres:
                self._answer_requests(client)
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True)
                self.handshakes += 1
            upstream.connect(str(self._upstream))
            self._open |= {client, upstream}
            self._relay(client, upstream)
        except OSError:  # a handshake that failed, or an end that went away: what the test is about, at times
            pass
        finally:
            self._open -= {client, upstream}
            client.close()
            upstream.close()

    def _answer_requests(self, client: socket.socket) -> None:
        """Say yes to TLS when there is some, and no to everything else that may come first."""
        while len(head := client.recv(8, socket.MSG_PEEK)) == 8:
            length, code = struct.unpack(">ii", head)
            if length != 8 or code not in {_SSL_REQUEST, _GSS_REQUEST}:
                return
            client.recv(8)
            agreed = code == _SSL_REQUEST and self._context is not None
            client.sendall(b"S" if agreed else b"N")
            if agreed:
                return

    @staticmethod
    def _relay(client: socket.socket, upstream: socket.socket) -> None:
        client.settimeout(None)
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, upstream)
            selector.register(upstream, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    source: socket.socket = key.fileobj  # type: ignore[assignment]  # it was registered as a socket
                    data = source.recv(65_536)
                    # What TLS has decrypted already, the selector cannot see.
                    while isinstance(source, ssl.SSLSocket) and (more := source.pending()):
                        data += source.recv(more)
                    if not data:
                        return
                    key.data.sendall(data)
