"""How many messages of a lane are in the broker: what the leader measures, and how quickly a window grows."""

from __future__ import annotations

import math

import pytest

from batching.policies import WINDOW_TIME
from batching.windows import LaneWindow, RateMeter


class Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def test_the_rate_rises_at_once_and_decays() -> None:
    clock = Clock()
    meter = RateMeter(clock)
    clock.at += 1
    assert meter.add(50) == pytest.approx(50)
    clock.at += 2
    assert meter.add(0) == pytest.approx(50 / 2.71828, rel=1e-3)
    assert RateMeter(clock).add(6) == pytest.approx(6 / WINDOW_TIME), "of a burst, no more than what there was of it"


def test_bursts_within_a_moment_are_one_measurement() -> None:
    clock = Clock()
    meter = RateMeter(clock)
    for _ in range(5):
        clock.at += 0.05
        meter.add(60)
    assert meter.rate == pytest.approx(300 / WINDOW_TIME)
    clock.at += 0.05
    assert 300 / 0.3 < meter.add(0) < 300 / WINDOW_TIME


def test_workers_who_take_everything_again_and_again_get_more_than_was_measured() -> None:
    clock = Clock()
    window = LaneWindow(clock=clock)
    sizes = []
    for _ in range(6):
        window.look(0)
        sizes.append(free := window.free(2))
        window.sent(free)
        clock.at += 0.02
    assert sizes == [4, 4, 16, 64, 256, 1_024]


def test_idle_workers_who_take_what_their_slots_hold_get_no_more_than_that() -> None:
    window = LaneWindow(clock=Clock())
    window.look(0)
    window.sent(window.free(2))
    window.look(0)  # claimed, and they are long at it
    window.sent(window.free(2))
    assert window.size(2) == 4  # as the rate has it
    window.look(4)
    assert window.free(2) == 0


def test_it_says_how_long_it_lasts() -> None:
    clock = Clock()
    window = LaneWindow(clock=clock)
    assert window.lasts() < 0.1  # nothing is known yet
    clock.at += 2
    assert window.lasts() == math.inf
    window.sent(1_000)
    clock.at += 1
    window.look(500)
    assert window.lasts() == pytest.approx(3.0)


def test_a_fixed_size_stays() -> None:
    window = LaneWindow(7, Clock())
    for _ in range(4):
        window.look(0)
        assert window.free(100) == 7
        window.sent(7)
