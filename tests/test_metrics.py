"""What is exposed to Prometheus: true, bounded, cheap, and documented."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
import uuid
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, insert, literal, text, update

from batching.database import Database
from batching.dialects import later, now
from batching.errors import ConfigurationError, DatabaseUnavailableError
from batching.figures import MOST_HANDLERS, OTHER, Figures
from batching.measure import Measurer
from batching.metrics import CONTENT_TYPE, exposition, reads
from batching.metrics.catalogue import METRICS
from batching.metrics.exposition import Exporter, render
from batching.metrics.server import MetricsServer, parse_address
from batching.models import batches, callbacks, counters, gauges, queues, workers
from batching.moves import figures as moves
from batching.outlook import look
from batching.registry import WorkerRegistry
from batching.settings import Settings
from batching.states import BatchState, ProfileState
from batching.statistics import Statistics
from tests.accounting import FAILED, HANDLER, Desk
from tests.support import eventually
from tests.test_plans import walks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "guide" / "metrics.md"
#: Statements of one exposition, those that begin and end its transaction left out.
MOST_STATEMENTS = 13
KEPT = 10_000

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def desk(database: Database) -> Desk:
    moves._known.clear()
    return Desk(database)


def parsed(told: bytes) -> Values:
    """Every sample, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(told.decode())
        for sample in family.samples
    }


def scrape(database: Database) -> Values:
    """What is told now."""
    return parsed(Exporter(database, 10.0).text())


def value(values: Values, name: str, **labels: str) -> float:
    sample = (f"batching_{name}", tuple(sorted(labels.items())))
    assert sample in values, f"{sample} is not told"
    return values[sample]


def tell_something(desk: Desk) -> None:
    """A worker and a leader tell of something of every kind, and it is added up."""
    process = Figures()
    batch_id = str(uuid.uuid4())
    process.ran(HANDLER, batch_id, 0.2)
    process.ended(HANDLER, batch_id, dict.fromkeys(("succeeded", "failed", "retried", "lost", "given back"), 1))
    for metric in METRICS:
        if metric.stored and metric.kind == "counter" and metric.name != "profiles_settled":
            labels = {"kind": "run", "process": "worker", "handler": HANDLER}
            process.count(metric.name, *(labels[each] for each in metric.labels))
    for step in reads.STEPS:
        process.step(step, 10, 0.01)
    process.observe("leader_turn_duration_seconds", 0.004)
    held = {"pending": 3, "active": 2, "outcomes": 1}
    assert WorkerRegistry(desk.database).beat(desk.worker, counted=process, gauges=held)
    seen = {"messages": {HANDLER: 7}, "windows": {HANDLER: 9}, "connections": {"in_use": 1, "idle": 2, "overflow": 0}}
    Measurer(desk.database).measure(desk.term, look(desk.database, 10.0), seen)


# --- true


def test_an_empty_store_tells_what_there_is_not(desk: Desk) -> None:
    values = scrape(desk.database)
    assert value(values, "leader_up") == 0
    assert value(values, "broker_up") == 1
    assert value(values, "worker_slots") == 0
    assert value(values, "late_results_total") == 0
    assert value(values, "sweep_repairs_total", kind="message") == 0
    assert value(values, "callbacks", state="dead") == 0


def test_batches_and_profiles_are_told_by_state_as_statistics_has_them(desk: Desk) -> None:
    desk.finish(BatchState.SUCCEEDED)
    desk.finish(BatchState.CANCELLED)
    runs = desk.start(10, failure_budget=5)
    taken = desk.claim(runs, 6)
    desk.settle(taken[:2])
    desk.settle(taken[2:3], FAILED)
    waits = desk.submit(4)
    values = scrape(desk.database)

    reads_ = Statistics(desk.database)
    told = {view.state: 0 for view in reads_.batches()}
    for view in reads_.batches():
        told[view.state] += 1
    for state in BatchState:
        assert value(values, "batches", queue="default", state=state.value) == told.get(state, 0), state
    for name in (state.value for state in ProfileState):
        number = sum(getattr(reads_.batch(each), name) for each in (runs, waits))
        assert value(values, "profiles", handler=HANDLER, state=name) == number, name
    assert value(values, "leader_up") == 1
    assert value(values, "leader_changes_total") == desk.term.epoch


