"""`python -m benchmarks`: measure, and write the report."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.contender import known, shape_named
from benchmarks.environments import ROOT, InstallationError, programs
from benchmarks.history import History
from benchmarks.plan import FULL, QUICK, ROWS, Planned, plan
from benchmarks.report import headline, write
from benchmarks.results import Measurement, Results, describe_run, revision
from benchmarks.servers import Servers
from benchmarks.stage import FailedError, Subject
from benchmarks.workloads import Workloads

if TYPE_CHECKING:
    from collections.abc import Sequence

_RESULTS: Final = ROOT / ".bench" / "results.jsonl"
_PART: Final = ROOT / ".bench" / "report"
_REASON: Final = 1500
#: What a shell says of a program that Ctrl-C ended.
_INTERRUPTED: Final = 130


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="measure what `contender / shape / workload / count` matches"
    )
    parser.add_argument("--rows", default="", metavar="1,2", help="measure what these rows of the table of goals need")
    parser.add_argument("--repetitions", type=int, default=0, metavar="N", help="3 by default, 1 with --quick")
    parser.add_argument("--quick", action="store_true", help="small numbers of items: to try it, not to believe it")
    parser.add_argument("--list", action="store_true", help="print what would be measured, and stop")
    parser.add_argument("--resume", action="store_true", help="continue: keep what the results file has already")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the report of the results file")
    parser.add_argument("--results", type=Path, default=None, metavar="FILE", help=f"by default {_RESULTS}")
    parser.add_argument(
        "--out", type=Path, default=None, metavar="FOLDER", help="where the report goes; a whole run writes docs/"
    )
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _arguments().parse_args(words)
    contenders, broken = known()
    for name, reason in broken.items():
        sys.stderr.write(f"cannot load the contender {name}: {reason}\n")
    rows = [int(row) for row in options.rows.split(",") if row]
    if unknown := [row for row in rows if row not in ROWS]:
        sys.stderr.write(f"no such rows: {unknown}; there are {sorted(ROWS)}\n")
        return 2
    partial = bool(options.quick or options.only or rows)
    repetitions = options.repetitions or (1 if options.quick else 3)
    planned = plan(list(contenders.values()), QUICK if options.quick else FULL, repetitions, options.only, rows)
    if options.list:
        sys.stdout.write("".join(f"{each.repetition} {each.label}\n" for each in planned))
        return 0
    results = Results(options.results or (_RESULTS.with_name("part.jsonl") if partial else _RESULTS))
    if (options.resume or options.report) and results.path.exists():
        results.load()
    complete = options.report or _measure(results, planned, options)
    out = options.out or (ROOT / "docs" if complete and not partial else _PART)
    write(results, out)
    sys.stdout.write(f"\n{headline(results)}\nwritten to {out}\n")
    if not complete:
        return _INTERRUPTED
    return 1 if results.failures() else 0


def _measure(results: Results, planned: Sequence[Planned], options: argparse.Namespace) -> bool:
    """Measure what is planned and not yet measured; returns whether nothing interrupted it."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, _interrupt)
    waiting = [each for each in planned if not results.has(each)]
    sizes = QUICK if options.quick else FULL
    with Servers() as servers:
        if not results.header:
            results.begin(describe_run(servers.versions(), sys.argv[1:]))
        now = revision()
        runner = _Runner(Workloads(servers, History(servers, sizes.history)))
        try:
            for number, each in enumerate(waiting, 1):
                measured = runner.measure(each)
                if now != results.header.get("commit"):
                    measured = replace(measured, revision=now)
                results.add(measured)
                _say(f"[{number}/{len(waiting)}] {each.label} #{each.repetition}: {_outcome(measured)}")
        except KeyboardInterrupt:
            _say(f"\ninterrupted; {results.path} has what was measured, --resume continues")
            return False
    return True


def _interrupt(*_: object) -> None:
    """End the run in order. Once: a second Ctrl-C, or `timeout`, which signals twice, would cut the tidying short."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda *_: None)
    raise KeyboardInterrupt


class _Runner:
    """Turns what is planned into measurements; nothing that a contender does ends the run."""

    def __init__(self, workloads: Workloads) -> None:
        self._workloads = workloads

    def measure(self, planned: Planned) -> Measurement:
        """Measure once."""
        began, busy = time.monotonic(), os.getloadavg()[0]
        values: dict[str, Any] = {}
        failed = None
        try:
            contender = known()[0][planned.contender]
            subject = Subject(contender, shape_named(contender, planned.shape), programs(contender))
            values = self._workloads.run(planned.workload, subject, planned.count)
        except (FailedError, InstallationError) as error:
            failed = str(error)[-_REASON:]
        except Exception as error:  # noqa: BLE001 - one contender's trouble must not cost the others their run
            failed = f"{type(error).__name__}: {error}"[-_REASON:]
        return Measurement(planned, values, failed, round(time.monotonic() - began, 1), busy)


def _outcome(measured: Measurement) -> str:
    if measured.failed is not None:
        return f"FAILED: {measured.failed}"
    shown = ("executed_rate", "durable_rate", "rate", "cost_us", "p50", "p99", "sql_per_1000", "redis_trips_per_1000")
    figures = [f"{name} {measured.values[name]:,.5g}" for name in shown if name in measured.values]
    return f"{', '.join(figures)} ({measured.seconds:g} s)"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
