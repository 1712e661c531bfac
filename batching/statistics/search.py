"""Search: batches by what was said about them, the newest first, page by page."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, and_, literal, select, true

from batching.dialects import later
from batching.errors import InvalidInputError
from batching.models import batches, labels
from batching.specification import check_moment, check_tag, property_text
from batching.states import BatchState

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Search:
    """What a batch must be to be found: all of what is given.

    Args:
        queue: The name of its queue.
        states: One of these.
        handler: The name of its handler.
        key: Its key.
        name: A part of its name; upper and lower case are one.
        tags: All of these.
        properties: All of these names with these values; of texts, numbers, true, false and null.
        since: Made then or later: an aware moment, or so many seconds ago.
        until: Made then or earlier: the same.
        after: The id of the last batch of the page before.
        limit: Batches in a page.
    """

    queue: str | None = None
    states: tuple[BatchState | str, ...] = ()
    handler: str | None = None
    key: str | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()
    properties: Mapping[str, Any] = field(default_factory=dict)
    since: datetime | float | None = None
    until: datetime | float | None = None
    after: str | None = None
    limit: int = 100

    def condition(self) -> ColumnElement[bool]:
        """On the table of batches. Tags and properties lead through an index of their own.

        Raises:
            InvalidInputError: Nothing can be searched for in these words.
        """
        equal = {"queue": self.queue, "handler": self.handler, "key": self.key}
        found = [true(), *(batches.c[name] == value for name, value in equal.items() if value is not None)]
        if self.states:
            found.append(batches.c.state.in_([BatchState(state).value for state in self.states]))
        if self.name is not None:
            found.append(batches.c.name.icontains(self.name, autoescape=True))
        found += [_labelled("", check_tag(tag)) for tag in self.tags]
        found += [_labelled(name, _findable(name, value)) for name, value in self.properties.items()]
        if self.since is not None:
            found.append(batches.c.created_at >= _moment("since", self.since))
        if self.until is not None:
            found.append(batches.c.created_at <= _moment("until", self.until))
        if self.after is not None:
            found.append(batches.c.id < whole_id(self.after, "batch"))
        return and_(*found)


def _labelled(name: str, value: str) -> ColumnElement[bool]:
    return batches.c.id.in_(select(labels.c.batch_id).where(labels.c.name == name, labels.c.value == value))


def _findable(name: str, value: Any) -> str:
    text = property_text(value)
    if text is None:
        raise InvalidInputError(
            f"cannot search for the property {name!r} with this value: batches are found by texts of up to 255 "
            "characters, numbers, true, false and null"
        )
    return text


def _moment(name: str, value: datetime | float) -> ColumnElement[Any]:
    check_moment(name, value)
    if isinstance(value, datetime):
        return literal(value, batches.c.created_at.type)
    return later(literal(-float(value)))


def whole_id(text: str, what: str) -> str:
    """The id that a page goes on after.

    Raises:
        InvalidInputError: It is none.
    """
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidInputError(
            f"cannot go on after {text!r}: give the whole id of the last {what} of a page"
        ) from None