def test_the_head_and_the_line_are_told_with_their_ages(desk: Desk, database: Database) -> None:
    head, first, second = desk.start(1), desk.submit(1), desk.submit(1)
    scheduled, elsewhere = desk.submit(1), desk.submit(1, queue="other")
    with database.begin() as connection:
        for batch_id, seconds in ((head, 500), (first, 100), (second, 300), (elsewhere, 50)):
            past = later(literal(-seconds))
            connection.execute(update(batches).where(batches.c.id == batch_id).values(created_at=past, started_at=past))
        connection.execute(
            update(batches)
            .where(batches.c.id == scheduled)
            .values(start_at=later(literal(900)), created_at=later(literal(-9_000)))
        )
    values = scrape(database)
    assert value(values, "head_seconds", queue="default") == pytest.approx(500, abs=30)
    assert value(values, "oldest_waiting_seconds", queue="default") == pytest.approx(300, abs=30)
    assert value(values, "oldest_waiting_place", queue="default") == 2
    assert value(values, "next_waiting_seconds", queue="default") == pytest.approx(100, abs=30)
    assert value(values, "oldest_waiting_place", queue="other") == 1
    assert ("batching_head_seconds", (("queue", "other"),)) not in values


def test_workers_are_told_by_what_they_are(desk: Desk, database: Database) -> None:
    live, draining, silent = (desk.register(str(uuid.uuid4()), slots=slots) for slots in (4, 8, 16))
    registry = WorkerRegistry(database)
    assert registry.beat(live, gauges={"pending": 3, "active": "many", "moons": 1})
    assert registry.beat(draining, draining=True)
    with database.begin() as connection:
        connection.execute(update(workers).where(workers.c.id == silent).values(heartbeat_at=later(literal(-100))))
    values = scrape(database)
    assert [value(values, "workers", state=state) for state in ("live", "draining", "silent")] == [1, 1, 1]
    assert value(values, "worker_slots") == 4
    assert [value(values, "worker_held", stage=stage) for stage in reads.STAGES] == [3, 0, 0]


def test_callbacks_are_told_that_wait_and_that_are_dead(desk: Desk, database: Database) -> None:
    batch_id = desk.submit(1)
    with database.begin() as connection:
        for number, state in enumerate(("waiting", "waiting", "dead", "delivered")):
            row = {"id": str(uuid.uuid4()), "batch_id": batch_id, "event": "success", "pass_number": number}
            settled = None if state == "waiting" else now()
            connection.execute(
                insert(callbacks).values(
                    **row, target="t", document={}, state=state, settled_at=settled, due_at=later(literal(-60))
                )
            )
    values = scrape(database)
    assert value(values, "callbacks", state="waiting") == 2
    assert value(values, "callbacks", state="dead") == 1
    assert value(values, "callback_overdue_seconds") == pytest.approx(60, abs=30)


def test_what_processes_counted_is_told(desk: Desk) -> None:
    desk.register()
    tell_something(desk)
    values = scrape(desk.database)
    assert value(values, "profiles_settled_total", handler=HANDLER, state="succeeded") == 1
    assert value(values, "retries_total", handler=HANDLER) == 2
    assert value(values, "run_duration_seconds_bucket", handler=HANDLER, le="0.1") == 0
    assert value(values, "run_duration_seconds_bucket", handler=HANDLER, le="0.25") == 1
    assert value(values, "run_duration_seconds_count", handler=HANDLER) == 1
    assert value(values, "run_duration_seconds_sum", handler=HANDLER) == pytest.approx(0.2)
    assert value(values, "step_rows_bucket", step="claim", le="10.0") == 1
    assert value(values, "lane_messages", handler=HANDLER) == 7
    assert value(values, "lane_window", handler=HANDLER) == 9
    assert value(values, "database_connections", process="manager", state="idle") == 2
    assert value(values, "worker_held", stage="active") == 2
    assert value(values, "figures_age_seconds") < 60


