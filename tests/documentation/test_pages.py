"""Every command and snippet of the pages, run: as a reader would, from top to bottom."""

from __future__ import annotations

import json
import os
import re
import time
import tomllib
from configparser import ConfigParser
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml
from celery import Celery
from pydantic import BaseModel
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import batching
from batching.callbacks import signature_headers
from batching.queue_manager import QueueManager
from tests.documentation import scenes
from tests.documentation.console import Shell, first_missing, steps, without_comment
from tests.documentation.exempt import EXEMPT, exemption
from tests.documentation.installation import SECRET
from tests.documentation.pages import ROOT, blocks, page_names
from tests.support import eventually, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.documentation.console import Step
    from tests.documentation.installation import Installation
    from tests.documentation.pages import Block

_BATCH: Final = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
#: Where servers of the pages listen.
_PORT: Final = re.compile(r"\b(?:5117|8117|8118|8080|8081|9464)\b")
#: Of these nothing can be run; a language that is not named here is one that nobody thought of.
_PLAIN: Final = frozenset({"text", "mermaid", "dockerfile", "html"})


class Reader:
    """Somebody who follows a page from top to bottom, in a folder of their own.

    Args:
        page: Which.
        folder: An empty one.
        installation: What the commands reach.
    """

    def __init__(self, page: str, folder: Path, installation: Installation) -> None:
        self._manners = scenes.manners(page)
        self._folder = folder
        self._installation = installation
        self._names = _names(installation)
        self._engine = self._names["engine"]
        self._latest: str | None = None
        self._ports: dict[str, str] = {}
        scenes.furnish(folder)
        environment = installation.environment(folder, embedded="embedded" in self._manners)
        self._shell = Shell(folder, environment)

    def follow(self, block: Block) -> None:
        """Do what a block says."""
        if block.title.startswith("examples/"):
            theirs = (ROOT / block.title).read_text()
            assert f"{block.text}\n" == theirs, f"{block.where} is not {block.title} any more"
        elif block.title:
            self._write(block)
        if block.language == "console":
            for step in steps(block):
                self._type(step, block)
        elif block.language == "python" and not block.title:
            self._execute(block)
        else:
            _read(block)

    def close(self) -> None:
        """End what was started."""
        self._shell.close()
        for each in (self._engine, *self._names.values()):
            if isinstance(each, Engine):
                each.dispose()

    def _write(self, block: Block) -> None:
        path = self._folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(block.text + "\n")

    def _type(self, step: Step, block: Block) -> None:
        command = self._with_free_ports(without_comment(step.command))
        if "background" in block.directives:
            self._shell.start(command, block.directives["background"])
            return
        if (spared := exemption(command)) is not None:
            spared.check(command)
            return
        story = self._latest if "story" in self._manners else None
        ready = scenes.prepared(command, self._installation, story)
        code, output = self._soon(ready) if "soon" in block.directives else self._shell.run(ready)
        said = f"{step.where}: `{command}` ended with {code}:\n{output}"
        assert code == int(block.directives.get("exit", 0)), said
        missing = first_missing(step.expected, output)
        assert missing is None, f"{said}\n--- the page shows, and it did not print:\n{missing}"
        if found := _BATCH.findall(output):
            self._latest = found[0]

    def _soon(self, command: str) -> tuple[int, str]:
        """Of a server that says nothing when it is ready."""

        def done() -> tuple[int, str]:
            code, output = self._shell.run(command)
            assert code == 0, output
            return code, output

        return eventually(done, 60, 0.2)

    def _with_free_ports(self, command: str) -> str:
        """The ports that the page names may be somebody else's here."""
        for named in _PORT.findall(command):
            self._ports.setdefault(named, str(free_port()))
        return _PORT.sub(lambda found: self._ports[found[0]], command)

    def _execute(self, block: Block) -> None:
        # Not with this module's `annotations`: a snippet's hints are read as a reader's module has them.
        code = compile("\n" * (block.line - 1) + block.text, block.page, "exec", dont_inherit=True)
        exec(code, self._names)


