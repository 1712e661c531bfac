"""What processes counted, added up by the leader: exactly once, whatever comes in between."""

from __future__ import annotations

import itertools
import threading
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, func, insert, select, update

from batching.errors import InvalidInputError, UnknownBatchError
from batching.figures import MOST_HANDLERS, OTHER, RUN_BOUNDS, Figures, News
from batching.measure import Measurer
from batching.models import (
    batch_throughput,
    durations,
    figure_news,
    figures,
    gauges,
    throughput,
)
from batching.moves import figures as moves
from batching.outlook import look
from batching.registry import WorkerRegistry
from batching.states import BatchState
from batching.statistics import Statistics
from tests.accounting import Desk, plant_batch
from tests.support import eventually
from tests.test_plans import walks

if TYPE_CHECKING:
    from batching.database import Database


@pytest.fixture
def desk(database: Database) -> Desk:
    moves._known.clear()
    return Desk(database)


@pytest.fixture
def statistics(database: Database) -> Statistics:
    return Statistics(database)


def counted(**ends: int) -> Figures:
    """A process that has settled profiles of no batch that there is."""
    process = Figures()
    process.ended("h", str(uuid.uuid4()), ends)
    return process


def tell(database: Database, news: News | None) -> bool:
    assert news is not None
    with database.begin() as connection:
        return moves.tell(connection, news)


def fold(database: Database) -> int:
    with database.begin() as connection:
        return moves.fold(connection)


def amounts(database: Database, name: str) -> dict[str, float]:
    """What is kept of a figure, by its labels; of a histogram, its sum."""
    with database.read() as connection:
        rows = connection.execute(select(figures).where(figures.c.name == name, figures.c.bucket == -1)).all()
    return {row.labels: row.amount for row in rows}


def settled(statistics: Statistics) -> int:
    return sum(point.settled for point in statistics.throughput())


# --- letters


def test_what_is_told_is_added_up(desk: Desk, statistics: Statistics) -> None:
    for number in (3, 4):
        assert tell(desk.database, counted(succeeded=number, failed=1).news())
    assert fold(desk.database) == 2
    assert fold(desk.database) == 0

    assert amounts(desk.database, "profiles_settled") == {'["h","succeeded"]': 7, '["h","failed"]': 2}
    assert settled(statistics) == 9


@pytest.mark.parametrize("taken", [False, True], ids=["before the leader", "after the leader"])
def test_a_letter_whose_commit_was_not_answered_counts_once(desk: Desk, *, taken: bool) -> None:
    process = counted(succeeded=5)
    news = process.news()
    assert tell(desk.database, news)
    if taken:
        assert fold(desk.database) == 1
    # When the process repeats it, not knowing
    assert tell(desk.database, news)
    fold(desk.database)
    assert amounts(desk.database, "profiles_settled") == {'["h","succeeded"]': 5}
    # And its next one is another
    assert news is not None
    process.told(news)
    process.ended("h", "b", {"succeeded": 1})
    assert tell(desk.database, process.news())
    fold(desk.database)
    assert amounts(desk.database, "profiles_settled") == {'["h","succeeded"]': 6}


def test_a_full_letter_box_is_waited_for_and_nothing_is_left_out(desk: Desk) -> None:
    process = counted(succeeded=1)
    first = process.news()
    assert tell(desk.database, first)
    assert first is not None
    process.told(first)
    process.ended("h", "b", {"succeeded": 10})
    second = process.news()

    assert not tell(desk.database, second)
    assert fold(desk.database) == 1
    assert tell(desk.database, second)
    assert fold(desk.database) == 1
    assert amounts(desk.database, "profiles_settled") == {'["h","succeeded"]': 11}


def test_a_heartbeat_tells_and_one_that_failed_tells_again(desk: Desk) -> None:
    registry, process = WorkerRegistry(desk.database), counted(succeeded=2)
    desk.register()

    def refuse(*_: Any) -> None:
        raise OSError("the connection is gone")

    event.listen(desk.database.engine, "commit", refuse)
    with pytest.raises(OSError, match="gone"):
        registry.beat(desk.worker, counted=process)
    event.remove(desk.database.engine, "commit", refuse)
    for _ in range(3):
        assert registry.beat(desk.worker, counted=process, gauges={"active": 1})
        fold(desk.database)
    assert amounts(desk.database, "profiles_settled") == {'["h","succeeded"]': 2}
    assert statistics_of_connections(desk.database) >= 1


def statistics_of_connections(database: Database) -> float:
    return amounts(database, "database_connects").get('["worker"]', 0)


