"""Submission: streamed, once per key, never halfway; inside a caller's transaction too."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, func, literal, select, text
from sqlalchemy.orm import Session

from batching import submission
from batching.dialects import later
from batching.errors import InvalidInputError
from batching.models import batches, profiles
from batching.options import BatchSpec
from batching.queue_manager import QueueManager
from batching.states import BatchState
from tests.accounting import HANDLER, assert_accounted, plant_batch, read_batch
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from batching.database import Database


@pytest.fixture
def queue(database: Database) -> QueueManager:
    return QueueManager(database)


@pytest.fixture
def foreign(database: Database) -> Iterator[Engine]:
    """The caller's own engine on the same store, with nothing of ours about it."""
    url = database.url
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (id INTEGER PRIMARY KEY)"))
    yield engine
    engine.dispose()


def stored(database: Database) -> tuple[int, int]:
    """How many batches and profiles there are."""
    with database.read() as connection:
        return (
            connection.scalar(select(func.count()).select_from(batches)) or 0,
            connection.scalar(select(func.count()).select_from(profiles)) or 0,
        )


def test_a_stream_becomes_a_batch_in_its_order(queue: QueueManager) -> None:
    batch = queue.submit(HANDLER, ({"key": f"k{number}", "payload": number} for number in range(4_500)))
    assert (batch.total, batch.created) == (4_500, True)
    assert assert_accounted(queue.database, batch.id).pending == 4_500
    with queue.database.read() as connection:
        rows = connection.execute(
            select(profiles.c.number, profiles.c.key, profiles.c.payload).order_by(profiles.c.number)
        )
        assert [tuple(row) for row in rows] == [(each + 1, f"k{each}", str(each)) for each in range(4_500)]


def test_nobody_sees_a_batch_before_it_is_whole(queue: QueueManager) -> None:
    seen: list[object] = []

    def stream() -> Iterator[str]:
        for number in range(11_500):
            if number == 11_400:
                seen.append(queue.statistics.batches())
                seen.append(stored(queue.database))
            yield f"k{number}"

    queue.submit(HANDLER, stream())
    assert seen == [[], (1, 11_000)]


_LARGE = """
import resource, sys
from batching.database import Database
from batching.queue_manager import QueueManager

queue = QueueManager(Database(sys.argv[1]))

def peak(count):
    queue.submit("tests.handler", ({"key": f"k{number}", "payload": "x" * 50} for number in range(count)))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, on Linux

small = peak(10_000)
print(peak(200_000) - small)
"""


def test_memory_stays_flat_for_a_large_batch(database_url: str) -> None:
    grown = subprocess.run([sys.executable, "-c", _LARGE, database_url], capture_output=True, check=True, timeout=120)
    assert int(grown.stdout) < 10_000  # keys and payloads alone would be four times as much


@pytest.mark.parametrize("at", [0, 10, 2_100, 11_500])
def test_a_stream_that_breaks_leaves_nothing(queue: QueueManager, at: int) -> None:
    def broken() -> Iterator[str]:
        for number in range(at):
            yield f"k{number}"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        queue.submit(HANDLER, broken(), key="nightly")
    assert stored(queue.database) == (0, 0)
    assert queue.submit(HANDLER, ["a"], key="nightly").created


@pytest.mark.parametrize(("first", "second"), [(3, 7), (3, 2_050), (2_100, 4_200), (2_100, 11_500)])
def test_a_key_that_stands_twice_names_both_and_leaves_nothing(queue: QueueManager, first: int, second: int) -> None:
    keys = (f"k{first}" if number == second else f"k{number}" for number in range(1, 12_000))
    with pytest.raises(InvalidInputError) as refused:
        queue.submit(HANDLER, keys)
    message = str(refused.value)
    assert f"item {second}: its key 'k{first}' was used before, item {first};" in message
    assert stored(queue.database) == (0, 0)


