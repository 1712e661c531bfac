"""A bound on how long this process waits for PostgreSQL's answer to one statement."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

if TYPE_CHECKING:
    from sqlalchemy import Engine


def bound_answers(engine: Engine, seconds: float) -> None:
    """Give up on a PostgreSQL that does not answer: its own time-outs end nothing when it is frozen, or cut off.

    psycopg waits in a loop that looks up now and then (psycopg/waiting.py); the bound is checked there, so no thread
    and no signal is needed, which a process that forks could not have.

    Args:
        engine: Of the psycopg dialect; its connections are made anew.
        seconds: For one answer. Afterwards the connection is closed, and the pool makes another.
    """
    import psycopg  # noqa: PLC0415 - SQLite never loads the driver

    class Bounded(psycopg.Connection[Any]):
        def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
            return super().wait(self._until(gen), *arguments, **options)

        def _until(self, gen: Any) -> Any:
            deadline = time.monotonic() + seconds
            try:
                state = next(gen)
                while True:
                    ready = yield state
                    if not ready and time.monotonic() > deadline:
                        self.pgconn.finish()  # its answer may still come: nobody must take it for another's
                        raise psycopg.OperationalError(f"no answer within {seconds:g} s")
                    state = gen.send(ready)
            except StopIteration as done:
                return done.value

    @event.listens_for(engine, "do_connect")
    def _connect(dialect: Any, record: Any, arguments: Any, options: Any) -> Any:
        del dialect, record
        return Bounded.connect(*arguments, **options)
