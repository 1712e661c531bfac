"""Every fault point x (crash, raise, hang): the victim dies, errs or freezes there, and the oracle finds all in order.

The points come from `faults.POINTS`, so one that nobody tries cannot exist: its test fails when the story does not
reach it. The quick part tries each once, at a time of being reached that the seed chooses; `--exhaustive` tries all.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import pytest

from batching import faults
from tests.faults.theatre import ONLY_ON, Case, Played, Theatre, tell

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(3600)

SEED = int(os.environ.get("FAULT_SEED", "1"))
ACTIONS = ("crash", "raise", "hang")
#: Where messages are published, popped or claimed: tried with copies of popped messages too.
WITH_COPIES = ("dispatch.committed", "publish.part", "publish.done", "claim.begun", "claim.committed")


def params() -> Iterator[Any]:
    """Every point, action and engine; on SQLite, the quick part has crashes alone."""
    for engine in ("postgresql", "sqlite"):
        for action in ACTIONS:
            quick = engine == "postgresql" or action == "crash"
            for point in faults.POINTS:
                if ONLY_ON.get(point, engine) == engine:
                    marks = [] if quick else [pytest.mark.exhaustive]
                    yield pytest.param(engine, point, action, "pop", marks=marks, id=f"{engine}-{action}-{point}")
                    if point in WITH_COPIES:
                        name = f"{engine}-{action}-{point}-copies"
                        marks = [] if quick and point.startswith("claim") else [pytest.mark.exhaustive]
                        yield pytest.param(engine, point, action, "claim", marks=marks, id=name)


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest, theatre: Theatre) -> dict[tuple[str, ...], list[Played]]:
    """All the cases that the selected tests want, several at once."""
    items: list[Any] = [item for item in request.session.items if getattr(item, "originalname", "") == TEST]
    wanted = [item.callspec.params for item in items]
    chance = None if request.config.getoption("--exhaustive") else random.Random(SEED)
    cases: list[Case] = []
    for given in wanted:
        cases += theatre.choose(given["engine"], given["point"], given["action"], given["acknowledge"], chance)
    found: dict[tuple[str, ...], list[Played]] = {}
    for each in theatre.play_all(cases):
        case = each.case
        found.setdefault((case.engine, case.point, case.action, case.acknowledge), []).append(each)
    return found


TEST = "test_nothing_is_lost_or_doubled_by_a_fault_at"


@pytest.mark.parametrize(("engine", "point", "action", "acknowledge"), list(params()))
def test_nothing_is_lost_or_doubled_by_a_fault_at(
    played: dict[tuple[str, ...], list[Played]], engine: str, point: str, action: str, acknowledge: str
) -> None:
    cases = played[engine, point, action, acknowledge]
    print(f"FAULT_SEED={SEED}", *map(tell, cases), sep="\n")  # noqa: T201 - shown when it fails
    assert not [each.failure for each in cases if each.failure], "\n".join(each.failure for each in cases)
    assert any(each.reached for each in cases), f"the story never came to {point}"