def test_a_worker_that_was_declared_dead_still_tells_what_it_did(desk: Desk) -> None:
    process = counted(succeeded=2)
    assert not WorkerRegistry(desk.database).beat(str(uuid.uuid4()), counted=process)
    WorkerRegistry(desk.database).leave(str(uuid.uuid4()), counted(succeeded=3))
    fold(desk.database)
    assert amounts(desk.database, "profiles_settled") == {'["h","succeeded"]': 5}


def test_a_heartbeat_takes_one_statement_more(desk: Desk) -> None:
    desk.register()
    registry = WorkerRegistry(desk.database)
    seen: list[str] = []
    event.listen(desk.database.engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    registry.beat(desk.worker)
    without = len(seen)
    registry.beat(desk.worker, counted=counted(succeeded=2), gauges={"active": 1})
    assert len(seen) == 2 * without + 1


def test_two_leaders_at_once_add_up_the_same(desk: Desk) -> None:
    processes = [counted(succeeded=1) for _ in range(40)]
    over = threading.Event()

    def lead() -> None:
        while not over.is_set():
            fold(desk.database)

    leaders = [threading.Thread(target=lead) for _ in range(2)]
    for each in leaders:
        each.start()
    try:
        for _ in range(5):
            for process in processes:
                news = process.news()
                eventually(lambda news=news: tell(desk.database, news))  # type: ignore[misc] # mypy knows no default
                assert news is not None
                process.told(news)
                process.ended("h", "b", {"succeeded": 1})
    finally:
        over.set()
        for each in leaders:
            each.join(20)
    fold(desk.database)
    assert amounts(desk.database, "profiles_settled") == {'["h","succeeded"]': 200}


def test_a_worker_that_stops_while_it_writes_keeps_nobody_waiting(postgresql_url: str) -> None:
    from batching.database import Database as Store

    mine, its = Store(postgresql_url, timeout=2.0), Store(postgresql_url)
    stopped, other = counted(succeeded=1), counted(succeeded=4)
    assert tell(mine, stopped.news())
    with its.begin() as connection:
        connection.execute(update(figure_news).values(written_at=func.now()))
        assert tell(mine, other.news())
        assert fold(mine) == 1
        assert amounts(mine, "profiles_settled") == {'["h","succeeded"]': 4}
    assert fold(mine) == 1
    assert amounts(mine, "profiles_settled") == {'["h","succeeded"]': 5}
    mine.close()
    its.close()


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        "no letter at all",
        {"figures": [["a", 1]], "ends": [[1, 2]], "durations": "all"},
        {"figures": [["a", "", 0, "many"]], "ends": [["b", 1, 1, 1, None]], "moons": [1]},
        {"figures": [["profiles_settled", "[]", -1, float("inf")]]},
    ],
)
def test_a_letter_of_another_version_stops_nobody(desk: Desk, document: Any) -> None:
    assert tell(desk.database, News(str(uuid.uuid4()), 1, document))
    assert tell(desk.database, counted(succeeded=1).news())
    assert fold(desk.database) == 2
    assert amounts(desk.database, "profiles_settled") == {'["h","succeeded"]': 1}


def test_a_figure_that_cannot_be_added_up_is_dropped_and_the_leader_goes_on(desk: Desk) -> None:
    measurer = Measurer(desk.database)
    beyond = {"figures": [["a", "", 99_999, 1]], "ends": [[None, 10**30, 0, 0, 0]]}
    assert tell(desk.database, News(str(uuid.uuid4()), 1, beyond))
    measurer.measure(desk.term, look(desk.database, 10.0))
    assert fold(desk.database) == 0

    process = counted(succeeded=3)
    assert tell(desk.database, process.news())
    measurer.measure(desk.term, look(desk.database, 10.0))
    assert amounts(desk.database, "profiles_settled") == {'["h","succeeded"]': 3}


def test_an_old_leader_adds_nothing_up(desk: Desk) -> None:
    old = desk.term._replace(epoch=desk.term.epoch - 1)
    assert tell(desk.database, counted(succeeded=3).news())
    Measurer(desk.database).measure(old, look(desk.database, 10.0), {"messages": {"h": 1}})
    assert amounts(desk.database, "profiles_settled") == {}
    with desk.database.read() as connection:
        assert connection.execute(select(gauges)).all() == []


