"""The logs of real workers: fields on every line about a run, in parent and pool children; no payload anywhere."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from batching.logs import FIELDS
from batching.options import BatchOptions
from tests.nodes import worker_process
from tests.support import eventually

if TYPE_CHECKING:
    from tests.acceptance.stage import Stage

CANARY = "canary-logs-3b1f"
TWICE = BatchOptions(max_attempts=2, max_passes=1, retry_backoff=0)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_every_line_about_a_run_says_which(stage: Stage, pool: str) -> None:
    worker = stage.worker(
        f"--pool={pool}", "--concurrency=2", BATCHING_LOG_FORMAT="json", BATCHING_HANDLERS="tests.acceptance.talkative"
    )
    batch = stage.submit("talk", {"one": {"secret": CANARY}, "two": {"secret": CANARY, "fail": True}}, TWICE)
    stage.finished(batch)
    (worker_id,) = stage.registered()

    def told() -> list[dict[str, Any]]:
        found = lines(worker.logs())
        assert sum("succeeded in" in str(each["event"]) for each in found) == 2, worker.logs()
        return found

    found = eventually(told)
    about = [each for each in found if each.get("batch") == batch.id]
    says = {"said with logging", "said with structlog", "said by printing", "received", "succeeded in", "not the first"}
    for words in says:
        mine = [each for each in about if words in each["event"]]
        assert len(mine) == (1 if words == "not the first" else 3 if words != "succeeded in" else 2), (words, mine)
        assert all(set(FIELDS) <= each.keys() for each in mine), mine
        assert {each["worker"] for each in mine} == {worker_id}
        assert {each["handler"] for each in mine} == {"acceptance.talk"}
        assert {(each["profile"], each["run"], each["attempt"]) for each in mine} <= {
            ("one", 1, 1), ("two", 1, 1), ("two", 2, 2),
        }  # fmt: skip
    # Lines of others carry none of it, and nothing carries what came in or went out
    assert not [each for each in found if "ready." in each["event"] and each.keys() & set(FIELDS)]
    assert CANARY not in stage.report()
    # The manager's, too
    assert [each for each in found if each["event"] == "leads" and each["logger"] == "batching.manager"]


def test_levels_and_the_form_for_people(stage: Stage) -> None:
    quiet = worker_process(stage.folder, stage.environment(BATCHING_LOG_LEVEL="WARNING"), options=["--pool=solo"])
    # What the command line says goes before the environment
    assert "--loglevel=INFO" in quiet.command
    worker = stage.worker("--pool=prefork", "--concurrency=1", BATCHING_LOG_LEVEL="ERROR")
    batch = stage.submit("work", 1)
    stage.finished(batch)
    eventually(lambda: "succeeded in" in worker.logs())
    (line,) = [each for each in worker.logs().splitlines() if "succeeded in" in each]
    assert f"batch={batch.id}" in line
    assert "profile=p0" in line
    assert "[celery.app.trace]" in line
    quiet.command = [each for each in quiet.command if not each.startswith("--loglevel")]
    stage.nodes.append(quiet)
    quiet.start()
    eventually(lambda: len(stage.registered()) == 2, 30)
    assert " ready." not in quiet.logs()
