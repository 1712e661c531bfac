"""What a fresh process does before its first batch: the hot statements once, to no effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event, select
from sqlalchemy.engine.interfaces import CacheStats

from batching.models import metadata
from batching.moves.promotion import Plan
from batching.registry import WorkerRegistry
from tests.accounting import FAILED, HANDLER, Desk

if TYPE_CHECKING:
    from batching.database import Database


def contents(database: Database) -> dict[str, list[tuple[object, ...]]]:
    with database.read() as connection:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr)
            for table in metadata.sorted_tables
        }


def test_it_writes_nothing(database: Database) -> None:
    desk = Desk(database)
    desk.register()
    desk.start(3)
    before = contents(database)
    WorkerRegistry(database).rehearse(desk.worker)
    desk.states.rehearse(desk.term)
    assert contents(database) == before


def test_what_comes_after_it_finds_its_statements_compiled(database: Database) -> None:
    desk = Desk(database)
    batch_id = desk.submit(8)
    WorkerRegistry(database).rehearse(desk.worker)
    desk.states.rehearse(desk.term)
    compiled: list[str] = []

    def note(_c: object, _cur: object, statement: str, _p: object, context: Any, _m: object) -> None:
        if context.compiled is not None and context.cache_hit is CacheStats.CACHE_MISS:
            compiled.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    started = desk.states.start("default", desk.term, Plan(None, {HANDLER: 2}, 2))
    assert started is not None
    assert started.batch_id == batch_id
    claimed = desk.states.claim(desk.worker, [each.run for each in started.dispatches]).claimed
    claimed += desk.claim(batch_id)
    assert len(claimed) == 8
    desk.settle(claimed[:4])
    desk.settle(claimed[4:7], FAILED)
    # SQLite starts a batch in several statements: those that are small are not rehearsed.
    assert [each for each in compiled if "profiles" in each or database.dialect == "postgresql"] == []
    desk.states.give_back(desk.worker, [claimed[7].run])
    assert any("profiles" in each for each in compiled)  # what is rare was not rehearsed: the note is taken
