"""`batching top`: what it shows, on which screens; and `watch` of several batches."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from batching.cli.screen import draw
from batching.cli.top import take
from batching.interfaces import Ending, ErrorInfo, Outcome
from tests.command_line import document
from tests.test_cli_reading import submit
from tests.test_statistics import FAILURE, OTHER_FAILURE, SUCCESS, Line

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from batching.cli.top import Snapshot
    from batching.database import Database
    from batching.queue_manager import QueueManager


@pytest.fixture
def line(database: Database) -> Line:
    """A running batch with failures, one in line with a name that wants to steer, and a worker at work."""
    found = Line(database)
    found.start_worker()
    batch_id = found.submit(40, failure_budget=30)
    found.promote()
    found.work(batch_id, 5, lambda number: FAILURE if number % 2 else OTHER_FAILURE)
    found.work(batch_id, 10, lambda _: SUCCESS)
    found.claim(batch_id, 3)
    found.measure(batch_id, 12.5)
    found.submit(7, queue="night")
    return found


def drawn(snapshot: Snapshot, width: int, height: int | None) -> list[str]:
    console = Console(width=width, height=height or 100, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(draw(snapshot, width, height))
    return capture.get().splitlines()


def test_a_screen_shows_queues_batches_workers_and_failures(line: Line) -> None:
    text = "\n".join(drawn(take(line.statistics), 120, 40))
    for word in (
        "led",
        "default",
        "night",
        "batch of 40",
        "batch of 7",
        "37%",
        "12/s",
        line.worker[:8],
        "3/4",
        "3 batch of 40",
    ):
        assert word in text, (word, text)
    assert "ValueError: bad row" in text
    assert "KeyError" in text


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 12), (40, 10), (200, 60), (20, 5)])
def test_it_fits_whatever_the_screen(line: Line, width: int, height: int) -> None:
    snapshot = take(line.statistics)
    crowded = replace(
        snapshot, batches=snapshot.batches * 30, workers=snapshot.workers * 30, failures=snapshot.failures * 30
    )
    for each in (snapshot, crowded, replace(snapshot, queues=[], batches=[], workers=[], failures=[])):
        lines = drawn(each, width, height)
        assert len(lines) <= height, "\n".join(lines)
        assert max(len(text) for text in lines) <= width
    if height >= 24:
        assert "more)" in "\n".join(drawn(crowded, width, height))


def test_nothing_that_a_batch_carries_steers_the_terminal(line: Line) -> None:
    batch_id = line.submit(2, queue="odd", failure_budget=5)
    line.promote("odd")
    odd = Outcome(Ending.FAILED, error=ErrorInfo("ValueError", "odd \x1b[31m\x07\n text", "0" * 16))
    line.work(batch_id, 1, lambda _: odd)
    text = "\n".join(drawn(take(line.statistics), 120, 30))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "odd " in text


def test_scripts_get_everything_once(run: Callable[..., Result], line: Line) -> None:
    told = document(run("top", "--json"))
    assert told["led"]
    assert {each["name"] for each in told["queues"]} == {"default", "night"}
    assert [each["running"] for each in told["batches"] if each["state"] == "running"] == [3]
    assert told["workers"][0]["runs"][0]["running"] == 3
    assert {each["fingerprint"] for each in told["failures"]} == {"f" * 16, "a" * 16}
    assert [each["name"] for each in document(run("top", "--json", "--queue", "night"))["queues"]] == ["night"]
    # Without a terminal it prints one picture, however long, and ends
    for words in (["top"], ["top", "--once"]):
        result = run(*words)
        assert result.exit_code == 0
        assert "batch of 40" in result.output
    del line


class Terminal:
    """A verb on a terminal of its own."""

    def __init__(self, *words: str, width: int = 80, height: int = 24) -> None:
        self._main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.before = termios.tcgetattr(other)
        self._other = other
        environment = {**os.environ, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "batching.cli.main", *words],
            stdin=other, stdout=other, stderr=other, env=environment, start_new_session=True,
        )  # fmt: skip
        self.text = ""

    def read_until(self, word: str, seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        while word not in self.text:
            assert time.monotonic() < until, self.text[-2000:]
            assert self.process.poll() is None, self.text[-2000:]
            if select.select([self._main], [], [], 0.2)[0]:
                self.text += os.read(self._main, 65_536).decode("utf-8", "replace")

    def press(self, key: str) -> None:
        os.write(self._main, key.encode())

    def end(self) -> int:
        """Read what is left, so that it can end."""
        until = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < until:
            if select.select([self._main], [], [], 0.1)[0]:
                self.text += os.read(self._main, 65_536).decode("utf-8", "replace")
        code = self.process.wait(1)
        self.after = termios.tcgetattr(self._other)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        os.close(self._main)
        os.close(self._other)


@pytest.mark.parametrize(("way", "code"), [("q", 0), ("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.usefixtures("manager")
def test_it_is_live_on_a_terminal_and_leaves_it_as_it_was(line: Line, way: str, code: int) -> None:
    terminal = Terminal("top", "--interval", "0.2")
    try:
        terminal.read_until("batch of 40")
        line.submit(3, queue="later")
        terminal.read_until("later")
        if way == "q":
            terminal.press("q")
        else:
            terminal.process.send_signal(signal.Signals[way])
        assert terminal.end() == code
        assert "\x1b[?1049l" in terminal.text, "the screen that was there before is back"
        assert terminal.after == terminal.before
        assert "Traceback" not in terminal.text
    finally:
        terminal.close()


# --- watch


def test_watch_follows_several_and_tells_how_the_worst_ended(
    run: Callable[..., Result],
    line: Line,
) -> None:
    good, bad = line.submit(2, queue="a"), line.submit(2, queue="b", max_passes=1)
    for batch_id, queue, outcome in ((good, "a", SUCCESS), (bad, "b", FAILURE)):
        line.promote(queue)
        line.work(batch_id, 2, lambda _, outcome=outcome: outcome)  # type: ignore[misc] # bound early, as it must be
        line.states.conclude([batch_id])
    assert run("watch", good).exit_code == 0
    result = run("watch", good, bad, good, "--json")
    assert result.exit_code == 1
    documents: list[dict[str, Any]] = [json.loads(text) for text in result.output.splitlines()]
    assert [(each["id"], each["state"]) for each in documents] == [(good, "succeeded"), (bad, "failed")]
    for wrong in (["watch"], ["watch", good, "--all"]):
        assert run(*wrong).exit_code == 2


def test_watch_all_ends_when_nothing_runs_or_waits(run: Callable[..., Result], manager: QueueManager) -> None:
    assert run("watch", "--all").exit_code == 0
    batch = submit(manager, count=1, name="one of all")
    manager.pause(batch.id)
    assert run("watch", "--all").exit_code == 0, "what a person has put aside is not waited for"
    manager.resume(batch.id)
    terminal = Terminal("watch", "--all", "--interval", "0.1")
    try:
        terminal.read_until("one of all")
        manager.cancel(batch.id)
        assert terminal.end() == 1
    finally:
        terminal.close()
