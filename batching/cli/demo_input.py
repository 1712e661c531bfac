"""The demo's input: what is installed, line by line, and how each batch has to end by a plain loop over it."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from batching.errors import BatchingError
from batching.states import BatchState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.metadata import Distribution

#: Files with a hash that the distribution to be copied has: enough for a batch, little enough to copy.
_COPY_FILES: Final = range(5, 200)


class Line(NamedTuple):
    """A line of a RECORD: path relative to the root, size in bytes, SHA-256 as RECORD has it."""

    path: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Subject:
    """A distribution to verify: the batch's name, the folder that its paths are relative to, its lines."""

    name: str
    root: str
    lines: tuple[Line, ...]

    def profiles(self, key_limit: int) -> Iterator[dict[str, Any]]:
        """One profile per line."""
        for line in self.lines:
            yield {"key": key_of(line.path, key_limit), "payload": {"root": self.root, **line._asdict()}}


class Expected(NamedTuple):
    """How a batch has to end, by a plain loop over its RECORD."""

    succeeded: int
    skipped: int
    culprits: tuple[str, ...]

    @property
    def state(self) -> BatchState:
        """A culprit fails every pass, and with the last one the batch."""
        return BatchState.FAILED if self.culprits else BatchState.SUCCEEDED


def key_of(path: str, limit: int) -> str:
    """The path; a path longer than a key may be is cut, and told apart by its hash."""
    if len(path) <= limit:
        return path
    return f"{path[: limit - 17]}~{hashlib.sha256(path.encode()).hexdigest()[:16]}"


def installed() -> list[Subject]:
    """Every distribution of this environment that has a RECORD, by name; the first one on `sys.path` counts."""
    found: dict[str, Subject] = {}
    for distribution in distributions():
        lines = _lines(distribution)
        name = str(distribution.metadata["Name"])
        if lines and name.lower() not in found:
            found[name.lower()] = Subject(name, str(Path(str(distribution.locate_file(""))).absolute()), lines)
    return [found[name] for name in sorted(found)]


def _lines(distribution: Distribution) -> tuple[Line, ...]:
    # Not `.files`: newer Pythons leave out of it what is missing on disk, which is just what is to be found.
    text = distribution.read_text("RECORD")
    lines: dict[str, Line] = {}
    for path, digest, size in (row[:3] for row in csv.reader((text or "").splitlines()) if len(row) >= 3):
        algorithm, _, value = digest.partition("=")
        # A file may be listed twice; it is one file all the same.
        lines.setdefault(path, Line(path, int(size) if size else None, value if algorithm == "sha256" else None))
    return tuple(lines.values())


def altered_copy(subjects: Sequence[Subject], folder: Path) -> tuple[Subject, str]:
    """Copy a small distribution into a folder of ours, and alter one file of the copy.

    Args:
        subjects: Those to choose from.
        folder: Where the copy goes.

    Returns:
        The copy, and the path of the file that is not what its RECORD says.

    Raises:
        BatchingError: No distribution is fit to be copied.
    """
    chosen = min(filter(_can_be_copied, subjects), key=_bytes, default=None)
    if chosen is None:
        raise BatchingError(
            f"cannot run the demo: none of the {len(subjects)} distributions installed here has a RECORD with "
            f"{_COPY_FILES.start} to {_COPY_FILES.stop - 1} files that could be copied; "
            "run it in a virtual environment with pip in it"
        )
    for line in chosen.lines:
        if line.sha256 is not None:
            target = folder / line.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(chosen.root) / line.path, target)
    hashed = [line for line in chosen.lines if line.sha256 is not None and line.size]
    culprit = hashed[len(hashed) // 2].path
    data = bytearray((folder / culprit).read_bytes())
    # The same size: only the hash can tell.
    data[len(data) // 2] ^= 0xFF
    (folder / culprit).write_bytes(data)
    return Subject(f"altered {chosen.name}", str(folder), chosen.lines), culprit


def _can_be_copied(subject: Subject) -> bool:
    hashed = [line for line in subject.lines if line.sha256 is not None]
    inside = all(not os.path.isabs(line.path) and ".." not in Path(line.path).parts for line in hashed)  # noqa: PTH117 - a string
    return len(hashed) in _COPY_FILES and inside and not expect(subject).culprits


def _bytes(subject: Subject) -> int:
    return sum(line.size or 0 for line in subject.lines)


def expect(subject: Subject) -> Expected:
    """The plain loop: no queue, no worker, and not the handler's code either."""
    succeeded, skipped, culprits = 0, 0, []
    for line in subject.lines:
        if line.sha256 is None:
            skipped += 1
        elif _differs(Path(os.path.normpath(Path(subject.root) / line.path)), line):
            culprits.append(line.path)
        else:
            succeeded += 1
    return Expected(succeeded, skipped, tuple(culprits))


def _differs(path: Path, line: Line) -> bool:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return True
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    return digest != line.sha256 or line.size not in {None, len(data)}
