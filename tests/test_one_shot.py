from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.request import urlopen

import psutil
import pytest

from batching import BatchState
from batching.cli import up as foreground
from batching.database import Database
from batching.migration import upgrade
from batching.queue_manager import QueueManager
from batching.statistics import Statistics
from tests.support import descendants, eventually, wait_for_exit
from workers.embedded import embedded_urls

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
BATCHING = (sys.executable, "-P", "-m", "batching.cli.main")
TIMEOUT = 60

HANDLERS = """
import os
import time
from pathlib import Path

from batching import SkipProfile, profile_handler


@profile_handler(name="text.upper")
def upper(profile):
    return profile.payload.upper()


@profile_handler(name="text.odd")
def odd(profile):
    if profile.payload == "skip":
        raise SkipProfile("asked to")
    if profile.payload.startswith("bad"):
        raise ValueError("a bad line")
    return len(profile.payload)


@profile_handler(name="text.gated")
def gated(profile):
    with Path("journal").open("a") as journal:
        journal.write(profile.key + "\\n")
    while not Path("gate").exists():
        time.sleep(0.02)
    return profile.key
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's project: a module of handlers, and a file."""
    (tmp_path / "my_handlers.py").write_text(HANDLERS)
    (tmp_path / "words.txt").write_text("".join(f"word {number}\n" for number in range(1, 41)))
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **more}


def batching(folder: Path, *words: str, stdin: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BATCHING, *words],
        cwd=folder,
        env=environment(**more),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@contextmanager
