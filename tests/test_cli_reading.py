"""The reading and steering verbs of the command line, against real stores; some in a process of their own."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from rich.console import Console
from sqlalchemy import update

from batching.cli.display import Display, plain_line
from batching.cli.main import VERBS, cli
from batching.cli.output import duration, rate, safe, short_ids
from batching.interfaces import Ending, ErrorInfo, Outcome, WorkerInfo
from batching.models import batches, counters
from batching.options import BatchOptions
from batching.policies import settlement
from batching.registry import WorkerRegistry
from batching.states import BatchState
from tests.command_line import call, document

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from batching.queue_manager import Batch, QueueManager


ROOT = Path(__file__).parent.parent
HANDLER = "tests.handler"
FAILURE = Outcome(Ending.FAILED, error=ErrorInfo("ValueError", "bad\x1b[31m row", "f" * 16))
SUCCESS = Outcome(Ending.SUCCEEDED, result='{"name":"Zoë"}')


def submit(manager: QueueManager, count: int = 3, **more: Any) -> Batch:
    options = BatchOptions(max_attempts=1, max_passes=1)
    return manager.submit(
        HANDLER, [f"k{n}" for n in range(count)], name=more.pop("name", "nightly"), options=options, **more
    )


def work(manager: QueueManager, batch: Batch, outcome: Callable[[str], Outcome]) -> None:
    """Do all of the next batch's profiles, as a leader and a worker would."""
    states = manager.state_manager
    term, worker = states.lead(str(uuid.uuid4()), 60), str(uuid.uuid4())
    assert term is not None
    assert states.promote("default", term) == batch.id
    claimed = states.claim(worker, [each.run for each in states.dispatch(batch.id, 10_000, term)]).claimed
    states.settle(worker, [settlement(each, outcome(each.key), 2, 0.5) for each in claimed])
    states.conclude([batch.id])
    states.resign(term)


def failed(manager: QueueManager) -> Batch:
    batch = submit(manager)
    work(manager, batch, lambda key: FAILURE if key == "k1" else SUCCESS)
    return batch


# --- reading


def test_list_as_a_table_fits_80_columns_without_colours(run: Callable[..., Result], manager: QueueManager) -> None:
    first = submit(manager, 1000, name="a name that is much longer than the terminal is wide, " * 2)
    second = submit(manager)

    result = run("list")

    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert max(len(line) for line in result.output.splitlines()[:3]) <= 80
    assert first.id[:13] in result.output
    assert second.id[:13] in result.output
    assert "ID" in result.output.splitlines()[0]


def test_list_as_json(run: Callable[..., Result], manager: QueueManager) -> None:
    first, second = submit(manager), submit(manager)
    manager.pause(first.id)

    assert [each["id"] for each in document(run("list", "--json"))] == [second.id, first.id]
    assert [each["id"] for each in document(run("list", "--json", "--state", "paused"))] == [first.id]
    assert document(run("list", "--json", "--queue", "other")) == []
    assert "no batches" in run("list", "--queue", "other").stderr


def test_show_tells_what_the_contract_names(run: Callable[..., Result], manager: QueueManager) -> None:
    batch = submit(manager, key="n-1", priority=2)

    shown = document(run("show", batch.id, "--json"))

    names = (
        "id name key handler queue state pass place total pending dispatched running succeeded failed skipped "
        "cancelled expired rate eta_seconds reason created_at started_at finished_at"
    )
    assert set(names.split()) <= set(shown)
    assert (shown["key"], shown["pass"], shown["priority"], shown["place"]) == ("n-1", 1, 2, 1)
    assert shown["history"][-1]["to_state"] == "queued"
    text = run("show", batch.id[:20]).output
    assert f"batch {batch.id}" in text
    assert "no live worker serves handler tests.handler in queue default" in text
    assert "n-1" in text


def test_show_one_profile_tells_its_runs(run: Callable[..., Result], manager: QueueManager) -> None:
    batch = failed(manager)

    runs = document(run("show", batch.id, "--profile", "k1", "--json"))

    assert [(each["run"], each["outcome"]) for each in runs] == [(1, "failed")]
    text = run("show", batch.id, "--profile", "k1").output
    assert "ValueError" in text
    assert "\x1b" not in text


