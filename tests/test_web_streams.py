"""Events, uploads and results of the real command in a process of its own: what streams, and how it all ends."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import httpx2 as httpx
import psutil
import pytest

from batching.broker import redis_client
from batching.database import Database
from batching.live import publication
from batching.queue_manager import QueueManager
from tests.accounting import HANDLER, Desk, assert_accounted
from tests.support import eventually
from tests.web import API, ENTRIES, OPERATOR, VIEWER, Dashboard, Stream, seconds_since

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import PostgresServer, ValkeyServer

LINES = {"Content-Type": "application/x-ndjson"}


@pytest.fixture(scope="module")
def store(postgres_server: PostgresServer, postgres_template: str) -> Iterator[Database]:
    name = postgres_server.create_database(postgres_template)
    database = Database(postgres_server.url(name))
    yield database
    database.close()
    postgres_server.drop_database(name)


@pytest.fixture(scope="module")
def dashboard(
    store: Database, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Dashboard]:
    """One for the module, with tokens and a broker."""
    environment = {
        "BATCHING_WEB_TOKENS": ",".join(ENTRIES),
        "BATCHING_BROKER_URL": valkey_server.url,
        "BATCHING_KEY_PREFIX": "web-streams:",
        "BATCHING_WEB_STREAMS": "4",
    }
    log = tmp_path_factory.mktemp("dashboard") / "log"
    with Dashboard(store.url, log, environment=environment) as running:
        yield running
    assert "Traceback" not in log.read_text()


@pytest.fixture
def manager(store: Database, valkey_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[QueueManager]:
    """A producer's, which rings on the same prefix."""
    monkeypatch.setenv("BATCHING_KEY_PREFIX", "web-streams:")
    made = QueueManager(store, valkey_server.url)
    yield made
    made.close()


# Events


def test_a_stream_begins_with_all_there_is_and_tells_what_changes(
    dashboard: Dashboard, manager: QueueManager, store: Database
) -> None:
    batch = manager.submit(HANDLER, ["a", "b"])
    other = manager.submit(HANDLER, ["a"])
    with (
        Stream(dashboard.client(VIEWER), f"{API}/batches/{batch.id}/events") as one,
        Stream(dashboard.client(VIEWER), f"{API}/events") as every,
    ):
        eventually(lambda: one.of("snapshot") and every.of("snapshot"))
        eventually(lambda: live_of(one) and live_of(every))
        (snapshot,) = one.of("snapshot")
        assert [each["id"] for each in json.loads(snapshot)["batches"]] == [batch.id]
        assert {batch.id, other.id} <= {each["id"] for each in json.loads(every.of("snapshot")[0])["batches"]}

        start = time.monotonic()
        manager.pause(batch.id, "for the test")
        eventually(lambda: state_of(one, batch.id) == "paused")
        eventually(lambda: state_of(every, batch.id) == "paused")
        assert seconds_since(start) < 4, "a notice came, not only the look every 5 s"
        shown = json.loads(one.of("batch")[-1])
        with dashboard.client(VIEWER) as client:
            document = client.get(f"{API}/batches/{batch.id}").json()
        del document["history"]
        assert shown == document

        manager.cancel(other.id)
        eventually(lambda: state_of(every, other.id) == "cancelled")
        assert state_of(one, other.id) == "", "the stream of one batch tells of no other"
        manager.cancel(batch.id)
        eventually(lambda: state_of(every, batch.id) == "cancelled")
        manager.prune(0)
        eventually(lambda: batch.id in "".join(one.of("gone")) and batch.id in "".join(every.of("gone")))
        assert len(set(one.ids)) == len(one.ids) == len(one.events)


def state_of(stream: Stream, batch_id: str) -> str:
    told = [json.loads(data) for data in stream.of("batch")]
    return str(next((each["state"] for each in reversed(told) if each["id"] == batch_id), ""))


def live_of(stream: Stream) -> bool:
    told = stream.of("status")
    return bool(told) and bool(json.loads(told[-1])["live"])


def test_a_stream_until_the_end_is_over_with_the_batch(dashboard: Dashboard, manager: QueueManager) -> None:
    batch = manager.submit(HANDLER, ["a"])
    with Stream(dashboard.client(VIEWER), f"{API}/batches/{batch.id}/events?until=end") as stream:
        eventually(lambda: stream.of("snapshot"))
        manager.cancel(batch.id)
        assert stream.ended.wait(10)
        assert json.loads(stream.of("batch")[-1])["state"] == "cancelled"
    with Stream(dashboard.client(VIEWER), f"{API}/batches/{batch.id}/events?until=end") as stream:
        assert stream.ended.wait(10), "it had ended before"
        assert stream.of("snapshot")


