"""Messages as they come out of a lane's list: anything may lie there, and none of it may hurt the worker."""

from __future__ import annotations

import json
import logging
import re
import uuid
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from batching.figures import Figures
from batching.interfaces import RunId

if TYPE_CHECKING:
    from collections.abc import Container

logger = logging.getLogger(__name__)

#: Bytes; a message of ours has some 900. Larger ones are not even parsed.
LARGEST: Final = 16_384
_NUMBER: Final = 2**31 - 1
_decode: Final = json.JSONDecoder().decode
#: The beginning of a message as `workers.publisher` writes it: all that has to be read of it. Parsing the whole takes
#: four times as long, and is for those that another client wrote anew.
_OURS: Final = re.compile(
    rb'\{"body":"[A-Za-z0-9+/=]+","content-encoding":"utf-8","content-type":"application/json","headers":\{"lang":"py",'
    rb'"task":"([\w.-]+)","id":"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.(\d{1,10})\.(\d{1,10})"(,"alone":true)?,'
    rb'"root_id":'
).match


class Offer(NamedTuple):
    """A run that may be claimed."""

    run: RunId
    handler: str
    alone: bool
    key: str
    """The list that it came from, and the message as it was: to put it back."""
    raw: bytes


class Junk(Exception):  # noqa: N818 - not an error of this program; never leaves this module
    """What a message was that is not an offer."""


class Reader:
    """Reads messages, counts and drops junk, and says so once per kind.

    Args:
        handlers: Names that this worker serves.
        figures: Counts junk.
    """

    def __init__(self, handlers: Container[str], figures: Figures | None = None) -> None:
        self._figures = figures or Figures()
        self._handlers = handlers
        self.junk: dict[str, int] = {}

    def read(self, key: str, raw: bytes) -> Offer | None:
        """The offer in a message; None for junk, which is counted. Never raises."""
        try:
            return self._parse(key, raw)
        except Junk as junk:
            kind = str(junk)
            self._figures.count("junk_messages")
            self.junk[kind] = self.junk.get(kind, 0) + 1
            if self.junk[kind] == 1:
                logger.warning(
                    "Dropped a message from %s: %s; it begins %.80r. Further ones of this kind are only counted. "
                    "Something else writes into the lanes' lists",
                    key,
                    kind,
                    raw[:80],
                )
            return None

    def is_junk(self, key: str, raw: bytes) -> bool:
        """Whether a message is no offer; for who looks and pops nothing."""
        try:
            self._parse(key, raw)
        except Junk:
            return True
        return False

    def _parse(self, key: str, raw: bytes) -> Offer:
        if len(raw) > LARGEST:
            raise Junk("over 16,384 bytes")
        if (ours := _OURS(raw)) is not None:
            task, batch_id, number, run, alone = ours.groups()
            if 0 < int(number) <= _NUMBER and 0 < int(run) <= _NUMBER:
                handler = self._carried(key, task.decode())
                return Offer(RunId(batch_id.decode(), int(number), int(run)), handler, alone is not None, key, raw)
        try:
            message: Any = _decode(raw.decode())
        except (ValueError, RecursionError):
            raise Junk("not JSON, or nested too deeply") from None
        headers = message.get("headers") if isinstance(message, dict) else None
        if not isinstance(headers, dict):
            raise Junk("no task message")
        handler = self._carried(key, headers.get("task"))
        return Offer(_run_id(headers.get("id")), handler, headers.get("alone") is True, key, raw)

    def _carried(self, key: str, task: Any) -> str:
        if not isinstance(task, str) or task not in self._handlers or not key.endswith(f":{task}"):
            raise Junk("a task that this lane does not carry")
        return task


def _run_id(task_id: Any) -> RunId:
    try:
        run = RunId.parse(task_id)
        canonical = _is_canonical(run.batch_id)
    except (AttributeError, TypeError, ValueError):
        raise Junk("no run's task id") from None
    if not canonical or not 0 < run.number <= _NUMBER or not 0 < run.run <= _NUMBER:
        raise Junk("no run's task id")
    return run


@lru_cache(maxsize=256)
def _is_canonical(batch_id: str) -> bool:
    """One id that the database cannot read would fail the claim of its whole group."""
    return str(uuid.UUID(batch_id)) == batch_id
