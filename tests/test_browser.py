"""How the tests find their browser, and what they say when there is none: they fail, and never skip."""

from __future__ import annotations

import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from tools import browser

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing is installed, and nothing is named."""
    monkeypatch.delenv(browser.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(browser, "_PATH", str(tmp_path))
    return tmp_path


def program(folder: Path, name: str, text: str = "exit 0") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_one_that_is_named_is_taken_and_no_other(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(nowhere, "chromium")
    named = program(nowhere, "mine")
    monkeypatch.setenv(browser.VARIABLE, str(named))
    assert browser.find() == str(named)
    monkeypatch.setenv(browser.VARIABLE, "/nowhere/chromium")
    assert browser.find() is None
    assert "BATCHING_TEST_BROWSER names '/nowhere/chromium'" in browser.advice()


def test_the_one_that_is_installed_is_found(nowhere: Path) -> None:
    assert browser.find() is None
    assert "apt-get install chromium" in browser.advice()
    found = program(nowhere, "chromium")
    assert browser.find() == str(found)


@pytest.mark.parametrize(
    ("user", "apt", "said"),
    [
        (0, None, "there is no apt-get"),
        (1000, "exit 0", "only root installs packages"),
        (0, "echo no such host >&2; exit 100", "update --quiet=2` failed: no such host"),
        (0, "exit 0", ""),
    ],
)
def test_what_went_wrong_is_said(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, user: int, apt: str | None, said: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    if apt is not None:
        program(nowhere, "apt-get", apt)
    why = browser.install()
    assert why.endswith(said)
    assert bool(why) is bool(said)


def test_a_package_list_that_hangs_is_given_up(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    program(nowhere, "apt-get")

    def hang(*words: object, **more: object) -> None:
        raise subprocess.TimeoutExpired("apt-get", 600)

    monkeypatch.setattr(subprocess, "run", hang)
    assert "did not end within 600 s" in browser.install()
