"""Arithmetic of the report: medians, quantiles, and ratios that are paired by repetition. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of some figures."""

    median: float
    low: float
    high: float
    count: int


def spread(figures: Sequence[float]) -> Spread | None:
    """The spread of some figures; None for none."""
    if not figures:
        return None
    return Spread(median(figures), min(figures), max(figures), len(figures))


def ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Quotients of two series, each of the same repetition: what slows the machine slows both. Others are left out."""
    shared = sorted(ours.keys() & theirs.keys())
    return [ours[repetition] / theirs[repetition] for repetition in shared if theirs[repetition]]


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Spread | None:
    """The spread of the paired ratios; None when no repetition has both."""
    return spread(ratios(ours, theirs))


def best(series: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The largest figure of each repetition: what stands against the best of several contenders."""
    found: dict[int, float] = {}
    for each in series:
        for repetition, figure in each.items():
            found[repetition] = max(figure, found.get(repetition, figure))
    return found


def quantile(ordered: Sequence[float], share: float) -> float:
    """A figure of an ordered series, by the nearest rank (https://en.wikipedia.org/wiki/Percentile).

    Args:
        ordered: From the smallest to the largest; not empty.
        share: 0.5 is the median, 1 the largest.
    """
    rank = -(-len(ordered) * share // 1)  # rounded up
    return ordered[min(len(ordered), max(1, int(rank))) - 1]
