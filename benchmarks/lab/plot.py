"""The Pareto plot: accuracy against net tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adjourn.lab.baselines import Baselines, PerTraceScores
from adjourn.lab.points import Point, pareto_front

__all__ = ["COLOURS", "plot", "policy_family"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b4b8a", "#8c6d31")
"""One for each policy family; colour-blind readers can distinguish them too."""
_POINT_SHAPES = "o^sv"
"""The next shape is used when all colours are used up."""
_CURVE_POINTS = 40


def policy_family(name: str) -> str:
    """The name of the policy without its options."""
    return name.partition("(")[0]


def plot(
    points: Sequence[Point], baselines: Baselines, best_point: Point | None, path: Path
) -> None:
    """Write the plot as PNG; ``best_point`` is marked."""
    figure = Figure(figsize=(8, 5), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _plot_baselines(axes, points, baselines)
    policies = [point for point in points if not point.is_baseline]
    families = list(dict.fromkeys(policy_family(point.name) for point in policies))
    for index, name in enumerate(families):
        own = [point for point in policies if policy_family(point.name) == name]
        round_, colour = divmod(index, len(COLOURS))
        _plot_points(axes, own, COLOURS[colour], _POINT_SHAPES[round_ % len(_POINT_SHAPES)], name)
    _plot_front(axes, pareto_front(points))
    if best_point is not None:
        axes.scatter(*_xy(best_point), s=190, facecolors="none", edgecolors="black", linewidths=1.3)
        axes.annotate(
            best_point.name,
            _xy(best_point),
            (0, 12),
            textcoords="offset points",
            fontsize=8,
            ha="center",
        )
    for point in points:
        if point.name in ("full thinking", "oracle"):
            shape = "*" if point.name == "full thinking" else "D"
            axes.scatter(*_xy(point), marker=shape, s=110, color="black", label=point.name)
    _set_axes(axes, points)
    figure.savefig(path)


def _plot_baselines(axes: Axes, points: Sequence[Point], baselines: Baselines) -> None:
    """The fixed budget and the random cue as curves over all costs."""
    top = float(max(point.per_trace.position.max() for point in points))
    budgets = [baselines.budget(tokens) for tokens in np.linspace(0, top, _CURVE_POINTS)]
    cues = [baselines.random_cue(q) for q in np.linspace(0, 1, _CURVE_POINTS)]
    for curve, style, label in ((budgets, "-", "fixed budget"), (cues, ":", "random cue")):
        axes.plot(
            *zip(*map(_mean_xy, curve), strict=True), style, color="grey", lw=1.2, label=label
        )


def _mean_xy(scores: PerTraceScores) -> tuple[float, float]:
    return float(scores.net_tokens.mean()), 100 * float(scores.correct.mean())


def _plot_points(axes: Axes, points: Sequence[Point], colour: str, marker: str, label: str) -> None:
    net, accuracy = zip(*map(_xy, points), strict=True)
    errors = [
        [100 * (p.accuracy.value - p.accuracy.low) for p in points],
        [100 * (p.accuracy.high - p.accuracy.value) for p in points],
    ]
    axes.errorbar(net, accuracy, errors, fmt="none", ecolor=colour, alpha=0.18, lw=1)
    axes.scatter(net, accuracy, s=24, color=colour, marker=marker, label=label, zorder=3)


def _plot_front(axes: Axes, points: Sequence[Point]) -> None:
    if len(points) > 1:
        axes.plot(*zip(*map(_xy, points), strict=True), color="black", lw=0.7, alpha=0.6)


def _xy(point: Point) -> tuple[float, float]:
    return point.net_tokens, 100 * point.accuracy.value


def _set_axes(axes: Axes, points: Sequence[Point]) -> None:
    """Limits and labels. `no thinking` may be outside, as it can be far below all others."""
    lowest = min(p.accuracy.low for p in points if p.name != "no thinking")
    highest = max(p.accuracy.high for p in points)
    margin = 100 * (highest - lowest) * 0.08 + 0.5
    axes.set_ylim(100 * lowest - margin, min(100 * highest + margin, 101))
    axes.set_xlim(left=0)
    axes.set_xlabel("net tokens per request (including answer, closing, probes and waste)")
    axes.set_ylabel("correct, % (bars: 95 % intervals)")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize=8, ncols=2 if len(axes.collections) > 16 else 1)
