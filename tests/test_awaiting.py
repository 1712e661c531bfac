"""Coroutine functions as handlers."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest

from batching.errors import ConfigurationError
from batching.handlers import Handler
from tests.test_install import ONCE, site  # noqa: F401 - a fixture
from workers.awaiting import awaited, is_awaited
from workers.tasks import check_pool

if TYPE_CHECKING:
    from batching import Profile
    from tests.test_install import Site

SOFT_LIMIT = "billiard.exceptions.SoftTimeLimitExceeded"
PROFILE = cast("Profile", None)
current: contextvars.ContextVar[str] = contextvars.ContextVar("current", default="nobody's")


async def the_loop(profile: Profile) -> asyncio.AbstractEventLoop:
    del profile
    return asyncio.get_running_loop()


class Callable:
    async def __call__(self, profile: Profile) -> str:
        del profile
        return "called"


def test_a_coroutine_function_is_told_from_a_plain_one() -> None:
    assert is_awaited(the_loop)
    assert is_awaited(Callable())
    assert not is_awaited(len)
    assert awaited(Callable().__call__)(PROFILE) == "called"


def test_a_thread_keeps_its_loop_and_shares_it_with_nobody() -> None:
    run, others = awaited(the_loop), []
    first = run(PROFILE)

    def work() -> None:
        others.append(run(PROFILE))
        others.append(run(PROFILE))
        others[0].close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert run(PROFILE) is first
    assert others[0] is others[1]
    assert others[0] is not first


def test_an_exception_is_the_handlers_and_the_loop_stays() -> None:
    async def fails(profile: Profile) -> None:
        raise ValueError("mine")

    before = awaited(the_loop)(PROFILE)
    with pytest.raises(ValueError, match="mine"):
        awaited(fails)(PROFILE)
    assert awaited(the_loop)(PROFILE) is before


def test_what_a_run_leaves_behind_is_cancelled() -> None:
    ended = []

    async def leaves(profile: Profile) -> None:
        async def linger() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("cancelled")

        task = asyncio.create_task(linger())
        await asyncio.sleep(0)
        assert not task.done()

    before = awaited(the_loop)(PROFILE)
    awaited(leaves)(PROFILE)
    assert ended == ["cancelled"]
    assert awaited(the_loop)(PROFILE) is not before


def test_each_run_sees_the_context_that_it_was_called_in() -> None:
    async def asks(profile: Profile) -> str:
        return current.get()

    def call(name: str) -> Any:
        current.set(name)
        return awaited(asks)(PROFILE)

    assert [contextvars.copy_context().run(call, name) for name in ("first", "second")] == ["first", "second"]


def test_greenlets_cannot_have_an_event_loop_each() -> None:
    handlers = [Handler("tests.async", the_loop)]
    with pytest.raises(ConfigurationError, match=r"cannot serve handler tests.async in the gevent pool"):
        check_pool(handlers, "gevent")
    for pool in ("prefork", "threads", "solo"):
        check_pool(handlers, pool)


def test_a_worker_awaits_handlers_in_one_loop_and_a_time_limit_ends_them(site: Site) -> None:  # noqa: F811 - the fixture
    site.worker(BATCHING_HANDLERS="tests.awaiting_handlers")
    long = site.manager.submit("tests.awaits_long", ["long"], options=ONCE)
    quick = site.manager.submit("tests.awaits", [("raises", "raise"), *("abcdefgh")], options=ONCE)
    assert long.wait(60).failed == 1
    assert [line.error["type"] for line in long.results() if line.error] == [SOFT_LIMIT]
    assert quick.wait(60).succeeded == 8
    assert [line.error["message"] for line in quick.results() if line.error] == ["raised in a coroutine"]
    assert {line.result["loops"] for line in quick.results() if line.result} == {1}
    # The child whose loop a time limit broke off goes on with another
    again = site.manager.submit("tests.awaits", list("abcdefgh"), options=ONCE)
    assert again.wait(60).succeeded == 8
