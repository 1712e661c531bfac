"""A virtual environment per contender, made of its pinned requirements; made once, and again when those change."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from benchmarks.contender import Contender

ROOT: Final = Path(__file__).parent.parent
_PLACE: Final = ROOT / ".venv" / "bench"


class InstallationError(Exception):
    """An environment could not be made: {what pip said}."""


def programs(contender: Contender) -> Path:
    """The folder of a contender's programs; its environment is made when it is not there.

    Raises:
        InstallationError: pip failed.
    """
    if contender.requirements is None:
        return Path(sys.executable).parent
    wanted = requirements_of(contender)
    folder = _PLACE / contender.requirements
    stamp = folder / ".benchmarks"
    digest = hashlib.sha256(f"{sys.version}\n{wanted.read_text(encoding='utf-8')}".encode()).hexdigest()
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != digest:
        _make(folder, wanted)
        stamp.write_text(digest, encoding="utf-8")
    return folder / "bin"


def requirements_of(contender: Contender) -> Path:
    """The list of pinned requirements of a contender that has one."""
    return Path(__file__).parent / "contenders" / f"{contender.requirements}.txt"


def _make(folder: Path, wanted: Path) -> None:
    sys.stdout.write(f"installing {wanted.name} into {folder}\n")
    sys.stdout.flush()
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _run([*pip, "--requirement", str(wanted)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        raise InstallationError(f"{' '.join(command)} failed: {done.stderr[-1500:]}")
