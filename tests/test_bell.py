"""The worker's bell: on a slow line it leaves the loop alone most of the time, and what is to be told waits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from batching.errors import BrokerUnavailableError
from batching.live import PAUSE
from workers.bell import Bell

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.loops import Loop
    from workers.publisher import RedisPublisher


@dataclass
class Line:
    """A broker on a line of a given slowness, the clock, and the loop's timers."""

    slowness: float = 0.0
    now: float = 1_000.0
    dry: bool = True
    away: bool = False
    sent: list[str] = field(default_factory=list)
    began: list[float] = field(default_factory=list)
    """When each of them was sent."""
    planned: list[tuple[float, Callable[[], object]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bell = Bell(cast("Loop", self), cast("RedisPublisher", self), "p:", lambda: self.dry)

    def hint(self, *news: tuple[str, ...]) -> None:
        self._send("hint with news" if news else "hint")

    def tell(self, *news: tuple[str, ...]) -> None:
        self._send("news")

    def _send(self, what: str) -> None:
        self.began.append(self.now)
        self.now += self.slowness
        if self.away:
            raise BrokerUnavailableError("away")
        self.sent.append(what)

    def call_later(self, delay: float, function: Callable[[], object]) -> None:
        self.planned.append((self.now + delay, function))

    def ring_for(self, seconds: float) -> None:
        """Ring again and again, as a busy worker does."""
        until = self.now + seconds
        while self.now < until:
            self.bell.ring()
            self.now += 0.001


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    found = Line()
    monkeypatch.setattr("workers.bell.monotonic", lambda: found.now)
    return found


def test_on_a_good_line_it_rings_at_most_once_a_pause(line: Line) -> None:
    line.ring_for(1.0)
    assert 40 <= len(line.sent) <= 51


def test_on_a_slow_line_it_takes_a_fifth_of_the_time(line: Line) -> None:
    line.slowness = 0.4
    line.ring_for(20.0)
    assert len(line.sent) == 10


def test_lanes_that_are_not_dry_need_no_ring(line: Line) -> None:
    line.dry = False
    line.ring_for(1.0)
    assert line.sent == []


def test_news_waits_for_the_rest_to_end_and_is_told_then(line: Line) -> None:
    line.slowness = 0.4
    line.bell.settled(["a"])
    line.bell.settled(["b"])
    assert line.sent == ["hint with news"]
    assert len(line.planned) == 1
    line.dry = False
    for _ in range(10):
        due, ring = line.planned[-1]
        line.now = max(line.now, due)
        ring()
    assert line.sent == ["hint with news", "news"]
    assert line.began[1] - line.began[0] >= 0.4 + 4 * 0.4
    assert not line.bell.news


def test_no_rest_is_longer_than_after_a_failure(line: Line) -> None:
    line.slowness = 4.0
    line.bell.ring()
    line.slowness = 0.0
    line.ring_for(4.9)
    assert line.sent == ["hint"]
    line.ring_for(0.2)
    assert len(line.sent) > 1


def test_a_broker_that_is_away_is_left_alone_for_seconds(line: Line) -> None:
    line.away = True
    line.bell.settled(["a"])
    line.away = False
    line.ring_for(4.9)
    assert line.sent == []
    line.ring_for(PAUSE)
    assert line.sent