def test_there_are_so_many_streams_and_each_gives_its_place_back(dashboard: Dashboard) -> None:
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(Stream(dashboard.client(VIEWER), f"{API}/events")) for _ in range(4)]
        eventually(lambda: all(stream.of("snapshot") for stream in streams))
        with dashboard.client(VIEWER) as client:
            answer = client.get(f"{API}/events")
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:batching:problem:too-many-streams")
            assert client.get(f"{API}/batches").status_code == 200, "reads are not streams"

    def room() -> bool:
        with Stream(dashboard.client(VIEWER), f"{API}/events") as stream:
            eventually(lambda: stream.status)
            return stream.status == 200

    eventually(room)


def test_a_reader_that_does_not_read_costs_nothing(
    dashboard: Dashboard, manager: QueueManager, valkey_server: ValkeyServer
) -> None:
    """It opens a stream and never reads on; what changes meanwhile is kept as the latest of each batch."""
    batch = manager.submit(HANDLER, ["a"], properties={"filler": "x" * 8_000})
    host, port = dashboard.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as silent, redis_client(valkey_server.url) as client:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        request = f"GET {API}/events HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {VIEWER}\r\n\r\n"
        silent.sendall(request.encode())
        assert silent.recv(15) == b"HTTP/1.1 200 OK"
        with Stream(dashboard.client(VIEWER), f"{API}/events") as reader:
            eventually(lambda: reader.of("snapshot"))
            before = psutil.Process(dashboard.process.pid).memory_info().rss
            for number in range(30):
                place = "front" if number % 2 else "end"
                manager.pause(batch.id, f"round {number} {place}")
                manager.resume(batch.id)
                client.publish(*publication("web-streams:", [batch.id])[1:])
            manager.pause(batch.id, "the last")
            eventually(lambda: "the last" in "".join(reader.of("batch")[-1:]), timeout=20)
            grown = psutil.Process(dashboard.process.pid).memory_info().rss - before
    assert grown < 20_000_000
    manager.cancel(batch.id)


def test_a_stream_goes_on_marked_stale_while_redis_is_away(
    store: Database, own_valkey: ValkeyServer, tmp_path: Path
) -> None:
    environment = {"BATCHING_BROKER_URL": own_valkey.url}
    manager = QueueManager(store)
    batch = manager.submit(HANDLER, ["a"])
    with (
        Dashboard(store.url, tmp_path / "log", environment=environment) as dashboard,
        Stream(dashboard.client(), f"{API}/batches/{batch.id}/events") as stream,
    ):
        eventually(lambda: live_of(stream))
        own_valkey.stop()
        eventually(lambda: '"stale":true' in stream.of("status")[-1], timeout=15)
        assert "Redis is away" in stream.of("status")[-1]
        manager.pause(batch.id)
        eventually(lambda: state_of(stream, batch.id) == "paused")
        with dashboard.client() as client:
            assert client.get(f"{API}/status").json()["stale"] is True
            assert client.post(f"{API}/batches/{batch.id}/resume").json()["state"] == "queued", "verbs need SQL alone"
        own_valkey.start()
        eventually(lambda: live_of(stream), timeout=20)
        assert '"stale":false' in stream.of("status")[-1]
        assert not stream.ended.is_set()
    manager.cancel(batch.id)


def test_a_stream_survives_the_database(own_postgres: PostgresServer, tmp_path: Path) -> None:
    name = own_postgres.create_database()
    url = own_postgres.url(name)
    migrated(url)
    database = Database(url)
    batch_id = Desk(database).submit(1)
    database.close()
    with (
        Dashboard(url, tmp_path / "log") as dashboard,
        Stream(dashboard.client(), f"{API}/batches/{batch_id}/events") as stream,
        dashboard.client() as client,
    ):
        eventually(lambda: stream.of("snapshot"))
        own_postgres.stop()
        eventually(lambda: '"stale":true' in stream.of("status")[-1], timeout=20)
        answer = client.get(f"{API}/batches")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert str(own_postgres.folder) not in answer.text
        own_postgres.start()
        eventually(lambda: client.get(f"{API}/batches").status_code == 200, timeout=20)
        eventually(lambda: '"stale":false' in stream.of("status")[-1], timeout=20)
        assert client.post(f"{API}/batches/{batch_id}/pause").status_code == 200
        eventually(lambda: state_of(stream, batch_id) == "paused")


def migrated(url: str) -> None:
    from batching import migration

    database = Database(url)
    migration.upgrade(database)
    database.close()


# How it ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_within_seconds_whatever_is_open(store: Database, tmp_path: Path, number: signal.Signals) -> None:
    with Dashboard(store.url, tmp_path / "log") as dashboard, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(Stream(dashboard.client(), f"{API}/events")) for _ in range(3)]
        upload = stack.enter_context(Trickle(dashboard, f"{API}/batches?handler=h&name=cut", OPERATOR))
        eventually(lambda: all(stream.of("snapshot") for stream in streams))
        start = time.monotonic()
        dashboard.process.send_signal(number)
        assert dashboard.process.wait(20) == 0
        assert seconds_since(start) < 9
        assert all(stream.ended.wait(5) for stream in streams)
        upload.stop()
    assert [each.name for each in QueueManager(store).statistics.batches(limit=1_000)].count("cut") == 0
    assert "Traceback" not in dashboard.log.read_text()


