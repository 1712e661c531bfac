"""Profiles page by page: a page shows what each row is read as, whatever was moved; and no page walks a batch."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text

from batching.errors import InvalidInputError, UnknownBatchError
from batching.interfaces import Ending, ErrorInfo, Outcome
from batching.options import BatchSpec, ProfileInput
from batching.queue_manager import QueueManager
from batching.state_manager import BatchStateManager
from batching.states import ProfileState, StopTarget
from batching.statistics import Statistics, browsing
from tests.accounting import DONE, FAILED, HANDLER, Desk, effective_states, end, statements

if TYPE_CHECKING:
    from batching.database import Database
    from batching.statistics import ProfilePage, ProfileView

OTHER = Outcome(Ending.FAILED, error=ErrorInfo("KeyError", "'x'", "a" * 16, "Traceback …"))
SKIPPED = Outcome(Ending.SKIPPED, error=ErrorInfo("SkipProfile", "nothing to do", ""))
Step = Callable[[Desk, str], object]


@pytest.fixture
def desk(database: Database) -> Desk:
    desk = Desk(database)
    desk.register()
    return desk


@pytest.fixture
def statistics(database: Database) -> Statistics:
    return Statistics(database)


def pages(statistics: Statistics, batch_id: str, limit: int = 3, **filters: Any) -> Iterator[ProfilePage]:
    after: str | None = None
    while True:
        page = statistics.profiles(batch_id, after=after, limit=limit, **filters)
        yield page
        after = page.after
        if after is None:
            return


def every(statistics: Statistics, batch_id: str, limit: int = 3, **filters: Any) -> list[ProfileView]:
    return [each for page in pages(statistics, batch_id, limit, **filters) for each in page.profiles]


def _work(desk: Desk, batch_id: str) -> None:
    """Profiles 1 to 12 end in three ways, 13 to 16 run, 17 to 20 are dispatched, the others wait."""
    claimed = desk.claim(batch_id, 16)
    ways = [DONE, FAILED, OTHER, SKIPPED]
    desk.states.settle(desk.worker, [end(each, ways[each.run.number % 4]) for each in claimed[:12]])
    desk.dispatch(batch_id, 4)


def _settle_what_runs(desk: Desk, batch_id: str) -> None:
    running = [number for number, state in effective_states(desk.database, batch_id).items() if state == "running"]
    assert running
    desk.states.take_back(desk.worker, None, desk.term)
    desk.states.conclude([batch_id])


#: What happens to a batch, one thing after the other; after each, every filter is asked.
STORIES: dict[str, list[Step]] = {
    "as it runs": [_work],
    "paused, not rewritten, half rewritten, rewritten": [
        _work,
        lambda desk, batch_id: desk.states.stop(batch_id, StopTarget.PAUSED, "p"),
        lambda desk, batch_id: desk.states.rewrite(batch_id, 2),
        lambda desk, batch_id: desk.rewrite(batch_id),
    ],
    "cancelled and retried, nothing rewritten": [
        _work,
        _settle_what_runs,
        lambda desk, batch_id: desk.states.stop(batch_id, StopTarget.CANCELLED, "c"),
        lambda desk, batch_id: desk.states.conclude([batch_id]),
        lambda desk, batch_id: desk.states.retry(batch_id),
        lambda desk, batch_id: desk.states.rewrite(batch_id, 3),
        lambda desk, batch_id: desk.rewrite(batch_id),
    ],
}


@pytest.mark.parametrize("story", STORIES)
def test_each_filter_shows_what_the_rows_are_read_as(desk: Desk, statistics: Statistics, story: str) -> None:
    batch_id = desk.start(26, max_passes=3, failure_budget=100)
    seen: set[ProfileState] = set()
    for step in STORIES[story]:
        step(desk, batch_id)
        states = effective_states(desk.database, batch_id)
        assert [(each.number, each.state) for each in every(statistics, batch_id)] == sorted(states.items())
        for state in ProfileState:
            found = every(statistics, batch_id, states=[state])
            expected = {number for number, known in states.items() if known is state}
            assert {each.number for each in found} == expected, state
            assert len(found) == len(expected), "none twice"
            assert all(each.state is state for each in found)
        both = every(statistics, batch_id, states=[ProfileState.SUCCEEDED, ProfileState.PENDING], limit=4)
        assert [each.number for each in both] == sorted(
            number for number, state in states.items() if state in {"succeeded", "pending"}
        )
        seen |= set(states.values())
    assert seen >= {ProfileState.SUCCEEDED, ProfileState.FAILED, ProfileState.SKIPPED, ProfileState.PENDING}


def test_failures_come_by_fingerprint_and_one_can_be_chosen(desk: Desk, statistics: Statistics) -> None:
    batch_id = desk.start(26, failure_budget=100)
    _work(desk, batch_id)
    found = every(statistics, batch_id, states=[ProfileState.FAILED], limit=2)
    assert [each.error and each.error["type"] for each in found] == ["KeyError"] * 3 + ["ValueError"] * 3
    assert [each.number for each in found] == [2, 6, 10, 1, 5, 9]
    chosen = every(statistics, batch_id, fingerprint="a" * 16, limit=2)
    assert [each.number for each in chosen] == [2, 6, 10]
    assert every(statistics, batch_id, fingerprint="b" * 16) == []


def test_what_a_list_says_of_a_profile(desk: Desk, statistics: Statistics) -> None:
    batch_id = desk.start(26, max_attempts=3, failure_budget=100, retry_backoff=60)
    claimed = desk.claim(batch_id, 16)
    ways = [DONE, FAILED, OTHER, SKIPPED]
    desk.states.settle(desk.worker, [end(each, ways[each.run.number % 4]) for each in claimed[:12]])
    one, three, thirteen, last = (statistics.profile(batch_id, f"k{n}").profile for n in (1, 3, 13, 26))
    assert (one.state, one.attempts, one.error) == ("pending", 1, None)
    assert one.not_before is not None
    assert one.started_at is None
    assert (three.state, three.worker_id, three.run) == ("skipped", desk.worker, 1)
    assert three.finished_at is not None
    assert three.finished_at >= (three.started_at or three.finished_at)
    assert (thirteen.state, thirteen.worker_id, thirteen.finished_at) == ("running", desk.worker, None)
    assert (last.state, last.attempts, last.run, last.worker_id) == ("pending", 0, 0, None)


KEYS = ["a", "a%", "a%b", "a-1", "a_1", "ab", "abc", "abd", "A", "Ab", "ä", "ab\u0301", "b", "ba", "\U0001f600x", "a1"]


def test_a_key_is_found_by_its_beginning_and_the_very_key_is_first(database: Database) -> None:
    states, statistics = BatchStateManager(database), Statistics(database)
    batch_id = states.create_batch(BatchSpec(HANDLER, "b")).id
    states.add_profiles(batch_id, [ProfileInput(key, "1") for key in KEYS])
    states.seal(batch_id)
    for prefix in ("a", "ab", "A", "a%", "a-", "a_", "\u00e4", "b", "\U0001f600", "zz", "abc"):
        found = [each.key for each in every(statistics, batch_id, key=prefix, limit=2)]
        assert sorted(found) == sorted(key for key in KEYS if key.startswith(prefix)), prefix
        assert found[:1] == [prefix] or prefix not in KEYS


def test_a_key_and_a_state_narrow_each_other(desk: Desk, statistics: Statistics) -> None:
    batch_id = desk.start(26, failure_budget=100)
    _work(desk, batch_id)
    found = every(statistics, batch_id, key="k1", states=[ProfileState.RUNNING])
    assert [each.key for each in found] == ["k13", "k14", "k15", "k16"]


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a batch of ten million, with a hundred."""
    monkeypatch.setattr(browsing, "STEP", 10)
    monkeypatch.setattr(browsing, "MOST_LOOKED_AT", 30)