def _read(block: Block) -> None:
    """What is no command: at least it can be read as what it says it is."""
    match block.language:
        case "json":
            json.loads(block.text)
        case "yaml":
            list(yaml.safe_load_all(block.text))
        case "toml":
            tomllib.loads(block.text)
        case "ini":  # with sections, or as an `.env`
            headed = block.text if block.text.startswith("[") else f"[env]\n{block.text}"
            ConfigParser(interpolation=None).read_string(headed)
        case "python":
            compile(block.text, block.page, "exec")
        case language:
            assert language in _PLAIN, f"{block.where}: nobody knows how to try a block of {language or 'no language'}"


class _Row(dict[str, Any]):
    """A row of a reader's, which is a profile, too."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(key=key, payload={"text": text})
        self.id, self.text = key, text


class _Base(DeclarativeBase):
    pass


class _Order(_Base):
    """A row of somebody's own, beside ours."""

    __tablename__ = "pages_orders"
    id: Mapped[int] = mapped_column(primary_key=True)


def _names(installation: Installation) -> dict[str, Any]:
    """What the snippets of the pages take for granted: imports, and names that a reader's own program has."""
    # The first 17 lines of texts.csv.
    profiles = [(f"k{each}", {"id": f"k{each}", "text": f"the text of number {each}"}) for each in range(1, 18)]
    engine = create_engine(installation.url)
    _Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM pages_orders"))
    body = b'{"id": "0192f0c1"}'
    return {
        **{name: getattr(batching, name) for name in batching.__all__},
        **{each.__name__: each for each in (BaseModel, Celery, Path, Session, datetime, timedelta)},
        "UTC": UTC,
        "app": Celery("readers-own", set_as_current=False),
        "bank": SimpleNamespace(charge=lambda cents, idempotency_key: {"id": f"{idempotency_key}-{cents}"}),
        "body": body,
        "crm": SimpleNamespace(find=lambda key: {"key": key}),
        "engine": engine,
        "failed": installation.queue.get(installation.take("failed")),
        "mails": profiles,
        "more": [(f"m{number}", {"text": "more"}) for number in range(500)],
        "order": _Order(id=17),
        "os": os,
        "profiles": profiles,
        "queue_manager": installation.queue,
        "reports": profiles,
        "request": SimpleNamespace(headers=signature_headers([SECRET], "0192f0c1", int(time.time()), body)),
        "rows": [_Row(key, payload["text"]) for key, payload in profiles],
        "time": time,
    }


@pytest.fixture
def as_a_reader(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    """`queue_manager` is that of the installation; marks in the pages replace each other."""
    for name, value in installation.variables.items():
        monkeypatch.setenv(name, value)
    ready = QueueManager(installation.queue.database, installation.variables["BATCHING_BROKER_URL"])
    monkeypatch.setattr("batching.queue_manager.queue_manager", ready)
    monkeypatch.setattr("batching.handlers._registry", {})


@pytest.fixture
def reader(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    installation: Installation,
    monkeypatch: pytest.MonkeyPatch,
    as_a_reader: None,
) -> Iterator[Reader]:
    monkeypatch.chdir(tmp_path)
    made = Reader(request.param, tmp_path, installation)
    yield made
    made.close()


def _with_blocks() -> list[str]:
    return [page for page in page_names() if blocks(page)]


@pytest.mark.parametrize(
    ("reader", "page"), [(page, page) for page in _with_blocks()], indirect=["reader"], ids=_with_blocks()
)
def test_what_a_page_says_can_be_done(reader: Reader, page: str) -> None:
    for block in blocks(page):
        reader.follow(block)


def test_every_exemption_is_still_needed() -> None:
    commands = [
        without_comment(step.command)
        for page in page_names()
        for block in blocks(page)
        if block.language == "console" and "background" not in block.directives
        for step in steps(block)
    ]
    for each in EXEMPT:
        assert each.reason
        assert any(each.covers(command) for command in commands), f"no page has a command as {each.pattern!r} any more"