def started(folder: Path, *words: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A command in the background; whatever it started has to be gone in the end."""
    process = subprocess.Popen(
        [*BATCHING, *words],
        cwd=folder,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        family = descendants(process.pid)
        process.kill()
        process.communicate()
        for pid in family:
            wait_for_exit(pid, TIMEOUT)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def journal(folder: Path) -> list[str]:
    path = folder / "journal"
    return path.read_text().splitlines() if path.exists() else []


@contextmanager
def embedded_statistics(folder: Path) -> Iterator[Statistics]:
    database = Database(embedded_urls(folder / ".batching").database_url)
    try:
        yield Statistics(database)
    finally:
        database.close()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (
            ("text.none", "words.txt", "--handlers", "my_handlers"),
            2,
            "there is no handler 'text.none'; this process has",
        ),
        (
            ("text.none", "words.txt", "--handlers", "my_handlers"),
            2,
            "records.verify, text.gated, text.odd, text.upper",
        ),
        (("text.upper", "words.txt", "--handlers", "broken"), 1, "ZeroDivisionError"),
        (("text.upper", "words.txt", "--handlers", "absent"), 1, "No module named 'absent'"),
        (
            ("text.upper", "empty.txt", "--handlers", "my_handlers"),
            2,
            "cannot run empty.txt: there is no profile in it",
        ),
        (("text.upper", "absent.txt", "--handlers", "my_handlers"), 2, "cannot read the file absent.txt"),
        (("text.upper", "words.txt", "--handlers", "my_handlers", "--option", "x=1"), 2, "there is no option 'x'"),
        (("text.upper", "words.txt", "--handlers", "my_handlers", "--out", "no/where"), 2, "cannot write no/where"),
        (("text.upper", "words.txt", "--handlers", "my_handlers", "--errors", "."), 2, "cannot write ."),
    ],
)
def test_run_refuses_what_cannot_work_before_it_writes_anything(
    folder: Path, words: tuple[str, ...], code: int, told: str
) -> None:
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "empty.txt").write_text("\n\n")
    answer = batching(folder, "run", *words)
    assert answer.returncode == code
    assert told in answer.stderr
    assert answer.stderr.count("Traceback") <= 1
    assert not (folder / ".batching").exists()


def test_run_works_off_a_file_on_the_embedded_default_and_writes_its_results(folder: Path) -> None:
    answer = batching(folder, "run", "text.upper", "words.txt", "--handlers", "my_handlers", "--out", "out.jsonl")
    assert answer.returncode == 0, answer.stderr
    assert [line["result"] for line in lines(folder / "out.jsonl")] == [f"WORD {number}" for number in range(1, 41)]
    assert {line["state"] for line in lines(folder / "out.jsonl")} == {"succeeded"}
    assert "40 profiles: 40 succeeded, 0 skipped, 0 failed; pass 1 of 3" in answer.stderr
    assert not (folder / "out.jsonl.part").exists()


def test_run_exits_with_1_when_the_batch_fails_and_writes_the_errors(folder: Path) -> None:
    texts = ["good", "bad one", "skip", "bad two", "fine"]
    (folder / "mixed.txt").write_text("\n".join(texts))
    answer = batching(
        folder, "run", "text.odd", "mixed.txt", "--handlers", "my_handlers", "--out", "out.jsonl",
        "--errors", "errors.jsonl", "--option", "max_attempts=1", "--option", "max_passes=2",
        "--option", "fail_fast=false", "--option", "pass_backoff=0",
    )  # fmt: skip
    assert answer.returncode == 1, answer.stderr
    expected = ["failed" if text.startswith("bad") else "skipped" if text == "skip" else "succeeded" for text in texts]
    assert [line["state"] for line in lines(folder / "out.jsonl")] == expected
    assert [line["key"] for line in lines(folder / "errors.jsonl")] == ["2", "4"]
    assert {line["error"]["type"] for line in lines(folder / "errors.jsonl")} == {"ValueError"}
    assert "2 x ValueError: a bad line (first: 2)" in answer.stderr
    assert "pass 2 of 2" in answer.stderr


def test_run_reads_standard_input_and_writes_standard_output(folder: Path) -> None:
    answer = batching(folder, "run", "text.upper", "-", "--handlers", "my_handlers", "--out", "-", stdin="one\ntwo\n")
    assert answer.returncode == 0, answer.stderr
    # Nothing but results: progress and summary go to standard error.
    found = [json.loads(line)["result"] for line in answer.stdout.splitlines()]
    assert found == ["ONE", "TWO"]


def test_run_refuses_empty_standard_input(folder: Path) -> None:
    answer = batching(folder, "run", "text.upper", "-", "--handlers", "my_handlers", stdin="")
    assert answer.returncode == 2
    assert "there is no profile in it" in answer.stderr


def test_files_of_the_user_cannot_pose_as_ours(folder: Path) -> None:
    for name in ("celery.py", "redis.py", "kombu.py", "billiard.py"):
        (folder / name).write_text("raise RuntimeError('the wrong module')\n")
    for name in ("workers", "batching"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    answer = batching(folder, "run", "text.upper", "words.txt", "--handlers", "my_handlers")
    assert answer.returncode == 0, answer.stderr


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(folder: Path) -> None:
    command = (
        "run", "text.gated", "words.txt", "--handlers", "my_handlers", "--key", "once", "-c", "2", "--out", "out.jsonl",
    )  # fmt: skip
    with started(folder, *command, BATCHING_DRAIN_TIMEOUT="20") as process:
        eventually(lambda: journal(folder), TIMEOUT)
        process.send_signal(signal.SIGINT)
        (folder / "gate").touch()
        family = descendants(process.pid)
        _, told = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 130, told
        assert "is paused: the same command again goes on" in told
        for pid in family:
            wait_for_exit(pid)
    with embedded_statistics(folder) as statistics:
        (view,) = statistics.batches()
        assert view.state in {BatchState.PAUSED, BatchState.STOPPING}
        assert 0 < view.succeeded < 40
        assert view.total == 40
    answer = batching(folder, *command)
    assert answer.returncode == 0, answer.stderr
    assert f"batch {view.id} goes on" in answer.stderr
    # Drained, not killed: what had begun was settled, so that nothing ran twice.
    assert sorted(journal(folder), key=int) == [str(number) for number in range(1, 41)]
    assert len(lines(folder / "out.jsonl")) == 40


def test_nothing_stays_behind_when_run_is_killed(folder: Path) -> None:
    with started(folder, "run", "text.gated", "words.txt", "--handlers", "my_handlers") as process:
        eventually(lambda: journal(folder), TIMEOUT)
        family = descendants(process.pid)
        names = {psutil.Process(pid).name() for pid in family}
        assert any("valkey" in name or "redis" in name for name in names), names
        process.kill()
        (folder / "gate").touch()
        for pid in family:
            wait_for_exit(pid, TIMEOUT)


def test_a_worker_that_does_not_come_up_is_reported_with_the_end_of_its_log(folder: Path) -> None:
    answer = batching(folder, "run", "text.upper", "words.txt", "--handlers", "my_handlers", "--pool", "nonsense")
    assert answer.returncode == 1
    assert "the worker ended with code" in answer.stderr
    assert "nonsense" in answer.stderr


def test_run_does_not_migrate_a_database_that_somebody_configured(folder: Path) -> None:
    url = f"sqlite:///{folder / 'theirs.db'}"
    answer = batching(folder, "run", "text.upper", "words.txt", "--handlers", "my_handlers", BATCHING_DATABASE_URL=url)
    assert answer.returncode == 1
    assert "batching db upgrade" in answer.stderr


def test_run_uses_the_urls_that_are_set(folder: Path, broker_url: str, key_prefix: str) -> None:
    url = f"sqlite:///{folder / 'theirs.db'}"
    store = Database(url)
    upgrade(store)
    answer = batching(
        folder, "--broker", broker_url, "run", "text.upper", "words.txt", "--handlers", "my_handlers",
        BATCHING_DATABASE_URL=url, BATCHING_KEY_PREFIX=key_prefix,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert Statistics(store).batches()[0].succeeded == 40
    store.close()
    assert not (folder / ".batching" / "batching.db").exists()
    assert not (folder / ".batching" / "broker.log").exists()


def exported(process: subprocess.Popen[str]) -> dict[str, str]:
    """What `up` printed for producers."""
    assert process.stdout is not None
    found: dict[str, str] = {}
    while len(found) < 2:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").strip().partition("=")
            found[name] = value.strip("'")
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_up_serves_producers_until_it_is_told_to_stop(folder: Path, number: signal.Signals, code: int) -> None:
    with started(folder, "up", "--handlers", "my_handlers", "-c", "1") as process:
        urls = exported(process)
        database = Database(urls["BATCHING_DATABASE_URL"])
        batch = QueueManager(database, urls["BATCHING_BROKER_URL"]).submit("text.upper", [("a", "x"), ("b", "y")])
        assert batch.wait(TIMEOUT).state is BatchState.SUCCEEDED
        database.close()
        family = descendants(process.pid)
        process.send_signal(number)
        _, told = process.communicate(timeout=TIMEOUT)
        assert process.returncode == code, told
        for pid in family:
            wait_for_exit(pid)


def test_up_shows_the_dashboard(folder: Path) -> None:
    with started(folder, "up", "-c", "1", "--port", "0") as process:
        assert process.stdout is not None
        told = next(line for line in process.stdout if line.startswith("# dashboard: "))
        address = told.removeprefix("# dashboard: ").strip()
        with urlopen(address, timeout=TIMEOUT) as answer:
            assert "<h1" in answer.read().decode()
        family = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, said
        for pid in family:
            wait_for_exit(pid)


def test_up_goes_on_when_the_dashboard_cannot_start(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with started(folder, "up", "--handlers", "my_handlers", "-c", "1", "--port", str(port)) as process:
            urls = exported(process)
            assert process.stderr is not None
            said = "".join(iter_until(process.stderr, f"cannot listen on 127.0.0.1 port {port}"))
            assert "# the dashboard ended with code 2" in said
            database = Database(urls["BATCHING_DATABASE_URL"])
            batch = QueueManager(database, urls["BATCHING_BROKER_URL"]).submit("text.upper", [("a", "x")])
            assert batch.wait(TIMEOUT).state is BatchState.SUCCEEDED
            database.close()


def iter_until(stream: IO[str], words: str) -> Iterator[str]:
    """Its lines, to the first one with these words."""
    for line in stream:
        yield line
        if words in line:
            return
    raise AssertionError(f"nobody said {words!r}")


def test_up_starts_no_dashboard_that_nobody_wants(folder: Path) -> None:
    with started(folder, "up", "-c", "1", "--no-dashboard") as process:
        exported(process)
        eventually((folder / ".batching" / "worker.log").exists, TIMEOUT)
        assert not (folder / ".batching" / "dashboard.log").exists()


def test_the_dashboard_takes_a_free_port_when_the_usual_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(foreground, "_PORT", port)
        assert foreground.usual_or_free() == 0
    assert foreground.usual_or_free() == port


def test_run_shares_the_server_of_up(folder: Path) -> None:
    with started(folder, "up", "-c", "1") as process:
        exported(process)
        answer = batching(folder, "run", "text.upper", "words.txt", "--handlers", "my_handlers", "-c", "1")
        assert answer.returncode == 0, answer.stderr
        assert process.poll() is None


def test_worker_becomes_celery_with_our_options_and_celerys(folder: Path, broker_url: str) -> None:
    answer = batching(folder, "worker", "--help")
    assert answer.returncode == 0
    assert "--max-tasks-per-child" in answer.stdout
    url = f"sqlite:///{folder / 'theirs.db'}"
    store = Database(url)
    upgrade(store)
    words = ("--database", url, "--broker", broker_url, "worker", "-c", "3", "-P", "threads")
    with started(folder, *words, "--handlers", "my_handlers") as process:
        (view,) = eventually(lambda: Statistics(store).workers(), TIMEOUT)
        # exec, not a child: a service manager's signal reaches the worker itself.
        assert view.pid == process.pid
        assert (view.pool, view.slots) == ("threads", 3)
        assert "text.upper" in view.handlers
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT)
        assert Statistics(store).workers() == []
    store.close()


def test_manager_runs_on_its_own(folder: Path, broker_url: str) -> None:
    url = f"sqlite:///{folder / 'theirs.db'}"
    store = Database(url)
    upgrade(store)
    batch = QueueManager(store).submit("text.upper", [("a", "x")])
    with started(folder, "--database", url, "--broker", broker_url, "manager") as process:
        eventually(lambda: batch.progress().state is BatchState.RUNNING, TIMEOUT)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT)
    store.close()
