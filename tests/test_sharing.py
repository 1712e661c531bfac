"""The more threads there are, the shorter are their turns with the interpreter."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from workers.sharing import share_interpreter

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize(("threads", "seconds"), [(1, 0.005), (10, 0.005), (100, 0.0005), (10_000, 0.0002)])
def test_a_round_of_all_threads_is_short(threads: int, seconds: float) -> None:
    sys.setswitchinterval(0.005)
    share_interpreter(threads)
    assert sys.getswitchinterval() == pytest.approx(seconds)


def test_shorter_turns_than_that_are_left_alone() -> None:
    sys.setswitchinterval(0.001)
    share_interpreter(20)
    assert sys.getswitchinterval() == pytest.approx(0.001)
