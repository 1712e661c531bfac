"""Tables of the report, one per workload. Pure: from results to Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from benchmarks.contender import known
from benchmarks.figures import paired, spread
from benchmarks.plan import EXPECTED, OURS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.results import Results

_PREFORK: Final = "prefork -c 2"
_ROLES: Final = ("main", "child", "manager", "postgresql", "valkey")


class _Kind(NamedTuple):
    """How a workload is shown."""

    title: str
    figures: tuple[tuple[str, str], ...]
    """Name in the values, and heading; the first one is what the ratio is of."""
    reference: tuple[str, str]
    text: str
    details: bool = False
    """Whether processor time and Redis commands are shown."""


_KINDS: Final[dict[str, _Kind]] = {
    "drain": _Kind(
        "Drain of no-ops, and of durable outcomes (W1, W2)",
        (("executed_rate", "executed/s"), ("durable_rate", "durable/s")),
        ("handwritten", _PREFORK),
        "Preloaded, from 10 % to 100 %. The ratio compares durable outcomes where there are any, else executions.",
        details=True,
    ),
    "end_to_end": _Kind(
        "End to end (W1, W2)",
        (("executed_rate", "executed/s"), ("durable_rate", "durable/s")),
        ("handwritten", _PREFORK),
        "Warm and idle workers; from the first enqueue to the last execution, and to the last outcome.",
    ),
    "sleep": _Kind(
        "2,000 profiles of 50 ms at concurrency 100 (W3)",
        (("executed_rate", "executed/s"),),
        ("celery", "delay, threads -c 100"),
        "The ideal is 2,000 a second.",
        details=True,
    ),
    "submit": _Kind(
        "Submission",
        (("rate", "profiles/s"),),
        ("celery", "delay loop"),
        "Payloads of 200 bytes, nobody works meanwhile. Those with fewer items are slow enough to be extrapolated.",
    ),
    "latency": _Kind(
        "Idle latency",
        (("p50", "p50 ms"), ("p90", "p90 ms"), ("p99", "p99 ms"), ("max", "max ms")),
        ("celery", f"delay, {_PREFORK}"),
        "One item at a time, from submission to the handler's start. The ratio is of p50: less is better.",
    ),
    "events": _Kind(
        "Task events",
        (("executed_rate", "executed/s"), ("durable_rate", "durable/s")),
        (OURS, _PREFORK),
        "The drain with Flower open and `-E`, and without, one after the other. *Events* are those that Flower had "
        "received at the end of the drain, per profile: it may lag behind, and not everybody sends equally many.",
    ),
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; empty for no rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def workload_tables(results: Results) -> dict[str, str]:
    """The text of every workload that was measured, by its name."""
    return {name: _section(results, name, kind) for name, kind in _KINDS.items() if results.of(name)}


def _section(results: Results, workload: str, kind: _Kind) -> str:
    headings = [words for _, heading in kind.figures for words in (heading, "min - max")]
    more = ["CPU ms per profile", "Redis commands per 1,000"] if kind.details else []
    more += ["events"] if workload == "events" else []
    head = ["contender", "shape", "items", *headings, f"ratio to {kind.reference[0]}", *more, "note"]
    reference = _main_series(results, workload, *kind.reference, kind)
    rows = []
    for contender, shape in _order(results, workload, kind):
        ratio = paired(_main_series(results, workload, contender, shape, kind), reference)
        cells = [contender, shape, _items(results, workload, contender, shape)]
        for name, _ in kind.figures:
            cells += _figure(results.series(workload, contender, shape, name))
        cells.append("" if ratio is None else f"{ratio.median:.2f}x [{ratio.low:.2f} - {ratio.high:.2f}]")
        if kind.details:
            cells += [_processor(results, workload, contender, shape), _commands(results, workload, contender, shape)]
        if workload == "events":
            cells.append(_figure(results.series(workload, contender, shape, "events_per_item"))[0])
        rows.append([*cells, _note(results, workload, contender, shape)])
    words = f"{kind.text} Reference: {kind.reference[0]} ({kind.reference[1]})."
    return f"## {kind.title}\n\n{words}\n\n{table(head, rows)}"


def _main_series(results: Results, workload: str, contender: str, shape: str, kind: _Kind) -> dict[int, float]:
    """What the ratio is of: durable outcomes where there are any, else the first figure."""
    durable = results.series(workload, contender, shape, "durable_rate") if len(kind.figures) == 2 else {}
    return durable or results.series(workload, contender, shape, kind.figures[0][0])


def _order(results: Results, workload: str, kind: _Kind) -> list[tuple[str, str]]:
    """The fastest first; those that failed at the end."""

    def speed(subject: tuple[str, str]) -> float:
        found = spread(list(_main_series(results, workload, *subject, kind).values()))
        if found is None:
            return float("inf")
        return found.median if workload == "latency" else -found.median

    return sorted(results.subjects(workload), key=speed)


def _figure(series: dict[int, float]) -> list[str]:
    found = spread(list(series.values()))
    if found is None:
        return ["", ""]
    digits = 0 if found.median >= 100 else 2
    return [f"{found.median:,.{digits}f}", f"{found.low:,.{digits}f} - {found.high:,.{digits}f}"]


def _items(results: Results, workload: str, contender: str, shape: str) -> str:
    counts = {
        each.planned.count
        for each in results.of(workload)
        if (each.planned.contender, each.planned.shape) == (contender, shape)
    }
    return ", ".join(f"{count:,}" for count in sorted(counts))


def _processor(results: Results, workload: str, contender: str, shape: str) -> str:
    found = {role: spread(list(results.series(workload, contender, shape, "cpu_ms", role).values())) for role in _ROLES}
    return ", ".join(f"{role} {each.median:.3f}" for role, each in found.items() if each and each.median > 0)


def _commands(results: Results, workload: str, contender: str, shape: str) -> str:
    found = spread(list(results.series(workload, contender, shape, "redis_commands_per_1000").values()))
    return "" if found is None else f"{found.median:,.0f}"


def _note(results: Results, workload: str, contender: str, shape: str) -> str:
    failed = [
        each
        for each in results.of(workload)
        if (each.planned.contender, each.planned.shape) == (contender, shape) and each.failed
    ]
    words = [f"**failed {len(failed)} times**"] if failed else []
    if contender in known()[0]:
        words += [each.note for each in known()[0][contender].shapes if each.name == shape and each.note]
    return "; ".join(words)


def growth(results: Results) -> str:
    """Cost per profile by size of the batch, with and without history."""
    rows = []
    for workload, title in (("growth", "empty tables"), ("history_drain", "history")):
        for count in sorted({each.planned.count for each in results.of(workload)}):
            figures = {
                name: spread(list(results.series(workload, OURS, _PREFORK, name, count=count).values()))
                for name in ("cost_us", "rate", "durable_rate")
            }
            histories = [int(each.values.get("history", 0)) for each in results.of(workload)]
            beside = f"{max(histories):,} settled rows" if any(histories) else title
            cells = [
                "" if each is None else f"{each.median:,.1f} [{each.low:,.1f} - {each.high:,.1f}]"
                for each in figures.values()
            ]
            rows.append([f"{count:,}", beside, *cells])
    head = ["profiles", "beside", "cost per profile, us", "submitted/s", "durable/s"]
    return f"## Growth\n\nSubmission and drain, {OURS} ({_PREFORK}).\n\n{table(head, rows)}" if rows else ""


def memory(results: Results) -> str:
    """Memory of every process over the longest drain."""
    counts = [each.planned.count for each in results.of("growth") if "weights" in each.values]
    if not counts:
        return ""
    top = max(counts)
    rows = []
    for role in (*_ROLES, "valkey used"):
        cells = [
            _figure(results.series("growth", OURS, _PREFORK, "weights", quarter, role, count=top))[0]
            for quarter in ("second", "last")
        ]
        rows.append([role, *cells])
    producer = _figure(results.series("growth", OURS, _PREFORK, "producer_growth_mb", count=top))
    valkey = _figure(results.series("growth", OURS, _PREFORK, "valkey_growth_mb", count=top))
    text = (
        f"Resident memory while {top:,} profiles run, in MB, summed over the processes of a role. The producer grew by "
        f"{producer[0]} MB while it submitted them; Valkey's data by {valkey[0]} MB at most while they ran."
    )
    return f"## Memory\n\n{text}\n\n{table(['processes', 'second quarter', 'last quarter'], rows)}"


def statements(results: Results) -> str:
    """SQL statements and Redis commands per 1,000 profiles, and which ones."""
    rows, lists = [], []
    names_ = (
        "sql_per_1000",
        "sql_work_per_1000",
        "redis_commands_per_1000",
        "redis_trips_per_1000",
        "redis_reads_per_1000",
    )
    for contender, shape in results.subjects("counts"):
        figures = [_figure(results.series("counts", contender, shape, name))[0] for name in names_]
        rows.append([contender, shape, *figures])
        if contender == OURS:
            lists.append(_detail(results, shape))
    if not rows:
        return ""
    head = [
        "contender",
        "shape",
        "SQL statements",
        "without BEGIN, COMMIT",
        "Redis commands",
        "round trips at most",
        "reads",
    ]
    return "\n".join(["## Statements and commands per 1,000 profiles\n", table(head, rows), *lists])


def _detail(results: Results, shape: str) -> str:
    found = [
        each.values
        for each in results.of("counts")
        if each.planned.shape == shape and each.planned.contender == OURS and not each.failed
    ]
    if not found:
        return ""
    latest: Any = found[-1]
    sql = [[f"{count:g}", f"`{query.replace('`', '')}`"] for count, query in latest["sql_top"]]
    redis = ", ".join(f"{name} {count:g}" for name, count in sorted(latest["redis_commands"].items()))
    return f"{shape}: {redis or 'no Redis command'}\n\n{table(['per 1,000', 'statement'], sql)}"


def failures(results: Results) -> str:
    """What could not be measured, and why: single measurements, and contenders that are not there at all."""
    broken = known()[1]
    absent = [[name, broken.get(name, "no adapter")] for name in EXPECTED if name not in known()[0]]
    rows = [
        [f"{each.planned.label} #{each.planned.repetition}", " ".join(str(each.failed).split())[-400:]]
        for each in results.failures()
    ]
    return f"## Failed\n\n{table(['measurement', 'reason'], [*absent, *rows])}" if rows or absent else ""
