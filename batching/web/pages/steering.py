"""What people do with a batch: a page that says what will happen and asks, then the verb, then back with what came.

Each verb is one of `QueueManager`: nothing here decides whether it is allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from batching.errors import BatchingError, InvalidInputError
from batching.states import BatchState, Remedy, StopTarget
from batching.web.pages import words
from batching.web.pages.frame import fields, flashed, local_path, page, page_route

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batching.statistics import BatchView, FailureGroup
    from batching.web.context import Context


class Verb(NamedTuple):
    """One thing that can be done with a batch."""

    label: str
    """On its button."""
    done: str
    """In what is said afterwards, before the name of the batch."""
    means: str
    """What it does, before it is done."""
    grave: bool = False
    """It cannot be taken back by its opposite."""


VERBS: Final[dict[str, Verb]] = {
    "pause": Verb("Pause", "Paused", "Nothing more of it is started; what runs may finish. `Resume` puts it back."),
    "resume": Verb("Resume", "Resumed", "It returns to its old position in line."),
    "cancel": Verb("Cancel", "Cancelled", "What waits is cancelled at once and will not run.", grave=True),
    "retry": Verb("Retry", "Will retry", "It goes to the end of the line, in a new pass over what is not done."),
    "execute": Verb(
        "Run next",
        "Asked to run next:",
        "It is promoted next in its queue: ahead of priority, group, deadline, position and its pause between passes.",
    ),
    "move": Verb(
        "Move", "Moved", "It changes its place among the waiting batches of its priority, group and deadline."
    ),
    "skip": Verb("Skip", "Skipped profiles of", "They never run again, and do not count as failures.", grave=True),
}

#: What a remedy says of profiles: before, and after with how many.
_REMEDIES: Final = {
    Remedy.RETRY: ("They run again, with all their attempts.", "will run again"),
    Remedy.SKIP: ("They never run again, and do not count as failures.", "skipped"),
    Remedy.CANCEL: (
        "They do not run in this pass, and do not count as failures; `Retry` of the batch runs them again.",
        "cancelled",
    ),
}

_PLACES: Final = {
    "front": "to the front",
    "end": "to the end",
    "up": "one place up",
    "down": "one place down",
    "before": "before",
    "after": "behind",
}


def verbs_of(view: BatchView) -> list[str]:
    """The verbs that make sense for a batch now, the likeliest first."""
    match view.state:
        case BatchState.QUEUED:
            return ["execute", "pause", "cancel"]
        case BatchState.RUNNING:
            return ["pause", "cancel"]
        case BatchState.STOPPING:
            return [] if view.target is StopTarget.CANCELLED else ["cancel"]
        case BatchState.PAUSED:
            return ["resume", "execute", "cancel"]
        case _:
            undone = view.total - view.succeeded - view.skipped
            return ["retry"] if undone else []


class Asked(NamedTuple):
    """One verb on one batch, as the form has it."""

    verb: str
    fingerprint: str | None
    profile: str | None
    place: str
    other: str
    reason: str
    running: str
    to: str

    @classmethod
    def read(cls, verb: str, values: Mapping[str, str], batch_id: str) -> Asked:
        """From the fields of a form, or the parameters of an address.

        Raises:
            InvalidInputError: There is no such verb, or it is not about what was named.
        """
        if verb not in VERBS:
            raise InvalidInputError(f"cannot {verb[:40]!r} a batch: a verb is one of {', '.join(VERBS)}")
        asked = cls(
            verb,
            values.get("fingerprint") or None,
            values.get("profile") or None,
            values.get("place", ""),
            values.get("other", ""),
            values.get("reason", "").strip(),
            values.get("running") or "finish",
            local_path(values.get("to") or f"/batches/{batch_id}"),
        )
        if asked.chosen and verb not in set(Remedy):
            raise InvalidInputError(f"cannot {verb} profiles: they can be retried, skipped or cancelled")
        if verb == "skip" and not asked.chosen:
            raise InvalidInputError("cannot skip a batch: say which of its profiles")
        return asked

    @property
    def chosen(self) -> bool:
        """Whether it is about some profiles, not about the batch."""
        return self.fingerprint is not None or self.profile is not None


def router(context: Context) -> APIRouter:
    """The pages that ask, and what they send."""
    routes = APIRouter(route_class=page_route(context), include_in_schema=False)

    @routes.get("/batches/{batch_id}/steer/{verb}", response_class=HTMLResponse)
    def ask(request: Request, batch_id: str, verb: str) -> Response:
        view = context.statistics.batch(batch_id)
        asked = Asked.read(verb, request.query_params, view.id)
        return page(context, request, "confirm.html", allowed=("confirm",), **_question(context, view, asked))

    @routes.post("/batches/{batch_id}/steer/{verb}", response_class=HTMLResponse)
    async def act(request: Request, batch_id: str, verb: str) -> Response:
        asked = Asked.read(verb, await fields(request), batch_id)
        return await context.run(_act, context, request, batch_id, asked)

    return routes


def _question(context: Context, view: BatchView, asked: Asked) -> dict[str, Any]:
    verb = VERBS[asked.verb]
    group, title, means = None, f"{verb.label} this batch?", verb.means
    if asked.chosen:
        means = _REMEDIES[Remedy(asked.verb)][0]
        group = _group(context, view, asked.fingerprint)
        what = "this profile" if group is None else words.many(group.count, "profile")
        title = f"{verb.label} {what}?"
    uninterruptible: dict[str, int] = {}
    if asked.verb == "cancel" and not asked.chosen:
        uninterruptible = context.statistics.uninterruptible(view.id)
    other = context.statistics.batch(asked.other) if asked.other else None
    return {
        "view": view,
        "asked": asked,
        "verb": verb,
        "question": title,
        "means": means,
        "group": group,
        "where": _PLACES.get(asked.place, f"to place {asked.place}" if asked.place else ""),
        "other": other,
        "uninterruptible": uninterruptible,
        "places": ("front", "end"),
    }


def _group(context: Context, view: BatchView, fingerprint: str | None) -> FailureGroup | None:
    if fingerprint is None:
        return None
    found = [each for each in context.statistics.failures(view.id) if each.fingerprint == fingerprint]
    if not found:
        raise InvalidInputError(
            f"no profile of batch {view.id} fails with {fingerprint!r} in its present pass any more"
        )
    return found[0]


def _act(context: Context, request: Request, batch_id: str, asked: Asked) -> Response:
    """Do it, and say in the batch's own words what it is afterwards; what was refused is said in the refusal's."""
    before, behind = VERBS[asked.verb].done, ""
    try:
        if asked.chosen:
            before = _remedy(context, batch_id, asked)
        else:
            _DO[asked.verb](context, batch_id, asked, context.said_by(request, asked.reason, before.lower()))
        if asked.verb == "move":
            behind = _where(context, asked)
        view = context.statistics.batch(batch_id)
    except BatchingError as error:
        return flashed(context, asked.to, _sentence(str(error)), bad=True)
    return flashed(context, asked.to, f"{before} “{words.shown(view.name)}”{behind}: it is {_now(view)}")


def _where(context: Context, asked: Asked) -> str:
    """Where a batch was moved to: ` before “nightly”`."""
    other = f" “{words.shown(context.statistics.batch(asked.other).name)}”" if asked.other else ""
    return f" {_PLACES.get(asked.place, f'to place {asked.place}')}{other}"


def _remedy(context: Context, batch_id: str, asked: Asked) -> str:
    count = context.access.remedy(batch_id, asked.verb, fingerprint=asked.fingerprint, profile=asked.profile)
    return f"{words.many(count, 'profile')} {_REMEDIES[Remedy(asked.verb)][1]}, of"


def _now(view: BatchView) -> str:
    place = f", place {view.place:,} in line" if view.place else ""
    why = f" ({words.shown(view.reason)})" if view.reason else ""
    return f"{view.state}{place}{why}"


def _sentence(text: str) -> str:
    return words.shown(text[:1].upper() + text[1:])


def _pause(context: Context, batch_id: str, asked: Asked, by: str) -> None:
    del asked
    context.access.pause(batch_id, by)


def _cancel(context: Context, batch_id: str, asked: Asked, by: str) -> None:
    context.access.cancel(batch_id, by, running=asked.running)


def _move(context: Context, batch_id: str, asked: Asked, by: str) -> None:
    del by  # the history says "moved to …"
    context.access.move(batch_id, _place(context, batch_id, asked))


def _place(context: Context, batch_id: str, asked: Asked) -> int | str:
    """A place among those that `move` counts.

    Somebody else may move a batch at the same time: the later move holds, as everywhere.
    """
    if asked.place in {"front", "end"}:
        return asked.place
    if asked.place.isascii() and asked.place.isdigit():
        return int(asked.place[:9])
    peers = context.statistics.peers(batch_id)
    own = peers.index(batch_id)
    if asked.place == "up":
        return max(1, own)
    if asked.place == "down":
        return own + 2
    others = [each for each in peers if each != batch_id]
    if asked.place not in {"before", "after"} or asked.other not in others:
        raise InvalidInputError(
            f"cannot move batch {batch_id} there: a move changes the place among waiting batches of one queue, "
            "priority, group and deadline; `Run next` goes ahead of all of them"
        )
    return others.index(asked.other) + (1 if asked.place == "before" else 2)


_DO: Final[dict[str, Callable[[Context, str, Asked, str], object]]] = {
    "pause": _pause,
    "resume": lambda context, batch_id, *_: context.access.resume(batch_id),
    "cancel": _cancel,
    "retry": lambda context, batch_id, *_: context.access.retry(batch_id),
    "execute": lambda context, batch_id, *_: context.access.process(batch_id),
    "move": _move,
}