class Trickle:
    """Sends JSON lines without an end, until it is stopped or refused."""

    def __init__(self, dashboard: Dashboard, path: str, token: str) -> None:
        self._client = dashboard.client(token)
        self._path = path
        self._stopping = threading.Event()
        self.sent = 0
        self.answer: httpx.Response | None = None
        self._thread = threading.Thread(target=self._send, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        eventually(lambda: self.sent > 3)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopping.set()
        self._client.close()
        self._thread.join(10)

    def _lines(self) -> Iterator[bytes]:
        while not self._stopping.wait(0.05):
            self.sent += 1
            yield b'{"key": %d}\n' % self.sent

    def _send(self) -> None:
        with contextlib.suppress(httpx.HTTPError, RuntimeError):
            self.answer = self._client.post(self._path, content=self._lines(), headers=LINES)


# Uploads and results


def test_a_sender_that_leaves_leaves_nothing(dashboard: Dashboard, store: Database) -> None:
    trickle = Trickle(dashboard, f"{API}/batches?handler=h&name=left&key=left", OPERATOR)
    with trickle:
        pass
    with dashboard.client(OPERATOR) as client:
        again = client.post(f"{API}/batches?handler=h&key=left", content=b'{"key": 1}\n', headers=LINES)
        assert (again.status_code, again.json()["total"]) == (201, 1)
    assert all(view.name != "left" for view in QueueManager(store).statistics.batches(limit=1_000))


def test_slow_senders_hold_up_nobody_who_looks(dashboard: Dashboard) -> None:
    with contextlib.ExitStack() as stack, dashboard.client(VIEWER, timeout=5) as client:
        for number in range(3):
            stack.enter_context(Trickle(dashboard, f"{API}/batches?handler=h&name=slow{number}", OPERATOR))
        for _ in range(20):
            assert client.get(f"{API}/batches?limit=1").status_code == 200


def test_many_lines_take_no_memory(dashboard: Dashboard, store: Database) -> None:
    """Half a gigabyte a million; here a part of it, in bounded memory either way."""
    count, size = 60_000, 500
    filler = "x" * size

    def lines() -> Iterator[bytes]:
        for start in range(0, count, 500):
            yield b"".join(
                json.dumps({"key": f"k{number}", "payload": {"text": filler}}).encode() + b"\n"
                for number in range(start, start + 500)
            )

    process = psutil.Process(dashboard.process.pid)
    with dashboard.client(OPERATOR, timeout=120) as client:
        small = client.post(f"{API}/batches?handler=h", content=b'{"key": 1}\n', headers=LINES)
        assert small.status_code == 201
        before = process.memory_info().rss
        peak = Peak(process)
        with peak:
            answer = client.post(f"{API}/batches?handler=h&key=large", content=lines(), headers=LINES)
        assert (answer.status_code, answer.json()["total"]) == (201, count)
        assert peak.most - before < 50_000_000, f"grew by {(peak.most - before) / 1e6:.0f} MB"
        batch_id = answer.json()["id"]
        before = process.memory_info().rss
        with peak, client.stream("GET", f"{API}/batches/{batch_id}/results?payload=true") as results:
            read = sum(1 for _ in results.iter_lines())
        assert read == count
        assert peak.most - before < 50_000_000, f"grew by {(peak.most - before) / 1e6:.0f} MB"
        assert client.post(f"{API}/batches/{batch_id}/cancel").status_code == 200
    assert_accounted(store, batch_id)


class Peak:
    """The most memory that a process had while something went on."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.most = 0

    def __enter__(self) -> Self:
        self.most = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, self._process.memory_info().rss)


def test_a_reader_that_leaves_ends_the_work(dashboard: Dashboard, store: Database) -> None:
    """No page is read for somebody who has gone; the dashboard's statements show it."""
    batch_id = Desk(store).submit(20_000)
    with dashboard.client(OPERATOR) as client, client.stream("GET", f"{API}/batches/{batch_id}/results") as results:
        assert next(results.iter_bytes())

    def idle() -> bool:
        with store.read() as connection:
            rows: Any = connection.exec_driver_sql(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'batching' AND state = 'active' "
                "AND pid <> pg_backend_pid() AND datname = current_database()"
            )
            return bool(rows.scalar() == 0)

    eventually(idle)
    with dashboard.client(OPERATOR) as client:
        assert client.post(f"{API}/batches/{batch_id}/cancel").status_code == 200
