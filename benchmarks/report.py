"""The report: `benchmarks.md` with its tables, and beside it plots, profiles and the measurements themselves."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from benchmarks import plots
from benchmarks.goals import goals
from benchmarks.profiles import profiles
from benchmarks.tables import failures, growth, memory, statements, table, workload_tables

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.goals import Goal
    from benchmarks.results import Results

_FOLDER: Final = "benchmarks"

_METHOD: Final = """\
## Method

Every contender runs in a virtual environment of its own, with pinned versions, on the same PostgreSQL (fsync on) and
the same Valkey (append-only file, fsync each second), both over unix sockets. Inside a repetition the contenders of a
workload follow each other directly; every second repetition runs in the reverse order. A ratio divides two figures of
the *same* repetition; the tables give the median of these ratios.

Every handler appends one byte to a file on tmpfs (about half a microsecond) through the system's full path; its
argument is a string of 200 bytes. The queue is loaded before any worker starts. The first handler of every executing
process waits at a gate, which opens when all of them are there; the rate is taken between 10 % and 100 % of the
items. *Executed* is what the file shows (looked at every 4 ms), *durable* what PostgreSQL itself shows to another
session (asked every 20 ms). After every run the bytes, the counters and the rows are compared with the number of
items; a run that is not exact, or not done in time, is a failure and is listed. *End to end* begins with the first
enqueue, with warm and idle workers. Latency is one item at a time, 20 ms apart, from just before the submission to
the handler's first instruction. Processor time is read from /proc for each process. SQL statements are counted by
pg_stat_statements in runs of their own, BEGIN and COMMIT included, those of the controller excluded; Redis commands
by INFO commandstats. Redis round trips are given as the smaller of commands and of reads from sockets: the true
number is not larger than either.

### Known weaknesses

- One machine: producers, workers, both servers and the controller share its cores, and its noise. Compare ratios, not
  rates, and only inside one run.
- Slow contenders get fewer items (the column says how many), so that their run takes seconds, not minutes.
- The fastest drains last about a second, of which the store is asked every 20 ms: some 2 % of uncertainty.
- huey and taskiq's list broker acknowledge by popping, so a crash loses what was popped. Peers on Redis record no
  outcome in SQL. Their rates are not at equal guarantees; the notes say so.
- No network is between the processes: a round trip costs tens of microseconds here, and more elsewhere. That favours
  systems that make many of them.
- The profiler (py-spy) stops the process for each sample, so rates of profiled runs are not used.

## Repeat it

`make bench` installs everything and makes the whole run. `python -m benchmarks --list` prints what it consists of,
`--rows 1,2` measures what single rows of the first table need, `--only REGEX` chooses by `contender / shape /
workload / count`, `--quick` tries it with small numbers, `--resume` continues after an interruption. Runs that are
not whole do not write into `docs/`.
"""


def write(results: Results, out: Path) -> None:
    """Write the report and everything that it refers to.

    Args:
        results: What was measured.
        out: Folder for `benchmarks.md`; what it refers to goes into its folder `benchmarks`.
    """
    folder = out / _FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(results.path, folder / "results.jsonl")
    pictures = plots.draw(results, folder)
    (folder / "profiles.md").write_text(profiles(results), encoding="utf-8")
    (out / "benchmarks.md").write_text(render(results, pictures), encoding="utf-8")


def render(results: Results, pictures: dict[str, str]) -> str:
    """The text of the report.

    Args:
        results: What was measured.
        pictures: By workload, the file name of its plot.
    """
    parts = [_head(results), "## What it must reach\n", goal_table(goals(results)), _reading()]
    for workload, text in workload_tables(results).items():
        picture = pictures.get(workload)
        parts += [text, f"![{workload}]({_FOLDER}/{picture})\n" if picture else ""]
    parts += [growth(results), f"![growth]({_FOLDER}/{pictures['growth']})\n" if "growth" in pictures else ""]
    parts += [memory(results), statements(results)]
    parts += ["## Where the time goes\n", f"[Profiles of the hot path]({_FOLDER}/profiles.md), by py-spy.\n"]
    parts += [failures(results), _METHOD]
    return "\n".join(part for part in parts if part)


def headline(results: Results) -> str:
    """The table of goals as the console shows it: only the rows that were measured."""
    return goal_table([each for each in goals(results) if each.found is not None])


def goal_table(found: list[Goal]) -> str:
    """Goals as a Markdown table."""
    rows = []
    for goal in found:
        sign = "≤" if goal.at_most else "≥"
        unit = goal.unit
        target = "" if goal.target is None else f"{sign} {goal.target:g}{unit}"
        stretch = "" if goal.stretch is None else f"{sign} {goal.stretch:g}{unit}"
        measured = "" if goal.found is None else _measured(goal)
        rows.append([str(goal.row), goal.measure, target, stretch, measured, goal.reached, goal.note])
    return table(["#", "measure", "at least", "stretch", "measured [min - max]", "reached", "note"], rows)


def _measured(goal: Goal) -> str:
    assert goal.found is not None  # noqa: S101 - for the type checker
    middle, low, high = (f"{figure:.3g}" if figure < 1000 else f"{figure:,.0f}" for figure in _three(goal))
    return f"**{middle}{goal.unit}** [{low} - {high}] of {goal.found.count}"


def _three(goal: Goal) -> tuple[float, float, float]:
    assert goal.found is not None  # noqa: S101 - for the type checker
    return goal.found.median, goal.found.low, goal.found.high


def _head(results: Results) -> str:
    header = results.header
    again = "".join(
        f"- Measured later, at revision {revision}: {', '.join(workloads)}\n"
        for revision, workloads in results.later_revisions().items()
    )
    versions = ", ".join(f"{name} {version}" for name, version in header.get("versions", {}).items())
    return (
        "# Benchmarks\n\nGenerated by `make bench`; do not edit: the next run overwrites it.\n\n"
        f"- Date: {header.get('date', 'unknown')}, revision {header.get('commit') or 'unknown'}\n{again}"
        f"- Machine: {header.get('machine', 'unknown')}\n- Versions: {versions}; those of the peers are pinned in "
        "`benchmarks/contenders/*.txt`\n"
    )


def _reading() -> str:
    return (
        "Ratios are paired by repetition; *reached* goes by the median. Every profile is one Celery task message, its "
        "handler runs through Celery's tracer with its signals, and its outcome is durable in PostgreSQL.\n"
    )
