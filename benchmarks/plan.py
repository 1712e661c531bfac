"""What a run measures, and in which order: each workload with its subjects, reversed on odd repetitions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.contender import EVENTS, LATENCY, NOOP, SLEEP, SUBMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.contender import Contender, Shape

OURS: Final = "batching"
#: Who has to be in a whole run; one that is not there is listed among the failures.
EXPECTED: Final = (
    OURS,
    "celery",
    "handwritten",
    "copying",
    "dramatiq",
    "taskiq",
    "huey",
    "saq",
    "rq",
    "procrastinate",
    "pgqueuer",
)


@dataclass(frozen=True)
class Planned:
    """One measurement to be made."""

    workload: str
    contender: str
    shape: str
    count: int
    repetition: int

    @property
    def label(self) -> str:
        """What `--only` is matched against: `contender / shape / workload / count`."""
        return f"{self.contender} / {self.shape} / {self.workload} / {self.count}"


@dataclass(frozen=True)
class Sizes:
    """Items per workload, and settled rows of history."""

    drain: int = 20_000
    end_to_end: int = 10_000
    sleep: int = 2_000
    submit: int = 100_000
    latency: int = 200
    counts: int = 20_000
    events: int = 20_000
    profile: int = 60_000
    growth: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    history_drain: tuple[int, ...] = (10_000, 100_000)
    history: int = 10_000_000


FULL: Final = Sizes()
QUICK: Final = Sizes(
    drain=2_000,
    end_to_end=1_000,
    sleep=500,
    submit=5_000,
    latency=30,
    counts=2_000,
    events=2_000,
    profile=5_000,
    growth=(1_000, 10_000),
    history_drain=(1_000,),
    history=100_000,
)

#: Workloads in which no peer takes part, with those of ours (and baselines) that do.
_GIVEN: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "counts": (
        (OURS, "prefork -c 2"),
        (OURS, "solo x2"),
        (OURS, "threads -c 8"),
        ("handwritten", "prefork -c 2"),
    ),
    "growth": ((OURS, "prefork -c 2"),),
    "history_drain": ((OURS, "prefork -c 2"),),
    "profile": ((OURS, "prefork -c 2"), (OURS, "solo x2"), (OURS, "threads -c 8")),
}
#: Those that take part by a flag of their shape.
_FLAGS: Final[dict[str, str]] = {
    "drain": NOOP,
    "end_to_end": NOOP,
    "sleep": SLEEP,
    "submit": SUBMIT,
    "latency": LATENCY,
    "events": EVENTS,
}
WORKLOADS: Final = (
    "drain",
    "end_to_end",
    "sleep",
    "submit",
    "latency",
    "counts",
    "events",
    "growth",
    "history_drain",
    "profile",
)
#: Measured once: counts of statements and samples of a profiler are no rates.
_ONCE: Final = frozenset({"profile"})


def _hand(planned: Planned) -> bool:
    return planned.contender == "handwritten"


#: Which measurements the rows of the table of goals are made of.
ROWS: Final[dict[int, Callable[[Planned], bool]]] = {
    1: lambda each: each.workload == "drain" and (each.contender != OURS or each.shape == "prefork -c 2"),
    2: lambda each: (
        each.workload == "drain"
        and (_hand(each) or each.contender == "pgqueuer" or each.shape in {"solo x2", "threads -c 4 x2"})
        and each.contender in {OURS, "handwritten", "pgqueuer"}
    ),
    3: lambda each: each.workload == "submit" and each.contender in {OURS, "celery", "copying"},
    4: lambda each: each.workload == "sleep",
    5: lambda each: each.workload == "latency" and each.contender in {OURS, "celery"},
    6: lambda each: each.workload == "growth" and each.count == max(FULL.growth),
    7: lambda each: each.workload in {"growth", "history_drain"},
    8: lambda each: each.workload == "counts" and each.contender == OURS,
    9: lambda each: each.workload == "events" and each.contender == OURS,
}


def plan(
    contenders: Sequence[Contender],
    sizes: Sizes,
    repetitions: int,
    only: str = "",
    rows: Sequence[int] = (),
) -> list[Planned]:
    """The measurements of a run, in their order.

    Args:
        contenders: All that there are.
        sizes: `FULL` or `QUICK`.
        repetitions: Of each.
        only: A regular expression; a measurement whose label it does not find is left out.
        rows: Of the table of goals; a measurement that none of them needs is left out. Empty: all are wanted.
    """
    wanted = re.compile(only)
    return [
        planned
        for repetition in range(repetitions)
        for workload in WORKLOADS
        if workload not in _ONCE or repetition == 0
        for planned in _interleaved(contenders, workload, sizes, repetition)
        if wanted.search(planned.label) and (not rows or any(ROWS[row](planned) for row in rows))
    ]


def _interleaved(contenders: Sequence[Contender], workload: str, sizes: Sizes, repetition: int) -> list[Planned]:
    found = [
        Planned(workload, contender.name, shape.name, count, repetition)
        for contender, shape in _subjects(contenders, workload)
        for count in _counts(sizes, workload, shape)
    ]
    return found[::-1] if repetition % 2 else found


def _subjects(contenders: Sequence[Contender], workload: str) -> Iterator[tuple[Contender, Shape]]:
    given = _GIVEN.get(workload)
    for contender in contenders:
        seen: set[int] = set()
        for shape in contender.shapes:
            if (
                (contender.name, shape.name) not in given
                if given is not None
                else _FLAGS[workload] not in shape.workloads
            ):
                continue
            # End to end is the drain again, with submission: one shape per number of processes says it.
            if workload == "end_to_end" and contender.name != OURS and shape.processes in seen:
                continue
            seen.add(shape.processes)
            yield contender, shape


def _counts(sizes: Sizes, workload: str, shape: Shape) -> list[int]:
    wanted: int | tuple[int, ...] = getattr(sizes, workload)
    counts = wanted if isinstance(wanted, tuple) else (wanted,)
    capped = shape.items if shape.items is not None and workload not in {"sleep", "latency"} else None
    return [count if capped is None else min(count, capped) for count in counts]
