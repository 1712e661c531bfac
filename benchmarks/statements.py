"""Counting SQL statements with pg_stat_statements, in runs of their own: while it counts, it costs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from benchmarks.servers import OBSERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from benchmarks.servers import Servers
    from benchmarks.stage import Stage

#: What opens and closes transactions; the report gives it apart from what reads and writes.
_CONTROL: Final = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "START", "ABORT", "END")
_QUERY: Final = """
SELECT query, sum(calls)::bigint FROM pg_stat_statements s
JOIN pg_database d ON d.oid = s.dbid JOIN pg_roles r ON r.oid = s.userid
WHERE toplevel AND d.datname = %s AND r.rolname <> %s GROUP BY query
"""
_SHOWN: Final = 15
_WIDTH: Final = 160


@contextmanager
def counted(servers: Servers) -> Iterator[Callable[[Stage], dict[str, int]]]:
    """Count every statement as long as this is open; gives a function that reads the counts of a stage's database."""

    def read(stage: Stage) -> dict[str, int]:
        database = stage.observer.info.dbname
        with servers.postgres.connect() as connection:
            rows: list[Any] = connection.execute(_QUERY, (database, OBSERVER)).fetchall()
        return {str(query): int(calls) for query, calls in rows}

    servers.count_statements(on=True)
    try:
        yield read
    finally:
        servers.count_statements(on=False)


def per_thousand(before: Mapping[str, int], after: Mapping[str, int], items: int) -> dict[str, Any]:
    """Statements per 1,000 items between two readings.

    Returns:
        `sql_per_1000`: all of them. `sql_work_per_1000`: without those that only open and close transactions.
        `sql_top`: the most frequent, each with its count per 1,000 items.
    """
    grown = {query: (calls - before.get(query, 0)) * 1000 / max(1, items) for query, calls in after.items()}
    work = {query: count for query, count in grown.items() if not is_control(query)}
    top = sorted(((count, query) for query, count in grown.items() if count > 0), reverse=True)[:_SHOWN]
    return {
        "sql_per_1000": sum(grown.values()),
        "sql_work_per_1000": sum(work.values()),
        "sql_top": [[round(count, 2), " ".join(query.split())[:_WIDTH]] for count, query in top],
    }


def is_control(query: str) -> bool:
    """Whether a statement only opens or closes a transaction."""
    words = query.split(maxsplit=1)
    return bool(words) and words[0].rstrip(";").upper() in _CONTROL