def test_a_page_that_finds_little_ends_early_and_says_so(desk: Desk, statistics: Statistics, small_steps: None) -> None:
    batch_id = desk.start(100, failure_budget=100)
    claimed = desk.claim(batch_id, 100)
    ends = [end(each, SKIPPED if each.run.number in {5, 77} else DONE) for each in claimed]
    desk.states.settle(desk.worker, ends)
    got = list(pages(statistics, batch_id, limit=5, states=[ProfileState.SKIPPED]))
    assert [[each.number for each in page.profiles] for page in got] == [[5], [], [77], []]
    assert [page.looked_at for page in got] == [30, 30, 30, None]
    assert [page.after for page in got] == ["n:30", "n:60", "n:90", None]


def test_keys_are_walked_in_steps_too(desk: Desk, statistics: Statistics, small_steps: None) -> None:
    batch_id = desk.submit(100)
    got = list(pages(statistics, batch_id, limit=200, key="k"))
    assert sorted(each.number for page in got for each in page.profiles) == list(range(1, 101))
    assert got[0].looked_at == 30
    assert len(every(statistics, batch_id, key="k9", limit=4)) == 11


def test_to_find_none_costs_no_look_at_the_profiles(desk: Desk, statistics: Statistics) -> None:
    batch_id = desk.start(50)
    with statements(desk.database) as seen:
        assert statistics.profiles(batch_id, states=[ProfileState.SKIPPED, ProfileState.EXPIRED]).profiles == []
    assert not [each for each in seen if "FROM profiles" in each]


@pytest.mark.parametrize("after", ["x", "k:a", "n:", "n:x", "n:-1", "f:aa:x", "n:99999999999"])
def test_a_cursor_of_another_page_is_refused(desk: Desk, statistics: Statistics, after: str) -> None:
    batch_id = desk.start(5)
    with pytest.raises(InvalidInputError, match="not the end of a page"):
        statistics.profiles(batch_id, after=after)


def test_filters_that_contradict_each_other_are_refused(desk: Desk, statistics: Statistics) -> None:
    batch_id = desk.start(5)
    with pytest.raises(InvalidInputError, match="only failed profiles"):
        statistics.profiles(batch_id, fingerprint="a" * 16, states=[ProfileState.PENDING])
    with pytest.raises(UnknownBatchError):
        statistics.profiles(str(uuid.uuid4()))


