"""Pops messages from the lanes' lists, without ever blocking the loop that it lives in.

One BLMPOP is outstanding at a time, and only while there is credit for its answer: a message that sits unread in a
socket would belong to nobody. BLMPOP takes messages out of the first list that has some, so the lists take turns at
being first.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import redis

from batching.broker import translated_errors
from batching.errors import BrokerUnavailableError
from batching.figures import Figures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from workers.loops import Loop, Timer
    from workers.publisher import RedisPublisher

logger = logging.getLogger(__name__)

#: Seconds that the server holds an unanswered pop; new lanes are served, and a dead connection is noticed, after it.
PATIENCE: Final = 2.0
#: Seconds beyond that after which the connection counts as dead.
_GRACE: Final = 3.0
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0


class Popper:
    """Asks for messages on its own connection.

    Args:
        loop: Where its answers arrive.
        publisher: Names the server; also returns what was popped for nothing.
        on_messages: Gets the list's key and its messages, possibly none, and how many were asked for.
        figures: Counts how often the broker is lost.
    """

    def __init__(
        self,
        loop: Loop,
        publisher: RedisPublisher,
        on_messages: Callable[[str, Sequence[bytes], int], None],
        figures: Figures | None = None,
    ) -> None:
        self._figures = figures or Figures()
        self._loop = loop
        self._publisher = publisher
        self._on_messages = on_messages
        self._connection: Any = None
        self._fd = -1
        self._asked = 0
        self._turn = 0
        self._client_id = 0
        # Set while an answer is outstanding, and while the server gets a pause.
        self._overdue: Timer | None = None
        self._pause = 0.0

    @property
    def outstanding(self) -> int:
        """Messages asked for and not answered yet."""
        return self._asked

    @property
    def connected(self) -> bool:
        """Whether the server was there when it was needed last."""
        return not self._pause

    def ask(self, keys: Sequence[str], count: int) -> None:
        """Ask for up to `count` messages of these lists; does nothing while an answer, or a pause, is outstanding."""
        if self._overdue is not None or not keys:
            return
        self._turn = (self._turn + 1) % len(keys)
        rotated = [*keys[self._turn :], *keys[: self._turn]]
        try:
            connection = self._connected()
            connection.send_command(
                "BLMPOP", PATIENCE, len(rotated), *rotated, "RIGHT", "COUNT", count, check_health=False
            )
        except (redis.RedisError, OSError) as error:
            self._lost(error)
            return
        self._asked = count
        self._overdue = self._loop.call_later(PATIENCE + _GRACE, self._missed)

    def close(self) -> list[tuple[str, bytes]]:
        """Stop asking.

        The server is told to answer the outstanding pop, and the answer is read: else a message popped at this moment
        would be in a closed socket, and come back only when the sweep misses it. Bounded by the client's time-out; when
        the server does not answer, the sweep it is.

        Returns:
            Pairs of list key and message that arrived in the end, for `put_back`.
        """
        late: list[tuple[str, bytes]] = []
        if self._asked:
            try:
                self._publisher.client.client_unblock(self._client_id)
                answer = self._connection.read_response()
                late = _pairs(answer)
            except (redis.RedisError, OSError) as error:
                logger.info("Could not end the outstanding pop: %s; what it took is published again", error)
        self._disconnect()
        return late

    def _connected(self) -> Any:
        if self._connection is None:
            connection: Any = self._publisher.client.connection_pool.make_connection()
            connection.connect()
            connection.send_command("CLIENT", "ID")
            self._client_id = int(connection.read_response())
            self._connection = connection
            self._fd = connection._sock.fileno()  # noqa: SLF001 - redis-py offers no other way to watch its socket
            self._loop.add_reader(self._fd, self._readable)
            if self._pause:
                logger.info("The lanes' broker is back")
            self._pause = 0.0
        return self._connection

    def _readable(self) -> None:
        try:
            # TLS has words of its own (a new session, a new key), after which nothing may come for long.
            if isinstance(self._connection, redis.SSLConnection) and not self._connection.can_read(timeout=0):
                return
            # The socket has something; the rest of a long answer is waited for, within the client's time-out.
            answer = self._connection.read_response()
        except redis.ResponseError as error:
            # UNBLOCKED, READONLY, NOPERM, LOADING …: the connection is fine, the server is not.
            self._lost(error)
            return
        except (redis.RedisError, OSError) as error:
            self._lost(error)
            return
        asked, self._asked = self._asked, 0
        self._cancel_timer()
        pairs = _pairs(answer)
        self._on_messages(pairs[0][0] if pairs else "", [raw for _, raw in pairs], asked)

    def _missed(self) -> None:
        self._overdue = None
        self._lost(TimeoutError(f"no answer within {PATIENCE + _GRACE:g} s"))

    def _lost(self, error: Exception) -> None:
        self._figures.count("broker_errors", "worker")
        if not self._pause:
            try:
                with translated_errors(self._publisher.url):
                    raise error
            except BrokerUnavailableError as told:
                logger.warning("Lost the lanes' broker, trying again: %s", told)
        self._disconnect()
        self._pause = min(_LONGEST_PAUSE, 2 * self._pause or _FIRST_PAUSE)
        self._overdue = self._loop.call_later(self._pause, self._again)

    def _again(self) -> None:
        self._overdue = None
        self._on_messages("", (), 0)

    def _disconnect(self) -> None:
        self._cancel_timer()
        self._asked = 0
        if self._connection is not None:
            self._loop.remove_reader(self._fd)
            self._connection.disconnect()
            self._connection = None

    def _cancel_timer(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None


def _pairs(answer: Any) -> list[tuple[str, bytes]]:
    if not answer:
        return []
    key, messages = answer
    name = key.decode("utf-8", "replace")
    return [(name, raw) for raw in messages]