def test_results_are_json_lines(run: Callable[..., Result], manager: QueueManager) -> None:
    batch = failed(manager)

    lines = [json.loads(line) for line in run("results", batch.id).stdout.splitlines()]

    assert run("results", batch.id, "--json").stdout == run("results", batch.id).stdout
    assert [(line["key"], line["state"], line["attempts"]) for line in lines] == [
        ("k0", "succeeded", 1),
        ("k1", "failed", 1),
        ("k2", "succeeded", 1),
    ]
    assert lines[0] == {"key": "k0", "state": "succeeded", "attempts": 1, "result": {"name": "Zoë"}, "error": None}
    assert lines[1]["error"] == {"type": "ValueError", "message": "bad\x1b[31m row", "fingerprint": "f" * 16}


def test_failures_are_grouped_and_cannot_steer_the_terminal(run: Callable[..., Result], manager: QueueManager) -> None:
    batch = failed(manager)

    (group,) = document(run("failures", batch.id, "--json"))

    assert (group["fingerprint"], group["count"], group["keys"]) == ("f" * 16, 1, ["k1"])
    text = run("failures", batch.id).output
    assert "1 profile: ValueError: bad\\x1b[31m row" in text
    assert "\x1b" not in text
    assert "no profile" in run("failures", submit(manager).id).stderr


def test_an_unknown_batch_is_a_problem_not_wrong_use(run: Callable[..., Result]) -> None:
    for verb in ("show", "watch", "results", "failures", "pause", "resume", "cancel", "retry"):
        result = run(verb, str(uuid.UUID(int=7)))
        assert result.exit_code == 1, verb
        assert result.stderr.startswith("Error: there is no batch"), verb
        assert result.stdout == ""


# --- watch


def test_watch_ends_with_the_batch_and_tells_how_it_ended(run: Callable[..., Result], manager: QueueManager) -> None:
    good = submit(manager)
    work(manager, good, lambda _: SUCCESS)
    bad = failed(manager)

    assert run("watch", good.id).exit_code == 0
    result = run("watch", bad.id)
    assert result.exit_code == 1
    assert result.output.startswith("nightly: failed, 100 % (3 of 3), 1 failed, pass 1 failed")
    (line,) = run("watch", bad.id, "--json").output.splitlines()
    assert json.loads(line)["state"] == "failed"


def test_watch_follows_a_batch_in_a_process_of_its_own(manager: QueueManager) -> None:
    batch = submit(manager)
    with process("watch", batch.id, "--interval", "0.05", "--json") as watching:
        assert watching.stdout is not None
        first = json.loads(watching.stdout.readline())
        work(manager, batch, lambda _: SUCCESS)
        rest = [json.loads(line) for line in watching.stdout]

        assert watching.wait(10) == 0
    assert first["state"] == "queued"
    assert rest[-1]["state"] == "succeeded"


def test_ctrl_c_ends_watch_with_130_and_no_traceback(manager: QueueManager) -> None:
    batch = submit(manager)
    with process("watch", batch.id) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=10)

    assert watching.returncode == 130
    assert "Traceback" not in errors


def test_a_reader_that_goes_away_is_no_error(manager: QueueManager) -> None:
    batch = submit(manager, 5000)
    with process("results", batch.id) as printing:
        assert printing.stdout is not None
        printing.stdout.readline()
        printing.stdout.close()
        assert printing.stderr is not None
        errors = printing.stderr.read()
        assert printing.wait(20) == 0

    assert errors == ""


# --- steering


def test_a_batch_is_paused_resumed_moved_cancelled_and_retried(
    run: Callable[..., Result], manager: QueueManager
) -> None:
    first, second = submit(manager), submit(manager)

    assert document(run("move", second.id, "1", "--json"))["place"] == 1
    assert document(run("move", second.id, "end", "--json"))["place"] == 2
    assert "it is paused (lunch)" in run("pause", first.id, "--reason", "lunch").output
    assert "it is queued, place 1 in line" in run("resume", first.id).output
    assert document(run("cancel", first.id, "--json"))["state"] == "cancelled"
    assert document(run("retry", first.id, "--json"))["pass"] == 2
    refused = run("retry", first.id)
    assert refused.exit_code == 1
    assert "it is queued" in refused.stderr


def test_a_place_that_is_none_is_wrong_use(run: Callable[..., Result], manager: QueueManager) -> None:
    batch = submit(manager)
    for place in ("0", "-1", "middle"):
        assert run("move", "--", batch.id, place).exit_code == 2


def test_prune_deletes_what_ended_long_ago_and_nothing_else(run: Callable[..., Result], manager: QueueManager) -> None:
    old, new = failed(manager), submit(manager)
    assert document(run("prune", "--json")) == {"deleted": 0}

    assert "deleted 1 batch" in run("prune", "--older-than", "0").output
    assert run("show", old.id).exit_code == 1
    assert run("show", new.id).exit_code == 0


