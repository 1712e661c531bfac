"""What every route works with."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import anyio.to_thread
import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from batching.web.identity import Identity, Keyring, Role, parse_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.queue_manager import QueueManager
    from batching.settings import Settings
    from batching.statistics import Statistics
    from batching.web.feed import Feed
    from batching.web.problems import Problem

_Result = TypeVar("_Result")

HERE: Final = Path(__file__).parent
#: Nobody has to say who they are on a loopback address without tokens.
LOCAL: Final = "local"


class Context:
    """The queue manager, the settings, the templates, and who is asking.

    Args:
        access: Reads go through its `statistics`, actions through its verbs, its `queues` and its `limits`.
        settings: Of this process.
        feed: What the streams of events tell.
    """

    def __init__(self, access: QueueManager, settings: Settings, feed: Feed) -> None:
        self.access = access
        # Made here and now, not by the first two threads at once.
        _ = access.statistics, access.state_manager, access.execution_manager, access.queues, access.limits
        _ = access.database.engine
        self.settings = settings
        self.feed = feed
        self.problem_page: Callable[[Request, Problem], Response] | None = None
        """Makes a page of a problem, for people; whoever has pages sets it."""
        secret = None if settings.web_secret is None else settings.web_secret.get_secret_value()
        self.keyring = Keyring(parse_tokens(settings.web_tokens), secret)
        self.stopping = False
        """The dashboard stops: who waits for a sender gives up."""
        # Uploads wait for their senders, so they have threads of their own: a few that are slow must not keep everybody
        # else from looking.
        self.uploads = anyio.CapacityLimiter(max(2, settings.web_threads // 2))
        # Everything that is put into a page is escaped; a name that was forgotten is an error, not an empty place.
        self.templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    @property
    def statistics(self) -> Statistics:
        """Every read."""
        return self.access.statistics

    async def run(self, function: Callable[..., _Result], /, *arguments: Any, **named: Any) -> _Result:
        """Call what waits for SQL, in one of a bounded number of threads: the event loop waits for nobody.

        A route that is a plain `def` is called in one of them by the framework, and needs none of this.
        """
        return await anyio.to_thread.run_sync(partial(function, *arguments, **named))

    def identity(self, request: Request) -> Identity:
        """Who is asking; the guard let nobody through without one, but for the few open pages."""
        found = request.scope.get("identity")
        return found if isinstance(found, Identity) else Identity("", Role.VIEWER)

    def may_act(self, request: Request) -> bool:
        """Whether who is asking may change something: what a page shows buttons by. The guard decides in the end."""
        return self.identity(request).role is Role.OPERATOR and not self.settings.web_read_only

    def form_token(self, request: Request) -> str:
        """What a form of ours sends in its field `csrf_token`, and a script of ours in the header `X-CSRF-Token`."""
        return self.keyring.form_token(self.identity(request).session)

    def said_by(self, request: Request, reason: str, done: str) -> str:
        """The reason for the history of a batch: as given, else who has done it."""
        name = self.identity(request).name
        return reason or ("" if name in {"", LOCAL} else f"{done} by {name}")

    def told(self, request: Request, problem: Problem) -> Response:
        """A problem as its reader wants it: a page for people, a document for programs."""
        by_people = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")
        if self.problem_page is None or not by_people:
            return problem.response()
        return self.problem_page(request, problem)

    def render(self, request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """A page from a template, which also gets `identity`, `may_act`, `read_only`, `csrf_token` and `login`."""
        known = {
            "identity": self.identity(request),
            "may_act": self.may_act(request),
            "read_only": self.settings.web_read_only,
            "csrf_token": self.form_token(request),
            "login": not self.keyring.open,
        }
        return HTMLResponse(self.templates.get_template(template).render(**known, **values), status)
