"""The broker's keys as an audit sees them: which of them are not as we write them, and how each is put right."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import redis

from batching.broker import redis_client, translated_errors
from batching.doctor.broker import OddKey
from workers.offers import Reader
from workers.publisher import lane_key
from workers.unacknowledged import copies_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from batching.interfaces import Lane

#: Messages of one list that are looked at, and fetched at once. A window is never larger, unless somebody set it so.
_LOOKED_AT: Final = 20_000
_CHUNK: Final = 500
#: Seconds after which nobody looks after a copy of a popped message: twice the longest `visibility_timeout`.
_FORGOTTEN: Final = 120.0


class RedisKeys:
    """See the module.

    Args:
        broker_url: Where the lanes are; see `batching.broker.redis_client`.
        key_prefix: Before every key.
    """

    def __init__(self, broker_url: str, key_prefix: str) -> None:
        self._url = broker_url
        self._prefix = key_prefix
        self._client = redis_client(broker_url)

    def odd(self, lanes: Collection[Lane]) -> list[OddKey]:
        """Keys of ours that are not as we write them.

        Args:
            lanes: Those that a batch may need or a worker serves; what lies in any other is of no use.

        Raises:
            BrokerUnavailableError: The broker did not answer.
        """
        needed = {lane_key(self._prefix, lane): lane.handler for lane in lanes}
        with translated_errors(self._url):
            found = [self._of_another_type(f"{self._prefix}{name}", kind) for name, kind in _SINGLE.items()]
            found.append(self._of_copies())
            names = sorted(needed.keys() | self._lists())
            lists = [odd for name in names for odd in self._of_list(name, needed.get(name))]
        return [*(odd for odd in found if odd is not None), *lists]

    def close(self) -> None:
        """Close the connections. Safe to call twice."""
        self._client.close()

    def _lists(self) -> set[str]:
        """Every lane's list there is; none when this user may not look for keys."""
        pattern = "".join(f"\\{char}" if char in "*?[]\\" else char for char in f"{self._prefix}lane:") + "*"
        try:
            return {name.decode(errors="replace") for name in self._client.scan_iter(pattern, count=1_000)}
        except redis.exceptions.NoPermissionError:
            return set()

    def _of_another_type(self, name: str, kind: str) -> OddKey | None:
        found = self._type(name)
        if found in {kind, "none"}:
            return None
        text = f"it is a {found} where a {kind} belongs: every command of ours on it fails"
        return OddKey(name, text, partial(self._delete, name, kind))

    def _of_list(self, name: str, handler: str | None) -> Iterator[OddKey]:
        """What is wrong with a lane's list; without a handler, nobody needs it."""
        if (odd := self._of_another_type(name, "list")) is not None:
            yield odd
            return
        client: Any = self._client
        if not (length := int(client.llen(name))):
            return
        if handler is None:
            text = f"{length:,} messages lie in a lane that no batch needs and no worker serves"
            yield OddKey(name, text, partial(self._delete, name, ""))
            return
        if client.ttl(name) >= 0:
            yield OddKey(name, "it expires, and its messages with it", partial(self._persist, name))
        reader = Reader([handler])
        if junk := [raw for raw in self._messages(name) if reader.is_junk(name, raw)]:
            text = f"{len(junk):,} messages in it are no offers of runs: something else writes there"
            yield OddKey(name, text, partial(self._remove, name, junk))

    def _of_copies(self) -> OddKey | None:
        """What is wrong with the copies of popped messages."""
        name = copies_key(self._prefix)
        client: Any = self._client
        try:
            if (odd := self._of_another_type(name, "zset")) is not None:
                return odd
            until = client.time()[0] - _FORGOTTEN
            count = int(client.zcount(name, "-inf", until))
        except redis.exceptions.NoPermissionError:  # an access list may be older than this key
            return None
        if not count:
            return None
        text = (
            f"{count:,} copies of popped messages lie there for over {_FORGOTTEN:g} s: no worker with "
            "BATCHING_ACKNOWLEDGE=claim is left to offer them again"
        )
        # What of them is still to be done, the leader has long published again.
        return OddKey(name, text, partial(self._forget_copies, name, until))

    def _messages(self, name: str) -> Iterator[bytes]:
        client: Any = self._client
        for start in range(0, _LOOKED_AT, _CHUNK):
            chunk = client.lrange(name, start, start + _CHUNK - 1)
            yield from chunk
            if len(chunk) < _CHUNK:
                return

    def _type(self, name: str) -> str:
        client: Any = self._client
        return str(client.type(name).decode())

    def _delete(self, name: str, unless: str) -> bool:
        with translated_errors(self._url):
            return self._type(name) != unless and bool(self._client.delete(name))

    def _persist(self, name: str) -> bool:
        with translated_errors(self._url):
            return bool(self._client.persist(name))

    def _forget_copies(self, name: str, until: float) -> bool:
        client: Any = self._client
        with translated_errors(self._url):
            return bool(client.zremrangebyscore(name, "-inf", until))

    def _remove(self, name: str, messages: Collection[bytes]) -> bool:
        client: Any = self._client
        with translated_errors(self._url):
            removed = [int(client.lrem(name, 0, raw)) for raw in set(messages)]
        return sum(removed) > 0


#: Keys that there is one of, and their types.
_SINGLE: Final = {"hint": "list", "canary": "string"}

__all__ = ["RedisKeys"]
