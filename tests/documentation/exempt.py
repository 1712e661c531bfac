"""Commands that no test can run: each with its reason, and with what is checked of it instead."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.documentation.pages import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Exempt:
    """Commands that begin so are not run."""

    pattern: str
    reason: str
    check: Callable[[str], None]

    def covers(self, command: str) -> bool:
        """Whether a command is meant."""
        return re.match(self.pattern, command) is not None


def is_parsed(command: str) -> None:
    """The real program takes the whole command line; `--help` behind it keeps it from going on."""
    words = [word for word in shlex.split(command, comments=True) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    program = Path(sys.executable).parent / words[0]
    assert program.exists(), f"there is no command {words[0]}"
    environment = {"PATH": os.environ["PATH"], "HOME": tempfile.gettempdir(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(program), *words[1:], "--help"], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"`{command}`: {done.stderr or done.stdout}"


def _is_a_target(command: str) -> None:
    """The Makefile has every target that is named, and uses every variable that is given."""
    makefile = (ROOT / "Makefile").read_text()
    for word in shlex.split(command, comments=True)[1:]:
        name, equals, _ = word.partition("=")
        found = re.search(rf"\$\({name}\)|\b{name} \?=" if equals else rf"^{name}:", makefile, flags=re.MULTILINE)
        assert found, f"`{command}`: the Makefile has no {name}"


def _is_installable(command: str) -> None:
    """The extras that are asked for exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"\[([\w,-]+)\]", command):
        missing = set(extras.split(",")) - set(project["optional-dependencies"])
        assert not missing, f"`{command}`: there are no extras {missing}"


def _is_for_kubernetes(command: str) -> None:
    """Every file of ours that is named exists, and so does every object."""
    for path in re.findall(r"(?<![\w/.-])deploy/[\w./-]+", command):
        assert (ROOT / path).exists(), f"`{command}`: there is no {path}"
    files = "".join(path.read_text() for path in (ROOT / "deploy" / "kubernetes").glob("*.yaml"))
    for kind, name in re.findall(r"\b(job|deployment)[/ ]([a-z-]+)", command):
        object_ = rf"^kind: {kind.capitalize()}\nmetadata:\n  name: {name}$"
        assert re.search(object_, files, flags=re.MULTILINE), f"`{command}`: there is no {kind} {name}"


def _is_composed(command: str) -> None:
    """Compose itself accepts the file, its subcommand exists, and so does every service that is named."""
    words = shlex.split(command.partition(" < ")[0], comments=True)[2:]
    compose = [str(Path(sys.executable).parent / "docker-compose"), "--env-file", str(ROOT / ".env.example")]
    # What has no default has to be given, as the example says.
    empty = re.findall(r"^(\w+)=$", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)
    secrets = dict.fromkeys(empty, "ada:secret")
    environment = {"PATH": os.environ["PATH"], "HOME": tempfile.gettempdir(), **secrets}
    listed = subprocess.run(
        [*compose, "-f", str(ROOT / "docker-compose.yml"), "config", "--services"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    helped = subprocess.run([*compose, words[0], "--help"], env=environment, capture_output=True, text=True, check=True)
    for option in (word.split("=")[0] for word in words[1:] if word.startswith("--")):
        assert option in helped.stdout, f"`{command}`: compose {words[0]} has no {option}"
    named = [word for word in words[1:] if not word.startswith("-")][:1]
    for service in named:
        assert service.split("=")[0] in listed.stdout.split(), f"`{command}`: there is no service {service}"
    if words[0] == "run":
        inner = words[words.index(named[0]) + 1 :]
        is_parsed(shlex.join(inner))


def _is_nothing_of_ours(command: str) -> None:
    """Nothing in it is ours."""
    assert "batching" not in shlex.split(command, comments=True)[:1]


#: Everything that is not run. A test fails when one of them covers no command of any page any more.
EXEMPT: Final = (
    Exempt(r"make ", "a test would run all tests, or build an environment, inside of a test", _is_a_target),
    Exempt(r"pip install", "it would change the environment that the tests run in", _is_installable),
    Exempt(r"batching watch --all", "waits for all there is, what starts in an hour included", is_parsed),
    Exempt(r"docker compose", "needs a container engine", _is_composed),
    Exempt(r"kubectl", "needs a cluster", _is_for_kubernetes),
    Exempt(r"psql", "the client is in no wheel; tests/test_sql_roles.py runs the same files", _is_nothing_of_ours),
    Exempt(r"valkey-server --aclfile", "a server; tests/test_redis_users.py starts one with it", _is_nothing_of_ours),
    Exempt(r"(BATCHING_\w+=\S+ )*celery -A workers (worker|flower)", "runs until it is stopped", is_parsed),
    Exempt(
        r"(BATCHING_\w+=\S+ )*batching (worker|manager|dashboard(?! token))\b", "runs until it is stopped", is_parsed
    ),
)


def exemption(command: str) -> Exempt | None:
    """Why a command is not run; None: it is."""
    return next((each for each in EXEMPT if each.covers(command)), None)
