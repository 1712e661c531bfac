"""The application: the guard, the JSON API, the pages and their files, put together."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from batching.web import api, login, pages, probes, problems
from batching.web.answers import JSON
from batching.web.context import HERE, Context
from batching.web.feed import Feed
from batching.web.guard import Guard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from batching.queue_manager import QueueManager
    from batching.settings import Settings


def create_app(access: QueueManager, settings: Settings, *, names: Iterable[str] = ()) -> FastAPI:
    """The dashboard and the API of one store.

    Args:
        access: Its statistics are read, its verbs are called.
        settings: Those that begin with `web_`, and the prefix of Redis keys.
        names: Host names to answer to, beside those of loopback and of `web_hosts`.

    Raises:
        ConfigurationError: A token, or the secret, is not acceptable.
    """
    context = Context(access, settings, Feed(settings, access.broker_url))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        # As many requests wait for SQL at once as there are connections for them; the others wait here.
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.web_threads
        context.feed.start()
        yield
        await context.feed.stop()

    app = FastAPI(
        title="batching",
        lifespan=lifespan,
        default_response_class=JSON,
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.context = context
    problems.install(app, context.told)
    app.add_middleware(_as_middleware(Guard), context=context, names=frozenset(names))
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    for router in (login.router(context), probes.router(context), *api.routers(context), *pages.routers(context)):
        app.include_router(router)
    api.describe(app)
    return app


def _as_middleware(kind: type[Guard]) -> Any:
    """Starlette's type of a middleware's factory does not fit a class whose arguments have names."""
    return kind
