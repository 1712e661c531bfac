"""Events of very short runs: none is left out, and a burst is told at a pace that those who watch can follow."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest

from workers import events
from workers.events import Pace
from workers.loops import Loop


@dataclass
class Dispatcher:
    """What `events.send` uses of Celery's dispatcher."""

    enabled: bool = True
    groups: frozenset[str] = frozenset()
    buffer_group: frozenset[str] = frozenset({"task"})
    hostname: str = "w@host"
    pid: int = 1
    sent: list[dict[str, Any]] = field(default_factory=list)
    on_send_buffered: Any = None

    def __post_init__(self) -> None:
        self.clock = self
        self._group_buffer: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def forward(self) -> int:
        return 7

    def flush(self, *, errors: bool) -> None:
        assert not errors

    @property
    def ids(self) -> list[str]:
        return [event["uuid"] for event in self._group_buffer["task"]]


@dataclass
class Rig:
    loop: Loop = field(default_factory=Loop)
    watcher: Dispatcher = field(default_factory=Dispatcher)
    busy: bool = True

    def __post_init__(self) -> None:
        self.pace = Pace(self.loop, lambda: self.busy)

    def keep(self, count: int, start: int = 0) -> None:
        self.pace.keep(self.watcher, [{"type": "task-succeeded", "uuid": str(n)} for n in range(start, start + count)])

    def turn(self) -> None:
        """Until the next group was sent, if any waits."""
        before = len(self.pace)
        while len(self.pace) == before and before:
            self.loop.run_once(1.0)


@pytest.fixture
def rig() -> Any:
    made = Rig()
    yield made
    made.loop.close()


def test_a_burst_is_told_in_groups_while_there_is_more_to_run(rig: Rig) -> None:
    rig.keep(450)
    sizes = []
    while len(rig.pace):
        rig.turn()
        sizes.append(len(rig.watcher.ids))
    assert sizes == [100, 200, 300, 400, 450]
    assert rig.watcher.ids == [str(n) for n in range(450)]


def test_all_is_told_at_once_when_nothing_else_is_to_do(rig: Rig) -> None:
    rig.busy = False
    rig.keep(3_000)
    rig.turn()
    assert len(rig.watcher.ids) == 3_000


def test_no_more_than_so_many_wait(rig: Rig) -> None:
    rig.keep(events._MOST + 1_000)
    rig.turn()
    assert len(rig.pace) == events._MOST


def test_an_event_says_when_its_run_was_over(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.events.time.time", lambda: 1_000.0)
    rig.keep(1)
    monkeypatch.setattr("workers.events.time.time", lambda: 2_000.0)
    rig.turn()
    (event,) = rig.watcher._group_buffer["task"]
    assert event["timestamp"] == 1_000.0
    assert event["hostname"] == "w@host"


def test_the_end_of_the_worker_tells_what_waits(rig: Rig) -> None:
    rig.keep(5_000)
    rig.pace.hurry()
    assert len(rig.watcher.ids) == 5_000
    assert len(rig.pace) == 0


def test_nobody_is_told_who_stopped_listening(rig: Rig) -> None:
    rig.keep(10)
    rig.watcher.enabled = False
    rig.turn()
    assert rig.watcher.ids == []
    assert len(rig.pace) == 0
