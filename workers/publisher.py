"""Profiles -> Celery task messages, in bulk. Needs redis-py alone, so that the manager's process stays light.

A message says only "this run is yours to claim": ids and labels for people, never a payload. It is a Celery protocol-2
message in kombu's Redis envelope (https://docs.celeryq.dev/en/stable/internals/protocol.html,
kombu/transport/virtual/base.py `prepare_message`), built by hand: kombu's own path takes over 200 microseconds each.
"""

from __future__ import annotations

import os
import socket
import uuid
from binascii import b2a_base64
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Any, Final

import redis

from batching import faults
from batching.broker import Doorbell, exchange, redis_client, translated_errors
from batching.errors import ConfigurationError
from batching.settings import mask_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batching.interfaces import Dispatch, Lane

#: Dispatches in one round trip: larger chunks are not faster, and hold the server's one thread for longer.
CHUNK: Final = 500
#: BLMPOP came with this version; Valkey's first release is 7.2.
OLDEST_SERVER: Final = (7, 0)


def lane_key(prefix: str, lane: Lane) -> str:
    """The Redis list that carries a lane."""
    return f"{prefix}lane:{lane.queue}:{lane.handler}"


def labels(batch_id: str, key: str, attempt: int, pass_number: int) -> str:
    """`kwargsrepr` of a run: what Flower shows, and searches as `kwargs:batch=…`; it reads a Python literal."""
    return repr({"batch": batch_id, "profile": key, "attempt": attempt, "pass": pass_number})


#: Stands in a form where something of the single run goes. No key can hold it: PostgreSQL stores no NUL.
_GAP: Final = "\0"


def message(dispatch: Dispatch, key: str, origin: str) -> str:
    """One task message, as short as can be: a worker parses every byte of it, and the broker holds a window of them.

    Of the headers that the protocol calls optional, those that would say nothing are left out.

    Args:
        dispatch: The run that it offers.
        key: The list that it goes to; kombu's redelivery would put it back there.
        origin: Who published it, for people.
    """
    run, profile_key, lane, attempt, pass_number, alone = dispatch
    batch_id, number, run_number = run
    before, after_body, after_id, after_label, after_id_2, end = _form(
        batch_id, lane.handler, attempt, pass_number, alone, key, origin
    )
    body = f'[[],{{"batch":"{batch_id}","number":{number},"run":{run_number}}},{{}}]'
    encoded = b2a_base64(body.encode(), newline=False).decode()
    task_id = f"{batch_id}.{number}.{run_number}"
    label = quoted(repr(profile_key))[1:-1]
    return f"{before}{encoded}{after_body}{task_id}{after_id}{label}{after_label}{task_id}{after_id_2}{task_id}{end}"


@lru_cache(maxsize=64)
def _form(batch_id: str, handler: str, attempt: int, pass_number: int, alone: bool, key: str, origin: str) -> list[str]:
    """The parts of a message between its body, its task id, its profile's label, and the task id twice more."""
    shown = quoted(labels(batch_id, _GAP, attempt, pass_number)).replace(quoted(repr(_GAP))[1:-1], _GAP)
    # What `workers.offers` reads of it comes first, in an order that it knows.
    mark = ',"alone":true' if alone else ""
    form = (
        f'{{"body":"{_GAP}","content-encoding":"utf-8","content-type":"application/json","headers":{{'
        f'"lang":"py","task":{quoted(handler)},"id":"{_GAP}"{mark},"root_id":"{batch_id}","parent_id":null,'
        f'"group":null,"retries":{attempt - 1},"argsrepr":"()","kwargsrepr":{shown},"origin":{quoted(origin)},'
        f'"ignore_result":true}},'
        f'"properties":{{"correlation_id":"{_GAP}","delivery_mode":2,"delivery_info":{{"exchange":"",'
        f'"routing_key":{quoted(key)}}},"priority":0,"body_encoding":"base64","delivery_tag":"{_GAP}"}}}}'
    )
    return form.split(_GAP)


