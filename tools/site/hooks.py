"""MkDocs hooks: generated parts, the pages at the root of the repository, links into it, the whole navigation.

Pages link to each other and to files of the repository by relative paths, so that they can be read as they are. On the
site, a link that leaves `docs/` leads to the page that stands for the file, or to a copy of it.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mkdocs.structure.files import File

from tools.site.reference import GENERATED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

logger = logging.getLogger("mkdocs.hooks.batching")

ROOT: Final = Path(__file__).resolve().parent.parent.parent
#: Pages at the root of the repository, and where they are on the site.
ROOT_PAGES: Final = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
}
#: Where copies of the repository's files are on the site.
_COPIES: Final = "repository"
#: Pages of this folder need not be named in `nav`: those that are not stand at the end of the section.
_GUIDE, _GUIDE_SECTION = "guide", "Guide"

_MARK: Final = re.compile(r"^<!-- generate: ([a-z ]+) -->$", flags=re.MULTILINE)
_LINK: Final = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(?=[)#])")
_FENCED: Final = re.compile(r"^( *```+).*?^\1 *$", flags=re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of the guide that nobody has put into the navigation."""
    nav: list[Any] = config.nav or []
    named = set(_named(nav))
    section = next(part[_GUIDE_SECTION] for part in nav if _GUIDE_SECTION in part)
    for path in sorted((ROOT / "docs" / _GUIDE).glob("*.md")):
        if (name := f"{_GUIDE}/{path.name}") not in named:
            section.append(name)
    return config


def _named(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from _named(part)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages at the root of the repository, and copies of the files that pages link to."""
    for name, place in ROOT_PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / name)))
    linked = {target for file in files.documentation_pages() for target in _outside(_source(file.src_uri))}
    for target in sorted(linked):
        files.append(File.generated(config, f"{_COPIES}/{target}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what is generated, and lead links that leave `docs/` to where they are on the site."""
    del config, files
    markdown = _MARK.sub(lambda mark: GENERATED[mark[1]](), markdown)
    place = page.file.src_uri
    source = _source(place)

    def led(link: re.Match[str]) -> str:
        return posixpath.relpath(_on_the_site(source, link[1]), posixpath.dirname(place) or ".")

    return _outside_of_fences(markdown, lambda text: _LINK.sub(led, text))


def _outside_of_fences(markdown: str, change: Any) -> str:
    parts, position = [], 0
    for fence in _FENCED.finditer(markdown):
        parts += [change(markdown[position : fence.start()]), fence[0]]
        position = fence.end()
    return "".join([*parts, change(markdown[position:])])


def _source(place: str) -> str:
    """The path in the repository of a page of the site."""
    return next((name for name, there in ROOT_PAGES.items() if there == place), f"docs/{place}")


def _on_the_site(source: str, link: str) -> str:
    """Where a link of a page leads on the site."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if target in ROOT_PAGES:
        return ROOT_PAGES[target]
    if target == "README.md":
        return "index.md"
    if not (ROOT / target).is_file():
        logger.warning("%s links to %s, which is no file of the repository", source, link)
    return f"{_COPIES}/{target}"


def _outside(source: str) -> Iterator[str]:
    """The files of the repository beside its pages that a page links to."""
    text = _FENCED.sub("", (ROOT / source).read_text(encoding="utf-8"))
    for link in _LINK.findall(text):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
        if not target.startswith("docs/") and target not in {*ROOT_PAGES, "README.md"} and (ROOT / target).is_file():
            yield target
