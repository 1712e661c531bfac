"""Results as CSV: read back unchanged, and nothing in it that a spreadsheet would run."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from batching.cli.main import cli
from batching.interfaces import Ending, ErrorInfo, Outcome
from batching.settings import get_settings
from batching.spreadsheet import COLUMNS, inert, write_csv
from batching.states import ProfileState
from batching.statistics import ResultLine
from tests.accounting import Desk, plant

if TYPE_CHECKING:
    from batching.database import Database

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0", "\uff1d1+1", "'=1"]


def written(*lines: ResultLine) -> list[list[str]]:
    stream = io.BytesIO()
    write_csv(lines, stream)
    return list(csv.reader(io.StringIO(stream.getvalue().decode(), newline="")))


def line(key: str, result: object = None, error: dict[str, str] | None = None) -> ResultLine:
    return ResultLine(key=key, state=ProfileState.SUCCEEDED, attempts=1, result=result, error=error)


@pytest.mark.parametrize("formula", FORMULAS)
def test_nothing_begins_like_a_formula_and_nothing_is_lost(formula: str) -> None:
    error = {"type": formula, "message": "x", "fingerprint": "f"}

    header, record = written(line(formula, error=error))

    assert header == list(COLUMNS)
    assert [record[0], record[4]] == [f"'{formula}", f"'{formula}: x"]
    assert record[0].removeprefix("'") == formula


def test_a_number_below_zero_is_no_formula_once_it_is_quoted() -> None:
    assert written(line("k", -5))[1][3] == "'-5"


def test_what_is_harmless_stays_as_it_is() -> None:
    result = {"text": 'a,"b"\n=1', "é": [1, None]}

    record = written(line("it's a=b", result))[1]

    assert record == ["it's a=b", "succeeded", "1", json.dumps(result, ensure_ascii=False), ""]
    assert inert("") == ""


def test_a_lone_surrogate_does_not_end_the_export() -> None:
    assert written(line("k", "\ud800"), line("l"))[2][0] == "l"


def test_the_verb_prints_csv(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(database)
    batch_id = desk.start(2, max_passes=1)
    broken = Outcome(Ending.FAILED, error=ErrorInfo("ValueError", "=1", "f" * 16))
    desk.work(batch_id, lambda number: broken if number == 2 else Outcome(Ending.SUCCEEDED, result='"=HYPERLINK(1)"'))
    plant(database, batch_id, {"key": "@SUM(A1)"}, 1)
    monkeypatch.setenv("BATCHING_DATABASE_URL", database.url)
    get_settings.cache_clear()

    result = CliRunner().invoke(cli, ["results", batch_id, "--format", "csv"])

    assert result.exit_code == 0, result.output
    assert list(csv.DictReader(io.StringIO(result.stdout, newline=""))) == [
        {"key": "'@SUM(A1)", "state": "succeeded", "attempts": "1", "result": '"=HYPERLINK(1)"', "error": ""},
        {"key": "k2", "state": "failed", "attempts": "1", "result": "", "error": "ValueError: =1"},
    ]
    assert CliRunner().invoke(cli, ["results", batch_id, "--format", "csv", "--json"]).exit_code == 2
