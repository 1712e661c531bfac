"""Callbacks as data: where one goes, what it says, and how a webhook is signed. Pure: no SQL, no network, no clock.

Webhooks are signed as Standard Webhooks has it (https://www.standardwebhooks.com, "Signature scheme", symmetric), so
that receivers in any language find a library that verifies them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from batching.errors import ConfigurationError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

_TARGET_LIMIT: Final = 2_000
#: What Celery's own naming makes, and what people write: `reports.tasks.mail`.
_TASK_NAME: Final = re.compile(r"[A-Za-z_][\w.:-]{0,254}", re.ASCII)
_SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the prefix of a secret, not one
_SHORTEST_SECRET: Final = 24
#: Seconds by which a signature's time may differ from the receiver's, as Standard Webhooks advises.
TOLERANCE: Final = 300


class Callback(NamedTuple):
    """One delivery that a manager has taken."""

    id: str
    run: int
    """Fences it: whoever took it later made this one void."""
    attempt: int
    """Counts from 1."""
    target: str
    document: dict[str, Any]
    """What is told."""

    @property
    def is_webhook(self) -> bool:
        """Whether it goes to a URL, and not to a Celery task."""
        return is_webhook(self.target)


def is_webhook(target: str) -> bool:
    """Whether a target is a URL, and not the name of a Celery task."""
    return "://" in target


def check_target(option: str, target: object) -> None:
    """Refuse what no callback can go to.

    Raises:
        InvalidInputError: Names the option; never shows the target, which may carry a token.
    """
    if target is None:
        return
    if not isinstance(target, str) or len(target) > _TARGET_LIMIT:
        raise InvalidInputError(f"option {option} takes a URL or the name of a Celery task, as text")
    if not is_webhook(target):
        if not _TASK_NAME.fullmatch(target):
            raise InvalidInputError(
                f"option {option} takes https://host/path, or the name of a Celery task as reports.tasks.mail"
            )
        return
    if (problem := _wrong_with(target)) is not None:
        raise InvalidInputError(f"option {option} takes a URL as https://host/path: {problem}")


def _wrong_with(url: str) -> str | None:
    if not url.isascii() or not url.isprintable() or " " in url:
        return "this one has characters that a URL has to encode"
    try:
        parts = urlsplit(url)
        named = parts.hostname
        _ = parts.port
    except ValueError:
        return "this one cannot be read"
    problems = {
        f"its scheme is {parts.scheme!r}": parts.scheme not in {"https", "http"},
        "it names no host": not named,
        "it has a user or password in it, which would be stored; webhooks are signed instead": "@" in parts.netloc,
        "it has a fragment, which is never sent": "#" in url,
    }
    return next((problem for problem, found in problems.items() if found), None)


def document(callback_id: str, at: datetime, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a delivery says: the same in every attempt.

    Args:
        callback_id: Stable; a receiver knows a repetition by it.
        at: When it happened, by the database's clock.
        facts: As stored with the callback.
    """
    return {"id": callback_id, "at": at.isoformat(), **facts}


def read_secret(text: str) -> bytes:
    """The key in `whsec_<base64>`.

    Raises:
        ConfigurationError: It is none; the message does not show it.
    """
    encoded = text.removeprefix(_SECRET_PREFIX)
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not text.startswith(_SECRET_PREFIX) or len(key) < _SHORTEST_SECRET:
        raise ConfigurationError(
            "cannot sign webhooks: a secret in BATCHING_WEBHOOK_SECRETS is not `whsec_` and the base64 of at least "
            f'{_SHORTEST_SECRET} bytes; make one with: python -c "import base64, secrets; '
            "print('whsec_' + base64.b64encode(secrets.token_bytes(32)).decode())\""
        )
    return key


def signature_headers(secrets: Sequence[str], callback_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers that a webhook is signed with, one signature per secret.

    Args:
        secrets: As `read_secret` takes them; two while one replaces the other.
        callback_id: The message's id.
        timestamp: Unix seconds of this attempt.
        body: Exactly what is sent.
    """
    signed = [_signature(read_secret(secret), callback_id, timestamp, body) for secret in secrets]
    return {
        "webhook-id": callback_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{each}" for each in signed),
    }


def verify(secrets: Iterable[str], headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """For receivers in Python: whether a webhook was signed with one of our secrets, and lately.

    Args:
        secrets: As configured.
        headers: Of the request; names in lower case.
        body: Of the request, as it came.
        now: Unix seconds.
    """
    try:
        timestamp = int(headers["webhook-timestamp"])
        callback_id, given = headers["webhook-id"], headers["webhook-signature"].split()
    except (KeyError, ValueError):
        return False
    if abs(now - timestamp) > TOLERANCE:
        return False
    wanted = [f"v1,{_signature(read_secret(secret), callback_id, timestamp, body)}" for secret in secrets]
    return any(hmac.compare_digest(one.encode(), other.encode()) for one in given for other in wanted)


def _signature(key: bytes, callback_id: str, timestamp: int, body: bytes) -> str:
    text = b".".join((callback_id.encode(), str(timestamp).encode(), body))
    return base64.b64encode(hmac.digest(key, text, hashlib.sha256)).decode()
