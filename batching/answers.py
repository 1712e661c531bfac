"""How this process gets PostgreSQL's answers: within a bound, and identifiers as the text that they are to us."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event

if TYPE_CHECKING:
    from sqlalchemy import Engine


def bound_answers(engine: Engine, seconds: float) -> None:
    """Give up on a PostgreSQL that does not answer: its own time-outs end nothing when it is frozen, or cut off.

    psycopg waits in a loop of its own (psycopg/waiting.py, in C) that takes a time-out, so neither a thread nor a
    signal is needed, which a process that forks could not have, and nothing is added to an answer that comes.

    Args:
        engine: Of the psycopg dialect; its connections are made anew.
        seconds: For one answer. Afterwards the connection is closed, and the pool makes another.
    """
    import psycopg  # noqa: PLC0415 - SQLite never loads the driver

    class Bounded(psycopg.Connection[Any]):
        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            try:
                return super().wait(gen, interval, seconds if timeout is None else timeout)
            except psycopg.errors._WaitTimeout:  # noqa: SLF001 - raised by `wait` and by nothing else
                if timeout is not None:
                    raise  # it was psycopg's own
                self.pgconn.finish()  # its answer may still come: nobody must take it for another's
                raise psycopg.OperationalError(f"no answer within {seconds:g} s") from None

    @event.listens_for(engine, "do_connect")
    def _connect(dialect: Any, record: Any, arguments: Any, options: Any) -> Any:
        del dialect, record
        return Bounded.connect(*arguments, **options)


def read_identifiers_as_text(engine: Engine) -> None:
    """Skip `uuid.UUID` on the way: it is made with every row that is claimed, to be written out as text at once.

    Args:
        engine: Of the psycopg dialect.
    """
    from psycopg.types.string import TextLoader  # noqa: PLC0415 - SQLite never loads the driver

    @event.listens_for(engine, "connect")
    def _register(connection: Any, record: Any) -> None:
        del record
        connection.adapters.register_loader("uuid", TextLoader)
