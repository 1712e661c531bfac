"""pgqueuer's entrypoints, and its worker: `python -m benchmarks.contenders.pgqueuer_app GROUP TOGETHER`.

What `pgq run` does is done here by `pgqueuer.run`, which its guide gives as the same thing ("Running PgQueuer
Programmatically"): the command of 1.6.0 fails with the typer that comes with it.
"""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pgqueuer
import uvloop  # type: ignore[import-not-found,unused-ignore]

from benchmarks import journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def noop(_: Any) -> None:
    """Append a byte."""
    journal.noop()


async def sleep50(_: Any) -> None:
    """Sleep for 50 ms, append a byte."""
    await journal.asleep50()


async def stamp(_: Any) -> None:
    """Append the time."""
    journal.stamp()


@asynccontextmanager
async def create() -> AsyncIterator[Any]:
    """A worker on one connection of its own, as its tuning guide says, and all handlers."""
    connection = await asyncpg.connect(os.environ["BENCH_POSTGRES"])
    try:
        worker = pgqueuer.PgQueuer(pgqueuer.AsyncpgDriver(connection))
        for handler in (noop, sleep50, stamp):
            worker.entrypoint(handler.__name__)(handler)
        yield worker
    finally:
        await connection.close()


if __name__ == "__main__":
    group, together = map(int, sys.argv[1:])
    # No limit is None. uvloop: as its command does, when that is there.
    uvloop.run(pgqueuer.run(create, batch_size=group, max_concurrent_tasks=together or None))
