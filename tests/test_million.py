"""A batch of a million profiles is paused, resumed, cancelled and retried, each in under a second."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from batching.queue_manager import QueueManager
from batching.states import BatchState
from tests.accounting import read_counts
from tests.test_performance_guard import MILLION, large  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.accounting import Desk

_Result = TypeVar("_Result")

#: Seconds.
AT_MOST = 1.0


def timed(name: str, verb: Callable[[], _Result], taken: dict[str, float]) -> _Result:
    began = time.perf_counter()
    result = verb()
    taken[name] = time.perf_counter() - began
    return result


def test_verbs_on_a_million_profiles_act_within_a_second(
    large: tuple[Desk, str],  # noqa: F811 - the fixture
) -> None:
    desk, batch_id = large
    manager = QueueManager(desk.database)
    taken: dict[str, float] = {}
    running, waiting = desk.claim(batch_id, 200), desk.dispatch(batch_id, 300)

    # Paused: from this commit on nothing more is claimed, and what was dispatched is pending again.
    assert timed("pause", lambda: manager.pause(batch_id), taken) is BatchState.STOPPING
    counts = read_counts(desk.database, batch_id)
    assert (counts.pending, counts.dispatched, counts.running) == (MILLION - 200, 0, 200)
    assert desk.states.claim(desk.worker, waiting).claimed == []
    desk.settle(running)
    timed("reach the pause", lambda: desk.states.conclude([batch_id]), taken)
    assert desk.state(batch_id) is BatchState.PAUSED

    # Resumed: it runs again, and its profiles are dispatched.
    def resume() -> int:
        assert manager.resume(batch_id) is BatchState.QUEUED
        desk.rewrite(batch_id)
        assert desk.states.promote("default", desk.term) == batch_id
        return len(desk.dispatch(batch_id, 500))

    assert timed("resume, and run", resume, taken) == 500

    # Cancelled: all that wait are cancelled at once, whatever stands in their rows.
    assert timed("cancel", lambda: manager.cancel(batch_id), taken) is BatchState.CANCELLED
    counts = read_counts(desk.database, batch_id)
    assert (counts.pending, counts.dispatched, counts.cancelled, counts.succeeded) == (0, 0, MILLION - 200, 200)
    assert timed("one step of writing that down", lambda: desk.states.rewrite(batch_id), taken) is True

    assert timed("show", lambda: manager.get(batch_id).progress().cancelled, taken) == MILLION - 200
    assert timed("retry", lambda: manager.retry(batch_id), taken) == 2
    assert read_counts(desk.database, batch_id).pending == MILLION - 200
    print({name: f"{seconds:.3f} s" for name, seconds in taken.items()})  # noqa: T201 - shown by pytest -s
    assert {name: seconds for name, seconds in taken.items() if seconds >= AT_MOST} == {}