# --- submit


def test_submit_reads_a_file(run: Callable[..., Result], manager: QueueManager, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("name,email\nAda,a@x\nBob,b@x\n")

    sent = document(
        run(
            *("submit", HANDLER, file, "--key-column", "email", "--key", "n-1", "--queue", "night", "--priority", "3"),
            *("--option", "max_attempts=7", "--option", "requeue=front", "--option", "failure_budget=0.5", "--json"),
        )
    )

    assert (sent["total"], sent["created"]) == (2, True)
    view = manager.statistics.batch(sent["id"])
    assert (view.name, view.key, view.queue, view.priority) == ("rows.csv", "n-1", "night", 3)
    assert (view.options["max_attempts"], view.options["requeue"], view.options["failure_budget"]) == (7, "front", 0.5)
    assert [line.key for line in manager.statistics.results(sent["id"])] == ["a@x", "b@x"]
    again = document(run("submit", HANDLER, file, "--key", "n-1", "--queue", "night", "--json"))
    assert again == {"id": sent["id"], "total": 2, "created": False, "new": 2, "same": 0, "changed": 0}
    forced = document(run("submit", HANDLER, file, "--key", "n-1", "--queue", "night", "--new", "--json"))
    assert forced["created"]
    assert forced["id"] != sent["id"]


def test_submit_reads_standard_input(run: Callable[..., Result], manager: QueueManager) -> None:
    result = run("submit", HANDLER, "-", "--format", "jsonl", "--name", "piped", stdin='{"key": "a", "payload": [1]}\n')

    assert result.exit_code == 0, result.output
    (view,) = manager.statistics.batches()
    assert f"submitted batch {view.id} with 1 profile" in result.output
    assert (view.name, view.total) == ("piped", 1)


@pytest.mark.parametrize(
    ("arguments", "content", "said"),
    [
        ((), "", "no profile in it"),
        (("--option", "nonsense=1"), "a\n", "there is no option 'nonsense'"),
        (("--option", "max_attempts"), "a\n", "NAME=VALUE"),
        (("--option", "max_attempts=many"), "a\n", "max_attempts"),
        (("--key-column", "id", "--format", "csv"), "name\nx\n", "id"),
        (("--format", "jsonl"), '{"key": "a"}\n{"key": "a"}\n', "'a'"),
        (("--format", "jsonl"), '{"key": "a"}\n{"key": \n', "line 2"),
    ],
)
def test_what_cannot_be_submitted_leaves_nothing(
    run: Callable[..., Result], manager: QueueManager, arguments: tuple[str, ...], content: str, said: str
) -> None:
    result = run("submit", HANDLER, "-", *arguments, stdin=content)

    assert result.exit_code == 2
    assert said in result.stderr
    assert manager.statistics.batches() == []
    with manager.database.read() as connection:
        assert connection.execute(batches.select()).all() == []


def test_submit_waits_when_asked(manager: QueueManager, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a\nb\n")
    with process(
        "submit", HANDLER, str(tmp_path / "rows.txt"), "--wait", "--json", "--option", "max_passes=1"
    ) as waiting:
        assert waiting.stdout is not None
        sent = json.loads(waiting.stdout.readline())
        batch = manager.get(sent["id"])
        work(manager, batch, lambda key: Outcome(Ending.SKIPPED) if key == "1" else SUCCESS)
        assert waiting.wait(10) == 0
    assert manager.statistics.batch(sent["id"]).state == "succeeded"


# --- health, db


def test_health_is_good_only_with_a_leader_and_a_worker(run: Callable[..., Result], manager: QueueManager) -> None:
    result = run("health", "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [name for name, check in told["checks"].items() if not check["ok"]] == ["manager", "workers"]
    manager.state_manager.lead(str(uuid.uuid4()), 60)
    info = WorkerInfo(str(uuid.uuid4()), "host", 1, "solo", 1, (HANDLER,), ("*",), "0.1.0")
    WorkerRegistry(manager.database).register(info)

    assert document(run("health", "--json"))["ok"]
    assert "1 live, with 1 slot" in run("health").output


def test_health_looks_at_the_broker_when_there_is_one(run: Callable[..., Result], broker_url: str) -> None:
    told = json.loads(run("--broker", broker_url, "health", "--json").stdout)
    assert told["checks"]["broker"] == {"ok": True, "detail": "answers"}
    gone = run("--broker", "redis+socket:///nowhere/valkey.sock?virtual_host=0", "health", "--json")
    assert not json.loads(gone.stdout)["checks"]["broker"]["ok"]


def test_doctor_finds_what_does_not_add_up_and_repairs_it(run: Callable[..., Result], manager: QueueManager) -> None:
    batch = submit(manager)
    manager.state_manager.lead(str(uuid.uuid4()), 60)
    assert document(run("doctor", "--json")) == {"ok": True, "problems": [], "repaired": []}
    with manager.database.begin() as connection:
        connection.execute(update(counters).values(pending=2))

    found = run("doctor", "--json")
    told = json.loads(found.stdout)

    assert found.exit_code == 1
    assert not told["ok"]
    assert batch.id in told["problems"][0]
    assert f"problem: {told['problems'][0]}" in run("doctor").output
    assert run("doctor", "--fix").exit_code == 0
    assert document(run("doctor", "--json"))["ok"]


def test_doctor_asks_the_broker_too(run: Callable[..., Result], manager: QueueManager, broker_url: str) -> None:
    submit(manager)
    manager.state_manager.lead(str(uuid.uuid4()), 60)

    assert document(run("--broker", broker_url, "doctor", "--json"))["ok"]
    away = run("--broker", "redis+socket:///nowhere/valkey.sock?virtual_host=0", "doctor")
    assert away.exit_code == 1
    assert "problem: cannot reach the broker" in away.output


def test_health_tells_of_a_database_that_is_away(tmp_path: Path) -> None:
    result = call("--database", f"sqlite:///{tmp_path}/no/such/folder/x.db", "health")

    assert result.exit_code == 1
    assert result.output.startswith("BAD  database: cannot reach the database")


def test_a_database_without_a_schema_says_what_to_do_and_db_upgrade_does_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fresh.db"

    refused = call("--database", url, "list")

    assert refused.exit_code == 1
    assert "batching db upgrade" in refused.stderr
    assert call("--database", url, "db", "current").exit_code == 1
    assert document(call("--database", url, "db", "upgrade", "--json"))["before"] is None
    assert "up to date" in call("--database", url, "db", "upgrade").output
    assert document(call("--database", url, "db", "current", "--json"))["up_to_date"]
    assert document(call("--database", url, "list", "--json")) == []


# --- the command itself


def test_without_a_database_it_says_what_to_set(tmp_path: Path) -> None:
    result = call("list", env={"BATCHING_HOME": str(tmp_path)})

    assert result.exit_code == 2
    assert "BATCHING_DATABASE_URL" in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_embedded_default_is_used_when_it_is_there(tmp_path: Path) -> None:
    call("--database", f"sqlite:///{tmp_path}/batching.db", "db", "upgrade")

    assert document(call("list", "--json", env={"BATCHING_HOME": str(tmp_path)})) == []


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("show",), ("list", "--limit", "0"), ("list", "--state", "loading"), ("--database", "x", "list")],
)
def test_wrong_use_is_2(arguments: tuple[str, ...]) -> None:
    result = call(*arguments)

    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_setting_that_does_not_parse_is_wrong_use() -> None:
    result = call("list", env={"BATCHING_WORKER_LEASE": "soon"})

    assert result.exit_code == 2
    assert "BATCHING_WORKER_LEASE" in result.stderr


def test_an_error_shows_its_traceback_only_with_debug(tmp_path: Path) -> None:
    arguments = ("--database", f"sqlite:///{tmp_path}/no/such/x.db", "list")
    environment = {**os.environ, "BATCHING_HOME": str(tmp_path)}
    command_line = [sys.executable, "-m", "batching.cli.main"]

    plain = subprocess.run([*command_line, *arguments], capture_output=True, text=True, env=environment, check=False)
    debug = subprocess.run(
        [*command_line, "--debug", *arguments], capture_output=True, text=True, env=environment, check=False
    )

    assert (plain.returncode, debug.returncode) == (1, 1)
    assert plain.stderr.startswith("Error: cannot reach the database")
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr


def test_celery_mounts_the_same_group(manager: QueueManager, tmp_path: Path) -> None:
    # As installed, whether or not this checkout is: the entry point as pyproject.toml declares it.
    with (ROOT / "pyproject.toml").open("rb") as project:
        target = tomllib.load(project)["project"]["entry-points"]["celery.commands"]["batching"]
    installed = tmp_path / "mounted-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mounted\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(f"[celery.commands]\nbatching = {target}\n")
    (tmp_path / "some_app.py").write_text("from celery import Celery\napp = Celery('some')\n")
    celery = [sys.executable, "-m", "celery", "--workdir", str(tmp_path), "-A", "some_app", "batching"]
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "BATCHING_DATABASE_URL": manager.database.url, "PYTHONPATH": paths}

    listed = subprocess.run([*celery, "list", "--json"], capture_output=True, text=True, env=environment, check=False)
    unknown = subprocess.run([*celery, "show", "0" * 8], capture_output=True, text=True, env=environment, check=False)

    assert (listed.returncode, listed.stdout.strip()) == (0, "[]"), listed.stderr
    assert unknown.returncode == 1
    assert unknown.stderr.strip().startswith("Error: there is no batch")