def test_an_unacceptable_profile_leaves_nothing(queue: QueueManager) -> None:
    with pytest.raises(InvalidInputError):
        queue.submit(HANDLER, [*({"key": f"k{number}"} for number in range(2_100)), {"key": "x", "payload": {1, 2}}])
    assert stored(queue.database) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"handler": "no spaces"}, "cannot submit to the handler 'no spaces'"),
        ({"queue": "a/b"}, "cannot submit to the queue 'a/b'"),
        ({"queue": "q" * 65}, "at most 64"),
        ({"name": "x" * 256}, "a name has 1 to 255 printable characters"),
        ({"priority": 2_000_000}, "cannot submit with priority 2000000"),
        ({"priority": True}, "cannot submit with priority True"),
        ({"key": ""}, "batch key"),
        ({"options": {"max_passes": 2}}, "options takes a BatchOptions, not dict"),
    ],
)
def test_what_no_batch_can_be_called_is_refused(queue: QueueManager, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        queue.submit(**{"handler": HANDLER, "profiles": ["a"], **arguments})  # type: ignore[arg-type]
    assert stored(queue.database) == (0, 0)


# --- keys


def test_the_same_key_is_the_same_batch_in_whatever_state(queue: QueueManager) -> None:
    first = queue.submit(HANDLER, ["a", "b"], key="nightly")
    queue.cancel(first.id)
    again = queue.submit(HANDLER, ["c"], key="nightly")
    assert (again.id, again.total, again.created) == (first.id, 2, False)
    assert queue.submit(HANDLER, ["c"], key="nightly", queue="other").created  # a key is its queue's own
    assert stored(queue.database) == (2, 3)


def test_new_forces_another_and_the_old_one_stays(queue: QueueManager) -> None:
    first = queue.submit(HANDLER, ["a"], key="nightly")
    second = queue.submit(HANDLER, ["b"], key="nightly", new=True)
    assert second.created
    assert second.id != first.id
    assert queue.submit(HANDLER, ["c"], key="nightly").id == second.id
    assert read_batch(queue.database, first.id).state is BatchState.QUEUED


def test_a_key_that_another_loads_is_waited_for(queue: QueueManager) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[str]:
        yield from (f"k{number}" for number in range(2_100))
        loading.set()
        assert go_on.wait(10)
        yield "last"

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(queue.submit, HANDLER, slow(), key="nightly")
        assert loading.wait(10)
        second = pool.submit(queue.submit, HANDLER, ["x"], key="nightly")
        with (
            pytest.raises(InvalidInputError, match="another producer is loading batch"),
            queue.database.begin() as mine,
        ):
            queue.submit(HANDLER, ["x"], key="nightly", session=mine)
        assert not second.done()
        go_on.set()
        assert (second.result().id, second.result().created, second.result().total) == (first.result().id, False, 2_101)
    assert stored(queue.database) == (1, 2_101)


def test_the_key_of_a_producer_that_died_is_free_when_its_lease_lapsed(queue: QueueManager) -> None:
    dead = queue.state_manager.create_batch(BatchSpec(HANDLER, "b", key="nightly")).id
    plant_batch(queue.database, dead, loading_until=later(literal(-1.0)))
    assert queue.submit(HANDLER, ["a"], key="nightly").created
    assert stored(queue.database) == (1, 1)


_PRODUCER = """
import sys
from batching.database import Database
from batching.queue_manager import QueueManager

def stream():
    for number in range(12_000):
        if number == 11_500:
            print("loading", flush=True)
            sys.stdin.read()
        yield f"k{number}"

QueueManager(Database(sys.argv[1])).submit("tests.handler", stream(), key="nightly")
"""


def test_what_a_killed_producer_left_is_swept(queue: QueueManager) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PRODUCER, queue.database.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as producer:
        assert producer.stdout is not None
        assert producer.stdout.readline() == b"loading\n"
        producer.kill()
    assert stored(queue.database) == (1, 11_000)
    assert queue.state_manager.sweep_abandoned() == []  # its lease has not lapsed
    with queue.database.read() as connection:
        (batch_id,) = connection.scalars(select(batches.c.id))
    plant_batch(queue.database, batch_id, loading_until=later(literal(-1.0)))
    assert queue.state_manager.sweep_abandoned() == [batch_id]
    assert stored(queue.database) == (0, 0)


def test_a_slow_source_renews_its_lease(queue: QueueManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "CHUNK_SECONDS", 0.0)
    counts = []

    def slow() -> Iterator[str]:
        for number in range(3):
            counts.append(stored(queue.database)[1])
            yield f"k{number}"

    queue.submit(HANDLER, slow())
    assert counts == [0, 1, 2]  # each was written before the next came


# --- in a caller's transaction


def orders(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM orders")) or 0)


@pytest.mark.parametrize("wrote_before", [True, False])
def test_a_session_that_commits_has_its_batch(queue: QueueManager, foreign: Engine, wrote_before: bool) -> None:
    with Session(foreign) as session:
        if wrote_before:
            session.execute(text("INSERT INTO orders VALUES (1)"))
        batch = queue.submit(HANDLER, ["a", "b"], session=session)
        session.execute(text("INSERT INTO orders VALUES (2)"))
        session.commit()
    assert assert_accounted(queue.database, batch.id).pending == 2
    assert read_batch(queue.database, batch.id).state is BatchState.QUEUED
    assert orders(foreign) == 1 + wrote_before


@pytest.mark.parametrize("wrote_before", [True, False])
def test_a_session_that_rolls_back_has_none(queue: QueueManager, foreign: Engine, wrote_before: bool) -> None:
    with Session(foreign) as session:
        if wrote_before:
            session.execute(text("INSERT INTO orders VALUES (1)"))
        queue.submit(HANDLER, ["a", "b"], session=session)
        session.execute(text("INSERT INTO orders VALUES (2)"))
        session.rollback()
    assert stored(queue.database) == (0, 0)
    assert orders(foreign) == 0


def test_a_refused_submission_leaves_the_session_usable(queue: QueueManager, foreign: Engine) -> None:
    with Session(foreign) as session:
        session.execute(text("INSERT INTO orders VALUES (1)"))
        with pytest.raises(InvalidInputError):
            queue.submit(HANDLER, ["a", "a"], session=session)
        kept = queue.submit(HANDLER, ["a"], session=session)
        session.commit()
    assert stored(queue.database) == (1, 1)
    assert read_batch(queue.database, kept.id).total == 1
    assert orders(foreign) == 1


def test_a_session_finds_the_key_that_is_there(queue: QueueManager, foreign: Engine) -> None:
    first = queue.submit(HANDLER, ["a"], key="nightly")
    with Session(foreign) as session:
        again = queue.submit(HANDLER, ["b"], key="nightly", session=session)
        session.commit()
    assert (again.id, again.created) == (first.id, False)
    assert stored(queue.database) == (1, 1)


def test_nobody_sees_a_sessions_batch_before_it_commits(queue: QueueManager, foreign: Engine) -> None:
    with Session(foreign) as session:
        batch = queue.submit(HANDLER, ["a"], session=session)
        assert stored(queue.database) == (0, 0)
        session.commit()
    eventually(lambda: stored(queue.database) == (1, 1))
    assert queue.get(batch.id).total == 1
