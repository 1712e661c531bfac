"""What a page's commands find in their folder, and what stands for the words that readers replace."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from typing import TYPE_CHECKING, Final

from tests.documentation.pages import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.documentation.installation import Installation

#: `<!-- page: story -->`: its commands tell one story, and `ID` is the batch that was printed last.
#: `<!-- page: embedded -->`: nothing is configured, so that `batching run` and `up` start the embedded default.
_PAGE: Final = re.compile(r"<!-- page: ([a-z ]+) -->")

#: Which batch `ID` is for a command that does not stand in a story; the first that fits.
_KINDS: Final = (
    (r"callbacks retry", "callback"),
    (r"/(profiles|seal)\b", "open"),
    (r"/resume\b", "paused"),
    (r"/(retry|failures|results|attempts|events)\b", "failed"),
    (r"API/", "waiting"),
    (r"--fingerprint|--profile", "failed"),
    (r"batching (append|seal)\b", "open"),
    (r"batching resume\b", "paused"),
    (r"--after", "waiting"),
    (r"batching watch\b", "succeeded"),
    (r"batching (show|retry|failures|amend|results)\b", "failed"),
    (r"batching", "waiting"),
)

#: Names of hosts, users, tokens and places that a reader replaces, and what they are here.
_REPLACED: Final = (
    (re.compile(r"(?<=BATCHING_DATABASE_URL=)\S+"), "database"),
    (re.compile(r"(?<=BATCHING_BROKER_URL=)\S+"), "broker"),
    (re.compile(r"(?<=Bearer )batching_\w*…"), "token"),
    (re.compile(r"celery@alpha"), "worker"),
    (re.compile(r"/etc/valkey/"), "folder"),
    (re.compile(r"0192f0c1-…"), "waiting"),
)

#: Parts of the repository that commands name from its root.
_LINKED: Final = ("deploy", "docker-compose.yml", ".env.example", "Dockerfile", "Makefile")


def manners(page: str) -> frozenset[str]:
    """What a page says of itself: `story`, `embedded`."""
    return frozenset(word for said in _PAGE.findall((ROOT / page).read_text()) for word in said.split())


def furnish(folder: Path) -> None:
    """Put what the pages' commands name into a folder.

    Args:
        folder: The shell's.
    """
    for name in _LINKED:
        (folder / name).symlink_to(ROOT / name)
    # A copy: commands write there.
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    texts = [f"k{number},the text of number {number}" for number in range(1, 21)]
    lines = [json.dumps({"key": f"k{number}", "text": "a text"}) for number in range(1, 21)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "texts.csv").write_text("id,text\n" + "\n".join(texts) + "\n")
    for name in ("monday.csv", "tuesday.csv", "first.csv", "more.csv", "reports.csv"):
        (folder / name).write_text(f"key,text\n{name}-1,one text\n{name}-2,two more\n")
    drafts = [{"key": f"k{number}", "payload": {} if number == 17 else {"text": "a text"}} for number in range(1, 21)]
    (folder / "draft.jsonl").write_text("".join(json.dumps(each) + "\n" for each in drafts))
    payload = {"key": "k17", "payload": {"text": "corrected"}}
    (folder / "errors.jsonl").write_text(json.dumps(payload) + "\n")
    (folder / "my_handlers.py").write_text((ROOT / "tests" / "documentation" / "handlers.py").read_text())


def prepared(command: str, installation: Installation, latest: str | None) -> str:
    """A command as it can run here.

    Args:
        command: As the page has it, without remarks.
        installation: Where its batches are.
        latest: In a story, the batch that was printed last; else None.
    """
    for pattern, name in _REPLACED:
        if pattern.search(command):
            command = pattern.sub(shlex.quote(_what(name, installation)), command)
    if re.search(r"\bID\b", command):
        batch_id = latest or installation.take(_kind(command))
        command = re.sub(r"\$?\bID\b", batch_id, command)
        if re.search(r"--fingerprint F\b", command):
            command = re.sub(r"--fingerprint F\b", f"--fingerprint {installation.fingerprint(batch_id)}", command)
        command = re.sub(r"--profile KEY\b", "--profile k17", command)
    return command


def _what(name: str, installation: Installation) -> str:
    if name == "waiting":
        return installation.take("waiting")
    return {
        "database": installation.variables["BATCHING_DATABASE_URL"],
        "broker": installation.variables["BATCHING_BROKER_URL"],
        "token": installation.token,
        "worker": installation.worker_name,
        "folder": "./",
    }[name]


def _kind(command: str) -> str:
    return next(kind for pattern, kind in _KINDS if re.search(pattern, command))
