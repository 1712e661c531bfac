"""Plots as SVG: bars of medians with their spread, and the curve of growth. Readable on a dark and on a light page."""

from __future__ import annotations

import importlib.util
import math
import sys
from typing import TYPE_CHECKING, Any, Final

from benchmarks.figures import Spread, spread
from benchmarks.plan import OURS

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.results import Results

_PREFORK: Final = "prefork -c 2"
#: Middle tones, on no background: they stand out from white and from black.
_INK: Final = "#808891"
_OURS: Final = "#2f81f7"
_OTHERS: Final = "#a08050"
_BARS: Final = {
    "drain": (("durable_rate", "executed_rate"), "profiles a second, drain (durable where there is SQL); log scale"),
    "end_to_end": (("durable_rate", "executed_rate"), "profiles a second, end to end; log scale"),
    "sleep": (("executed_rate",), "profiles of 50 ms a second at concurrency 100; log scale"),
    "submit": (("rate",), "profiles submitted a second; log scale"),
    "latency": (("p50",), "milliseconds from submission to the handler's start, p50, idle; log scale, less is better"),
}


def draw(results: Results, folder: Path) -> dict[str, str]:
    """Draw what was measured.

    Returns:
        The file's name by workload.

    Without matplotlib, which is in the dependency group `bench`, nothing is drawn, and a line says so.
    """
    if importlib.util.find_spec("matplotlib") is None:
        sys.stderr.write("no plots: matplotlib is not installed; `python -m benchmarks --report` draws them later\n")
        return {}
    pictures = {}
    for workload, (figures, title) in _BARS.items():
        bars = _bars(results, workload, figures)
        if bars:
            _draw_bars(bars, title, folder / f"{workload}.svg")
            pictures[workload] = f"{workload}.svg"
    curve = _curve(results)
    if len(curve) > 1:
        _draw_curve(curve, folder / "growth.svg")
        pictures["growth"] = "growth.svg"
    return pictures


def _bars(results: Results, workload: str, figures: tuple[str, ...]) -> list[tuple[str, bool, Spread]]:
    """Label, whether it is ours, and the figure; the smallest first, since bars are drawn upwards."""
    found = []
    for contender, shape in results.subjects(workload):
        series = next((each for name in figures if (each := results.series(workload, contender, shape, name))), {})
        figure = spread(list(series.values()))
        if figure is not None:
            found.append((f"{contender} ({shape})", contender == OURS, figure))
    return sorted(found, key=lambda bar: bar[2].median)


def _curve(results: Results) -> list[tuple[int, Spread]]:
    counts = sorted({each.planned.count for each in results.of("growth")})
    found = [
        (each, spread(list(results.series("growth", OURS, _PREFORK, "cost_us", count=each).values())))
        for each in counts
    ]
    return [(count, figure) for count, figure in found if figure is not None]


def _draw_bars(bars: list[tuple[str, bool, Spread]], title: str, path: Path) -> None:
    figure, axes = _axes(title, 0.28 * len(bars) + 1.0)
    for place, (_, ours, bar) in enumerate(bars):
        axes.barh(place, bar.median, color=_OURS if ours else _OTHERS, height=0.7)
        axes.plot([bar.low, bar.high], [place, place], color=_INK, linewidth=1.5)
        axes.annotate(
            f"{bar.median:,.3g}" if bar.median < 1000 else f"{bar.median:,.0f}",
            (bar.high, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=_INK,
            fontsize=8,
        )
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars], fontsize=8)
    _logarithmic(axes)
    # From the power of ten below the smallest: a bar has to begin somewhere, and not at itself.
    low, high = min(bar.low for _, _, bar in bars), max(bar.high for _, _, bar in bars)
    axes.set_xlim(10 ** math.floor(math.log10(low) - 0.05), high * (high / low) ** 0.15 * 1.2)
    _save(figure, path)


def _draw_curve(curve: list[tuple[int, Spread]], path: Path) -> None:
    figure, axes = _axes("cost per profile in microseconds (submission and drain), by profiles in the batch", 3.2)
    counts = [count for count, _ in curve]
    axes.fill_between(
        counts, [each.low for _, each in curve], [each.high for _, each in curve], color=_OURS, alpha=0.25
    )
    axes.plot(counts, [each.median for _, each in curve], color=_OURS, marker="o")
    _logarithmic(axes)
    axes.set_ylim(bottom=0)
    _save(figure, path)


def _axes(title: str, height: float) -> tuple[Any, Any]:
    # Imported here: everything but drawing works without it, and its import takes half a second.
    from matplotlib import rcParams  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    # Text stays text, and the same figures give the same file.
    rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "benchmarks"})
    figure = Figure(figsize=(8, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_title(title, fontsize=9, color=_INK, loc="left")
    axes.tick_params(which="both", colors=_INK, labelsize=8)
    for name, spine in axes.spines.items():
        spine.set_color(_INK)
        spine.set_visible(name in {"left", "bottom"})
    return figure, axes


def _logarithmic(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter  # noqa: PLC0415 - as above

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None}, transparent=True)
