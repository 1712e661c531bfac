"""Fault points: what is armed happens there and then, and what is not armed costs nothing."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from batching import faults
from batching.database import Database
from batching.errors import BrokerUnavailableError, ConfigurationError, DatabaseUnavailableError
from batching.models import queues
from batching.moves import promotion
from batching.states import BatchState
from tests.accounting import HANDLER, Desk, assert_accounted
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.disarm()


def reached() -> set[str]:
    """The points that the sources name."""
    names = set()
    for folder in ("batching", "workers"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "faults.reach":
                    names.add(ast.literal_eval(node.args[0]))
    return names


def test_every_point_is_described_and_stands_somewhere() -> None:
    assert reached() == set(faults.POINTS)


def test_an_unarmed_point_counts_nothing() -> None:
    faults.reach("claim.committed")
    assert not faults._reached
    assert not faults._armed


def test_the_nth_time_and_no_other() -> None:
    faults.arm("conclude", "raise", at=2)
    faults.reach("conclude")
    with pytest.raises(DatabaseUnavailableError):
        faults.reach("conclude")
    faults.reach("conclude")
    faults.reach("lost.taken")


def test_every_point_at_each_time() -> None:
    seen: list[str] = []
    faults.arm(faults.EVERY, seen.append, at=None)
    for point in ("conclude", "lost.taken", "conclude"):
        faults.reach(point)
    assert seen == ["conclude", "lost.taken", "conclude"]


def test_the_error_is_what_the_surroundings_would_meet() -> None:
    assert isinstance(faults.error_at("publish.part"), BrokerUnavailableError)
    assert isinstance(faults.error_at("settle.committed"), DatabaseUnavailableError)


def test_a_commit_that_fails_undoes_and_one_without_an_answer_does_not(database: Database) -> None:
    for point, left in (("commit.before", []), ("commit.after", ["kept"])):
        faults.arm(point, "raise")
        with pytest.raises(DatabaseUnavailableError, match="connection is lost"), database.begin() as connection:
            connection.execute(queues.insert().values(name="kept"))
        with database.read() as reading:
            assert list(reading.scalars(queues.select().with_only_columns(queues.c.name))) == left


def test_the_short_way_meets_the_same_faults(postgresql_url: str) -> None:
    store = Database(postgresql_url)
    desk = Desk(store)
    plan = promotion.Plan(None, {HANDLER: 10}, 10)
    batch_id = desk.submit(2)
    assert desk.term
    for point, state in (("commit.before", BatchState.QUEUED), ("commit.after", BatchState.RUNNING)):
        faults.arm(point, "raise")
        with pytest.raises(DatabaseUnavailableError, match="connection is lost"):
            desk.states.start("default", desk.term, plan)
        faults.disarm()
        assert desk.state(batch_id) is state
    assert assert_accounted(store, batch_id).dispatched == 2
    store.close()


@pytest.mark.parametrize(
    "plan", ["nowhere=crash", "conclude=explode", "conclude", "conclude=crash@0", "conclude=crash@x"]
)
def test_a_plan_that_cannot_be_followed_is_refused(plan: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot"):
        faults.arm_all(plan)


def start(plan: str, log: Path) -> subprocess.Popen[Any]:
    program = "from batching import faults\nfor _ in range(3): faults.reach('conclude')"
    environment = {**os.environ, "BATCHING_FAULTS": plan, "BATCHING_FAULT_LOG": str(log)}
    return subprocess.Popen([sys.executable, "-c", program], env=environment, cwd=ROOT, stderr=subprocess.PIPE)


def test_a_process_is_armed_by_its_environment_and_dies_as_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with start("lost.taken=raise, conclude=crash@2", log) as process:
        assert process.wait(20) == -signal.SIGKILL
        assert log.read_text(encoding="utf-8") == f"conclude 2 {process.pid}\n"


def test_a_hanging_process_is_frozen_until_it_is_continued(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with start("conclude=hang,*=note", log) as process:
        eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        process.send_signal(signal.SIGCONT)
        assert process.wait(20) == 0
    assert log.read_text(encoding="utf-8").count("conclude 1 ") == 1