def test_handlers_beyond_the_bound_are_one_and_the_first_ones_stay(desk: Desk) -> None:
    def of(prefix: str) -> Figures:
        process = Figures()
        for number in range(MOST_HANDLERS // 2 + 10):
            process.count("profiles_settled", f"{prefix}{number:03}", "succeeded")
        return process

    for prefix in ("b", "a", "a"):
        assert tell(desk.database, of(prefix).news())
        fold(desk.database)
    found = amounts(desk.database, "profiles_settled")
    assert len(found) == MOST_HANDLERS + 1
    assert found[f'["{OTHER}","succeeded"]'] == 2 * 20
    assert '["b059","succeeded"]' in found


# --- of one batch


def work(desk: Desk, batch_id: str, process: Figures, seconds: float = 0.02, **ends: int) -> None:
    """A process tells of runs of a batch."""
    for _ in range(sum(ends.values())):
        process.ran("h", batch_id, seconds)
    process.ended("h", batch_id, ends)
    news = process.news()
    assert tell(desk.database, news)
    assert news is not None
    process.told(news)
    assert fold(desk.database) == 1


def test_durations_and_throughput_of_a_batch_and_of_all(desk: Desk, statistics: Statistics) -> None:
    one, two = desk.submit(5), desk.submit(5)
    process = Figures()
    work(desk, one, process, 0.02, succeeded=3, failed=1)
    work(desk, one, process, 3.0, retried=1)
    work(desk, two, process, 100.0, succeeded=1)

    assert sum(p.settled for p in statistics.throughput(one)) == 4
    assert sum(p.failed for p in statistics.throughput(one)) == 1
    assert sum(p.retried for p in statistics.throughput(one)) == 1
    assert sum(p.succeeded for p in statistics.throughput(two)) == 1
    assert settled(statistics) == 5
    found = statistics.durations(one)
    assert {bound: n for bound, n in zip(found.bounds, found.counts, strict=True) if n} == {0.025: 4, 5.0: 1}
    assert found.seconds == pytest.approx(3.08)
    whole = statistics.durations()
    assert (whole.runs, whole.bounds) == (6, RUN_BOUNDS)
    assert whole.as_json()["bounds"][-1] is None
    # A prefix of its id is enough, as everywhere; and what nobody knows is refused.
    assert statistics.durations(one[:13] if one[:13] != two[:13] else one).runs == 5
    with pytest.raises(UnknownBatchError):
        statistics.durations(str(uuid.uuid4()))


def test_a_batch_of_which_nothing_was_told_has_no_points(desk: Desk, statistics: Statistics) -> None:
    batch_id = desk.submit(1)
    assert statistics.throughput(batch_id) == []
    assert statistics.durations(batch_id).runs == 0
    assert {point.settled for point in statistics.throughput()} == {0}


@pytest.mark.parametrize(
    ("minutes", "seconds", "points"), [(1, 10, 7), (60, 10, 361), (62, 60, 63), (1_500, 60, 1_501), (3_000, 3_600, 51)]
)
def test_points_have_one_length_and_no_gaps(
    desk: Desk, statistics: Statistics, minutes: int, seconds: int, points: int
) -> None:
    assert tell(desk.database, counted(succeeded=1).news())
    fold(desk.database)
    found = statistics.throughput(minutes=minutes)
    assert {point.seconds for point in found} == {seconds}
    assert len(found) in {points, points - 1}  # the last one has just begun
    assert {b.at - a.at for a, b in itertools.pairwise(found)} <= {timedelta(seconds=seconds)}
    assert found[-1].at <= datetime.now(UTC) + timedelta(seconds=1)
    assert sum(point.settled for point in found) == 1


@pytest.mark.parametrize("minutes", [0, -1, 600_000])
def test_a_span_of_time_that_nobody_means_is_refused(statistics: Statistics, minutes: int) -> None:
    with pytest.raises(InvalidInputError, match="ask for 1 to 527,040"):
        statistics.throughput(minutes=minutes)


def age_throughput(desk: Desk, batch_id: str, seconds: int) -> None:
    """Push what a batch has settled into the past, so that the next comes so many seconds later."""
    with desk.database.begin() as connection:
        connection.execute(
            update(batch_throughput)
            .where(batch_throughput.c.batch_id == batch_id)
            .values(at=batch_throughput.c.at - seconds)
        )


def test_a_batch_keeps_few_spans_however_long_it_runs(desk: Desk, statistics: Statistics) -> None:
    batch_id = desk.submit(10)
    with desk.database.begin() as connection:
        first = int(datetime.now(UTC).timestamp()) // 10 * 10 - 10 * moves.MOST_SPANS
        rows = [
            {"batch_id": batch_id, "seconds": 10, "at": first + 10 * n, "settled": 1, "succeeded": 1}
            for n in range(moves.MOST_SPANS)
        ]
        connection.execute(insert(batch_throughput), rows)
    work(desk, batch_id, Figures(), succeeded=2)

    with desk.database.read() as connection:
        kept = connection.execute(select(batch_throughput).where(batch_throughput.c.batch_id == batch_id)).all()
    assert {row.seconds for row in kept} == {60}
    assert len(kept) <= moves.MOST_SPANS // 6 + 2
    assert sum(row.settled for row in kept) == moves.MOST_SPANS + 2
    points = statistics.throughput(batch_id)
    assert {point.seconds for point in points} == {60}
    assert sum(point.settled for point in points) == moves.MOST_SPANS + 2


def test_a_batch_that_rarely_settles_anything_is_told_in_few_points(desk: Desk, statistics: Statistics) -> None:
    batch_id = desk.submit(10)
    work(desk, batch_id, Figures(), succeeded=1)
    age_throughput(desk, batch_id, 40 * 86_400)
    work(desk, batch_id, Figures(), succeeded=1)
    points = statistics.throughput(batch_id, minutes=527_040)
    assert len(points) <= 400
    assert sum(point.settled for point in points) == 2
    # And asked for its last hour, only that is told.
    assert sum(point.settled for point in statistics.throughput(batch_id)) == 1


def test_what_a_batch_did_is_told_up_to_its_end(desk: Desk, statistics: Statistics) -> None:
    batch_id = desk.start(1)
    desk.work(batch_id)
    work(desk, batch_id, Figures(), succeeded=1)
    age_throughput(desk, batch_id, 1_000)
    at = datetime.now(UTC) - timedelta(seconds=900)
    plant_batch(desk.database, batch_id, finished_at=at)
    points = statistics.throughput(batch_id)
    assert abs((points[-1].at - at).total_seconds()) <= 11
    assert sum(point.settled for point in points) == 1


def test_what_is_kept_of_a_batch_goes_with_it(desk: Desk, statistics: Statistics) -> None:
    gone, stays = desk.finish(BatchState.SUCCEEDED), desk.submit(2)
    process = Figures()
    for batch_id in (gone, stays):
        work(desk, batch_id, process, succeeded=2)
    plant_batch(desk.database, gone, finished_at=datetime.now(UTC) - timedelta(days=3))
    assert desk.states.prune(1.0) == 1
    # A worker that tells of it later is not heard of it, but in the sums.
    work(desk, gone, process, succeeded=1)

    with desk.database.read() as connection:
        for table in (durations, batch_throughput):
            assert set(connection.scalars(select(table.c.batch_id))) == {stays}
    assert settled(statistics) == 5


# --- what grows old


def test_short_spans_are_forgotten_and_long_ones_kept(desk: Desk) -> None:
    now = int(datetime.now(UTC).timestamp())
    with desk.database.begin() as connection:
        rows = [
            {"seconds": seconds, "at": (now - age) // seconds * seconds, "settled": 1}
            for seconds in (10, 60, 3_600)
            for age in (7_200, 86_400 * 2, 86_400 * 31, 1_000)
        ]
        connection.execute(insert(throughput), rows)
        moves.forget(connection, 30.0)
        kept = connection.execute(select(throughput.c.seconds, func.count()).group_by(throughput.c.seconds)).all()
    assert dict(kept) == {10: 1, 60: 2, 3_600: 3}


def test_a_letter_box_is_taken_down_when_its_process_is_gone_but_never_with_a_letter(desk: Desk) -> None:
    for _ in range(2):
        tell(desk.database, counted(succeeded=1).news())
    fold(desk.database)
    tell(desk.database, counted(succeeded=1).news())
    with desk.database.begin() as connection:
        moves.forget(connection, 30.0)
        assert connection.scalar(select(func.count()).select_from(figure_news)) == 3
        connection.execute(update(figure_news).values(written_at=datetime.now(UTC) - timedelta(days=2)))
        moves.forget(connection, 30.0)
        assert connection.scalar(select(func.count()).select_from(figure_news)) == 1
    assert fold(desk.database) == 1


def test_a_handler_that_is_no_more_is_forgotten_as_a_whole(desk: Desk) -> None:
    process = Figures()
    process.ran("old", "b", 0.5)
    process.ran("new", "c", 0.5)
    process.count("late_results")
    tell(desk.database, process.news())
    fold(desk.database)
    with desk.database.begin() as connection:
        past = datetime.now(UTC) - timedelta(days=40)
        connection.execute(update(figures).where(figures.c.labels != '["new"]').values(changed_at=past))
        moves.forget(connection, 30.0)
        kept = {(row.name, row.labels) for row in connection.execute(select(figures))}
    assert kept == {("run_duration_seconds", '["new"]'), ("late_results", "")}


def test_the_statements_of_a_batch_are_led_by_an_index(desk: Desk) -> None:
    """Also among many batches: their number must not be felt once a second."""
    process = Figures()
    batch_id = desk.submit(3)
    process.ran("h", batch_id, 0.1)
    process.ended("h", batch_id, {"succeeded": 1})
    tell(desk.database, process.news())
    with walks(desk.database) as found:
        fold(desk.database)
    assert found == []
