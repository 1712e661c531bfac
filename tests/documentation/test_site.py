"""The site: it builds strictly, links lead somewhere, nothing is fetched, and the reference has everything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from batching.cli.main import VERBS
from batching.errors import BatchingError
from batching.options import BatchOptions
from batching.settings import Settings
from batching.states import BatchState, ProfileState
from tests.documentation.pages import ROOT
from tools.site.reference import GENERATED
from workers.celery import app

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` builds it: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    # Not --quiet: it takes the warnings away before anybody counts them.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # the theme's word on what comes after it
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


class Links(HTMLParser):
    """Where a page leads, what it loads, and the anchors in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: set[str] = set()
        self.linked: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if name := given.get("id"):
            self.anchors.add(name)
        if tag in {"script", "img", "iframe", "source", "video", "audio", "embed"} and given.get("src"):
            self.loaded.add(str(given["src"]))
        if tag == "link" and "canonical" not in str(given.get("rel")):
            self.loaded.add(str(given["href"]))
        if tag == "a" and given.get("href"):
            self.linked.add(str(given["href"]))


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    return {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Links]) -> None:
    for page, links in pages.items():
        for address in links.loaded:
            if address.startswith("data:"):
                continue
            parts = urlsplit(address)
            assert not parts.netloc, f"{page.name} loads {address}"
            if page.name != "404.html":  # its paths are those of a server's root
                assert (page.parent / unquote(parts.path)).is_file(), f"{page} loads {address}, which is not there"
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?https?:", sheet.read_text(encoding="utf-8")), sheet
    assert not [page for page in pages if 'class="mermaid"' in page.read_text(encoding="utf-8")]


def test_every_link_inside_the_site_leads_somewhere(pages: dict[Path, Links]) -> None:
    for page, links in pages.items():
        if page.name == "404.html":
            continue
        for address in links.linked:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.exists(), f"{page} leads to {address}, which is not there"
            if parts.fragment and target.suffix == ".html":
                anchors = pages[target].anchors
                assert unquote(parts.fragment) in anchors, f"{page} leads to {address}: no such place"


def test_every_page_is_in_the_navigation(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    for path in (ROOT / "docs").rglob("*.md"):
        address = str(path.relative_to(ROOT / "docs").with_suffix(".html"))
        assert f'href="{address}"' in home or path.name == "index.md", f"{address} is not in the navigation"


def test_what_is_generated_is_asked_for_somewhere() -> None:
    text = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    asked = set(re.findall(r"<!-- generate: ([a-z ]+) -->", text))
    assert asked == set(GENERATED)


def test_the_reference_has_every_setting_with_a_text() -> None:
    rows = GENERATED["settings"]().splitlines()[2:]
    assert len(rows) == len(Settings.model_fields)
    for name, row in zip(Settings.model_fields, rows, strict=True):
        assert row.startswith(f"| `BATCHING_{name.upper()}` |")
        assert all(cell.strip() for cell in row.strip("|").split("|")[::3]), row
    assert "| `0.05` | seconds, over 0 to 5 |" in GENERATED["settings"]()


def test_the_reference_has_every_option_and_every_state() -> None:
    options = GENERATED["options"]()
    for name in BatchOptions().as_dict():
        assert f"| `{name}` |" in options
    for state in BatchState:
        assert f"| `{state}` |" in GENERATED["batch states"]()
    for each in ProfileState:
        assert f"| `{each}` |" in GENERATED["profile states"]()


def test_the_reference_has_every_verb() -> None:
    said = GENERATED["commands"]()
    for name in VERBS:
        assert f"\n## batching {name}\n" in said
    assert "\n### batching db upgrade\n" in said


def test_the_reference_has_every_celery_setting_with_its_reason() -> None:
    rows = [row.strip("| ").split(" | ") for row in GENERATED["celery settings"]().splitlines()[2:]]
    source = (ROOT / "workers" / "celery.py").read_text().partition("app.conf.update(\n")[2].partition("\n)\n")[0]
    names = list(dict.fromkeys(name.strip("`").partition(":")[0] for name, _, _ in rows))
    assert names == re.findall(r"^    (\w+)=", source, flags=re.MULTILINE)
    assert all(name in app.conf for name in names)
    assert [row for row in rows if len(row[2]) < 10 and row[2] != "as above"] == []


def test_the_reference_has_every_error(site: Path) -> None:
    page = (site / "reference" / "errors.html").read_text(encoding="utf-8")
    for each in BatchingError.__subclasses__():
        if each.__module__ != "batching.errors":
            continue  # a part's own
        assert each.__doc__
        assert each.__name__ in page


def test_the_navigation_has_no_page_twice() -> None:
    class Plain(yaml.SafeLoader):
        pass

    text = (ROOT / "mkdocs.yml").read_text()
    names = re.findall(r"[\w/-]+\.md", yaml.dump(yaml.load(text, Plain)["nav"]))
    assert len(names) == len(set(names))
