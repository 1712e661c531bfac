"""Mutation controls: remove one guard at a time from a copy of the sources; the tests that are named must go red.

`make mutations` runs them all and writes docs/mutations.md. A guard whose removal nobody notices is either not needed
or not tested; both are worth knowing. What caught each one is run again on the untouched sources, and must be green.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.faults.guards import MUTATIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.guards import Mutation

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "mutations.md"
COPIED = ("batching", "workers", "tests", "benchmarks", "pyproject.toml", "README.md", "docs", "CHANGELOG.md")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?\.py::\S.*?)(?: - .*)?$", re.MULTILINE)


class Result(NamedTuple):
    """What became of a mutation."""

    mutation: Mutation
    caught_by: str
    """The first test that went red; empty when none did."""
    seconds: float
    said: str
    """The end of what pytest printed."""


def copy_to(folder: Path) -> None:
    """Copy what the tests need."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "images")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        elif source.exists():
            shutil.copyfile(source, folder / name)


def mutate(folder: Path, mutation: Mutation) -> None:
    """Remove the guard; a guard that does not stand where it did is an error: the list has to follow the sources."""
    for edit in mutation.edits:
        path = folder / edit.path
        text = path.read_text(encoding="utf-8")
        found = text.count(edit.old)
        if found != edit.times:
            raise SystemExit(
                f"mutation {mutation.name!r}: {edit.path} has {found} times, not {edit.times}:\n{edit.old}"
            )
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


def run_tests(folder: Path, arguments: Sequence[str]) -> tuple[int, str]:
    """pytest in a copy; its exit code and output."""
    words = ["-x", "-q", "--timeout=60", "-p", "no:cacheprovider", "--no-header", "--tb=line", *arguments]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=folder,
        # The copy, not the folder that is installed.
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def control(mutation: Mutation) -> Result:
    """Remove one guard and run the tests that ought to notice."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        folder = Path(name)
        copy_to(folder)
        mutate(folder, mutation)
        started = time.monotonic()
        code, said = run_tests(folder, mutation.tests)
        found = _FAILED.search(said)
        if code not in {0, 1} or (code == 1 and found is None):
            raise SystemExit(f"mutation {mutation.name!r} did not get as far as a test:\n{said[-3000:]}")
        result = Result(mutation, found.group(1) if found and code else "", time.monotonic() - started, said[-1500:])
        sys.stdout.write(f"{mutation.name}: {result.caught_by or 'SURVIVED'} ({result.seconds:.0f} s)\n")
        sys.stdout.flush()
        return result


def page(results: Sequence[Result]) -> str:
    """docs/mutations.md."""
    lines = [
        "# Mutation controls",
        "",
        "What the tests notice when one guard is removed. `make mutations` removes each of these in a copy of the",
        "sources, runs the tests that ought to notice, and writes this page; the list is `tests/faults/guards.py`.",
        "",
        f"{sum(bool(each.caught_by) for each in results)} of {len(results)} were caught.",
        "",
        "| without | in | caught by |",
        "| --- | --- | --- |",
    ]
    for each in results:
        where = ", ".join(dict.fromkeys(f"`{edit.path}`" for edit in each.mutation.edits))
        caught = f"`{each.caught_by}`" if each.caught_by else "**nothing**"
        lines.append(f"| {each.mutation.guard} | {where} | {caught} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run them all, or those whose names contain a word."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only mutations whose names contain one of these; writes no page")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    given = parser.parse_args()
    chosen = [each for each in MUTATIONS if not given.words or any(word in each.name for word in given.words)]
    with ThreadPoolExecutor(given.jobs) as pool:
        results = list(pool.map(control, chosen))
    survivors = [each for each in results if not each.caught_by]
    for each in survivors:
        sys.stdout.write(f"--- {each.mutation.name} survived {' '.join(each.mutation.tests)}\n{each.said}\n")
    code, said = run_tests(ROOT, sorted({each.caught_by for each in results if each.caught_by}))
    if code:
        sys.stdout.write(f"what caught them is red on the untouched sources, too:\n{said[-3000:]}\n")
    if not given.words and not code:
        PAGE.write_text(page(results), encoding="utf-8")
    return 1 if survivors or code else 0


if __name__ == "__main__":
    raise SystemExit(main())
