"""saq's functions and the settings of its workers."""

from __future__ import annotations

import os
from typing import Any

from saq.queue.redis import RedisQueue

from benchmarks import journal

queue = RedisQueue.from_url(os.environ["BENCH_REDIS"])


async def noop(_: Any, *, payload: str) -> None:
    """Append a byte."""
    journal.noop()


async def sleep50(_: Any, *, payload: str) -> None:
    """Sleep for 50 ms, append a byte."""
    await journal.asleep50()


async def stamp(_: Any, *, payload: str) -> None:
    """Append the time."""
    journal.stamp()


settings = {
    "queue": queue,
    "functions": [noop, sleep50, stamp],
    "concurrency": int(os.environ["BENCH_CONCURRENCY"]),
}
