"""The one door to SQL: engines and transactions."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool, QueuePool

from batching import faults
from batching.answers import bound_answers, read_identifiers_as_text
from batching.direct import Direct
from batching.errors import ConfigurationError, DatabaseUnavailableError, NotPermittedError
from batching.pooler import what_to_do, without_pooler
from batching.settings import mask_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

#: SQLSTATE class 08 is a broken connection, 57P0x a server that goes down or comes up: the statement is not to blame.
_UNAVAILABLE_SQLSTATES = ("08", "57P0", "53", "58", "25006", "25P03")
#: Serialisation failure, deadlock, lock not available, statement over its time-out: it may go through when repeated.
_TRANSIENT_SQLSTATES = ("40001", "40P01", "55P03", "57014")
#: Insufficient privilege.
_NOT_PERMITTED = "42501"


class Connections(NamedTuple):
    """The connections of a process, at a moment."""

    in_use: int = 0
    idle: int = 0
    overflow: int = 0
    """Of both, those beyond the number that is kept."""


class Database:
    """Engines and transactions for one store.

    Args:
        url: SQLAlchemy URL; `postgresql://` is read as `postgresql+psycopg://`. `pgbouncer=true` among its options says
            that a pooler in transaction mode stands in between.
        timeout: Seconds for a connection, a lock or a statement; None for no bound on statements.
        pooled: False for short-lived tools, which close each connection at once.
    """

    def __init__(self, url: str, *, timeout: float | None = None, pooled: bool = True) -> None:
        self.url = url
        self._timeout = timeout
        self._pooled = pooled
        self._pid = os.getpid()
        self.connects = 0
        """Connections that were opened so far: it grows when some break, or are not enough."""
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):  # the latter of a port, quoting what may be a part of the password
            raise ConfigurationError(
                f"cannot read the database URL {mask_url(url)!r}: expected postgresql+psycopg://user@host/name "
                "or sqlite:////absolute/path.db; set BATCHING_DATABASE_URL"
            ) from None
        if parsed.drivername in {"postgresql", "postgres"}:
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() not in {"postgresql", "sqlite"}:
            raise ConfigurationError(
                f"cannot use the database URL {mask_url(url)!r}: only postgresql and sqlite are supported; "
                "set BATCHING_DATABASE_URL"
            )
        if parsed.get_backend_name() == "sqlite" and parsed.database in {None, "", ":memory:"}:
            raise ConfigurationError(
                f"cannot use the database URL {url!r}: an in-memory SQLite database is invisible to other processes; "
                "name a file, as in sqlite:////var/lib/batching/batching.db"
            )
        self._parsed, self._pooled_outside = without_pooler(parsed)
        self.dialect: str = parsed.get_backend_name()

    @property
    def role(self) -> str:
        """Who this process is to the database, for errors."""
        return self._parsed.username or "the system's user"

    @property
    def streams(self) -> bool:
        """Whether a statement may wait for its rows while they are made: no time-out, and no lock that others want."""
        return self.dialect == "postgresql" and self._timeout is None

    @cached_property
    def engine(self) -> Engine:
        """The engine, made on first use. Never carried over a fork: see `begin`."""
        build = self._sqlite_engine if self.dialect == "sqlite" else self._postgresql_engine
        try:
            return build()
        except NoSuchModuleError as error:
            raise ConfigurationError(f"cannot use the database URL {mask_url(self.url)!r}: {error}") from None

    @cached_property
    def _direct(self) -> Direct:
        """The short way to PostgreSQL, made on first use: one connection more."""
        return Direct(self._postgresql_engine(plans="auto", isolation_level="AUTOCOMMIT"))

    def _postgresql_engine(self, *, plans: str = "force_custom_plan", **more: Any) -> Engine:
        # A process that is frozen inside a transaction must not keep its locks for long: others wait for them.
        idle = 60_000 if self._timeout is None else int(self._timeout * 1000)
        # Each of our statements is led by an index. A plan that was made before a table had statistics must not walk
        # all of it, and none of them is worth compiling. An index scan marks the entries of rows that are dead, so that
        # each is met once; a bitmap scan meets all of them each time, and what is in flight leaves one behind for every
        # run (PostgreSQL, `kill_prior_tuple` in src/backend/access/index/indexam.c).
        options = "-c timezone=UTC -c enable_seqscan=off -c enable_bitmapscan=off -c jit=off"
        # A statement that was executed some times gets a plan for good, until the next ANALYZE: made while there were a
        # few small batches, it would look at every row of a large one for each run that is claimed, 1.3 s for a group
        # in a batch of 200,000. To plan takes some tenths of a millisecond; only who waits for one profile saves it.
        options += f" -c plan_cache_mode={plans}"
        options += f" -c idle_in_transaction_session_timeout={idle}"
        if self._timeout is not None:
            options += f" -c statement_timeout={idle} -c lock_timeout={idle}"
        arguments: dict[str, Any] = {
            "connect_timeout": max(2, round(self._timeout or 10)),
            "application_name": "batching",
        }
        if self._pooled_outside:
            # The next transaction may meet another server, which knows nothing of what was prepared on this one. And
            # PgBouncer takes no `options`: what they would set is set by its `connect_query`.
            arguments["prepare_threshold"] = None
        else:
            # Those of the URL come last, and win.
            given = self._parsed.query.get("options", "")
            arguments["options"] = " ".join([options, given] if isinstance(given, str) else [options, *given]).rstrip()
        pool: dict[str, Any] = (
            {"pool_size": 2, "max_overflow": 8, "pool_pre_ping": False, "pool_recycle": 1800}
            if self._pooled
            else {"poolclass": NullPool}
        )
        # Payloads and results are among the parameters: an error's message must not carry them into logs.
        engine = create_engine(self._parsed, connect_args=arguments, hide_parameters=True, **pool, **more)
        read_identifiers_as_text(engine)
        event.listen(engine, "connect", self._opened)
        if self._timeout is not None:
            bound_answers(engine, 2 * self._timeout)
        return engine

    def _sqlite_engine(self) -> Engine:
        busy = 5.0 if self._timeout is None else self._timeout
        engine = create_engine(
            self._parsed,
            connect_args={"timeout": busy, "check_same_thread": False},
            hide_parameters=True,
            **({} if self._pooled else {"poolclass": NullPool}),
        )

        event.listen(engine, "connect", self._opened)

        @event.listens_for(engine, "connect")
        def _prepare(connection: Any, record: Any) -> None:
            del record
            connection.isolation_level = None  # we say BEGIN ourselves, below
            connection.execute("PRAGMA journal_mode=WAL")
            # FULL: a commit is on disk when it returns; group commits make the fsync cheap.
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            # IMMEDIATE takes the one write lock at the start: a deferred transaction that upgrades can fail at once
            # with SQLITE_BUSY whatever the time-out says (https://sqlite.org/lang_transaction.html).
            mode = "DEFERRED" if connection.get_execution_options().get("read_only") else "IMMEDIATE"
            connection.exec_driver_sql(f"BEGIN {mode}")

        return engine

    def _opened(self, *_: object) -> None:
        self.connects += 1

    def connections(self) -> Connections:
        """What is open now; nothing is asked."""
        held = self.__dict__.get("engine")
        pool = None if held is None else held.pool
        if not isinstance(pool, QueuePool):
            return Connections()
        return Connections(pool.checkedout(), pool.checkedin(), max(0, pool.overflow()))

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """One write transaction: committed at the end, rolled back by an exception.

        Raises:
            DatabaseUnavailableError: The database cannot be reached, or did not answer in time.
        """
        with _Translated(self):
            with self.engine.begin() as connection:
                yield connection
                faults.reach("commit.before")
            faults.reach("commit.after")

    @contextmanager
    def direct(self) -> Iterator[Direct]:
        """On PostgreSQL, for statements that are transactions by themselves: the short way, without BEGIN and COMMIT.

        Raises:
            DatabaseUnavailableError: As `begin`.
        """
        with _Translated(self):
            yield self._direct

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One read-only transaction with a stable snapshot on both engines."""
        with (
            _Translated(self),
            self.engine.connect() as raw,
        ):
            faults.reach("read.before")
            level = {"isolation_level": "REPEATABLE READ"} if self.dialect == "postgresql" else {}
            connection = raw.execution_options(read_only=True, **level)
            with connection.begin():
                yield connection

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """One connection outside of a transaction, for migrations: they begin and commit by themselves.

        Raises:
            DatabaseUnavailableError: The database cannot be reached, or did not answer in time.
        """
        with _Translated(self), self.engine.connect() as connection:
            yield connection

    def close(self) -> None:
        """Close every connection. Safe to call twice."""
        if "engine" in self.__dict__:
            self.engine.dispose()
            del self.__dict__["engine"]
        if "_direct" in self.__dict__:
            self._direct.close()
            del self.__dict__["_direct"]

    def forget(self) -> None:
        """Drop the engine without closing its sockets: they belong to the process that forked this one."""
        if "engine" in self.__dict__:
            self.engine.dispose(close=False)
            del self.__dict__["engine"]
        if "_direct" in self.__dict__:
            self._direct.forget()
            del self.__dict__["_direct"]


