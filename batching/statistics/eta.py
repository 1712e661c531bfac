"""When a batch will be through: a range with what it rests on, or why nobody can tell. Pure: no SQL, no clock.

The rate is that of what settled lately, with its standard error; two of them on each side are the range (some 95 % for
a pace that goes on as it was: https://www.itl.nist.gov/div898/handbook/prc/section1/prc14.htm). It says nothing about
work that is of another kind than what was measured, and the basis says what was.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: Settled profiles below which a rate is no basis for anything.
FEWEST: Final = 10
_ERRORS: Final = 2.0


class Pace(NamedTuple):
    """What was measured of one batch, or of all at the head of a queue."""

    settled: int = 0
    """Profiles that settled in the window."""
    seconds: float = 0.0
    """The window."""
    mean: float = 0.0
    """Profiles a second over the window."""
    latest: float = 0.0
    """Profiles a second, weighted towards the last seconds."""
    deviation: float = 0.0
    """Standard error of the mean."""


class Eta(NamedTuple):
    """Seconds until the end. Without `likely` it is unknown, and `basis` says why."""

    likely: float | None
    low: float | None
    high: float | None
    """None beside a `likely`: too uneven for an upper bound."""
    basis: str


def estimate(work: int, pace: Pace, ahead: str = "") -> Eta:
    """How long it takes to settle so many profiles.

    Args:
        work: Unsettled profiles: its own, and those of the batches before it.
        pace: Of what runs.
        ahead: What is before it, for the basis.
    """
    within = f"in the last {pace.seconds:.0f} s"
    if pace.settled < FEWEST or pace.latest <= 0:
        few = "nothing was measured yet" if not pace.seconds else f"only {pace.settled:,} settled {within}"
        return unknown(few)
    margin = _ERRORS * pace.deviation
    slowest, fastest = min(pace.mean, pace.latest) - margin, max(pace.mean, pace.latest) + margin
    basis = f"{pace.settled:,} settled {within}{ahead}"
    if slowest <= 0:
        return Eta(_round(work / pace.latest), _round(work / fastest), None, f"{basis}; too uneven for an upper bound")
    return Eta(_round(work / pace.latest), _round(work / fastest), _round(work / slowest), basis)


def unknown(why: str) -> Eta:
    """Nobody can tell, and why."""
    return Eta(None, None, None, f"unknown: {why}")


def _round(seconds: float) -> float:
    return round(seconds, 1)
