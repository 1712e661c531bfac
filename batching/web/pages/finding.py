"""What somebody types to find a batch: words of its name, and `word:value` for the rest. Pure."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from typing import Any, Final

from batching.errors import InvalidInputError
from batching.states import BatchState
from batching.statistics import Search

_HEXADECIMAL: Final = re.compile(r"[0-9a-fA-F]{8}[0-9a-fA-F-]*")
_KEYWORDS: Final = frozenset({"key", "tag", "state", "handler", "queue"})


@dataclass
class Asked:
    """One search, as it was typed and chosen."""

    text: str = ""
    state: str = ""
    queue: str = ""
    handler: str | None = None
    key: str | None = None
    name: str | None = None
    states: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    properties: dict[str, Any] = field(default_factory=dict)
    batch_id: str | None = None
    """What was typed may be an id, or the beginning of one."""

    @property
    def searches(self) -> bool:
        """Whether there is more to it than a queue."""
        return bool(self.text.strip() or self.state)

    def search(self, after: str | None, limit: int) -> Search:
        """For `Statistics.search`."""
        return Search(
            queue=self.queue or None,
            states=tuple(BatchState(state) for state in self.states),
            handler=self.handler,
            key=self.key,
            name=self.name,
            tags=tuple(self.tags),
            properties=self.properties,
            after=after,
            limit=limit,
        )


def read(text: str, state: str = "", queue: str = "") -> Asked:
    """What the search field says, with what was chosen beside it.

    Args:
        text: Words, `key:…`, `tag:…`, `state:…`, `handler:…`, `queue:…` and `property=value`; quotes hold words
            together.
        state: A state, or nothing.
        queue: A queue, or nothing.

    Raises:
        InvalidInputError: A quote is not closed, or there is no such state.
    """
    asked = Asked(text=text, state=state, queue=queue)
    words: list[str] = []
    for token in _tokens(text):
        word, _, value = token.partition(":")
        name, equals, wanted = token.partition("=")
        if word in _KEYWORDS and value:
            _take(asked, word, value)
        elif equals and name:
            asked.properties[name] = _value(wanted)
        else:
            words.append(token)
    if state:
        _take(asked, "state", state)
    if len(words) == 1 and _HEXADECIMAL.fullmatch(words[0]):
        asked.batch_id = words[0]
    asked.name = " ".join(words) or None
    return asked


def _take(asked: Asked, word: str, value: str) -> None:
    if word == "state":
        if value not in set(BatchState):
            raise InvalidInputError(f"cannot search for the state {value!r}: a batch is one of {', '.join(BatchState)}")
        asked.states.append(value)
    elif word == "tag":
        asked.tags.append(value)
    else:
        setattr(asked, word, value)


def _tokens(text: str) -> list[str]:
    reader = shlex.shlex(text, posix=True, punctuation_chars=False)
    # Double quotes alone: an apostrophe is a part of many a name.
    reader.whitespace_split, reader.commenters, reader.escape, reader.quotes = True, "", "", '"'
    try:
        return list(reader)
    except ValueError:
        raise InvalidInputError(f"cannot read the search {text!r}: a quote in it is not closed") from None


def _value(text: str) -> Any:
    """JSON, or else the text itself: as the command line takes it."""
    try:
        return json.loads(text)
    except ValueError:
        return text