class _Translated:
    """Turns a driver's error about reachability into ours, with the URL masked; lets every other error pass."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> None:
        database = self._database
        if database._pid != os.getpid():  # noqa: SLF001 - same module
            database.forget()
            database._pid = os.getpid()  # noqa: SLF001 - same module

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == _NOT_PERMITTED:
            raise NotPermittedError(
                f"cannot do this as {self._database.role}: the role may not ({first_line(error.orig)}); use one that "
                "may, or run deploy/postgresql/grants.sql again after an upgrade"
            ) from error
        if isinstance(error, PoolTimeoutError):
            raise DatabaseUnavailableError(
                f"cannot reach the database {mask_url(self._database.url)}: all connections of this process are in use "
                "and none came free in time; try again when fewer things are asked of it at once"
            ) from error
        if isinstance(error, DBAPIError) and is_unavailable(error):
            said = first_line(error.orig)
            raise DatabaseUnavailableError(
                f"cannot reach the database {mask_url(self._database.url)}: {said}; {what_to_do(said)}"
            ) from error


def first_line(error: BaseException | None) -> str:
    """The first line of a driver's message; the others repeat the statement and its parameters."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def is_unavailable(error: DBAPIError) -> bool:
    """Whether the database is away, busy or going down, so that the same work can be tried again later."""
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return str(state).startswith((*_UNAVAILABLE_SQLSTATES, *_TRANSIENT_SQLSTATES))
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    if not isinstance(error, OperationalError):
        return False
    text = str(error.orig)
    return "no such table" not in text and "no such column" not in text


def is_unique_violation(error: DBAPIError) -> bool:
    """Whether a UNIQUE constraint refused the row."""
    # `pgcode` is psycopg2's: a caller's own session may use it.
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return state == "23505" or "UNIQUE constraint failed" in str(error.orig)
