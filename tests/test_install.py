"""Real workers of real Celery applications, with the lanes installed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from celery import Celery
from sqlalchemy import select

from batching import BatchOptions, migration
from batching.database import Database
from batching.models import profiles, workers
from batching.queue_manager import Batch, QueueManager
from batching.settings import Settings, get_settings
from tests.nodes import LocalProcess, worker_process
from tests.support import assert_no_leftovers, descendants, eventually, is_running, wait_for_exit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.servers import ValkeyServer

ONCE = BatchOptions(max_attempts=1, max_passes=1, failure_budget=100)
POOLS = {
    "prefork": ["--pool=prefork", "--concurrency=2"],
    "threads": ["--pool=threads", "--concurrency=4"],
    "solo": ["--pool=solo"],
    "gevent": ["--pool=gevent", "--concurrency=10"],
}


@dataclass
class Site:
    """A store, a broker, and the workers that a test starts on them."""

    folder: Path
    broker: ValkeyServer
    url: str
    prefix: str
    running: list[LocalProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.database = Database(self.url)
        migration.upgrade(self.database)
        settings = Settings(database_url=self.url, broker_url=self.broker.url, key_prefix=self.prefix)
        self.manager = QueueManager(self.database, self.broker.url, settings)
        self.operator = Celery("operator", broker=self.broker.url, set_as_current=False)
        self.operator.conf.broker_transport_options = {"global_keyprefix": self.prefix}

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "BATCHING_DATABASE_URL": self.url,
            "BATCHING_BROKER_URL": self.broker.url,
            "BATCHING_KEY_PREFIX": self.prefix,
            "BATCHING_HANDLERS": "tests.worker_handlers",
            "C_FORCE_ROOT": "1",
            **more,
        }

    def worker(self, *options: str, app: str = "workers", **environment: str) -> LocalProcess:
        pool = [] if any(option.startswith("--pool") for option in options) else POOLS["prefork"]
        made = worker_process(self.folder, self.environment(**environment), app=app, options=[*pool, *options])
        self.running.append(made)
        made.start()
        made.ready()
        return made

    def submit(self, handler: str, payloads: Sequence[Any], options: BatchOptions = ONCE) -> Batch:
        rows = [{"key": str(number), "payload": payload} for number, payload in enumerate(payloads)]
        return self.manager.submit(handler, rows, options=options)

    def states(self, batch: Batch) -> list[tuple[str, int, int]]:
        columns = (profiles.c.state, profiles.c.run, profiles.c.attempts)
        query = select(*columns).where(profiles.c.batch_id == batch.id).order_by(profiles.c.number)
        with self.database.read() as connection:
            return [(row.state, row.run, row.attempts) for row in connection.execute(query)]

    def workers(self) -> list[str]:
        with self.database.read() as connection:
            return list(connection.scalars(select(workers.c.id)))

    def active(self) -> dict[str, Any]:
        """What `inspect active` shows, by task id."""
        found = self.operator.control.inspect(timeout=1).active() or {}
        return {task["id"]: task for node in found.values() for task in node}

    def close(self) -> None:
        self.operator.close()
        for worker in self.running:
            worker.teardown()
        self.manager.close()
        self.database.close()


def _site(folder: Path, broker: ValkeyServer, prefix: str) -> Iterator[Site]:
    site = Site(folder, broker, f"sqlite:///{folder / 'site.db'}", prefix)
    yield site
    site.close()


@pytest.fixture
def site(tmp_path: Path, valkey_server: ValkeyServer, key_prefix: str) -> Iterator[Site]:
    before = descendants()
    yield from _site(tmp_path, valkey_server, key_prefix)
    assert_no_leftovers(before)


@pytest.fixture
def own_site(tmp_path: Path, own_valkey: ValkeyServer, key_prefix: str) -> Iterator[Site]:
    yield from _site(tmp_path, own_valkey, key_prefix)


@pytest.mark.parametrize("pool", list(POOLS))
def test_every_pool_processes_profiles(site: Site, pool: str) -> None:
    endings = ["return", "raise", "skip", "retry", "memory", "exit", "interrupt", "set", "large"]
    many = site.submit("tests.echo", list(range(300)))
    odd = site.submit("tests.odd", endings, BatchOptions(max_attempts=2, max_passes=1, failure_budget=100))
    worker = site.worker(*POOLS[pool])
    assert many.wait(60).succeeded == 300
    assert sorted(int(line.result) for line in many.results()) == list(range(300))
    view = odd.wait(60)
    assert (view.succeeded, view.failed, view.skipped) == (2, 6, 1)
    assert [run for _, run, _ in site.states(many)] == [1] * 300
    worker.kill("SIGTERM")
    assert worker.wait() == 0
    assert site.workers() == []
    assert "Traceback" not in worker.logs().partition("worker: Warm shutdown")[2]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_a_worker_has_loaded_is_spared_by_the_collector(site: Site, pool: str) -> None:
    batch = site.submit("tests.odd", ["spared"])
    site.worker(*POOLS[pool])
    assert batch.wait(60).succeeded == 1
    assert [int(line.result) > 50_000 for line in batch.results()] == [True]


def test_a_host_application_keeps_its_settings_and_its_tasks(
    site: Site, valkey_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        "HOST_BROKER_URL": f"{valkey_server.url}",
        "HOST_BACKEND_URL": f"redis+socket://{valkey_server.socket}",
        "BATCHING_BROKER_URL": "",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sys.modules.pop("tests.host_app", None)
    from tests import host_app

    assert dict(host_app.app.conf.items()) == host_app.before
    batch = site.submit("tests.echo", list(range(200)))
    site.worker(app="tests.host_app", **environment)
    answers = [host_app.double.delay(number) for number in range(20)]
    assert [answer.get(timeout=30) for answer in answers] == [2 * number for number in range(20)]
    assert batch.wait(60).succeeded == 200
    host_app.app.close()


def test_the_outcome_is_settled_while_the_broker_is_away(own_site: Site) -> None:
    own_site.worker()
    batch = own_site.submit("tests.nap", [4, 4])
    # Celery makes its pool forget what has not begun when the broker is lost; that would be given back, and wait.
    eventually(lambda: len(own_site.active()) == 2)
    own_site.broker.kill()
    eventually(lambda: batch.progress().succeeded == 2, 15)
    assert not own_site.broker.running
    own_site.broker.start()
    later = own_site.submit("tests.echo", list(range(50)))
    assert later.wait(60).succeeded == 50
    assert len(own_site.workers()) == 1
    assert own_site.states(batch) == [("succeeded", 1, 1)] * 2


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_stop_lets_running_ones_finish_and_gives_back_the_rest(site: Site, pool: str) -> None:
    worker = site.worker(*POOLS[pool])
    slots = 2 if pool == "prefork" else 4
    batch = site.submit("tests.nap", [1.5] * 20)
    eventually(lambda: sum(state == "running" for state, _, _ in site.states(batch)) > slots)
    worker.kill("SIGTERM")
    assert worker.wait() == 0
    states = site.states(batch)
    assert sum(state == "succeeded" for state, _, _ in states) >= slots
    assert {state for state, _, _ in states} <= {"succeeded", "pending", "dispatched"}
    assert all(attempts == 0 for state, _, attempts in states if state != "succeeded")
    assert site.workers() == []


def test_what_does_not_end_in_time_is_given_back_uncharged(site: Site) -> None:
    worker = site.worker(BATCHING_DRAIN_TIMEOUT="1")
    batch = site.submit("tests.nap", [600])
    eventually(lambda: site.states(batch) == [("running", 1, 0)])
    worker.kill("SIGTERM")
    assert worker.wait(20) == 0
    assert site.states(batch)[0][::2] in {("pending", 0), ("dispatched", 0)}
    assert batch.progress().failed == 0
    again = site.worker(BATCHING_DRAIN_TIMEOUT="1")
    eventually(lambda: site.states(batch) == [("running", 2, 0)])
    again.kill("SIGQUIT")
    again.wait(20)
    assert site.states(batch)[0][::2] in {("pending", 0), ("dispatched", 0)}
    assert site.workers() == []


def test_a_killed_child_is_a_loss_of_its_own_profile(site: Site) -> None:
    site.worker()
    batch = site.submit("tests.odd", ["die once", "return", "return"])
    assert batch.wait(60).succeeded == 3
    assert site.states(batch)[0] == ("succeeded", 2, 1)


def test_a_profile_that_always_kills_its_child_fails_and_its_neighbours_do_not(site: Site) -> None:
    site.worker()
    batch = site.submit("tests.odd", ["die", *["return"] * 30])
    view = batch.wait(90)
    assert (view.succeeded, view.failed) == (30, 1)
    (line,) = [line for line in batch.results() if line.state == "failed"]
    assert line.error is not None
    assert line.error["type"] == "WorkerLost"
    assert "SIGKILL" in line.error["message"]


def test_time_limits_end_a_profile_once(site: Site) -> None:
    site.worker(BATCHING_HANDLERS="tests.worker_handlers,tests.limited_handlers")
    hard, soft = site.submit("tests.hard", [60, 0]), site.submit("tests.soft", [60, 0])
    for batch, kind in ((hard, "TimeLimitExceeded"), (soft, "SoftTimeLimitExceeded")):
        view = batch.wait(60)
        assert (view.succeeded, view.failed, view.late) == (1, 1, 0)
        errors = [line.error for line in batch.results() if line.error is not None]
        assert [error["type"].rpartition(".")[2] for error in errors] == [kind]


def test_revoke_and_terminate_cancel_one_profile_and_inspect_shows_ids_only(site: Site) -> None:
    site.worker()
    # Three that run in turn: two slots, and one that waits in the worker.
    batch = site.submit("tests.nap", [987.125, 4, 0.5])
    eventually(lambda: [state for state, _, _ in site.states(batch)] == ["running"] * 3)
    tasks = eventually(lambda: found if len(found := site.active()) == 2 else {})
    assert tasks[f"{batch.id}.1.1"]["kwargs"] == {"batch": batch.id, "number": 1, "run": 1}
    assert "987.125" not in repr([(task["args"], task["kwargs"]) for task in tasks.values()])
    site.operator.control.revoke(f"{batch.id}.3.1")
    site.operator.control.revoke(f"{batch.id}.1.1", terminate=True)
    view = batch.wait(30)
    assert (view.succeeded, view.cancelled, view.failed) == (1, 2, 0)


def test_events_tell_of_every_run_without_its_payload(site: Site) -> None:
    site.worker("--task-events")
    watcher = Celery("watcher", broker=site.broker.url, set_as_current=False)
    watcher.conf.broker_transport_options = {"global_keyprefix": site.prefix}
    seen: list[dict[str, Any]] = []
    with watcher.connection_for_read() as connection:
        receiver = watcher.events.Receiver(connection, handlers={"*": seen.append})
        listener = threading.Thread(target=receiver.capture, kwargs={"limit": None, "wakeup": True})
        listener.start()
        eventually(lambda: any(event["type"].startswith("worker-") for event in seen))
        batch = site.submit("tests.odd", ["return", "raise", "retry"], BatchOptions(max_attempts=2, failure_budget=9))

        def told() -> None:
            kinds = {event["type"] for event in seen if event.get("uuid", "").startswith(batch.id)}
            expected = {"task-received", "task-started", "task-succeeded", "task-failed", "task-retried"}
            assert kinds == expected

        eventually(told, 30)
        receiver.should_stop = True
        listener.join(10)
    received = next(event for event in seen if event["type"] == "task-received")
    assert received["root_id"] == batch.id
    assert f"'batch': '{batch.id}'" in received["kwargs"]
    results = [event["result"] for event in seen if event["type"] == "task-succeeded"]
    assert all(result.startswith("<") and result.endswith(" bytes>") for result in results)
    watcher.close()


def test_junk_in_a_lane_hurts_nobody(site: Site) -> None:
    worker = site.worker()
    lane = f"{site.prefix}lane:default:tests.echo"
    junk = [
        "no json",
        "{}",
        "[" * 5_000,
        '{"headers": {"task": "tests.echo", "id": "x"}}',
        "9" * 20_000,
        '{"headers": 1}',
    ]
    with site.broker.client() as client:
        client.lpush(lane, *junk, *junk)
    batch = site.submit("tests.echo", [1, 2, 3])
    assert batch.wait(30).succeeded == 3
    assert worker.logs().count("Dropped a message") == 4
    assert worker.status == "running"


def test_the_manager_ends_with_its_worker_and_is_restarted(site: Site) -> None:
    worker = site.worker()

    def manager() -> psutil.Process:
        found = [psutil.Process(pid) for pid in worker.children if is_running(pid)]
        managers = [process for process in found if "workers.manager" in process.cmdline()]
        assert len(managers) == 1
        return managers[0]

    def successor() -> psutil.Process:
        found = manager()
        assert found.pid != first.pid
        return found

    first = eventually(manager)
    first.kill()
    second = eventually(successor, 15)
    os.kill(worker.pid, 9)
    wait_for_exit(second.pid, 15)


def boot(site: Site, *options: str, app: str = "workers", **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "celery", "-A", app, "worker", "--loglevel=WARNING", *options]
    done = subprocess.run(
        command,
        env={**os.environ, **site.environment(**environment)},
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"BATCHING_BROKER_URL": ""}, "set BATCHING_BROKER_URL"),
        ({"BATCHING_DATABASE_URL": ""}, "set BATCHING_DATABASE_URL"),
        ({"BATCHING_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}, "cannot reach the database"),
        ({"BATCHING_DATABASE_URL": "sqlite:////tmp/none/such/file.db"}, "cannot reach the database"),
        ({"BATCHING_HANDLERS": "tests.no_such_module"}, "No module named 'tests.no_such_module'"),
        ({"BATCHING_HANDLERS": "tests.limited_handlers"}, "cannot serve handler tests.hard in the threads pool"),
    ],
)
def test_what_is_wrong_at_boot_is_said_once(site: Site, environment: dict[str, str], said: str) -> None:
    code, output = boot(site, "--pool=threads", **environment)
    assert code == 1
    assert output.count(said) == 1
    assert output.count("Traceback") == ("module" in said)


def test_an_empty_database_is_refused(site: Site, tmp_path: Path) -> None:
    code, output = boot(site, BATCHING_DATABASE_URL=f"sqlite:///{tmp_path / 'empty.db'}")
    assert code == 1
    assert "run `batching db upgrade`" in output


def test_a_broker_without_lists_is_refused(site: Site) -> None:
    code, output = boot(
        site, "--pool=threads", app="tests.host_app", HOST_BROKER_URL="amqp://u:secret@h//", BATCHING_BROKER_URL=""
    )
    assert code == 1
    assert "set BATCHING_BROKER_URL" in output
    assert "secret" not in output


CONTRACT = {
    "accept_content": ["json"],
    "task_serializer": "json",
    "result_backend": None,
    "task_ignore_result": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_channel_error_retry": True,
    "task_acks_late": False,
    "worker_max_tasks_per_child": None,
    "worker_state_db": None,
    "worker_enable_remote_control": True,
    "worker_send_task_events": False,
}

_STEPS = """
from workers.celery import app
worker = app.Worker(pool="solo")
print(sorted(step.alias for step in worker.consumer.steps))
print(worker.consumer.timer is worker.timer, "Lanes" in [step.alias for step in worker.steps])
"""


def test_the_shipped_application_has_the_settings_that_it_promises(
    site: Site, monkeypatch: pytest.MonkeyPatch, key_prefix: str
) -> None:
    monkeypatch.setenv("BATCHING_BROKER_URL", site.broker.url)
    get_settings.cache_clear()
    sys.modules.pop("workers.celery", None)
    from workers.celery import app

    assert {name: app.conf[name] for name in CONTRACT} == CONTRACT
    assert app.conf.broker_url == site.broker.url
    options = app.conf.broker_transport_options
    assert options["global_keyprefix"] == key_prefix
    assert options["socket_timeout"] == 2
    assert options["socket_connect_timeout"] == 2
    assert options["health_check_interval"] == 25
    app.close()
    sys.modules.pop("workers.celery", None)


def test_a_booted_worker_has_neither_gossip_nor_mingle(site: Site) -> None:
    environment = {**os.environ, **site.environment()}
    done = subprocess.run(
        [sys.executable, "-c", _STEPS], env=environment, capture_output=True, text=True, timeout=60, check=False,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps, rest = done.stdout.strip().splitlines()
    assert "Gossip" not in steps
    assert "Mingle" not in steps
    assert "Control" in steps
    assert "Heart" in steps
    assert rest == "True True"


def test_help_works_without_any_setting() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BATCHING_")}
    command = [sys.executable, "-m", "celery", "-A", "workers", "worker", "--help"]
    done = subprocess.run(
        command, env=environment, capture_output=True, timeout=60, check=False, cwd=Path(__file__).parent.parent
    )
    assert done.returncode == 0
