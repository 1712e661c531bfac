"""The leader dies or is frozen: another one leads, and what the old one still tries to write does not apply."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from batching.database import Database
from tests.support import eventually, wait_for_exit

if TYPE_CHECKING:
    import psutil

    from tests.acceptance.stage import Stage

WORK = {f"p{number}": {"seconds": 0.02} for number in range(200)}


def _led(stage: Stage) -> tuple[str, psutil.Process]:
    """Who leads: its id, and its process, while there is one manager only."""
    eventually(lambda: stage.leader()[0] is not None)
    managers = list(stage.managers().values())
    assert len(managers) == 1, managers
    return str(stage.leader()[0]), managers[0]


def test_the_leader_dies(stage: Stage) -> None:
    # Given a worker whose manager leads, another that stands by, and a batch in mid-run
    stage.worker()
    holder, process = _led(stage)
    stage.worker()
    batch = stage.submit("work", WORK)
    eventually(lambda: batch.progress().settled >= 20, 30)
    # When the leader is killed
    os.kill(process.pid, signal.SIGKILL)
    killed_at = time.monotonic()
    wait_for_exit(process.pid)
    # Then another one leads within the lease, and the batch goes on as if nothing had happened
    eventually(lambda: stage.leader()[0] not in {None, holder})
    print(f"another one led {time.monotonic() - killed_at:.1f} s after the leader was killed")  # noqa: T201
    assert time.monotonic() - killed_at < 4
    assert stage.finished(batch).succeeded == 200
    assert stage.endings(batch) == {}
    # And the worker has a manager again
    eventually(lambda: len(stage.managers()) == 2)
    stage.judge(batch)


def test_the_leader_is_frozen(stage: Stage) -> None:
    # Given a leader, one that stands by, and a batch in mid-run
    stage.worker()
    holder, process = _led(stage)
    stage.worker()
    batch = stage.submit("work", WORK)
    eventually(lambda: batch.progress().settled >= 20, 30)
    # When the leader is frozen beyond its lease
    _freeze_between_transactions(stage, process)
    frozen_at = time.monotonic()
    eventually(lambda: stage.leader()[0] not in {None, holder})
    print(f"another one led {time.monotonic() - frozen_at:.1f} s after the leader was frozen")  # noqa: T201
    successor = stage.leader()
    process.resume()
    # Then it notices, and stands by; the successor leads to the end, and the totals are right
    eventually(lambda: "leadership is lost" in stage.report())
    assert stage.finished(batch).succeeded == 200
    assert stage.leader() == successor
    assert stage.endings(batch) == {}
    stage.judge(batch)


def _freeze_between_transactions(stage: Stage, process: psutil.Process) -> None:
    """Freeze it while it holds no lock: what is asked here is what it writes afterwards."""
    watching = Database(stage.url)
    statement = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%%'"

    def harmless() -> bool:
        process.suspend()
        with watching.begin() as connection:
            busy = connection.exec_driver_sql(statement).scalar()
        if busy:
            process.resume()
        return not busy

    eventually(harmless)
    watching.close()
