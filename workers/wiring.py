"""The composition root of a worker: `install(app)`, and what is put together when a worker of that app boots."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from batching import handlers as marks
from batching import migration
from batching.broker import with_tls_options
from batching.database import Database
from batching.errors import BrokerUnavailableError, ConfigurationError
from batching.execution_manager import BatchExecutionManager
from batching.figures import Figures
from batching.probes import Probe
from batching.registry import WorkerRegistry
from batching.settings import Settings, get_settings, mask_url
from batching.state_manager import BatchStateManager
from workers.bootstep import Lanes
from workers.companion import Companion
from workers.consumer import LaneConsumer
from workers.executors import PoolExecutor, SoloExecutor, ThreadsExecutor
from workers.identity import pool_kind
from workers.loops import Loop
from workers.messenger import where_is
from workers.ports import Ports
from workers.publisher import RedisPublisher
from workers.tasks import bind, check_pool
from workers.vitals import Notes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery

logger = logging.getLogger(__name__)

#: Seconds that a worker's loop waits for Redis: one that is frozen must not silence the worker for its lease.
_BROKER_TIMEOUT: Final = 2.0
#: Where an app keeps which modules of handlers its workers import beside BATCHING_HANDLERS.
_MODULES: Final = "batching_handler_modules"
_REDIS: Final = frozenset(
    {"redis", "rediss", "valkey", "valkeys", "redis+socket", "valkey+socket", "unix", "redis+unix"}
)


def install(app: Celery, handlers: Sequence[str] = ()) -> None:
    """Let the workers of a Celery application serve lanes beside its own queues.

    Changes no setting of the application: its serializers, acknowledgements, prefix, result backend and prefetch stay.
    Handlers are bound, and everything is checked, when a worker boots; other commands are not touched. Repeatable.

    Args:
        app: The application.
        handlers: Modules that workers import for their `profile_handler` marks, beside BATCHING_HANDLERS. Modules that
            the application imports anyway need not be named.
    """
    app.steps["worker"].add(Lanes)
    known = getattr(app, _MODULES, ())
    setattr(app, _MODULES, tuple(dict.fromkeys((*known, *handlers))))


@dataclass(frozen=True)
class Assembly:
    """The parts of one worker."""

    settings: Settings
    kind: str
    handlers: frozenset[str]
    database: Database
    publisher: RedisPublisher
    loop: Loop
    executor: PoolExecutor
    solo: SoloExecutor | None
    consumer: LaneConsumer
    companion: Companion | None
    notes: Notes
    probe: Probe | None

    @property
    def threaded(self) -> bool:
        """Whether the consumer has a thread of its own: not where the pool forks."""
        return self.kind != "prefork"

    def close(self) -> None:
        """Close what the parts hold open."""
        if self.probe is not None:
            self.probe.close()
        self.publisher.close()
        self.database.close()
        self.loop.close()
        if self.solo is not None:
            self.solo.close()


def assemble(controller: Any) -> Assembly:
    """Check everything that can be wrong, and put a worker's part together; nothing runs yet, and nothing is open.

    Args:
        controller: Celery's worker, before its pool is started.

    Raises:
        BatchingError: The worker must not start; the message says what to do.
    """
    settings = get_settings()
    kind = pool_kind(controller.pool_cls)
    _check_pool(controller, kind)
    broker_url = _broker_url(controller.app, settings)
    handlers = _bind_handlers(controller.app, settings, kind)
    database = _checked_database(settings)
    publisher = RedisPublisher(broker_url, settings.key_prefix, timeout=_BROKER_TIMEOUT)
    try:
        publisher.check()
    except BrokerUnavailableError as error:
        # Brokers come back; the consumer tries for as long as it takes.
        logger.warning("%s", error)
    publisher.client.close()
    loop = Loop()
    build = {"solo": SoloExecutor, "threads": ThreadsExecutor}.get(kind, PoolExecutor)
    executor = build(controller, kind, settings.result_limit)
    figures = Figures()
    states = BatchStateManager(database, max_losses=settings.max_losses)
    manager = BatchExecutionManager(states, max_losses=settings.max_losses, figures=figures)
    ports = Ports(loop, executor, manager, WorkerRegistry(database), publisher, settings, handlers, figures)
    # Two leases: by then, others have long taken over what it held.
    notes = Notes(2 * settings.worker_lease)
    return Assembly(
        settings,
        kind,
        handlers,
        database,
        publisher,
        loop,
        executor,
        executor if isinstance(executor, SoloExecutor) else None,
        LaneConsumer(ports),
        Companion(loop, _for_the_manager(controller.app, settings, broker_url)) if settings.manager else None,
        notes,
        Probe(settings.health_address, notes.pages()) if settings.health_address is not None else None,
    )


def _for_the_manager(app: Any, settings: Settings, broker_url: str) -> dict[str, str]:
    """What its environment does not say: the broker for lanes, and through which application callbacks are sent."""
    found = settings.celery_app or where_is(app)
    # The address for probes is this worker's: it restarts its manager itself.
    return {
        "BATCHING_BROKER_URL": broker_url,
        "BATCHING_HEALTH_ADDRESS": "",
        **({} if found is None else {"BATCHING_CELERY_APP": found}),
    }


def _check_pool(controller: Any, kind: str) -> None:
    if kind in {"prefork", "solo"} and not controller.use_eventloop:
        raise ConfigurationError(
            f"cannot serve lanes in the {kind} pool: the application's broker "
            f"{mask_url(str(controller.app.conf.broker_url))} has no event loop; use Redis, or --pool=threads"
        )
    if kind == "prefork" and controller.pool_start_method != "fork":
        raise ConfigurationError(
            f"cannot serve lanes with worker_pool_start_method={controller.pool_start_method!r}: handlers are bound in "
            "the parent; set it to 'fork', or use --pool=threads"
        )


def _broker_url(app: Any, settings: Settings) -> str:
    if settings.broker_url is not None:
        return settings.broker_url
    own = app.conf.broker_url
    # kombu takes several servers in one text; lanes take the first.
    first = (own if isinstance(own, str) else next(iter(own), "")).split(";")[0] if own else ""
    if urlsplit(first).scheme in _REDIS:
        return with_tls_options(first, app.conf.broker_use_ssl)
    raise ConfigurationError(
        "no broker for lanes is configured: set BATCHING_BROKER_URL to a Redis or Valkey server, for example "
        "redis://localhost:6379/0" + (f"; the application's own is {mask_url(first)}" if first else "")
    )


def _bind_handlers(app: Any, settings: Settings, kind: str) -> frozenset[str]:
    marks.load((*getattr(app, _MODULES, ()), *settings.handlers))
    found = marks.registered()
    if not found:
        raise ConfigurationError(
            "no handler is known: name the modules that mark functions with @profile_handler in BATCHING_HANDLERS, "
            "separated by commas"
        )
    check_pool(found.values(), kind)
    return frozenset(bind(app, found.values()))


def _checked_database(settings: Settings) -> Database:
    if settings.database_url is None:
        raise ConfigurationError(
            "no database is configured: set BATCHING_DATABASE_URL, for example "
            "postgresql+psycopg://user:password@host/name or sqlite:////absolute/path/batching.db"
        )
    database = Database(settings.database_url, timeout=settings.sql_timeout)
    try:
        migration.check(database)
    finally:
        # The pool forks after this.
        database.close()
    return database
