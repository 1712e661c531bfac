"""Who asks: tokens with roles, and the sessions of browsers. Secrets are compared in constant time, kept nowhere."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from batching.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Begins every token, so that scanners of leaked secrets can know one.
PREFIX: Final = "batching_"
#: Seconds after which a browser has to log in again.
SESSION_SECONDS: Final = 12 * 3_600
_SHORTEST_SECRET: Final = 32
#: Shorter texts are no tokens of ours, and longer ones are not worth hashing.
_LONGEST: Final = 1_000
_ENTRY: Final = re.compile(r"([A-Za-z0-9_.@-]{1,64}):(viewer|operator):([0-9a-fA-F]{64})")


class Role(StrEnum):
    """What somebody may do."""

    VIEWER = "viewer"
    """Sees everything but payloads, and changes nothing."""
    OPERATOR = "operator"
    """Also submits, steers and sees payloads."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody who was let in."""

    name: str
    role: Role
    session: str = ""
    """Names the browser's session; empty for a token, and where no tokens are asked for."""
    ambient: bool = False
    """A browser adds what proves it by itself, also to requests that another site makes it send."""


@dataclass(frozen=True, slots=True)
class Token:
    """One entry of BATCHING_WEB_TOKENS."""

    name: str
    role: Role
    digest: str
    """SHA-256 in hexadecimal. A token has 256 random bits, so a slow hash would add nothing."""


def parse_tokens(entries: Sequence[str]) -> tuple[Token, ...]:
    """The tokens that a setting names.

    Raises:
        ConfigurationError: An entry cannot be read (it is not quoted: it may be a token), or a name stands twice.
    """
    tokens: dict[str, Token] = {}
    for number, entry in enumerate(entries, 1):
        found = _ENTRY.fullmatch(entry)
        if found is None:
            raise ConfigurationError(
                f"cannot read entry {number} of BATCHING_WEB_TOKENS: expected name:viewer:sha256 or "
                "name:operator:sha256; `batching dashboard token NAME --role viewer` makes one"
            )
        name, role, digest = found.groups()
        if name in tokens:
            raise ConfigurationError(f"cannot use BATCHING_WEB_TOKENS: the name {name} stands twice")
        tokens[name] = Token(name, Role(role), digest.lower())
    return tuple(tokens.values())


def make_token(name: str, role: str) -> tuple[str, str]:
    """A fresh token.

    Args:
        name: Whose; shown in logs and in histories.
        role: `viewer` or `operator`.

    Returns:
        The token, which nobody can find out again, and its entry for BATCHING_WEB_TOKENS.

    Raises:
        ConfigurationError: The name is none.
    """
    token = PREFIX + secrets.token_urlsafe(32)
    entry = f"{name}:{role}:{_digest(token)}"
    if not _ENTRY.fullmatch(entry):
        raise ConfigurationError(
            f"cannot make a token for {name!r}: a name has letters, digits, '_', '-', '.' and '@', at most 64"
        )
    return token, entry


class Keyring:
    """Knows who may come in.

    Args:
        tokens: None: whoever reaches this process is an operator, which is right on a loopback address alone.
        secret: Signs sessions; None: a fresh one.
    """

    def __init__(self, tokens: Sequence[Token], secret: str | None = None) -> None:
        if secret is not None and len(secret) < _SHORTEST_SECRET:
            raise ConfigurationError(
                f"cannot use BATCHING_WEB_SECRET: it has fewer than {_SHORTEST_SECRET} characters; make one with "
                "`openssl rand -hex 32`"
            )
        self._tokens = {token.name: token for token in tokens}
        self._secret = secrets.token_bytes(32) if secret is None else secret.encode()

    @property
    def open(self) -> bool:
        """Whether nobody has to say who they are."""
        return not self._tokens

    def by_token(self, presented: str) -> Identity | None:
        """Whose token this is; None: nobody's."""
        if not 0 < len(presented) <= _LONGEST:
            return None
        digest, found = _digest(presented), None
        for token in self._tokens.values():  # all of them: the time taken tells nothing about which was near
            if hmac.compare_digest(token.digest, digest):
                found = Identity(token.name, token.role)
        return found

    def start_session(self, name: str, now: float) -> str:
        """What the browser of somebody who was let in gets to keep.

        Args:
            name: Of the token that was presented.
            now: Unix seconds.
        """
        claims = {"name": name, "until": int(now) + SESSION_SECONDS, "id": secrets.token_urlsafe(12)}
        body = _encode(json.dumps(claims, separators=(",", ":")).encode())
        return f"{body}.{self._sign(name, body)}"

    def by_session(self, cookie: str, now: float) -> Identity | None:
        """Whose session this is; None: nobody's, or over, or its token is not in force any more."""
        body, _, signature = cookie.partition(".")
        if not body or len(cookie) > _LONGEST:
            return None
        try:
            claims = json.loads(_decode(body))
            name, until, session = str(claims["name"]), float(claims["until"]), str(claims["id"])
        except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
            return None
        if name not in self._tokens or not hmac.compare_digest(self._sign(name, body), _ascii(signature)):
            return None
        token = self._tokens[name]
        return Identity(name, token.role, session, ambient=True) if now < until else None

    def form_token(self, session: str) -> str:
        """What a form, or a script of ours, sends along to show that it came from a page of ours.

        Args:
            session: Of `Identity.session`; empty before the log-in, and where nobody logs in.
        """
        return _encode(hmac.digest(self._secret, b"form:" + session.encode(), "sha256"))

    def is_form_token(self, session: str, presented: str) -> bool:
        """Whether `form_token` made it."""
        return hmac.compare_digest(self.form_token(session), _ascii(presented))

    def _sign(self, name: str, body: str) -> str:
        # With the token's digest in it: a token that is taken away, or replaced, ends the sessions that it began.
        digest = self._tokens[name].digest if name in self._tokens else ""
        return _encode(hmac.digest(self._secret, f"session:{digest}:{body}".encode(), "sha256"))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _ascii(text: str) -> str:
    """`compare_digest` takes texts of ASCII alone; what is none, is nobody's."""
    return text if text.isascii() else ""


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(_ascii(text) + "=" * (-len(text) % 4))
