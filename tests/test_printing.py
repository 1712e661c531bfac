"""What handlers print is bounded for each run, however it is printed and whatever the handler does about it."""

# ruff: noqa: T201 - printing is what it is about

from __future__ import annotations

import contextlib
import copy
import io
import sys
from typing import TYPE_CHECKING, Any

import pytest
from celery.signals import task_failure

from batching import RetryProfile, SkipProfile
from batching.interfaces import Ending
from tests.test_install import POOLS, site  # noqa: F401 - a fixture
from tests.test_tracing import an_assignment, app, bound  # noqa: F401 - a fixture
from workers.printing import Metered, meter, unmeter
from workers.tracing import LINE, outcome_of, trace_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery

    from batching import Profile
    from batching.interfaces import Outcome
    from tests.test_install import Site

LIMIT = 1_000
TOO_LARGE = "batching.errors.OutputTooLargeError"


class Streams:
    """In the place of this process's."""

    def __init__(self) -> None:
        self.out = io.StringIO()
        self.err = io.StringIO()

    @property
    def size(self) -> int:
        """Characters that were written."""
        return len(self.out.getvalue()) + len(self.err.getvalue())


@contextlib.contextmanager
def metered() -> Iterator[Streams]:
    """What is printed inside goes here, under the limit. No fixture: pytest puts its own streams back before a test."""
    streams = Streams()
    with contextlib.redirect_stdout(streams.out), contextlib.redirect_stderr(streams.err):
        meter(LIMIT)
        try:
            yield streams
        finally:
            unmeter()
        assert (sys.stdout, sys.stderr) == (streams.out, streams.err)


def run(app: Celery, function: Callable[[Profile], Any]) -> Outcome:  # noqa: F811 - no fixture here
    return outcome_of(trace_run(an_assignment(bound(app, function), None)))


def _exactly_the_limit(profile: Profile) -> str:
    print("x" * (499 - LINE))
    print("x" * (499 - LINE), file=sys.stderr)
    return "said"


def _one_more(profile: Profile) -> str:
    _exactly_the_limit(profile)
    print("x", end="")
    return "never"


def _in_lines(profile: Profile) -> None:
    sys.stdout.writelines(["x" * 99 + "\n"] * 11)


def _in_spite_of_it(profile: Profile) -> str:
    for _ in range(100):
        with contextlib.suppress(Exception):
            print("x" * 99)
    return "a result all the same"


def _in_many_lines(profile: Profile) -> None:
    for _ in range(10):
        print("x")


def _and_skips(profile: Profile) -> None:
    _in_spite_of_it(profile)
    raise SkipProfile("it had too much to say")


def _and_asks_for_a_retry(profile: Profile) -> None:
    _in_spite_of_it(profile)
    raise RetryProfile(1.0, "it had too much to say")


async def _awaited(profile: Profile) -> None:
    print("x" * LIMIT)


def _to_itself(profile: Profile) -> int:
    with contextlib.redirect_stdout(io.StringIO()) as mine:
        print("x" * 10 * LIMIT)
    return len(mine.getvalue())


def test_a_run_may_print_up_to_the_limit_and_the_next_one_again(app: Celery) -> None:  # noqa: F811 - the fixture
    with metered() as streams:
        assert [run(app, _exactly_the_limit).result for _ in range(3)] == ['"said"'] * 3
    assert streams.size == 3 * (LIMIT - 2 * LINE)


@pytest.mark.parametrize(
    "function", [_one_more, _in_lines, _in_many_lines, _in_spite_of_it, _and_skips, _and_asks_for_a_retry, _awaited]
)
def test_beyond_it_the_profile_fails_and_nothing_is_written(app: Celery, function: Callable[[Profile], Any]) -> None:  # noqa: F811
    with metered() as streams:
        outcome = run(app, function)
    assert (outcome.ending, outcome.result) == (Ending.FAILED, None)
    assert outcome.error is not None
    assert outcome.error.type == TOO_LARGE
    assert "printed over 1,000 characters" in outcome.error.message
    assert "BATCHING_OUTPUT_LIMIT" in outcome.error.message
    assert streams.size <= LIMIT


def test_what_goes_elsewhere_or_belongs_to_no_run_is_not_counted(app: Celery) -> None:  # noqa: F811 - the fixture
    with metered() as streams:
        assert run(app, _to_itself).result == str(10 * LIMIT + 1)
        print("x" * 10 * LIMIT)
        assert run(app, _exactly_the_limit).result == '"said"'
    assert streams.size == 11 * LIMIT - 2 * LINE + 1


def test_what_is_printed_once_the_run_has_ended_is_not_its_own(app: Celery) -> None:  # noqa: F811 - the fixture
    def listen(**_: Any) -> None:
        print("x" * LIMIT)

    task_failure.connect(listen)
    try:
        with metered() as streams:
            assert run(app, _one_more).ending is Ending.FAILED
    finally:
        task_failure.disconnect(listen)
    assert streams.size > LIMIT


def test_a_metered_stream_can_be_copied_and_takes_what_its_own_takes() -> None:
    with metered() as streams:
        assert copy.copy(sys.stdout).write("a") == 1
        with pytest.raises(TypeError, match="string argument expected"):
            sys.stdout.write(None)  # type: ignore[arg-type]
    assert streams.out.getvalue() == "a"


def test_a_stream_is_metered_once_and_somebody_elses_is_left_alone() -> None:
    with metered() as streams:
        meter(LIMIT)
        now: Any = sys.stdout
        assert isinstance(now, Metered)
        assert now.stream is streams.out
        assert now.getvalue() == ""
        with contextlib.redirect_stdout(io.StringIO()) as another:
            unmeter()
            now = sys.stdout
            assert now is another


@pytest.mark.parametrize("pool", POOLS)
def test_in_every_pool(site: Site, pool: str) -> None:  # noqa: F811 - the fixture
    worker = site.worker(*POOLS[pool], BATCHING_OUTPUT_LIMIT="5000")
    most = 5_000 - LINE - 1
    batch = site.submit("tests.print", [100, most, most + 1, 100_000, 100])
    assert batch.wait(60).succeeded == 3
    assert [line.result for line in batch.results()] == [100, most, None, None, 100]
    assert [line.error["type"] for line in batch.results() if line.error] == [TOO_LARGE] * 2
    assert worker.status == "running"
