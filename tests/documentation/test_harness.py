"""The tests of the pages can fail: each way to be wrong is noticed."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.documentation.console import Shell, first_missing, normal, steps, without_comment
from tests.documentation.exempt import EXEMPT, exemption
from tests.documentation.pages import read_blocks
from tests.support import is_running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = """\
Text.

<!-- try: exit=1 background="is ready" -->
```console
$ one \\
    --two   # a remark
shown
…
$ cat > file <<'END'
$ not a command
END
$ quoted '{
  "over": "lines"}'
```

```python title="my_handlers.py"
x = 1
```

    ```yaml
    a: 1
    ```
"""


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path, {"PATH": os.environ["PATH"]})
    yield made
    made.close()


def test_blocks_are_found_with_what_is_said_of_them() -> None:
    console, python, indented = read_blocks("page.md", PAGE)
    assert (console.line, console.language) == (5, "console")
    assert dict(console.directives) == {"exit": "1", "background": "is ready"}
    assert (python.title, python.text, dict(python.directives)) == ("my_handlers.py", "x = 1", {})
    assert (indented.language, indented.text) == ("yaml", "a: 1")
    [file] = read_blocks("page.md", "```python\n# my_handlers.py - a mark\nx = 1\n```")
    assert file.title == "my_handlers.py"
    with pytest.raises(AssertionError, match="never closed"):
        list(read_blocks("page.md", "```python\nx = 1\n"))


def test_commands_are_told_from_what_they_print() -> None:
    first, second, third = steps(next(read_blocks("page.md", PAGE)))
    assert without_comment(first.command) == "one \\\n    --two"
    assert (first.where, first.expected) == ("page.md:5", ("shown", "…"))
    assert second.command == "cat > file <<'END'\n$ not a command\nEND"
    assert (third.command, third.expected) == ('quoted \'{\n  "over": "lines"}\'', ())
    with pytest.raises(AssertionError, match="output without a command"):
        steps(next(read_blocks("page.md", "```console\nprinted\n```")))


def test_what_differs_from_time_to_time_does_not_count() -> None:
    shown = "batch 01a212e0-9b79-75d8-8f66-a0f475c4df8b succeeded in 3.4 s, 1,200 profiles a second"
    printed = "batch 01a212e1-0000-75d8-8f66-a0f475c4df8b succeeded in 2 min 03 s, 7 profiles a second"
    assert normal(shown) == normal(printed)
    assert normal("started 2026-11-26 02:00:01 UTC") == normal("started  2027-01-01 00:00:00 UTC")
    assert normal("17 profiles") != normal("18 profiles")


def test_a_line_that_is_not_printed_is_named() -> None:
    output = "one\ntwo 2\nthree\n"
    assert first_missing(["one", "…", "three"], output) is None
    assert first_missing(["t…2"], output) is None
    assert first_missing(["two"], output) == "two"
    assert first_missing(["three", "one"], output) == "one"


def test_a_shell_remembers_and_ends(shell: Shell, tmp_path: Path) -> None:
    assert shell.run("export WORD=said; cd /")[0] == 0
    assert shell.run('echo "$WORD $PWD" >&2') == (0, "said /\n")
    assert shell.run("printf unfinished; false") == (1, "unfinished")
    with pytest.raises(AssertionError, match="still runs after"):
        Shell(tmp_path, {"PATH": os.environ["PATH"]}).run("sleep 60", timeout=0.2)


def test_what_runs_in_the_background_ends_with_the_shell(tmp_path: Path) -> None:
    made = Shell(tmp_path, {"PATH": os.environ["PATH"]})
    made.start("sh -c 'echo pid $$ is ready; exec sleep 60'", "is ready")
    pid = int((tmp_path / "background-0.log").read_text().split()[1])
    assert is_running(pid)
    with pytest.raises(RuntimeError, match="ended"):
        made.start("echo no", "is ready")
    before = time.monotonic()
    made.close()
    assert time.monotonic() - before < 30
    assert not is_running(pid)


@pytest.mark.parametrize(
    "wrong",
    [
        "make nothing",
        "pip install '.[nothing]'",
        "docker compose up nobody",
        "docker compose run --rm manager batching nothing",
        "kubectl apply -f deploy/nothing.yaml",
        "celery -A workers worker --nothing",
        "batching manager --nothing",
    ],
)
def test_a_command_that_is_not_run_is_checked_all_the_same(wrong: str) -> None:
    spared = exemption(wrong)
    assert spared is not None
    with pytest.raises(AssertionError):
        spared.check(wrong)


def test_nothing_else_is_exempt() -> None:
    assert exemption("batching list") is None
    assert exemption("python manage.py migrate") is None
    assert len({each.pattern for each in EXEMPT}) == len(EXEMPT)