def test_every_verb_is_there_and_has_help() -> None:
    for verb in VERBS:
        assert isinstance(cli.get_command(click.Context(cli), verb), click.Command)
        if verb != "worker":  # which becomes Celery's own command, help and all
            assert call(verb, "--help").exit_code == 0, verb
    overview = call("--help").output
    assert all(re.search(rf"^  {verb} ", overview, re.MULTILINE) for verb in VERBS)


def test_reading_loads_neither_celery_nor_redis(manager: QueueManager) -> None:
    code = (
        "import sys\nfrom batching.cli.main import cli\n"
        "try:\n    cli(['list'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'celery', 'kombu', 'redis', 'workers'} & set(sys.modules)))"
    )
    environment = {**os.environ, "BATCHING_DATABASE_URL": manager.database.url}

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


# --- the display


def test_plain_progress_is_told_when_it_changes_and_not_otherwise(manager: QueueManager) -> None:
    view = submit(manager).progress()
    out = io.StringIO()
    with Display(Console(file=out), live=False) as display:
        display.update([view])
        display.update([view])
        display.update([replace(view, succeeded=1, pending=2)])  # mere progress waits for its turn
        display.update([replace(view, state=BatchState.RUNNING, reason="", rate=12.0, eta_seconds=75.0)])

    assert out.getvalue().splitlines() == [
        "nightly: queued, 0 % (0 of 3), no live worker serves handler tests.handler in queue default",
        "nightly: running, 0 % (0 of 3), 12/s, 1 min 15 s left",
    ]


