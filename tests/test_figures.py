"""What a process counts in memory, and what it tells when: nothing twice, nothing left out, nothing without bounds."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest

from batching.figures import (
    BOUNDS,
    MOST_BATCHES,
    MOST_HANDLERS,
    OTHER,
    RUN_BOUNDS,
    RUN_DURATION,
    STEP_ROWS,
    WHOLE,
    Figures,
    News,
)

BATCH = "01920000-0000-7000-8000-000000000001"


def told(news: News | None, name: str) -> dict[tuple[str, int], float]:
    """What a letter says of one figure, by labels and bucket."""
    assert news is not None
    return {(labels, bucket): amount for each, labels, bucket, amount in news.document["figures"] if each == name}


def labelled(*labels: str) -> str:
    return json.dumps(labels, separators=(",", ":"))


def test_who_has_counted_nothing_has_nothing_to_tell() -> None:
    figures = Figures()
    figures.count("late_results", amount=0)
    figures.grown("database_connects", "worker", total=0)
    assert figures.news() is None


def test_a_letter_stays_the_same_until_it_was_heard_and_the_next_has_only_what_came_since() -> None:
    figures = Figures()
    figures.count("claims_refused", amount=3)
    first = figures.news()
    assert first is not None
    figures.count("claims_refused", amount=4)

    assert figures.news() is first
    figures.told(first)
    second = figures.news()

    assert second is not None
    assert (first.source, first.number, second.number) == (second.source, 1, 2)
    assert told(first, "claims_refused") == {("", WHOLE): 3}
    assert told(second, "claims_refused") == {("", WHOLE): 4}
    figures.told(first)  # an answer that comes late
    assert figures.news() is second


@pytest.mark.parametrize("bound", RUN_BOUNDS[:-1])
def test_a_bound_belongs_to_its_own_bucket(bound: float) -> None:
    """As Prometheus has it: a bucket holds what is less or equal."""
    figures = Figures()
    place = RUN_BOUNDS.index(bound)
    for seconds in (bound, math.nextafter(bound, math.inf)):
        figures.ran("h", BATCH, seconds)

    found = told(figures.news(), RUN_DURATION)
    assert found[labelled("h"), place] == found[labelled("h"), place + 1] == 1
    assert found[labelled("h"), WHOLE] == pytest.approx(2 * bound)


def test_every_histogram_ends_with_infinity_and_grows() -> None:
    for bounds in BOUNDS.values():
        assert list(bounds) == sorted(set(bounds))
        assert math.isinf(bounds[-1])


def test_a_group_is_counted_by_its_step() -> None:
    figures = Figures()
    figures.step("claim", 200, 0.003)
    figures.step("claim", 1, 0.001)
    found = told(figures.news(), STEP_ROWS)
    assert found == {
        (labelled("claim"), BOUNDS[STEP_ROWS].index(200)): 1,
        (labelled("claim"), 0): 1,
        (labelled("claim"), WHOLE): 201,
    }


def test_ends_are_told_by_batch_and_by_handler() -> None:
    figures = Figures()
    figures.ended("h", BATCH, Counter(succeeded=5, failed=1, retried=2, skipped=1))
    figures.ended("h", BATCH, {"lost": 1, "given back": 3, "succeeded": 1})
    news = figures.news()

    assert news is not None
    assert news.document["ends"] == [[BATCH, 8, 6, 1, 2]]
    assert told(news, "profiles_settled") == {
        (labelled("h", "succeeded"), WHOLE): 6,
        (labelled("h", "failed"), WHOLE): 1,
        (labelled("h", "skipped"), WHOLE): 1,
    }
    for name, number in {"retries": 2, "losses": 1, "given_back": 3}.items():
        assert told(news, name) == {(labelled("h"), WHOLE): number}


def test_durations_are_told_by_batch() -> None:
    figures = Figures()
    figures.ran("h", BATCH, 0.001)
    figures.ran("h", BATCH, 7200.0)
    news = figures.news()
    assert news is not None
    assert news.document["durations"] == [[BATCH, 0, 1], [BATCH, len(RUN_BOUNDS) - 1, 1], [BATCH, WHOLE, 7200.001]]


def test_what_somebody_else_counts_is_told_by_what_it_has_grown() -> None:
    figures = Figures()
    for total in (2, 2, 5):
        figures.grown("database_connects", "worker", total=total)
    assert told(figures.news(), "database_connects") == {(labelled("worker"), WHOLE): 5}


def test_handlers_beyond_the_bound_are_one() -> None:
    figures = Figures()
    for number in range(MOST_HANDLERS + 7):
        figures.ended(f"h{number}", f"b{number}", {"succeeded": 1})
    found = told(figures.news(), "profiles_settled")
    assert len(found) == MOST_HANDLERS + 1
    assert found[labelled(OTHER, "succeeded"), WHOLE] == 7


def test_batches_beyond_the_bound_are_counted_in_the_sums_alone() -> None:
    figures = Figures()
    for number in range(MOST_BATCHES + 5):
        figures.ran("h", f"b{number}", 0.5)
        figures.ended("h", f"b{number}", {"succeeded": 1})
    news = figures.news()

    assert news is not None
    ends: list[list[Any]] = news.document["ends"]
    assert len(ends) == MOST_BATCHES + 1
    assert sum(row[1] for row in ends) == MOST_BATCHES + 5
    assert [row for row in ends if row[0] is None] == [[None, 5, 5, 0, 0]]
    assert told(news, RUN_DURATION)[labelled("h"), WHOLE] == 0.5 * (MOST_BATCHES + 5)


def test_the_name_of_a_handler_is_cut_to_what_the_table_holds() -> None:
    figures = Figures()
    figures.ended('"' * 255, BATCH, {"succeeded": 1})
    [(labels, _)] = told(figures.news(), "profiles_settled")
    assert len(labels) <= 512