def test_a_handler_has_all_its_counts_from_the_beginning(desk: Desk) -> None:
    """The first failure must be seen as one more than none: Prometheus does not see where a series begins."""
    desk.register()
    process = Figures()
    process.count("profiles_dispatched", HANDLER, amount=3)
    assert WorkerRegistry(desk.database).beat(desk.worker, counted=process)
    with desk.database.begin() as connection:
        moves.fold(connection)
    values = scrape(desk.database)
    assert value(values, "profiles_dispatched_total", handler=HANDLER) == 3
    for name in ("retries_total", "losses_total", "given_back_total"):
        assert value(values, name, handler=HANDLER) == 0
    for state in ("succeeded", "failed", "skipped", "cancelled", "expired"):
        assert value(values, "profiles_settled_total", handler=HANDLER, state=state) == 0


def test_what_a_leader_saw_long_ago_is_not_told(desk: Desk, database: Database) -> None:
    desk.register()
    tell_something(desk)
    with database.begin() as connection:
        connection.execute(update(gauges).values(written_at=later(literal(-100))))
    values = scrape(database)
    assert ("batching_lane_messages", (("handler", HANDLER),)) not in values
    assert value(values, "figures_age_seconds") == pytest.approx(100, abs=30)


def test_a_figure_of_another_version_is_left_out(desk: Desk) -> None:
    desk.register()
    process = Figures()
    process.count("moons", "full")
    process.count("late_results", "with", "labels")
    assert WorkerRegistry(desk.database).beat(desk.worker, counted=process)
    with desk.database.begin() as connection:
        moves.fold(connection)
    assert value(scrape(desk.database), "late_results_total") == 0


# --- bounded


def test_handlers_and_queues_beyond_a_bound_are_one(desk: Desk, database: Database) -> None:
    extra = 5
    with database.begin() as connection:
        for number in range(reads.MOST_QUEUES + extra):
            connection.execute(insert(queues).values(name=f"q{number:03}"))
        rows = [
            {
                "id": str(uuid.uuid4()), "queue": f"q{number % (reads.MOST_QUEUES + extra):03}", "name": "b",
                "handler": f"h{number:03}", "state": "queued", "position": number, "options": {}, "sealed": True,
            }
            for number in range(MOST_HANDLERS + extra)
        ]  # fmt: skip
        connection.execute(insert(batches), rows)
        connection.execute(
            insert(counters),
            [{"batch_id": row["id"], "worker_id": str(uuid.UUID(int=0)), "pending": 2} for row in rows],
        )
    values = scrape(database)
    handlers = {dict(labels)["handler"] for name, labels in values if name == "batching_profiles"}
    lines = {dict(labels)["queue"] for name, labels in values if name == "batching_batches"}
    assert len(handlers) == MOST_HANDLERS + 1
    assert len(lines) == reads.MOST_QUEUES + 1
    assert value(values, "profiles", handler=OTHER, state="pending") == 2 * extra
    assert value(values, "batches", queue=OTHER, state="queued") >= extra


def test_no_label_has_values_without_bounds(desk: Desk) -> None:
    """Nothing of a batch, a profile, a worker or an error is a label."""
    desk.register()
    tell_something(desk)
    batch_id = desk.finish(BatchState.FAILED)
    told = Exporter(desk.database, 10.0).text().decode()
    for word in (batch_id, desk.worker, "k1", "ValueError", "bad row", "f" * 16):
        assert word not in told
    labels = {name for metric in METRICS for name in metric.labels}
    assert labels <= {"handler", "queue", "state", "kind", "step", "process", "stage", "version", "schema"}


# --- cheap


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(*given: object) -> None:
        if not str(given[2]).startswith("BEGIN"):
            seen.append(str(given[2]))

    event.listen(database.engine, "before_cursor_execute", note)
    yield seen
    event.remove(database.engine, "before_cursor_execute", note)


