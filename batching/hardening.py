"""What a URL lacks for the hardened profile: a connection that others can neither read nor answer. Quotes no URL."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

_SOCKETS: Final = frozenset({"redis+socket", "unix", "valkey+socket", "redis+unix"})
_ENCRYPTED: Final = frozenset({"rediss", "valkeys"})
_VERIFIED: Final = frozenset({"required", "cert_required"})
_FALSE: Final = frozenset({"0", "f", "false", "n", "no"})


def broker_flaw(url: str) -> str | None:
    """What keeps a broker's URL from being safe on a network; None when it is, or is a unix socket."""
    parts = urlsplit(url)
    if parts.scheme in _SOCKETS:
        return None
    if parts.scheme not in _ENCRYPTED:
        return "is not encrypted; use rediss://…?ssl_ca_certs=/path/ca.pem, or a unix socket"
    query = dict(parse_qsl(parts.query))
    if query.get("ssl_cert_reqs", "required").lower() not in _VERIFIED:
        return "does not verify the server's certificate; set ssl_cert_reqs=required, or leave it out"
    if query.get("ssl_check_hostname", "true").lower() in _FALSE:
        return "does not verify the server's name; leave ssl_check_hostname out"
    return None


def database_flaw(url: str) -> str | None:
    """What keeps a database's URL from being safe on a network; None when it is, or never leaves this machine."""
    parts = urlsplit(url)
    if parts.scheme.partition("+")[0] == "sqlite":
        return None
    query = dict(parse_qsl(parts.query))
    host = query.get("host") or unquote(parts.hostname or "")
    if host and all(each.startswith("/") for each in host.split(",")):
        return None
    if query.get("sslmode") != "verify-full":
        return (
            "does not verify the server, or is not encrypted; add sslmode=verify-full&sslrootcert=/path/ca.pem, or use "
            "a unix socket"
        )
    return None
