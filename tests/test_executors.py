"""How bundles get to the threads of the pool: by runners, which take turns with whatever else waits for them."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery.concurrency.thread import TaskPool
from celery.exceptions import TaskRevokedError

from tests.support import eventually
from workers.executors import ThreadsExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import ThreadPoolExecutor

SLOTS = 2


class CountingPool(TaskPool):
    """Celery's own, with a note of what it was given."""

    executor: ThreadPoolExecutor
    jobs = 0

    def apply_async(self, *args: Any, **options: Any) -> Any:
        self.jobs += 1
        return super().apply_async(*args, **options)


class Rig:
    """A pool of two threads, and what became of the bundles that were handed over."""

    def __init__(self) -> None:
        self.pool = CountingPool(SLOTS)
        self.pool.start()
        self.executor = ThreadsExecutor(SimpleNamespace(pool=self.pool, hostname="h"), "threads", 1)
        self.log: list[str] = []
        self.given_back: list[str] = []

    def bundle(self, name: str, during: Callable[[], object] = lambda: None) -> Any:
        def execute_using_pool(pool: Any) -> None:
            assert not pool.uses_semaphore
            during()
            self.log.append(name)

        return SimpleNamespace(
            requests=[SimpleNamespace(id=name, log_fields=dict)],
            execute_using_pool=execute_using_pool,
            give_back=lambda: self.given_back.append(name),
        )

    def hand_over(self, *names: str, during: Callable[[], object] = lambda: None) -> None:
        for name in names:
            self.executor.execute(self.bundle(name, during))

    def occupy(self, slots: int = SLOTS) -> threading.Event:
        """Keep so many runners busy until the event is set."""
        gate, inside = threading.Event(), threading.Semaphore(0)

        def wait() -> None:
            inside.release()
            assert gate.wait(20)

        for number in range(slots):
            self.executor.execute(self.bundle(f"long {number}", wait))
        for _ in range(slots):
            assert inside.acquire(timeout=20)
        return gate


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.pool.stop()


def _has(log: list[str], count: int) -> bool:
    return len(log) == count


def _raise(error: BaseException) -> None:
    raise error


def test_a_few_jobs_of_the_pool_run_many_bundles_in_their_order(rig: Rig) -> None:
    gate = rig.occupy()
    names = [f"{number}" for number in range(200)]
    rig.hand_over(*names)
    assert rig.log == []
    gate.set()
    eventually(lambda: len(rig.log) == 202)
    assert rig.pool.jobs == SLOTS
    assert sorted((each for each in rig.log if each in names), key=int) == names


def test_runners_that_left_are_replaced(rig: Rig) -> None:
    for turn in range(1, 51):
        rig.hand_over(f"{turn}")
        eventually(partial(_has, rig.log, turn))
    gate = rig.occupy()  # two at once, still
    gate.set()


def test_no_bundle_is_left_behind_when_runners_leave_just_then(rig: Rig) -> None:
    for turn in range(3_000):
        rig.hand_over(f"{turn}")
    eventually(lambda: len(rig.log) == 3_000)


def test_the_applications_own_tasks_get_their_turn(rig: Rig) -> None:
    gate = rig.occupy()
    rig.hand_over(*(f"{number}" for number in range(100)))
    done = threading.Event()
    rig.pool.apply_async(lambda: rig.log.append("own"), callback=lambda _: done.set())
    gate.set()
    assert done.wait(20)
    eventually(lambda: len(rig.log) == 103)
    # Behind what the runners were at, and one more at most for each.
    assert rig.log.index("own") <= 2 * SLOTS


def test_what_no_runner_has_taken_can_be_withdrawn(rig: Rig) -> None:
    gate = rig.occupy()
    first, second = rig.bundle("first"), rig.bundle("second")
    rig.executor.execute(first)
    rig.executor.execute(second)
    assert rig.executor.withdraw(first)
    assert not rig.executor.withdraw(first)
    gate.set()
    eventually(lambda: "second" in rig.log)
    assert "first" not in rig.log
    assert not rig.executor.withdraw(second)


@pytest.mark.parametrize("error", [ValueError("a defect"), SystemExit(3)], ids=["error", "exit"])
def test_a_bundle_that_fails_is_given_back_and_the_runner_goes_on(rig: Rig, error: BaseException) -> None:
    for number in range(3 * SLOTS):
        rig.executor.execute(rig.bundle(f"bad {number}", lambda: _raise(error)))
    eventually(lambda: len(rig.given_back) == 3 * SLOTS)
    rig.hand_over("good")
    eventually(lambda: rig.log == ["good"])


def test_a_bundle_of_which_nothing_is_left_is_passed_over(rig: Rig) -> None:
    rig.executor.execute(rig.bundle("revoked", lambda: _raise(TaskRevokedError())))
    rig.hand_over("good")
    eventually(lambda: rig.log == ["good"])
    assert rig.given_back == []


def test_what_a_closed_pool_refuses_is_given_back(rig: Rig) -> None:
    rig.pool.executor.shutdown()
    rig.hand_over("a", "b")
    assert rig.given_back == ["a", "b"]
    assert not rig.executor._waiting


def test_a_pool_that_closes_begins_with_nothing_more(rig: Rig) -> None:
    gate = rig.occupy()
    waiting = rig.bundle("a")
    rig.executor.execute(waiting)
    rig.pool.executor.shutdown(wait=False, cancel_futures=True)
    gate.set()
    rig.pool.executor.shutdown(wait=True)
    assert "a" not in rig.log
    assert rig.executor.withdraw(waiting)


def test_a_bundle_that_cannot_even_be_given_back_ends_no_runner(rig: Rig) -> None:
    for number in range(3 * SLOTS):
        bundle = rig.bundle(f"bad {number}", lambda: _raise(ValueError("a defect")))
        bundle.give_back = lambda: _raise(ValueError("another"))
        rig.executor.execute(bundle)
    rig.hand_over("good")
    eventually(lambda: rig.log == ["good"])


def test_where_no_further_thread_can_be_started_the_others_do_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = rig.occupy(1)
    refused = RuntimeError("can't start new thread")
    monkeypatch.setattr(threading.Thread, "start", lambda _: _raise(refused))
    rig.hand_over("a", "b", "c")
    assert rig.given_back == []
    gate.set()
    eventually(lambda: sorted(rig.log) == ["a", "b", "c", "long 0"])
    eventually(lambda: rig.executor._runners == 0)
    assert rig.pool.jobs <= 4 + SLOTS, "one for each bundle, and one for each place"
