"""The Celery application that workers run: `celery -A workers worker`."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery
from celery.signals import worker_init

from batching.broker import tls_options
from batching.errors import ConfigurationError
from batching.settings import get_settings
from workers.wiring import install

logger = logging.getLogger(__name__)

settings = get_settings()


def _broker() -> tuple[str | None, dict[str, Any] | None]:
    """URL and TLS of the broker; none when the URL cannot be used: kombu would raise whatever its parts raise.

    A worker that starts says so, and ends; every other command hears it here, since an import should not fail.
    """
    url = settings.broker_url
    try:
        return url, tls_options(url) if url else None
    except ConfigurationError as error:
        logger.error("%s", error)  # noqa: TRY400 - the words say all, and a traceback would bury them
        return None, None


app = Celery("workers", log="workers.structured:StructuredLogging")
_url, _tls = _broker()
app.conf.update(
    # The same server carries the lanes and Celery's remote control. Not set: `--help` works, a worker says why not.
    broker_url=_url,
    # Without it, kombu takes `rediss://` for "encrypt, and verify nothing" (kombu/connection.py `_init_params`).
    broker_use_ssl=_tls,
    # JSON only: a pickle in a list is code that anybody runs who can write there.
    accept_content=["json"],
    task_serializer="json",
    result_serializer="json",
    # Outcomes are in SQL; a result backend would keep a second copy, and chords would wait on it.
    result_backend=None,
    task_ignore_result=True,
    task_store_errors_even_if_ignored=False,
    # A queue of our own name: on a shared server, a plain `celery` queue belongs to somebody else.
    task_default_queue="batching",
    # Without these, a Redis that restarts, is read-only, full or refuses a command would end the worker.
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_channel_error_retry=True,
    broker_transport_options={
        # Several installations can share one server.
        "global_keyprefix": settings.key_prefix,
        # A frozen server would hang a publish or a poll for ever. Celery waits in the loop that settles our outcomes
        # and sends our heartbeats, several times in a row: together that must stay below the worker's lease.
        "socket_timeout": 2,
        "socket_connect_timeout": 2,
        "health_check_interval": 25,
        "retry_on_timeout": False,
        # Order is SQL's: one list per queue.
        "priority_steps": [0],
        # Emulated acknowledgements need Lua scripts, which the hardened profile's users may not run. What this app's
        # own queue holds is then lost with a worker that is killed; lanes never rely on it.
        "ack_emulation": not settings.hardened,
        # Publishing gives up soon; who publishes has SQL to fall back on.
        "max_retries": 1,
        "interval_start": 0,
        "interval_step": 0.2,
        "interval_max": 0.5,
    },
    task_publish_retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5},
    # Early acknowledgement: SQL is what remembers a run, and a redelivery would only be refused.
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    # Off unless asked for: replacing a child costs up to half a second.
    worker_max_tasks_per_child=None,
    # It is a pickle on disk.
    worker_state_db=None,
    # On, or Flower's `enable_events` finds no dispatcher; events themselves are off until -E or Flower turns them on.
    # Whoever can publish there can stop workers, so the hardened profile has none.
    worker_enable_remote_control=not settings.hardened,
    worker_send_task_events=False,
    # The root logger is the program's that embeds us; Celery's own set-up keeps it as it is when it has handlers.
    worker_hijack_root_logger=True,
    enable_utc=True,
    timezone="UTC",
)
install(app, handlers=["workers.handlers.records"])


@worker_init.connect(weak=False)
def _without_chatter(sender: Any = None, **_: Any) -> None:
    """Workers know of each other through SQL: gossip and mingle only cost, and gossip leaked queues on Redis.

    In `worker_init`, where the options are the worker's own: those of `celeryd_init` are a copy that nobody reads.
    """
    if sender is None or sender.app is not app:
        return
    sender.options.update(without_gossip=True, without_mingle=True)
    if settings.hardened:
        if sender.task_events:
            logger.warning("BATCHING_HARDENED: events stay off, whatever -E says")
        sender.task_events = False
        sender.options.update(without_heartbeat=True)


__all__ = ["app"]
