"""An append-only journal outside the system: what handlers really did, whatever SQL and Redis say."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from batching import Profile

#: Names the journal's folder to handlers.
FOLDER = "ACCEPTANCE_FOLDER"


class Entry(NamedTuple):
    """One call of a handler."""

    profile: str
    """Its idempotency key, which is the profile's id."""
    run: int
    token: str
    """Differs with every call, so that one run that was executed twice has two entries."""
    pid: int
    key: str


def write(profile: Profile) -> None:
    """Add an entry, in one write that no other process's can interrupt."""
    line = f"{profile.idempotency_key}\t{profile.run}\t{uuid.uuid4().hex}\t{os.getpid()}\t{profile.key}\n"
    _append(line.encode())


def _append(line: bytes) -> None:
    file = os.open(Path(os.environ[FOLDER]) / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line)
    finally:
        os.close(file)


def read(folder: Path) -> list[Entry]:
    """Every entry, the oldest first."""
    path = folder / "journal"
    if not path.exists():
        return []
    entries = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return [Entry(profile, int(run), token, int(pid), key) for profile, run, token, pid, key in entries]
