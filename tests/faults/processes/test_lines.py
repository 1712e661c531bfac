"""Many batches, a database without room, and one that goes back in time: order and books hold."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from batching import BatchOptions, BatchState
from batching.models import attempts, batches, history
from tests.support import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.processes.scene import Scene
    from tests.servers import PostgresServer

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(400)]


class Line:
    """An independent model of one queue: who is in line, and at which place. Knows nothing of ours."""

    def __init__(self) -> None:
        self.waiting: list[str] = []

    def joins(self, batch: str) -> None:
        """At the end, whether it is new or failed."""
        assert batch not in self.waiting
        self.waiting.append(batch)

    def starts(self, batch: str) -> None:
        """Only who is first may start."""
        assert self.waiting[0] == batch, f"{batch} started before {self.waiting[0]}"
        self.waiting.pop(0)


def test_two_hundred_batches_that_fail_are_tried_in_the_order_of_a_model(scene: Scene) -> None:
    # Given two hundred batches, of which every third fails its first pass, and every seventh both
    options = BatchOptions(max_attempts=1, max_passes=2, pass_backoff=0)
    told: dict[str, str] = {}
    submitted = []
    for number in range(200):
        way: Any = "raise" if number % 7 == 0 else ["raise", "return"] if number % 3 == 0 else "return"
        batch = scene.submit("odd", {"a": "return", "b": way, "c": "return"}, options, name=f"b{number}")
        told[batch.id] = "failed" if number % 7 == 0 else "succeeded"
        submitted.append(batch)
    # When they run, one after the other or some at once
    scene.worker("--pool=prefork", "--concurrency=2")
    for batch in submitted:
        scene.finished(batch, 120)
    # Then each ended as it had to
    with scene.database.read() as reading:
        states = dict(reading.execute(select(batches.c.id, batches.c.state)).all())
        lines = reading.execute(select(history).order_by(history.c.id)).all()
        moved = reading.execute(select(attempts.c.batch_id, attempts.c.pass_number, attempts.c.outcome)).all()
    assert states == told
    # And the line was at every moment what the model says
    model = Line()
    for line in lines:
        if line.to_state == BatchState.QUEUED:
            model.joins(line.batch_id)
        elif line.to_state == BatchState.RUNNING:
            model.starts(line.batch_id)
    assert model.waiting == []
    # One move to the end per failed pass
    requeued = [line.batch_id for line in lines if (line.from_state, line.to_state) == ("stopping", "queued")]
    failed_first = sorted({row.batch_id for row in moved if (row.pass_number, row.outcome) == (1, "failed")})
    assert sorted(requeued) == failed_first
    scene.verdict(again={"failed"}, late=False)


def test_the_disk_of_postgresql_is_full(
    tmp_path: Path, scene_with_own_sql: Scene, own_postgres: PostgresServer
) -> None:
    """On a small file system of its own, which a table space lies on."""
    scene = scene_with_own_sql
    small = own_postgres.folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        _fill_and_free(scene, own_postgres, small)
    finally:
        scene.close()
        own_postgres.stop()
        subprocess.run(["umount", str(small)], check=True)


def _fill_and_free(scene: Scene, own_postgres: PostgresServer, small: Path) -> None:
    inside = small / "space"
    inside.mkdir()
    owner = (own_postgres.folder / "data").stat()
    os.chown(inside, owner.st_uid, owner.st_gid)
    small.chmod(0o755)
    administrator: Any = own_postgres.connect(scene.database_name)
    administrator.execute(f"CREATE TABLESPACE small LOCATION '{inside}'")
    for table in ("profiles", "attempts", "counters"):
        administrator.execute(f"ALTER TABLE {table} SET TABLESPACE small")
    worker = scene.worker("--pool=prefork", "--concurrency=2")
    dice = random.Random(7)  # what cannot be compressed
    payloads = {f"p{number}": {"answer": dice.randbytes(1_500).hex(), "seconds": 0.005} for number in range(1_500)}
    batch = scene.submit("work", payloads)
    scene.settled(batch, 50)
    # When the rest of it is taken by somebody else
    ballast = small / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    eventually(lambda: "No space left" in scene.report() or "could not extend" in scene.report(), 60)
    # Then nothing that could not be written counts as done; and when there is room, the same worker does the rest
    ballast.unlink(missing_ok=True)
    subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
    assert scene.finished(batch, 120).succeeded == len(payloads)
    assert worker.status == "running"
    scene.verdict(again={"given back"})
    administrator.close()


def test_the_database_goes_back_in_time(scene_with_own_sql: Scene, own_postgres: PostgresServer) -> None:
    """As a fail-over to a standby that has not got the last transactions: at-least-once, and the books balance."""
    scene = scene_with_own_sql
    worker = scene.worker("--pool=prefork", "--concurrency=2")
    batch = scene.submit("work", {f"p{number}": {"seconds": 0.03} for number in range(400)})
    scene.settled(batch, 50)
    # Given a copy of it in mid-run
    data, copy = own_postgres.folder / "data", own_postgres.folder / "copy"
    own_postgres.stop()
    subprocess.run(["cp", "-a", str(data), str(copy)], check=True)
    own_postgres.start()
    scene.database.close()
    then = batch.progress().settled
    scene.settled(batch, then + 100)
    # When the copy takes its place
    own_postgres.stop()
    shutil.rmtree(data)
    copy.rename(data)
    own_postgres.start()
    scene.database.close()
    assert batch.progress().settled < then + 100
    # Then every profile comes to its end in the same worker, some of them executed once more
    assert scene.finished(batch, 120).succeeded == 400
    assert worker.status == "running"
    assert {entry.key for entry in scene.entries()} == {f"p{number}" for number in range(400)}
    from batching.doctor import examine
    from tests.accounting import assert_accounted

    assert_accounted(scene.database, batch.id)
    report = examine(scene.database, scene.publisher)
    assert report.ok, report.problems
    again = len(scene.entries()) - 400
    print(f"{again} profiles were executed again, whose results the database had forgotten")  # noqa: T201
    assert again > 0
