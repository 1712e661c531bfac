"""Measurements as they are kept: a line of JSON each, written as soon as it is made, so that a run can be continued."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environments import ROOT
from benchmarks.plan import Planned

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PACKAGES = ("celery", "kombu", "redis", "hiredis", "SQLAlchemy", "psycopg", "flower")


@dataclass(frozen=True)
class Measurement:
    """One measurement: what was planned, and what came of it."""

    planned: Planned
    values: Mapping[str, Any] = field(default_factory=dict)
    failed: str | None = None
    """Why there are no values."""
    seconds: float = 0.0
    """That it took, all in all."""
    load: float = 0.0
    """The machine's load average of one minute, before."""
    revision: str = ""
    """Of the sources, where it was not yet the one that the run began with."""


class Results:
    """A file of measurements."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, Any] = {}
        self.measurements: list[Measurement] = []

    def begin(self, header: Mapping[str, Any]) -> None:
        """Start a new file; an older one of this name is moved aside."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self.path.replace(self.path.with_suffix(".previous.jsonl"))
        self.header = dict(header)
        self._append({"header": self.header})

    def load(self) -> None:
        """Read the file; a later measurement of the same thing replaces an earlier one, and a cut line is left out."""
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if "header" in record:
                self.header = record["header"]
            else:
                self._take(Measurement(Planned(**record.pop("planned")), **record))

    def add(self, measurement: Measurement) -> None:
        """Keep a measurement."""
        self._take(measurement)
        self._append(asdict(measurement))

    def has(self, planned: Planned) -> bool:
        """Whether this was measured, and did not fail."""
        return any(each.planned == planned and each.failed is None for each in self.measurements)

    def series(
        self, workload: str, contender: str, shape: str, *path: str, count: int | None = None
    ) -> dict[int, float]:
        """One figure of a subject by repetition.

        Args:
            workload: Of `plan.WORKLOADS`.
            contender: Its name.
            shape: The name of its shape.
            *path: Where the figure is in the values.
            count: Only measurements of so many items.
        """
        found: dict[int, float] = {}
        for each in self.of(workload):
            same = each.planned.contender == contender and each.planned.shape == shape
            if same and count in {None, each.planned.count} and each.failed is None:
                value: Any = each.values
                for name in path:
                    value = value.get(name, {}) if isinstance(value, dict) else {}
                if isinstance(value, int | float):
                    found[each.planned.repetition] = float(value)
        return found

    def of(self, workload: str) -> list[Measurement]:
        """The measurements of a workload."""
        return [each for each in self.measurements if each.planned.workload == workload]

    def subjects(self, workload: str) -> list[tuple[str, str]]:
        """Contenders and shapes that were measured, or failed, in a workload, in the order of their first time."""
        return list(dict.fromkeys((each.planned.contender, each.planned.shape) for each in self.of(workload)))

    def later_revisions(self) -> dict[str, list[str]]:
        """What was measured again, or only, when the run was continued with other sources: workloads by revision."""
        found: dict[str, list[str]] = {}
        for each in self.measurements:
            if each.revision and each.planned.workload not in (known := found.setdefault(each.revision, [])):
                known.append(each.planned.workload)
        return found

    def failures(self) -> list[Measurement]:
        """What could not be measured."""
        return [each for each in self.measurements if each.failed is not None]

    def _take(self, measurement: Measurement) -> None:
        self.measurements = [each for each in self.measurements if each.planned != measurement.planned]
        self.measurements.append(measurement)

    def _append(self, record: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def describe_run(servers: Mapping[str, str], arguments: Sequence[str]) -> dict[str, Any]:
    """What a reader needs to know of the machine and of the versions."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": _machine(),
        "versions": {"Python": platform.python_version(), **servers, **_versions()},
        "commit": revision(),
        "arguments": list(arguments),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _machine() -> str:
    cpus = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((line for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "MemTotal: 0 kB")
    name = cpus[0].split(":", 1)[1].strip() if cpus else platform.machine()
    return f"{len(cpus)} x {name}, {int(memory.split()[1]) / 1e6:.0f} GB, {platform.system()} {platform.release()}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def revision() -> str:
    """Of the sources, as `git describe` names it; empty for none."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
