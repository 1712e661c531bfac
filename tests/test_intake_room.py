"""Limits on what a queue may hold: a clear refusal at submit, for everybody alike, and nothing of it left."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, text

from batching.cli.main import cli
from batching.database import Database
from batching.errors import InvalidInputError, QueueFullError
from batching.queue_manager import QueueManager
from batching.settings import get_settings
from tests.accounting import HANDLER, Desk, statements
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batching.queue_manager import Batch


@pytest.fixture
def manager(database: Database) -> Iterator[QueueManager]:
    manager = QueueManager(database)
    yield manager
    manager.close()


def submit(manager: QueueManager, count: int = 1, **more: Any) -> Batch:
    return manager.submit(HANDLER, [f"k{number}" for number in range(count)], **more)


def test_a_full_queue_refuses_and_others_do_not(manager: QueueManager) -> None:
    manager.queues.set("default", intake_batches=2)
    first, _ = submit(manager), submit(manager, key="second")

    with pytest.raises(QueueFullError, match=r"to queue default: 2 batches are in line or running, its limit is 2"):
        submit(manager)

    assert len(manager.statistics.batches("default")) == 2
    assert submit(manager, queue="another").created
    assert not submit(manager, key="second").created, "what is there already needs no room"
    manager.cancel(first.id)
    manager.state_manager.conclude([first.id])
    assert submit(manager).created


@pytest.mark.parametrize("count", [5, 1_500])
def test_profiles_count_while_they_are_unsettled(manager: QueueManager, count: int) -> None:
    desk = Desk(manager.database)
    manager.queues.set("default", intake_profiles=count + 3)
    held = submit(manager, 4)

    with pytest.raises(
        QueueFullError, match=rf"4 profiles are unsettled, and {count:,} more.*its limit is {count + 3:,}"
    ):
        submit(manager, count)

    assert [view.id for view in manager.statistics.batches()] == [held.id]
    assert desk.states.promote("default", desk.term) == held.id
    desk.work(held.id, limit=1)
    assert submit(manager, count).total == count


def test_what_is_appended_needs_room_too(manager: QueueManager) -> None:
    manager.queues.set("default", intake_batches=1, intake_profiles=3)
    batch = submit(manager, 2, seal=False)

    assert manager.append(batch.id, ["k0", "k2"]).new == 1
    with pytest.raises(QueueFullError, match="3 profiles are unsettled, and 1 more"):
        manager.append(batch.id, ["k3"])

    assert manager.append(batch.id, ["k1"]).same == 1
    assert manager.seal(batch.id) == 3


def test_each_group_has_its_own_room(manager: QueueManager) -> None:
    manager.queues.set("default", intake_batches=1, intake_profiles=100, intake_per_group=True)
    submit(manager, group="a")

    with pytest.raises(QueueFullError, match="to group 'a' in queue default: 1 batches"):
        submit(manager, group="a")

    assert submit(manager, group="b").created
    assert submit(manager).created


def test_a_refusal_leaves_the_callers_transaction_alone(manager: QueueManager) -> None:
    manager.queues.set("default", intake_batches=1)
    engine = create_engine(manager.database.url)
    with engine.begin() as connection:
        kept = submit(manager, session=connection, key="kept")
        assert submit(manager, session=connection, key="kept").id == kept.id
        with pytest.raises(QueueFullError):
            submit(manager, session=connection)
    engine.dispose()

    assert [view.id for view in manager.statistics.batches()] == [kept.id]


def test_limits_are_set_shown_and_removed(manager: QueueManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHING_DATABASE_URL", manager.database.url)
    get_settings.cache_clear()

    def call(*words: str, stdin: str | None = None) -> Any:
        return CliRunner().invoke(cli, words, input=stdin)

    given = ["--intake-batches", "1", "--intake-profiles", "7", "--intake-per-group", "--json"]
    shown = json.loads(call("queue", "set", "default", *given).stdout)
    assert (shown["intake_batches"], shown["intake_profiles"], shown["intake_per_group"]) == (1, 7, True)
    assert call("submit", HANDLER, "-", stdin="a\n").exit_code == 0
    refused = call("submit", HANDLER, "-", stdin="a\n")
    assert refused.exit_code == 1
    assert "raise it with `batching queue set default --intake-batches N`" in refused.stderr
    call("queue", "set", "default", "--intake-batches", "0")
    assert manager.queues.get("default").intake_batches is None
    assert call("submit", HANDLER, "-", stdin="a\n").exit_code == 0
    call("queue", "set", "default", "--intake-profiles", "0", "--intake-together")
    submit(manager, 10)
    with pytest.raises(InvalidInputError, match="intake_profiles of default is a whole number"):
        manager.queues.set("default", intake_profiles=3_000_000_000)


def test_a_queue_without_limits_is_written_by_the_same_one_statement(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    manager = QueueManager(database)
    submit(manager)
    manager.queues.set("limited", intake_batches=1)

    with statements(database) as seen:
        submit(manager)

    assert len(seen) == 1
    database.close()


@pytest.mark.parametrize("committed", [True, False])
def test_of_two_producers_one_gets_the_last_place(postgresql_url: str, committed: bool) -> None:
    database = Database(postgresql_url)
    manager, engine = QueueManager(database), create_engine(postgresql_url)
    manager.queues.set("default", intake_batches=1)
    with ThreadPoolExecutor(1) as pool, engine.connect() as first:
        submit(manager, session=first)
        second = pool.submit(submit, manager)
        eventually(lambda: waits_for_the_lock(database))
        (first.commit if committed else first.rollback)()

        assert isinstance(second.exception(timeout=10), QueueFullError) is committed
    engine.dispose()
    database.close()


def waits_for_the_lock(database: Database) -> bool:
    with database.read() as reading:
        found = reading.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
        return bool(found)


def test_of_many_producers_as_many_as_there_is_room_for(database: Database) -> None:
    manager = QueueManager(database)
    manager.queues.set("default", intake_batches=3)
    start = threading.Barrier(8)

    def race(number: int) -> bool:
        start.wait()
        try:
            return submit(manager, number).created
        except QueueFullError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(race, range(1, 9))) == 3
    assert len(manager.statistics.batches()) == 3
