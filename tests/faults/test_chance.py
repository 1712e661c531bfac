"""A story without a fault; and with errors at random: one in twenty words with the database or the broker fails.

Half of those that fail were carried out, and only the answer is lost: the points before and after each COMMIT and each
publication are hit alike (Temporal's persistence fault injection calls the second kind "execute and time out").
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any, Literal

import pytest

from tests.faults.theatre import Case, Played, Theatre, tell

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(1800)

#: The seeds of the quick part; the exhaustive part draws fresh ones, and prints them.
QUICK = {"postgresql": (1, 2, 3), "sqlite": (4,)}
FRESH = random.Random(os.environ.get("FAULT_SEED")).sample(range(1_000, 1_000_000), 20)


def params() -> Iterator[Any]:
    for engine, seeds in QUICK.items():
        for seed in seeds:
            yield pytest.param(engine, seed, "pop", id=f"{engine}-{seed}")
        yield pytest.param(engine, seeds[0], "claim", id=f"{engine}-{seeds[0]}-copies")
        for number, seed in enumerate(FRESH, 1):
            for acknowledge in ("pop", "claim"):
                name = f"{engine}-fresh-{number}-{acknowledge}"
                yield pytest.param(engine, seed, acknowledge, marks=pytest.mark.exhaustive, id=name)


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest, theatre: Theatre) -> dict[tuple[str, int | None, str], Played]:
    """All the cases that the selected tests want, several at once."""
    items: list[Any] = [item for item in request.session.items if getattr(item, "originalname", "") == TEST]
    cases = [Case(**item.callspec.params) for item in items]
    return {(each.case.engine, each.case.seed, each.case.acknowledge): each for each in theatre.play_all(cases)}


TEST = "test_nothing_is_lost_or_doubled_by_errors_at_random"


@pytest.mark.parametrize(("engine", "seed", "acknowledge"), list(params()))
def test_nothing_is_lost_or_doubled_by_errors_at_random(
    played: dict[tuple[str, int | None, str], Played], engine: str, seed: int, acknowledge: str
) -> None:
    case = played[engine, seed, acknowledge]
    print(tell(case))  # noqa: T201 - shown when it fails
    assert not case.failure, case.failure
    assert case.reached, "there was not one error"


@pytest.mark.parametrize("acknowledge", ["pop", "claim"])
@pytest.mark.parametrize("engine", ["postgresql", "sqlite"])
def test_without_a_fault_only_what_the_ghost_held_runs_again(
    theatre: Theatre, engine: str, acknowledge: Literal["pop", "claim"]
) -> None:
    case = theatre.play(Case(engine, acknowledge=acknowledge))
    assert not case.failure, case.failure
    assert case.verdict is not None
    assert (case.verdict.acknowledged, case.verdict.recovered) == (44, [])
    # Two runs of the batch that goes on, and the first attempt of the profile that fails.
    assert case.verdict.repeated == {"lost": 2, "retried": 1}
    assert not case.verdict.late
