"""Console blocks: the commands in them, a shell that runs them, and what their output may differ in."""

from __future__ import annotations

import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support import eventually, is_running, wait_for_exit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.documentation.pages import Block

_PROMPT: Final = "$ "
_HEREDOC: Final = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?")

#: What differs from one time to the next, and what it is read as.
_DIFFERS: Final = (
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}(-[0-9a-f]{4}){2}-[0-9a-f]{12}\b"), "<id>"),
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{1,4}){1,3}\b"), "<id>"),
    (re.compile(r"\b[0-9a-f]{4,40}-?…"), "<id>"),
    (re.compile(r"\b[0-9a-f]{16}\b"), "<fingerprint>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?( UTC|Z|[+-]\d\d:\d\d)?"), "<time>"),
    (re.compile(r"\d[\d,.]*( profiles a second|/s\b)|\bat once\b"), "<rate>"),
    (re.compile(r"\d[\d,.]* (d|h|min|s|ms)\b(?:( \d\d (h|min|s)\b))?"), "<span>"),
)


@dataclass(frozen=True)
class Step:
    """One command of a block, and the output that the page shows for it."""

    where: str
    command: str
    expected: tuple[str, ...]


def steps(block: Block) -> list[Step]:
    """The commands of a console block.

    Raises:
        AssertionError: It shows output before any command.
    """
    found: list[Step] = []
    lines = block.text.splitlines()
    position = 0
    while position < len(lines):
        line, where = lines[position], f"{block.page}:{block.line + position}"
        position += 1
        if not line.startswith(_PROMPT):
            assert found, f"{where}: output without a command before it; a command begins with `$ `"
            last = found.pop()
            found.append(Step(last.where, last.command, (*last.expected, line)))
            continue
        command = line.removeprefix(_PROMPT)
        while position < len(lines) and (command.endswith("\\") or _is_open(command)):
            command += "\n" + lines[position]
            position += 1
        if document := _HEREDOC.search(command):
            while lines[position - 1] != document[1]:
                command += "\n" + lines[position]
                position += 1
        found.append(Step(where, command, ()))
    return found


def _is_open(command: str) -> bool:
    """Whether a quotation goes on in the next line."""
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return True
    return False


def without_comment(command: str) -> str:
    """A command without the remark behind it."""
    return re.sub(r"\s+#\s.*$", "", command, flags=re.MULTILINE).strip()


def normal(line: str) -> str:
    """A line of output without what differs from one time to the next."""
    for pattern, name in _DIFFERS:
        line = pattern.sub(name, line)
    return " ".join(line.split())


def first_missing(expected: Sequence[str], output: str) -> str | None:
    """The first line that a page shows and that the output does not have, in this order; None: all are there.

    `…` stands for anything, inside a line or as a line by itself. Lines that the page leaves out do no harm.
    """
    there = [normal(line) for line in output.splitlines()]
    position = 0
    for shown in expected:
        if shown.strip() in {"", "…"}:
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in normal(shown).split("…")))
        while position < len(there) and not pattern.fullmatch(there[position]):
            position += 1
        if position == len(there):
            return shown
        position += 1
    return None


@dataclass
class Shell:
    """A bash in a folder: variables, functions and the folder last from one command to the next.

    Args:
        folder: Where it starts.
        environment: All of its environment.
    """

    folder: Path
    environment: Mapping[str, str]
    _background: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._process = subprocess.Popen(
            ["/bin/bash", "--noprofile", "--norc"],
            cwd=self.folder,
            env=dict(self.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, command: str, timeout: float = 90) -> tuple[int, str]:
        """Run one command to its end.

        Returns:
            Its exit code, and its output with its errors.
        """
        token = uuid.uuid4().hex
        self._write(f"{{ {command}\n}} </dev/null\nprintf '\\n%s %s\\n' {token} $?\n")
        text = self._read_until(token, command, timeout)
        output, _, code = text.rpartition(f"\n{token} ")
        return int(code), output

    def start(self, command: str, prompt: str, timeout: float = 60) -> None:
        """Run a command in the background, in a session of its own, until `close`; wait until it says something.

        Args:
            command: What to run.
            prompt: What it says once it is ready.
            timeout: Seconds until it must have said it.
        """
        log = self.folder / f"background-{len(self._background)}.log"
        script = self.folder / f"background-{len(self._background)}.sh"
        # Not the quick `batching` of the tests, whose process would not be in this session.
        script.write_text(f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\nexec env {command}\n")
        log.touch()
        code, text = self.run(f"setsid bash {script} >{log} 2>&1 </dev/null & echo $!")
        assert code == 0, text
        pid = int(text.split()[-1])
        self._background.append(pid)

        def ready() -> None:
            said = log.read_text(errors="replace")
            if not is_running(pid):
                raise RuntimeError(f"`{command}` ended:\n{said}")
            assert prompt in said, f"`{command}` did not say {prompt!r}:\n{said}"

        eventually(ready, timeout, 0.05)

    def close(self) -> None:
        """End what runs in the background, then the shell."""
        for pid in reversed(self._background):
            if is_running(pid):
                # Not SIGINT: a shell starts what is in the background with it ignored.
                os.kill(pid, signal.SIGTERM)
                wait_for_exit(pid, 60)
        self._end()

    def _end(self) -> None:
        """A shell ends when nobody can tell it anything any more. Safe to call twice."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait(10)

    def _write(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def _read_until(self, token: str, command: str, timeout: float) -> str:
        assert self._process.stdout is not None
        deadline, text = time.monotonic() + timeout, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not re.search(rb"\n%s -?\d+\n$" % token.encode(), text):
                left = deadline - time.monotonic()
                if not selector.select(max(left, 0)):
                    os.killpg(self._process.pid, signal.SIGKILL)
                    self._end()
                    raise AssertionError(
                        f"`{command}` still runs after {timeout:g} s:\n{text.decode(errors='replace')}"
                    )
                chunk = os.read(self._process.stdout.fileno(), 65_536)
                assert chunk, f"`{command}` ended the shell:\n{text.decode(errors='replace')}"
                text += chunk
        return text.decode(errors="replace")