@pytest.fixture
def much(desk: Desk) -> Desk:
    """Ten thousand batches that have ended, with ten million profiles between them, and a few that have not."""
    ended = {"queue": "default", "name": "b", "handler": HANDLER, "state": "succeeded", "options": {}, "sealed": True}
    desk.start(3)
    desk.submit(3)
    with desk.database.begin() as connection:
        rows = [{**ended, "id": str(uuid.uuid4()), "position": number, "total": 1_000} for number in range(KEPT)]
        connection.execute(insert(batches).values(finished_at=now()), rows)
        connection.execute(
            insert(counters), [{"batch_id": row["id"], "worker_id": desk.worker, "succeeded": 1_000} for row in rows]
        )
    with desk.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if desk.database.dialect == "postgresql":
            connection.execute(text("VACUUM ANALYZE"))
    return desk


def test_an_exposition_walks_over_nothing_that_has_ended(much: Desk) -> None:
    exporter = Exporter(much.database, 10.0, clock=iter(range(1_000)).__next__)
    exporter.text()
    with statements(much.database) as seen, walks(much.database) as walked:
        values = parsed(exporter.text())
    assert value(values, "batches", queue="default", state="succeeded") == KEPT
    assert len(seen) <= MOST_STATEMENTS
    assert [each for each in walked if "ended_idx" not in each] == []
    assert not [each for each in seen if "finished_at IS NOT NULL" in each], "what has ended is counted now and then"
    if much.database.dialect == "postgresql":  # which tells how many rows it has fetched
        _an_exposition_fetches_few_rows(much)
        _adding_up_fetches_only_the_batches_that_were_told_of(much)


def _work(connection: Connection) -> dict[str, Counter[str]]:
    """What this backend has walked over and fetched of each table; what it has not yet reported is among it."""
    rows = connection.execute(
        text("SELECT relname, seq_scan, coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables")
    )
    return {name: Counter(walked=walked, fetched=fetched) for name, walked, fetched in rows}


def _since(before: dict[str, Counter[str]], connection: Connection) -> dict[str, Counter[str]]:
    return {name: work - before[name] for name, work in _work(connection).items()}


def _an_exposition_fetches_few_rows(much: Desk) -> None:
    with much.database.read() as connection:
        before = _work(connection)
        reads.read(connection, 10.0, {})
        done = _since(before, connection)
    assert done["batches"]["walked"] == done["counters"]["walked"] == done["profiles"]["walked"] == 0
    assert done["batches"]["fetched"] < 200
    assert done["counters"]["fetched"] < 200
    assert done["profiles"]["fetched"] == 0


def _adding_up_fetches_only_the_batches_that_were_told_of(much: Desk) -> None:
    process, batch_id = Figures(), much.submit(2)
    for told in (batch_id, str(uuid.uuid4())):
        process.ran(HANDLER, told, 0.1)
        process.ended(HANDLER, told, {"succeeded": 2})
    assert WorkerRegistry(much.database).beat(much.worker, counted=process) is None
    with much.database.begin() as connection:
        before = _work(connection)
        assert moves.fold(connection) == 1
        done = _since(before, connection)["batches"]
    assert done["walked"] == 0
    assert done["fetched"] < 20
    assert Statistics(much.database).durations(batch_id).runs == 1


def test_what_has_ended_is_counted_seldom_when_it_takes_long(desk: Desk) -> None:
    desk.finish(BatchState.SUCCEEDED)
    at = 0.0
    taken = 0.0

    def clock() -> float:
        nonlocal at
        at += taken
        return at

    exporter = Exporter(desk.database, 10.0, clock)
    told = {"queue": "default", "state": "succeeded"}
    assert value(parsed(exporter.text()), "batches", **told) == 1
    desk.finish(BatchState.SUCCEEDED)
    at += 4.0
    assert value(parsed(exporter.text()), "batches", **told) == 1
    at += 2.0
    taken = 1.0
    assert value(parsed(exporter.text()), "batches", **told) == 2
    taken = 0.0
    desk.finish(BatchState.SUCCEEDED)
    at += 30.0
    assert value(parsed(exporter.text()), "batches", **told) == 2
    at += 30.0
    assert value(parsed(exporter.text()), "batches", **told) == 3


