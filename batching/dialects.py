"""The column types and the few expressions that PostgreSQL and SQLite spell differently."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Dialect, Double, Integer, String, Text, Uuid
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

#: Whole numbers that outgrow 32 bits; SQLite's autoincrement wants its own INTEGER.
BigNumber = BigInteger().with_variant(Integer(), "sqlite")


class Identifier(TypeDecorator[str]):
    """A UUID, as canonical text in Python; 16 bytes in PostgreSQL, 36 characters in SQLite."""

    impl = Uuid
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(Uuid(as_uuid=False))
        return dialect.type_descriptor(String(36))


class Timestamp(TypeDecorator[datetime]):
    """A moment in UTC; always aware in Python."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(DateTime(timezone=dialect.name == "postgresql"))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or value.tzinfo is None:
            return value
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class JSONText(TypeDecorator[Any]):
    """A small JSON document of our own (options, capabilities), kept as text so that both engines store the same."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        del dialect
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        del dialect
        return None if value is None else json.loads(value)


class now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function that it is
    """The database's clock at this statement, not at the start of the transaction."""

    inherit_cache = True
    type = Timestamp()


class later(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function that it is
    """The database's clock plus so many seconds; NULL seconds give NULL."""

    inherit_cache = True
    type = Timestamp()


class never(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL constant that it is
    """A moment after all others: what has no deadline stands behind what has one, in one index on both engines."""

    inherit_cache = True
    type = Timestamp()


class age(FunctionElement[float]):  # noqa: N801 - reads as the SQL function that it is
    """Seconds since a moment, by the database's clock."""

    inherit_cache = True
    type = Double()


class error_type(FunctionElement[str]):  # noqa: N801 - reads as the SQL function that it is
    """The `type` in a stored error's JSON; NULL for none."""

    inherit_cache = True
    type = Text()


@compiles(error_type)
def _error_type_postgresql(element: error_type, compiler: Any, **options: Any) -> str:
    return f"(CAST({compiler.process(element.clauses, **options)} AS json) ->> 'type')"


@compiles(error_type, "sqlite")
def _error_type_sqlite(element: error_type, compiler: Any, **options: Any) -> str:
    return f"json_extract({compiler.process(element.clauses, **options)}, '$.type')"


@compiles(now)
def _now_postgresql(element: now, compiler: Any, **options: Any) -> str:
    del element, compiler, options
    return "clock_timestamp()"


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **options: Any) -> str:
    del element, compiler, options
    # '000' pads the milliseconds to the six digits that SQLAlchemy writes, so that text order is time order.
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


@compiles(later)
def _later_postgresql(element: later, compiler: Any, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"clock_timestamp() + make_interval(secs => CAST({seconds} AS double precision))"


@compiles(later, "sqlite")
def _later_sqlite(element: later, compiler: Any, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', ({seconds}) || ' seconds') || '000')"


@compiles(never)
def _never_postgresql(element: never, compiler: Any, **options: Any) -> str:
    del element, compiler, options
    return "TIMESTAMP WITH TIME ZONE '9000-01-01 00:00:00+00'"


@compiles(never, "sqlite")
def _never_sqlite(element: never, compiler: Any, **options: Any) -> str:
    del element, compiler, options
    return "'9000-01-01 00:00:00.000000'"


@compiles(age)
def _age_postgresql(element: age, compiler: Any, **options: Any) -> str:
    moment = compiler.process(element.clauses, **options)
    return f"CAST(extract(epoch FROM clock_timestamp() - {moment}) AS double precision)"


@compiles(age, "sqlite")
def _age_sqlite(element: age, compiler: Any, **options: Any) -> str:
    moment = compiler.process(element.clauses, **options)
    return f"((julianday('now') - julianday({moment})) * 86400.0)"
