"""The Pareto plot: accuracy against net tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.lab.baselines import Baselines, Rows
from benchmarks.lab.points import Point, front

__all__ = ["COLOURS", "family", "plot"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b4b8a", "#8c6d31")
"""For families of policies, told apart by colour-blind readers too."""
_MARKERS = "o^sv"
"""Where there are more families than colours."""
_CURVE = 40


def family(name: str) -> str:
    """The policy without its settings."""
    return name.partition("(")[0]


def plot(points: Sequence[Point], baselines: Baselines, marked: Point | None, path: Path) -> None:
    figure = Figure(figsize=(8, 5), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _curves(axes, points, baselines)
    policies = [point for point in points if not point.baseline]
    families = list(dict.fromkeys(family(point.name) for point in policies))
    for place, name in enumerate(families):
        own = [point for point in policies if family(point.name) == name]
        again, colour = divmod(place, len(COLOURS))
        _scatter(axes, own, COLOURS[colour], _MARKERS[again % len(_MARKERS)], name)
    _step(axes, front(points))
    if marked is not None:
        axes.scatter(*_place(marked), s=190, facecolors="none", edgecolors="black", linewidths=1.3)
        axes.annotate(
            marked.name,
            _place(marked),
            (0, 12),
            textcoords="offset points",
            fontsize=8,
            ha="center",
        )
    for point in points:
        if point.name in ("full thinking", "oracle"):
            star = "*" if point.name == "full thinking" else "D"
            axes.scatter(*_place(point), marker=star, s=110, color="black", label=point.name)
    _frame(axes, points)
    figure.savefig(path)


def _curves(axes: Axes, points: Sequence[Point], baselines: Baselines) -> None:
    """The rivals at every cost."""
    top = float(max(point.rows.position.max() for point in points))
    budgets = [baselines.budget(tokens) for tokens in np.linspace(0, top, _CURVE)]
    cues = [baselines.random_cue(chance) for chance in np.linspace(0, 1, _CURVE)]
    for curve, style, label in ((budgets, "-", "fixed budget"), (cues, ":", "random cue")):
        axes.plot(*zip(*map(_mean, curve), strict=True), style, color="grey", lw=1.2, label=label)


def _mean(rows: Rows) -> tuple[float, float]:
    return float(rows.net.mean()), 100 * float(rows.right.mean())


def _scatter(axes: Axes, points: Sequence[Point], colour: str, marker: str, label: str) -> None:
    net, right = zip(*map(_place, points), strict=True)
    errors = [
        [100 * (p.accuracy.value - p.accuracy.low) for p in points],
        [100 * (p.accuracy.high - p.accuracy.value) for p in points],
    ]
    axes.errorbar(net, right, errors, fmt="none", ecolor=colour, alpha=0.18, lw=1)
    axes.scatter(net, right, s=24, color=colour, marker=marker, label=label, zorder=3)


def _step(axes: Axes, points: Sequence[Point]) -> None:
    if len(points) > 1:
        axes.plot(*zip(*map(_place, points), strict=True), color="black", lw=0.7, alpha=0.6)


def _place(point: Point) -> tuple[float, float]:
    return point.net, 100 * point.accuracy.value


def _frame(axes: Axes, points: Sequence[Point]) -> None:
    """What is worth seeing: no thinking at all may lie far below."""
    lowest = min(p.accuracy.low for p in points if p.name != "no thinking")
    highest = max(p.accuracy.high for p in points)
    room = 100 * (highest - lowest) * 0.08 + 0.5
    axes.set_ylim(100 * lowest - room, min(100 * highest + room, 101))
    axes.set_xlim(left=0)
    axes.set_xlabel("net tokens a request (answer, closing, probes and waste included)")
    axes.set_ylabel("right, % (bars: 95 % intervals)")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize=8, ncols=2 if len(axes.collections) > 16 else 1)
