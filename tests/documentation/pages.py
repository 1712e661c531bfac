"""The pages that people read, and the fenced blocks in them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT: Final = Path(__file__).resolve().parent.parent.parent

_FENCE: Final = re.compile(r"(?P<indent>[ ]*)(?P<ticks>`{3,})(?P<info>[^`]*)")
_TITLE: Final = re.compile(r'title="([^"]+)"')
#: A comment before a fence that says how the block is tried: `<!-- try: exit=1 -->`. Readers do not see it.
_DIRECTIVE: Final = re.compile(r"<!-- try: (.*?) -->")
_PAIR: Final = re.compile(r'([a-z]+)(?:=("[^"]*"|\S+))?')
#: The first line of a block that is a file: `# my_handlers.py`, with a remark behind it or not.
_FILE: Final = re.compile(r"# ([\w/]+\.(?:py|ini|toml|yaml))(?: .*)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, and what it says."""

    page: str
    """Path of the page, below the repository."""
    line: int
    """Of its first line, counted from 1."""
    language: str
    text: str
    title: str = ""
    """The file that it is, if it is one."""
    directives: Mapping[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page}:{self.line}"


def page_names() -> list[str]:
    """Every page with blocks that a reader may copy."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [str(path.relative_to(ROOT)) for path in found]


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    return list(read_blocks(page, (ROOT / page).read_text(encoding="utf-8")))


def read_blocks(page: str, text: str) -> Iterator[Block]:
    """The fenced blocks of a text.

    Args:
        page: What it is called.
        text: Markdown.
    """
    lines = text.splitlines()
    position, directives = 0, dict[str, str]()
    while position < len(lines):
        line = lines[position]
        position += 1
        if said := _DIRECTIVE.fullmatch(line.strip()):
            directives = {name: value.strip('"') for name, value in _PAIR.findall(said[1])}
            continue
        opened = _FENCE.fullmatch(line)
        if opened is None:
            if line.strip():
                directives = {}
            continue
        first = position
        while position < len(lines) and lines[position].strip() != opened["ticks"]:
            position += 1
        assert position < len(lines), f"{page}:{first}: this block is never closed"
        body = textwrap.dedent("\n".join(lines[first:position]))
        position += 1
        yield _block(page, first + 1, opened["info"].strip(), body, directives)
        directives = {}


def _block(page: str, line: int, info: str, body: str, directives: dict[str, str]) -> Block:
    language, _, rest = info.partition(" ")
    title = found[1] if (found := _TITLE.search(rest)) else ""
    if not title and (found := _FILE.fullmatch(body.split("\n", 1)[0])):
        title = found[1]
    return Block(page, line, language, body, title, directives)
