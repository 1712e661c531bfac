"""The table of goals: what each row measures, as ratios paired by repetition, and whether it is reached. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.contender import known
from benchmarks.figures import best, paired, spread
from benchmarks.plan import FULL, OURS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.figures import Spread
    from benchmarks.results import Results

_PREFORK: Final = "prefork -c 2"
#: Of two ways to run two single-process workers the goal takes the one named in `SOLO`; the other is in the tables.
SOLO: Final = "solo x2"
#: Growth of a process' memory from the second to the last quarter of a drain that still counts as flat.
_FLAT: Final = 1.05
_MILLION: Final = 1_000_000


@dataclass(frozen=True)
class Goal:
    """One comparison of one row."""

    row: int
    measure: str
    found: Spread | None
    """None: not measured in this run."""
    target: float | None
    """None: there is a stretch alone."""
    stretch: float | None = None
    at_most: bool = False
    """Whether less is better."""
    unit: str = "x"
    note: str = ""

    @property
    def reached(self) -> str:
        """`stretch`, `yes`, `no`, or `not measured`; by the median."""
        if self.found is None:
            return "not measured"
        if self.stretch is not None and self._meets(self.stretch):
            return "stretch"
        if self.target is None:
            return "not the stretch"
        return "yes" if self._meets(self.target) else "no"

    def _meets(self, bound: float) -> bool:
        assert self.found is not None  # noqa: S101 - for the type checker
        return self.found.median <= bound if self.at_most else self.found.median >= bound


def goals(results: Results) -> list[Goal]:
    """All rows, in their order."""
    return [
        *_drain(results),
        *_submission(results),
        *_waiting(results),
        *_latency(results),
        *_memory(results),
        *_growth(results),
        *_traffic(results),
        _events(results),
    ]


def _drain(results: Results) -> list[Goal]:
    ours = results.series("drain", OURS, _PREFORK, "durable_rate")
    two = results.series("drain", OURS, SOLO, "durable_rate")
    hand = results.series("drain", "handwritten", _PREFORK, "durable_rate")
    peers = {each: results.series("drain", *each, "executed_rate") for each in redis_peers(results)}
    fastest = max(peers, key=lambda each: max(peers[each].values(), default=0.0), default=("", ""))
    rival = pgqueuer(results)
    pgq = results.series("drain", *rival, "durable_rate") if rival else {}
    return [
        Goal(1, "durable drain, prefork -c 2, against hand-written", paired(ours, hand), 6, 10),
        Goal(
            1,
            "the same against the best Redis-brokered peer of each repetition",
            paired(ours, best(list(peers.values()))),
            1,
            note=f"{len(peers)} shapes of peers; the fastest is {fastest[0]} ({fastest[1]})" if peers else "",
        ),
        Goal(2, f"durable drain, {SOLO}, against hand-written", paired(two, hand), 15, 25),
        Goal(
            2,
            f"the same against pgqueuer with two processes ({rival[1]})" if rival else "the same against pgqueuer x2",
            paired(two, pgq),
            None,
            1,
        ),
    ]


def redis_peers(results: Results) -> list[tuple[str, str]]:
    """Shapes of others than us that were measured in the drain and are brokered by Redis; Celery itself included."""
    shapes = {
        (name, shape.name): shape.brokered
        for name, contender in known()[0].items()
        if name not in {OURS, "handwritten", "copying"}
        for shape in contender.shapes
    }
    return [subject for subject in results.subjects("drain") if shapes.get(subject) == "redis"]


def pgqueuer(results: Results) -> tuple[str, str] | None:
    """The shape of pgqueuer with two processes that is the fastest, if it was measured."""
    if "pgqueuer" not in known()[0]:
        return None
    found = [("pgqueuer", shape.name) for shape in known()[0]["pgqueuer"].shapes if shape.processes == 2]
    measured = {each: results.series("drain", *each, "durable_rate") for each in found}
    measured = {each: series for each, series in measured.items() if series}
    return max(measured, key=lambda each: max(measured[each].values()), default=None)


def _submission(results: Results) -> list[Goal]:
    ours = results.series("submit", OURS, "submit", "rate")
    delay = results.series("submit", "celery", "delay loop", "rate")
    copying = results.series("submit", "copying", "COPY", "rate")
    return [
        Goal(3, "submit of 100,000 profiles against a Celery `delay` loop", paired(ours, delay), 60),
        Goal(3, "the same against COPY of pre-encoded rows", paired(ours, copying), 0.25, 0.5),
    ]


def _waiting(results: Results) -> list[Goal]:
    ours = results.series("sleep", OURS, "threads -c 100", "executed_rate")
    ideal = dict.fromkeys(ours, 2000.0)
    found = [
        Goal(4, "W3 at concurrency 100, threads, against the ideal 2,000 a second", paired(ours, ideal), 0.9, 0.97)
    ]
    for peer in ("dramatiq", "taskiq"):
        shapes = [
            results.series("sleep", *each, "executed_rate") for each in results.subjects("sleep") if each[0] == peer
        ]
        found.append(Goal(4, f"the same against {peer}", paired(ours, best(shapes)), 1))
    return found


def _latency(results: Results) -> list[Goal]:
    found = []
    for point, target, stretch in (("p50", 2.0, 1.2), ("p99", 3.0, 1.5)):
        ours = results.series("latency", OURS, _PREFORK, point)
        delay = results.series("latency", "celery", f"delay, {_PREFORK}", point)
        measure = f"idle latency {point}, prefork -c 2, against plain Celery `delay`"
        found.append(Goal(5, measure, paired(ours, delay), target, stretch, at_most=True))
    return found


def _memory(results: Results) -> list[Goal]:
    def series(*path: str) -> dict[int, float]:
        return results.series("growth", OURS, _PREFORK, *path, count=_MILLION)

    goal: Callable[..., Goal] = Goal
    found = [
        goal(
            6,
            "producer's growth while submitting 1,000,000",
            spread(list(series("producer_growth_mb").values())),
            20,
            at_most=True,
            unit=" MB",
        )
    ]
    for role in ("main", "child", "manager"):
        late = series("weights", "last", role)
        early = series("weights", "second", role)
        size = spread(list(late.values()))
        found.append(
            goal(
                6,
                f"memory of the worker's {role} process{'es' if role == 'child' else ''}, last quarter against second",
                paired(late, early),
                _FLAT,
                at_most=True,
                note=f"{size.median:.0f} MB; flat is up to {_FLAT}x" if size else "",
            )
        )
    valkey = spread(list(series("valkey_growth_mb").values()))
    found.append(goal(6, "Valkey's growth while they run", valkey, 5, at_most=True, unit=" MB"))
    return found


def _growth(results: Results) -> list[Goal]:
    def cost(workload: str, count: int) -> Mapping[int, float]:
        return results.series(workload, OURS, _PREFORK, "cost_us", count=count)

    def per_item(workload: str, count: int) -> Mapping[int, float]:
        rates = results.series(workload, OURS, _PREFORK, "durable_rate", count=count)
        return {repetition: 1 / rate for repetition, rate in rates.items() if rate}

    found = [
        Goal(
            7,
            "cost per profile (submit + drain) at 1,000,000 against 10,000",
            paired(cost("growth", _MILLION), cost("growth", 10_000)),
            1.1,
            at_most=True,
        )
    ]
    for count in FULL.history_drain:
        measure = f"cost per profile of draining {count:,} beside 10,000,000 settled rows, against none"
        ratio = paired(per_item("history_drain", count), per_item("growth", count))
        found.append(Goal(7, measure, ratio, 1.2, at_most=True))
    return found


def _traffic(results: Results) -> list[Goal]:
    def counted(name: str) -> Spread | None:
        return spread(list(results.series("counts", OURS, _PREFORK, name).values()))

    work, commands = counted("sql_work_per_1000"), counted("redis_commands_per_1000")
    return [
        Goal(
            8,
            "SQL statements per 1,000 profiles, prefork -c 2",
            counted("sql_per_1000"),
            30,
            12,
            at_most=True,
            unit="",
            note=f"BEGIN and COMMIT included; {work.median:.1f} without" if work else "",
        ),
        Goal(
            8,
            "Redis round trips per 1,000 profiles, prefork -c 2",
            counted("redis_trips_per_1000"),
            40,
            12,
            at_most=True,
            unit="",
            note=f"at most; {commands.median:.1f} commands" if commands else "",
        ),
    ]


def _events(results: Results) -> Goal:
    on = results.series("events", OURS, f"{_PREFORK}, Flower", "durable_rate")
    off = results.series("events", OURS, _PREFORK, "durable_rate")
    seen, lag = (
        spread(list(results.series("events", OURS, f"{_PREFORK}, Flower", name).values()))
        for name in ("events_per_item", "events_lag")
    )
    note = (
        f"Flower received {seen.median:.2f} events per profile, the last {lag.median:.1f} s after the drain"
        if seen and lag
        else ""
    )
    return Goal(9, "durable drain with Flower open and events on, against off", paired(on, off), 0.7, 0.85, note=note)
