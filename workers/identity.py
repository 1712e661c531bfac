"""Who a worker process is, and what its pool can do."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Any

import batching
from batching.errors import ConfigurationError
from batching.interfaces import WorkerInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

#: By the last part of the module that holds the pool's class.
_POOLS = {"prefork": "prefork", "solo": "solo", "thread": "threads", "gevent": "gevent"}


def pool_kind(pool_class: Any) -> str:
    """`prefork`, `solo`, `threads` or `gevent`.

    Raises:
        ConfigurationError: The pool is another one.
    """
    module = pool_class if isinstance(pool_class, str) else pool_class.__module__
    kind = _POOLS.get(module.rsplit(".", 1)[-1])
    if kind is None:
        raise ConfigurationError(
            f"cannot serve lanes in the pool {module}: start the worker with --pool=prefork, solo, threads or gevent"
        )
    return kind


def announce(hostname: str, pool: str, slots: int, handlers: Iterable[str], queues: Iterable[str]) -> WorkerInfo:
    """A fresh identity. The id is a UUID made now, not the host's name: a restarted worker is another worker."""
    return WorkerInfo(
        id=str(uuid.uuid4()),
        hostname=hostname,
        pid=os.getpid(),
        pool=pool,
        slots=slots,
        handlers=tuple(sorted(handlers)),
        queues=tuple(queues),
        version=batching.__version__,
    )