class RedisPublisher:
    """The border to the broker. Nothing it does is trusted with more than a hint: SQL has it all.

    Args:
        broker_url: Where the lanes are; see `batching.broker.redis_client`.
        key_prefix: Put before every key.
        timeout: Seconds for one answer.
    """

    def __init__(self, broker_url: str, key_prefix: str = "batching:", *, timeout: float = 5.0) -> None:
        self.url = broker_url
        self.key_prefix = key_prefix
        self._timeout = timeout
        self._origin = f"{os.getpid()}@{socket.gethostname()}"
        # RESP2: its BLMPOP answer is one frame, and nothing is ever pushed between answers.
        self.client = redis_client(broker_url, socket_timeout=timeout, socket_connect_timeout=timeout, protocol=2)
        self._doorbell = Doorbell(broker_url, key_prefix, timeout=timeout)

    def publish(self, dispatches: Sequence[Dispatch]) -> None:
        """Publish one task message per dispatch, in their order; call it after the commit.

        Raises:
            BrokerUnavailableError: Some may be published and some not; publishing all of them again is harmless.
        """
        with translated_errors(self.url):
            for start in range(0, len(dispatches), CHUNK):
                self._push(dispatches[start : start + CHUNK])
                faults.reach("publish.part")
        faults.reach("publish.done")

    def _push(self, dispatches: Sequence[Dispatch]) -> None:
        lists: dict[str, list[str]] = {}
        for dispatch in dispatches:
            key = lane_key(self.key_prefix, dispatch.lane)
            lists.setdefault(key, []).append(message(dispatch, key, self._origin))
        exchange(self.client, *(("LPUSH", key, *messages) for key, messages in lists.items()))

    def put_back(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Return popped messages that nobody claimed to the ends of their lists that are popped next.

        Args:
            messages: Pairs of list key and message as it was popped.
        """
        lists: dict[str, list[bytes]] = {}
        for key, raw in messages:
            lists.setdefault(key, []).append(raw)
        with translated_errors(self.url), self.client.pipeline(transaction=False) as pipeline:
            for key, raws in lists.items():
                pipeline.rpush(key, *reversed(raws))
            pipeline.execute()

    def lengths(self, lanes: Iterable[Lane]) -> dict[Lane, int]:
        """Messages that wait in each lane's list.

        Raises:
            BrokerUnavailableError: The broker did not answer.
        """
        asked = list(lanes)
        with translated_errors(self.url), self.client.pipeline(transaction=False) as pipeline:
            for lane in asked:
                pipeline.llen(lane_key(self.key_prefix, lane))
            answers = pipeline.execute(raise_on_error=False)
        # A key of another type in a lane's place carries nothing of ours: as good as empty, and no reason to stop here.
        return {lane: answer if isinstance(answer, int) else 0 for lane, answer in zip(asked, answers, strict=True)}

    def incarnation(self) -> str:
        """Changes when the broker restarted or was flushed: its run id, and a canary key that FLUSHALL removes.

        Raises:
            BrokerUnavailableError: The broker did not answer.
        """
        fresh = uuid.uuid4().hex
        with translated_errors(self.url):
            try:
                found = self.client.set(f"{self.key_prefix}canary", fresh, nx=True, get=True)
            except redis.ResponseError:  # a key of another type stands there: ours replaces it
                self.client.set(f"{self.key_prefix}canary", fresh)
                found = None
            info: dict[str, Any] = self.client.info("server")
        canary = found.decode("ascii", "replace") if isinstance(found, bytes) else fresh
        return f"{info['run_id']}:{canary}"

    def discard(self, lane: Lane) -> None:
        """Drop what waits in a lane that nobody serves any more; harmless, since SQL has it all.

        Raises:
            BrokerUnavailableError: The broker did not answer.
        """
        with translated_errors(self.url):
            self.client.delete(lane_key(self.key_prefix, lane))

    def hint(self, *news: tuple[str, ...]) -> None:
        """Wake the leader, if it waits. Rings that nobody hears do not pile up.

        Args:
            news: For whoever watches: a command of `batching.live`, in the same round trip.

        Raises:
            BrokerUnavailableError: The broker did not answer.
        """
        self._doorbell.ring(*news)

    def tell(self, *news: tuple[str, ...]) -> None:
        """Tell whoever watches, and wake nobody.

        Raises:
            BrokerUnavailableError: The broker did not answer.
        """
        self._doorbell.tell(*news)

    def wait_hint(self, timeout: float, *news: tuple[str, ...]) -> bool:
        """Wait for a hint.

        Args:
            timeout: Seconds, at most half of the client's own time-out.
            news: As for `hint`; told at once.

        Returns:
            True when one came, False when the time is over.

        Raises:
            BrokerUnavailableError: The broker did not answer.
        """
        return self._doorbell.wait(max(0.01, min(timeout, self._timeout / 2)), *news)

    def check(self) -> None:
        """Look whether the server is one that lanes can use.

        Raises:
            ConfigurationError: It is too old.
            BrokerUnavailableError: It did not answer.
        """
        with translated_errors(self.url):
            info: dict[str, Any] = self.client.info("server")
        version = str(info.get("valkey_version") or info.get("redis_version") or "0.0")
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if numbers < OLDEST_SERVER:
            raise ConfigurationError(
                f"cannot use the broker {mask_url(self.url)}: it is version {version}, and lanes need "
                f"{'.'.join(map(str, OLDEST_SERVER))} or newer (BLMPOP); upgrade it, or take a current Valkey"
            )

    def close(self) -> None:
        """Close the connections. Safe to call twice."""
        self.client.close()
        self._doorbell.close()
