"""The benchmarks' arithmetic, plan and report; what they measure is measured by `make bench`, not here."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.contender import Payloads, known, names
from benchmarks.drain import Series
from benchmarks.figures import Spread, best, paired, quantile, ratios, spread
from benchmarks.goals import Goal, goals
from benchmarks.plan import FULL, OURS, QUICK, ROWS, Planned, plan
from benchmarks.processes import used_between
from benchmarks.profiling import shorten, summary
from benchmarks.report import goal_table, render, write
from benchmarks.results import Measurement, Results
from benchmarks.statements import is_control, per_thousand
from benchmarks.tables import table

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.contender import Contender

PREFORK = "prefork -c 2"


def measured(
    workload: str, contender: str, shape: str, repetition: int = 0, count: int = 100, **values: Any
) -> Measurement:
    return Measurement(Planned(workload, contender, shape, count, repetition), values)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    made = Results(tmp_path / "results.jsonl")
    made.begin({"date": "today", "machine": "a machine", "versions": {"Python": "3"}, "commit": "abc"})
    return made


@pytest.fixture(scope="module")
def contenders() -> list[Contender]:
    found, broken = known()
    assert not broken
    return list(found.values())


# --- figures


def test_a_ratio_pairs_figures_of_the_same_repetition() -> None:
    # Repetition 1 was slow for both, and has the same ratio
    assert ratios({0: 100.0, 1: 50.0, 2: 90.0}, {0: 10.0, 1: 5.0}) == [10.0, 10.0]
    assert paired({0: 100.0, 1: 50.0}, {0: 10.0, 1: 5.0}) == Spread(10.0, 10.0, 10.0, 2)


def test_a_ratio_without_a_common_repetition_is_none() -> None:
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert ratios({0: 1.0}, {0: 0.0}) == []


def test_the_spread_is_median_and_bounds() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert spread([]) is None


def test_the_best_of_several_is_taken_in_each_repetition() -> None:
    assert best([{0: 1.0, 1: 5.0}, {0: 2.0, 1: 4.0, 2: 1.0}]) == {0: 2.0, 1: 5.0, 2: 1.0}


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (0.9, 90), (1.0, 100), (0.001, 1)])
def test_a_quantile_is_the_nearest_rank(share: float, expected: int) -> None:
    assert quantile(range(1, 101), share) == expected


def test_a_rate_runs_from_a_tenth_to_the_end_as_they_were_seen() -> None:
    series = Series()
    for at, count in ((0.0, 0), (1.0, 5), (2.0, 20), (3.0, 60), (4.0, 100), (9.0, 100)):
        series.add(at, count)
    # A tenth was first seen as 20 at 2 s: 80 items in 2 s
    assert series.rate(100) == 40.0
    assert series.reached(60) == 3.0
    with pytest.raises(ValueError, match="ended at 100"):
        series.reached(101)


def test_processor_time_is_counted_by_process_and_a_new_process_from_its_start() -> None:
    before = {"child": {1: 5.0, 2: 5.0}}
    after = {"child": {1: 6.0, 3: 0.5}, "manager": {}}
    assert used_between(before, after) == {"child": 1.5}


# --- what is planned


def test_payloads_are_different_and_as_long_as_asked() -> None:
    payloads = Payloads(3, 200)
    assert len(payloads) == 3
    assert [len(each) for each in payloads] == [200, 200, 200]
    assert len(set(payloads)) == 3


def test_every_adapter_can_be_listed_without_its_packages(contenders: list[Contender]) -> None:
    assert {OURS, "celery", "handwritten", "copying"} <= set(names())
    for contender in contenders:
        shapes = [shape.name for shape in contender.shapes]
        assert len(set(shapes)) == len(shapes)
        assert all(not shape.durable or contender.progress_sql(shape) for shape in contender.shapes)


def test_odd_repetitions_are_reversed_inside_their_workload(contenders: list[Contender]) -> None:
    planned = plan(contenders, FULL, 2, only="/ drain /")
    first = [each.label for each in planned if each.repetition == 0]
    second = [each.label for each in planned if each.repetition == 1]
    assert first == second[::-1]
    assert len(first) > 5


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_goals_has_measurements(row: int, contenders: list[Contender]) -> None:
    chosen = plan(contenders, FULL, 1, rows=[row])
    assert chosen
    assert len(chosen) < len(plan(contenders, FULL, 1))


def test_slow_shapes_get_fewer_items(contenders: list[Contender]) -> None:
    planned = plan(contenders, FULL, 1, only="^handwritten .* / drain")
    assert [each.count for each in planned] == [5_000]
    assert all(each.count <= 10_000 for each in plan(contenders, QUICK, 1))


# --- what is kept


def test_results_are_read_back_and_a_cut_line_is_left_out(results: Results) -> None:
    results.add(measured("drain", OURS, PREFORK, durable_rate=5.0))
    results.add(measured("drain", OURS, PREFORK, durable_rate=7.0))
    with results.path.open("a") as file:
        file.write('{"planned": {"workl')
    again = Results(results.path)
    again.load()
    assert again.header == results.header
    # The later measurement of the same thing counts
    assert again.series("drain", OURS, PREFORK, "durable_rate") == {0: 7.0}
    assert again.has(Planned("drain", OURS, PREFORK, 100, 0))
    assert not again.has(Planned("drain", OURS, PREFORK, 100, 1))


def test_what_failed_is_measured_again_and_gives_no_figure(results: Results) -> None:
    planned = Planned("drain", OURS, PREFORK, 100, 0)
    results.add(Measurement(planned, {}, "it broke"))
    assert not results.has(planned)
    assert results.series("drain", OURS, PREFORK, "durable_rate") == {}
    assert "it broke" in render(results, {})


def test_what_was_measured_with_other_sources_says_so(results: Results) -> None:
    results.add(measured("drain", OURS, PREFORK, durable_rate=7.0))
    assert "revision abc\n- Machine" in render(results, {})
    results.add(replace(measured("growth", OURS, PREFORK, cost_us=3.0), revision="def"))
    assert "revision abc\n- Measured later, at revision def: growth\n- Machine" in render(results, {})


def test_nested_figures_are_found_by_their_path(results: Results) -> None:
    results.add(measured("growth", OURS, PREFORK, weights={"last": {"main": 3.0}}))
    assert results.series("growth", OURS, PREFORK, "weights", "last", "main") == {0: 3.0}
    assert results.series("growth", OURS, PREFORK, "weights", "last", "child") == {}
    assert results.series("growth", OURS, PREFORK, "weights", "last") == {}


# --- what is said


@pytest.mark.parametrize(
    ("median", "at_most", "verdict"),
    [(12, False, "stretch"), (7, False, "yes"), (5, False, "no"), (5, True, "yes"), (7, True, "no"), (2, True, "yes")],
)
def test_a_goal_is_judged_by_its_median(median: float, verdict: str, *, at_most: bool) -> None:
    goal = Goal(1, "m", Spread(median, 0, math.inf, 3), 6, 1 if at_most else 10, at_most=at_most)
    assert goal.reached == verdict


def test_a_goal_that_was_not_measured_says_so() -> None:
    assert Goal(1, "m", None, 6).reached == "not measured"
    assert "not measured" in goal_table([Goal(1, "m", None, 6)])


def test_the_first_row_compares_durable_drains_of_the_same_repetition(results: Results) -> None:
    for repetition, factor in enumerate((1.0, 0.5, 2.0)):
        results.add(measured("drain", OURS, PREFORK, repetition, durable_rate=8000 * factor, executed_rate=9999.0))
        results.add(measured("drain", "handwritten", PREFORK, repetition, durable_rate=1000 * factor))
        results.add(measured("drain", "celery", "delay, prefork -c 2", repetition, executed_rate=2000 * factor))
    first, second, *_ = goals(results)
    assert first.found == Spread(8.0, 8.0, 8.0, 3)
    assert first.reached == "yes"
    assert second.found == Spread(4.0, 4.0, 4.0, 3)


def test_memory_and_growth_are_judged_at_a_million(results: Results) -> None:
    for count, cost in ((10_000, 100.0), (1_000_000, 105.0)):
        results.add(measured("growth", OURS, PREFORK, count=count, cost_us=cost, producer_growth_mb=count / 1e5))
    found = {goal.measure: goal for goal in goals(results)}
    assert found["cost per profile (submit + drain) at 1,000,000 against 10,000"].reached == "yes"
    grown = found["producer's growth while submitting 1,000,000"].found
    assert grown is not None
    assert grown.median == 10.0


def test_the_report_has_the_goals_first_and_a_table_per_workload(results: Results) -> None:
    results.add(measured("drain", "handwritten", PREFORK, durable_rate=100.0, executed_rate=100.0))
    results.add(measured("drain", OURS, PREFORK, durable_rate=900.0, executed_rate=950.0, cpu_ms={"main": 0.25}))
    text = render(results, {"drain": "drain.svg"})
    assert text.splitlines()[2].startswith("Generated by `make bench`")
    assert text.index("What it must reach") < text.index("Drain of no-ops") < text.index("## Method")
    assert "| batching | prefork -c 2 | 100 | 950 |" in text
    assert "9.00x [9.00 - 9.00]" in text
    assert "main 0.250" in text
    assert "![drain](benchmarks/drain.svg)" in text


def test_the_report_is_written_with_its_data(results: Results, tmp_path: Path) -> None:
    results.add(measured("latency", OURS, PREFORK, p50=1.0, p90=2.0, p99=3.0, max=4.0))
    write(results, tmp_path / "docs")
    assert "Idle latency" in (tmp_path / "docs" / "benchmarks.md").read_text()
    lines = (tmp_path / "docs" / "benchmarks" / "results.jsonl").read_text().splitlines()
    assert [min(json.loads(line)) for line in lines] == ["header", "failed"]
    assert (tmp_path / "docs" / "benchmarks" / "profiles.md").exists()


def test_a_table_escapes_what_would_break_it() -> None:
    assert table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |\n"
    assert table(["a"], []) == ""


# --- what is counted


def test_statements_are_counted_between_two_readings() -> None:
    before = {"SELECT 1": 10, "BEGIN": 5}
    after = {"SELECT 1": 30, "BEGIN": 25, "UPDATE t\n SET a = $1": 10}
    counted = per_thousand(before, after, 2_000)
    assert counted["sql_per_1000"] == 25
    assert counted["sql_work_per_1000"] == 15
    assert [5.0, "UPDATE t SET a = $1"] in counted["sql_top"]


@pytest.mark.parametrize(
    ("query", "control"), [("BEGIN", True), ("commit;", True), ("SAVEPOINT a", True), ("SELECT 1", False), ("", False)]
)
def test_transaction_control_is_told_apart(query: str, control: bool) -> None:
    assert is_control(query) is control


def test_a_profile_sums_what_functions_do_and_call() -> None:
    raw = "main (a/b.py:1);work (a/b.py:5) 30\nmain (a/b.py:1);work (a/b.py:9);work (a/b.py:9) 50\nmain (a/b.py:2) 20\n"
    found = summary(raw)
    assert found["samples"] == 100
    assert found["self"] == [["work (a/b.py)", 80.0], ["main (a/b.py)", 20.0]]
    # A function that calls itself is counted once per sample
    assert found["inclusive"] == [["main (a/b.py)", 100.0], ["work (a/b.py)", 80.0]]


def test_frames_lose_lines_and_long_paths() -> None:
    frame = "loop (/venv/lib/python3.11/site-packages/kombu/asynchronous/hub.py:312)"
    assert shorten(frame) == "loop (kombu/asynchronous/hub.py)"
    assert shorten("no file") == "no file"