def test_live_progress_shows_what_goes_on_when_there_is_no_room_for_all(manager: QueueManager) -> None:
    view = submit(manager).progress()
    ended = [replace(view, id=str(number), name=f"ended {number}", state=BatchState.SUCCEEDED) for number in range(50)]
    runs = replace(view, name="runs on", state=BatchState.RUNNING, reason="")
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=12)
    with Display(console) as display:
        display.update([*ended, runs])

    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "runs on" in drawn
    assert "50 of 51 batches have ended, 42 not shown" in drawn
    assert all(len(re.sub(r"\x1b\[[0-9;?]*\w", "", line)) <= 80 for line in drawn.splitlines())


def test_how_things_are_written() -> None:
    assert [duration(each) for each in (None, 0, 59.4, 75, 3900, 100_000)] == [
        "-",
        "0 s",
        "59 s",
        "1 min 15 s",
        "1 h 05 min",
        "1 d 03 h",
    ]
    assert [rate(each) for each in (None, 0.0, 3.44, 1234.5)] == ["-", "0/s", "3.4/s", "1,234/s"]
    assert safe("a\nb\x1b[2Jé…") == "a\\nb\\x1b[2Jé…"


def test_short_ids_tell_the_batches_apart(manager: QueueManager) -> None:
    view = submit(manager).progress()
    twins = [replace(view, id=f"0192aaaa-bbbb-7ccc-8ddd-{number:012}") for number in (1, 2)]

    assert set(short_ids([view]).values()) == {view.id[:13]}
    assert set(short_ids(twins).values()) == {twin.id for twin in twins}
    assert plain_line(replace(view, name="\x1b]0;x")).startswith("\\x1b]0;x: queued")


class process(subprocess.Popen[str]):  # noqa: N801 - used as a statement: `with process("watch", …) as watching`
    """A verb in a process of its own, ended with the block."""

    def __init__(self, *arguments: str) -> None:
        super().__init__(
            [sys.executable, "-m", "batching.cli.main", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def __exit__(self, *error: object) -> None:
        if self.poll() is None:
            self.kill()
        super().__exit__(*error)  # type: ignore[arg-type]