def test_two_who_ask_at_once_cost_one_read(database: Database) -> None:
    with statements(database) as seen:
        first = exposition(database, Settings())
        number = len(seen)
        assert exposition(database, Settings()) == first
    assert len(seen) == number > 0


def test_a_database_that_is_away_is_an_error_and_no_old_news(tmp_path: Path) -> None:
    away = Database(f"sqlite:///{tmp_path}/no/such/folder/file.db")
    with pytest.raises(DatabaseUnavailableError):
        exposition(away, Settings())


# --- over HTTP


def get(port: int, path: str = "/metrics") -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def serve(url: str, port: int = 0) -> MetricsServer:
    server = MetricsServer(Settings(database_url=url, metrics_address=f"127.0.0.1:{port}"))
    server.start()
    return server


def test_a_manager_serves_them(sqlite_url: str) -> None:
    server = serve(sqlite_url)
    port = eventually(lambda: server.port or 0)
    status, kind, body = get(port)
    assert (status, kind) == (200, CONTENT_TYPE)
    assert value(parsed(body), "leader_up") == 0
    assert get(port, "/metrics?name=x")[0] == 200
    assert get(port, "/")[0] == 404
    # Somebody who never says what he wants keeps nobody waiting, neither those who ask nor the end.
    with socket.create_connection(("127.0.0.1", port)):
        assert get(port)[0] == 200
        server.stop()
    server.stop()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_database_that_is_away_is_told_without_its_password(tmp_path: Path) -> None:
    server = serve("postgresql+psycopg://somebody:secret@127.0.0.1:1/none")
    port = eventually(lambda: server.port or 0)
    status, _, body = get(port)
    server.stop()
    assert status == 503
    assert b"cannot reach the database" in body
    assert b"secret" not in body


def test_the_second_manager_of_a_machine_takes_over(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batching.metrics.server._AGAIN", 0.05)
    first = serve(sqlite_url)
    port = eventually(lambda: first.port or 0)
    second = serve(sqlite_url, port)
    assert get(port)[0] == 200
    assert second.port is None
    first.stop()
    assert eventually(lambda: second.port or 0) == port
    assert get(port)[0] == 200
    second.stop()


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
        ("[::1]:9464", ("::1", 9464)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),
        ("metrics.internal:80", ("metrics.internal", 80)),
    ],
)
def test_an_address_is_a_host_and_a_port_or_a_port_of_this_machine(address: str, place: tuple[str, int]) -> None:
    assert parse_address(str(Settings(metrics_address=address).metrics_address)) == place


def test_an_address_that_is_none_is_refused() -> None:
    for address in ("localhost", "::1", "a b:80", "host:port"):
        with pytest.raises(ValueError, match="must be host:port"):
            Settings(metrics_address=address)
    with pytest.raises(ConfigurationError, match="is no port"):
        parse_address("127.0.0.1:99999")


# --- documented


def test_the_guide_has_every_metric_as_the_catalogue_has_it() -> None:
    rows = re.findall(r"^\| `(batching_\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", GUIDE.read_text(), re.MULTILINE)
    told = [(name, kind, labels.strip(), says.strip()) for name, kind, labels, says in rows]
    assert told == [
        (metric.exported, metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.help)
        for metric in METRICS
    ]


def test_every_metric_is_exposed_with_its_help_even_when_there_is_nothing() -> None:
    told = render(reads.Sheet()).decode()
    for metric in METRICS:
        assert f"# TYPE {metric.exported} {metric.kind}\n" in told
        assert f"# HELP {metric.exported} " in told
    assert len(re.findall("^# TYPE", told, re.MULTILINE)) == len(METRICS)


def test_what_is_counted_anywhere_is_in_the_catalogue() -> None:
    """The names in the sources, against those that are exposed."""
    root = Path(__file__).resolve().parent.parent
    sources = [*root.glob("batching/**/*.py"), *root.glob("workers/*.py")]
    counted = {
        name
        for path in sources
        for name in re.findall(r"(?:_figures|figures|counted)\.(?:count|grown|observe)\(\s*\"(\w+)\"", path.read_text())
    }
    stored = {metric.name for metric in METRICS if metric.stored}
    assert len(counted) >= 10
    assert counted <= stored
