"""Statements that are a transaction by themselves, straight through psycopg: the way of whoever waits for one profile.

SQLAlchemy compiles each of them once, and then stays out of the way. What it does for an execution (the pool, the key
of its cache, contexts, results) is little for a group of profiles; but a process that has just woken up pays half a
millisecond for it, and three of these statements lie between a submission and the start of its handler. For the same
reason they are written with PostgreSQL's own placeholders, `$1`: psycopg would look for its own each time in a text of
over 4,096 characters (psycopg/_queries.py, `MAX_CACHED_STATEMENT_LENGTH`).
"""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from sqlalchemy.exc import DBAPIError

from batching import faults

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Dialect, Engine, Executable, PoolProxiedConnection

#: Seconds for which an idle connection is held; then the pool decides whether it is still good.
_HELD: Final = 600.0
#: Seconds after which a statement was slow, whatever the network and the disk had to do with it.
_SLOW: Final = 0.25
_PLAN_ANEW: Final = "DISCARD PLANS"


class Rows(Protocol):
    """What an execution gives."""

    def all(self) -> Sequence[Sequence[Any]]:
        """Every row."""


class Single(Protocol):
    """What executes statements, one at least: a `Direct`, or SQLAlchemy's own connection in a transaction."""

    @property
    def dialect(self) -> Dialect:
        """Its name tells PostgreSQL from SQLite."""

    def execute(self, statement: Executable, parameters: Mapping[str, Any]) -> Rows:
        """Execute one statement."""


class _Compiled(NamedTuple):
    """A statement as psycopg takes it."""

    text: str
    encoded: bytes
    values: list[Any]
    """In the order of the placeholders: the statement's own constants, and None where a parameter goes."""
    parameters: list[tuple[int, str, Callable[[Any], Any] | None]]
    """Where each of the others goes, and what encodes it."""
    decoders: list[tuple[int, Callable[[Any], Any]]]


class _Fetched(NamedTuple):
    """Rows that are here already."""

    rows: Sequence[Sequence[Any]]

    def all(self) -> Sequence[Sequence[Any]]:
        return self.rows


class Direct:
    """Executes statements, each of which is committed when `execute` returns. Any number of threads may.

    Args:
        engine: Of the psycopg dialect, in AUTOCOMMIT. Of its connections one is held, the others come from its pool.
    """

    def __init__(self, engine: Engine) -> None:
        self.dialect: Dialect = engine.dialect
        self._engine = engine
        driver: Any = engine.dialect.loaded_dbapi
        self._cursor: Callable[[Any], Any] = driver.RawCursor
        self._compiled: dict[Executable, _Compiled] = {}
        self._held: list[tuple[PoolProxiedConnection, float]] = []

    def execute(self, statement: Executable, parameters: Mapping[str, Any]) -> Rows:
        """Execute one statement.

        Args:
            statement: One that lives as long as this process: it is compiled once.
            parameters: By name, all that the statement has no value for; what it has itself, nobody can change.

        Raises:
            KeyError: One is missing.
            DBAPIError: As SQLAlchemy raises it, without the parameters: payloads are among them.
        """
        compiled = self._compiled.get(statement) or self._compile(statement)
        faults.reach("commit.before")
        values = compiled.values.copy()
        for place, name, encode in compiled.parameters:
            values[place] = parameters[name] if encode is None else encode(parameters[name])
        connection = self._take()
        driver: Any = connection.driver_connection
        began = time.monotonic()
        try:
            cursor = self._cursor(driver).execute(compiled.encoded, values)
            rows = cursor.fetchall() if cursor.description is not None else []
        except Exception as error:
            if driver.closed or driver.broken:
                connection.invalidate(error)
            self._give(connection)
            base: Any = self.dialect.loaded_dbapi.Error
            if not isinstance(error, base):
                raise
            raise DBAPIError.instance(
                compiled.text, None, error, base, hide_parameters=True, dialect=self.dialect
            ) from error
        except BaseException:
            # Interrupted with an answer on its way, which nobody must take for another's.
            connection.invalidate()
            raise
        if time.monotonic() - began > _SLOW and driver.prepare_threshold is not None:
            _plan_anew(connection)
        self._give(connection)
        faults.reach("commit.after")
        return _Fetched(_decoded(rows, compiled.decoders) if compiled.decoders else rows)

    def close(self) -> None:
        """Close every connection. Safe to call twice."""
        while self._held:
            self._held.pop()[0].close()
        self._engine.dispose()

    def forget(self) -> None:
        """Let go of connections that belong to the process that forked this one, without a word to the server."""
        _inherited.extend(self._held)
        self._held.clear()
        self._engine.dispose(close=False)

    def _take(self) -> PoolProxiedConnection:
        try:
            connection, since = self._held.pop()
        except IndexError:
            return self._engine.raw_connection()
        if time.monotonic() - since < _HELD and connection.is_valid:
            return connection
        connection.close()
        return self._engine.raw_connection()

    def _give(self, connection: PoolProxiedConnection) -> None:
        if connection.is_valid and not self._held:
            self._held.append((connection, time.monotonic()))
        else:
            connection.close()

    def _compile(self, statement: Any) -> _Compiled:
        compiled = statement.compile(dialect=_numbered(self.dialect))
        values: list[Any] = []
        parameters = []
        for place, name in enumerate(compiled.positiontup):
            parameter = compiled.binds[name]
            encode = parameter.type.dialect_impl(self.dialect).bind_processor(self.dialect)
            if parameter.required:
                parameters.append((place, name, encode))
            value = compiled.params[name]
            values.append(value if encode is None or parameter.required else encode(value))
        columns = enumerate(getattr(statement, "selected_columns", ()))
        decoders = [
            (place, decode)
            for place, column in columns
            if (decode := column.type.dialect_impl(self.dialect).result_processor(self.dialect, None)) is not None
        ]
        text = str(compiled)
        made = self._compiled[statement] = _Compiled(text, text.encode(), values, parameters, decoders)
        return made


def _numbered(dialect: Dialect) -> Dialect:
    """The same, with `$1` for a parameter, and without the escapes that `%` needs in psycopg's own style."""
    numbered = copy.copy(dialect)
    numbered.paramstyle, numbered.positional = "numeric_dollar", True
    numbered.identifier_preparer = numbered.preparer(numbered)
    return numbered


def _plan_anew(connection: PoolProxiedConnection) -> None:
    """After a slow statement: its plan may be of the time when a table was small. What it did is done, in any case."""
    driver: Any = connection.driver_connection
    try:
        driver.execute(_PLAN_ANEW)
    except Exception as error:  # noqa: BLE001 - whatever the driver raises: the connection is of no use any more
        connection.invalidate(error)


#: Never used, and never closed: the server would take it for the word of the process that opened them.
_inherited: list[Any] = []


def _decoded(
    rows: Sequence[Sequence[Any]], decoders: Sequence[tuple[int, Callable[[Any], Any]]]
) -> list[tuple[Any, ...]]:
    found = []
    for row in rows:
        values = list(row)
        for place, decode in decoders:
            values[place] = decode(values[place])
        found.append(tuple(values))
    return found