# --- from close by


def test_a_profile_from_close_by(desk: Desk, statistics: Statistics) -> None:
    batch_id = desk.start(26, failure_budget=100)
    _work(desk, batch_id)
    failed, done = statistics.profile(batch_id, "k2"), statistics.profile(batch_id, "k4")
    assert failed.traceback == "Traceback …"
    assert [each.outcome for each in failed.attempts] == ["failed"]
    assert failed.result is None
    assert done.result is not None
    assert (done.result.text, done.result.whole) == ('{"ok":true}', True)
    assert statistics.payload(batch_id, 4) == done.result.__class__("4", 1)
    assert statistics.payload(batch_id, 400) is None


def test_a_key_that_looks_like_a_number_is_not_taken_for_one(database: Database) -> None:
    queue = QueueManager(database)
    batch = queue.submit(HANDLER, [{"key": "3", "payload": 1}, {"key": "x", "payload": 2}, {"key": "1", "payload": 3}])
    assert queue.statistics.profile(batch.id, "3").profile.number == 1
    assert queue.statistics.profile(batch.id, "3", by_number=True).profile.key == "1"
    assert queue.statistics.profile(batch.id, "2").profile.key == "x"
    with pytest.raises(InvalidInputError, match="none with this key"):
        queue.statistics.profile(batch.id, "2", by_number=False)
    with pytest.raises(InvalidInputError, match="none with this number"):
        queue.statistics.profile(batch.id, "4", by_number=True)


def test_of_a_large_payload_the_beginning_is_read(database: Database) -> None:
    queue = QueueManager(database)
    batch = queue.submit(HANDLER, [{"key": "a", "payload": "x" * 50_000}])
    excerpt = queue.statistics.payload(batch.id, 1)
    assert excerpt is not None
    assert (len(excerpt.text), excerpt.length, excerpt.whole) == (16_384, 50_002, False)


# --- how the database finds them


@contextmanager
def plans(database: Database) -> Iterator[list[tuple[str, str]]]:
    """Collects statements on profiles with their plans."""
    found: list[tuple[str, str]] = []
    explain = "EXPLAIN QUERY PLAN " if database.dialect == "sqlite" else "EXPLAIN "

    def look_at(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if not statement.startswith("SELECT") or "profiles" not in statement:
            return
        asking = cursor.connection.cursor()
        if database.dialect == "postgresql":
            # This table is small enough for a sort to be the right choice; so ask whether there is another way.
            asking.execute("SET LOCAL enable_sort = off")
        asking.execute(explain + statement, parameters)
        found.append((statement, "\n".join(str(row[-1]) for row in asking.fetchall())))

    event.listen(database.engine, "before_cursor_execute", look_at)
    try:
        yield found
    finally:
        event.remove(database.engine, "before_cursor_execute", look_at)


#: Every kind of page, and the index that leads to it.
LEADING: list[tuple[dict[str, Any], str]] = [
    ({}, "profiles_pkey"),
    ({"after": "n:5900"}, "profiles_pkey"),
    ({"states": [ProfileState.SUCCEEDED]}, "profiles_pkey"),
    ({"states": [ProfileState.PENDING]}, "profiles_waiting_idx"),
    ({"states": [ProfileState.PENDING], "after": "n:4000"}, "profiles_waiting_idx"),
    ({"states": [ProfileState.RUNNING]}, "profiles_in_flight_idx"),
    ({"states": [ProfileState.FAILED]}, "profiles_failures_idx"),
    ({"states": [ProfileState.FAILED], "after": f"f:{'f' * 16}:31"}, "profiles_failures_idx"),
    ({"fingerprint": "f" * 16}, "profiles_failures_idx"),
    ({"key": "k59"}, "profiles_batch_id_key_key"),
    ({"key": "k1", "after": "k:k150"}, "profiles_batch_id_key_key"),
]


def test_an_index_leads_to_every_page_and_nothing_is_sorted(desk: Desk, statistics: Statistics) -> None:
    batch_id = desk.start(6_000, failure_budget=6_000)
    desk.submit(3_000)
    claimed = desk.claim(batch_id, 300)
    desk.states.settle(desk.worker, [end(each, (DONE, FAILED)[each.run.number % 2]) for each in claimed[:200]])
    with desk.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    for filters, name in LEADING:
        index = name if desk.database.dialect == "postgresql" else name.replace("_pkey", "_1")
        with plans(desk.database) as found:
            assert statistics.profiles(batch_id, limit=50, **filters).profiles
        assert found
        for statement, plan in found:
            # Which keys are in a step, and which profile has the very key, is asked of the index of keys.
            assert index in plan or "profiles_batch_id_key_key" in plan, f"{filters}: {statement}\n{plan}"
            for sign in ("Seq Scan on profiles", "SCAN profiles", "Sort", "TEMP B-TREE", "Bitmap"):
                assert sign not in plan, f"{filters}: {statement}\n{plan}"
