"""Two versions side by side: handlers that only the new one has, a schema that only it knows; and the doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import inspect

from batching import BatchOptions, migration
from batching.doctor import examine
from tests.acceptance.stage import HANDLERS
from tests.support import eventually
from tests.test_online_migrations import VERSIONS, write_later_versions

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.processes.scene import Scene

BOTH = f"{HANDLERS},tests.acceptance.elsewhere"


def test_a_rolling_deploy_feeds_no_new_handler_to_an_old_worker(scene: Scene) -> None:
    # Given two workers of the old version, and batches of an old and of a new handler, in turns
    old = [scene.worker("--pool=prefork", "--concurrency=1") for _ in range(2)]
    known = [scene.submit("work", {f"w{n}.{m}": {"seconds": 0.01} for m in range(60)}) for n in range(4)]
    new = [scene.submit("elsewhere", {f"e{n}.{m}": None for m in range(40)}) for n in range(4)]
    old_processes = {pid for node in old for pid in node.children}
    scene.settled(known[0], 20)
    # When one of them after the other is replaced by one of the new version
    for node in old:
        fresh = scene.worker("--pool=prefork", "--concurrency=1", BATCHING_HANDLERS=BOTH)
        node.kill("SIGTERM")
        assert node.wait(30) == 0
    # Then everything ran once, and nothing of the new handler in an old worker
    for batch in [*known, *new]:
        view = scene.finished(batch, 60)
        assert view.succeeded == view.total
    ran_new = {entry.pid for entry in scene.entries() if entry.key.startswith("e")}
    assert ran_new
    assert not ran_new & old_processes
    assert fresh.status == "running"
    for node in old:
        assert "unregistered" not in node.logs().lower()
    scene.verdict(again=(), late=False)


def test_workers_go_on_while_the_next_schema_is_applied(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker and its manager in mid-run
    worker = scene.worker("--pool=prefork", "--concurrency=2")
    batch = scene.submit("work", {f"p{number}": {"seconds": 0.02} for number in range(300)})
    scene.settled(batch, 30)
    # When the schema of the next version is applied beside them: a column of the hot table, an index on it
    folder = tmp_path / "later"
    folder.mkdir()
    write_later_versions(folder)
    ours = migration._config

    def with_later(connection: Any = None) -> Any:
        config = ours(connection)
        config.set_main_option("path_separator", "newline")
        config.set_main_option("version_locations", f"{VERSIONS}\n{folder}")
        return config

    with monkeypatch.context() as patch:
        patch.setattr(migration, "_config", with_later)
        assert migration.upgrade(scene.database)[1] == "9002"
    settled = batch.progress().settled
    assert settled < 300
    with scene.database.read() as reading:
        assert "shoe_size" in {column["name"] for column in inspect(reading).get_columns("profiles")}
    # Then the work goes on, and the next batch is promoted, dispatched and done by the old version
    assert scene.finished(batch).succeeded == 300
    assert scene.finished(scene.submit("work", 50)).succeeded == 50
    assert worker.status == "running"
    assert "Traceback" not in worker.logs()
    scene.verdict(again=(), late=False)


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["postgresql", "sqlite"])
def test_a_healthy_system_under_load_is_never_called_sick(scene: Scene) -> None:
    """Batches that are promoted, fail, stop and are concluded while the doctor looks."""
    from workers.keys import RedisKeys

    keys = RedisKeys(scene.valkey.url, scene.prefix)
    scene.worker("--pool=prefork", "--concurrency=2")
    again = BatchOptions(max_attempts=1, max_passes=2, pass_backoff=0)
    submitted = [
        scene.submit("odd", {f"p{m}": ["raise", "return"] if m == n % 9 else "return" for m in range(30)}, again)
        for n in range(60)
    ]
    looks = 0
    while not submitted[-1].progress().terminal:
        report = examine(scene.database, scene.publisher, keys=keys, patience=1.0)
        assert report.ok, report.problems
        assert examine(scene.database, scene.publisher, True, keys=keys, patience=1.0).repaired == []
        scene.queue.cancel(scene.submit("work", {f"c{m}": {"seconds": 0.1} for m in range(20)}).id)
        looks += 1
    assert looks >= 2
    for batch in submitted:
        scene.finished(batch, 60)
    eventually(lambda: examine(scene.database, scene.publisher, keys=keys).ok)
    keys.close()
