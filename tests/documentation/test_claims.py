"""What the pages claim: that a test proves it, that a picture shows every move, that a word is in the glossary."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from itertools import product
from xml.etree import ElementTree as ET

import pytest

from batching.states import (
    BATCH_MOVES,
    BULK_EFFECTS,
    UNSETTLED_PROFILE_STATES,
    BatchState,
    ProfileState,
)
from tests.documentation.pages import ROOT, page_names

_IMAGES = ROOT / "docs" / "images"
#: `tests/test_x.py::TestY::test_z`, or a file alone; pages of the guide leave `tests/` out.
_PROOF = re.compile(r"`((?:tests/)?(?:\w+/)*test_\w+\.py)((?:::\w+)*)`")


@lru_cache
def names_in(path: str) -> frozenset[str]:
    """`test_x`, `TestY` and `TestY::test_z` of a file."""
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return frozenset(found)


def proofs(page: str) -> list[tuple[str, str]]:
    """The tests that a page names, as file and name."""
    return [
        (path if path.startswith("tests/") else f"tests/{path}", name.removeprefix("::"))
        for path, name in _PROOF.findall((ROOT / page).read_text())
    ]


@pytest.mark.parametrize("page", [page for page in page_names() if proofs(page)])
def test_every_test_that_a_page_names_exists(page: str) -> None:
    for path, name in proofs(page):
        assert (ROOT / path).is_file(), f"{page} names {path}, which is not there"
        assert not name or name in names_in(path), f"{page} names {path}::{name}, which is not there"


def test_every_row_of_the_failure_table_has_a_proof() -> None:
    text = (ROOT / "docs" / "explanation" / "failures.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    bare = [row for row in rows if not set(row) <= set("|- ") and not _PROOF.search(row)]
    assert not bare
    assert len(rows) > 20


def moves_in(picture: str) -> tuple[set[str], set[tuple[str, str]]]:
    """States and moves that a picture shows."""
    drawn = ET.parse(_IMAGES / picture).getroot()
    states = {str(each.get("data-state")) for each in drawn.iter() if each.get("data-state")}
    moves = {
        move
        for each in drawn.iter()
        if each.get("data-from")
        for move in product(str(each.get("data-from")).split(), str(each.get("data-to")).split())
    }
    return states, moves


def test_the_picture_of_a_batch_shows_every_state_and_every_legal_move_and_no_other() -> None:
    states, moves = moves_in("states-of-a-batch.svg")
    assert states == set(BatchState)
    assert moves == {(start, end) for start, ends in BATCH_MOVES.items() for end in ends}


def test_the_picture_of_a_profile_shows_every_state_and_what_moves_many_at_once() -> None:
    states, moves = moves_in("states-of-a-profile.svg")
    assert states == set(ProfileState)
    assert moves >= {pair for effects in BULK_EFFECTS.values() for pair in effects.items()}
    # Dispatch, claim, settle; and what is final for life goes nowhere.
    assert moves >= {("pending", "dispatched"), ("dispatched", "running"), ("running", "succeeded")}
    assert not {start for start, _ in moves} & {ProfileState.SUCCEEDED, ProfileState.SKIPPED}
    assert {start for start, _ in moves} >= set(UNSETTLED_PROFILE_STATES)


def test_the_picture_of_a_life_shows_only_moves_that_there_are() -> None:
    _, moves = moves_in("life-of-a-profile.svg")
    assert moves <= moves_in("states-of-a-profile.svg")[1]
    assert moves


@pytest.mark.parametrize("picture", sorted(path.name for path in _IMAGES.glob("*.svg")))
def test_a_picture_has_a_title_and_fetches_nothing(picture: str) -> None:
    text = (_IMAGES / picture).read_text()
    assert ET.fromstring(text).find("{http://www.w3.org/2000/svg}title") is not None
    assert re.findall(r"https?://[^\"' ]+", text) == ["http://www.w3.org/2000/svg"]
    assert "<script" not in text
