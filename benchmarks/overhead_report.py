"""The report of `benchmarks.overhead`: medians, ratios with ranges, goals, tables, a plot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

__all__ = ["Measurements", "plot", "summarize", "tables"]

RESAMPLES = 2_000


@dataclass(slots=True)
class Measurements:
    """The measurements of a run, by gateway.

    ``values``: by key and gateway, one value per round. ``first_byte_ms``: for each round, the
    milliseconds to the first byte of each request.
    """

    values: dict[str, dict[str, list[float]]]
    first_byte_ms: dict[str, list[list[float]]]
    errors: dict[str, list[str]]
    versions: dict[str, str] = field(default_factory=dict)

    def add(self, key: str, name: str, value: float) -> None:
        """Append a round's value of a gateway."""
        self.values[key][name].append(value)


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit for one number of adjourn, an upper limit if ``at_most``."""

    description: str
    key: str
    limit: float
    at_most: bool = True

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit


GOALS = [
    Goal("CPU per token at 256 streams, x nginx", "cpu_256 / nginx", 4.0),
    Goal("CPU per token at 32 streams, x LiteLLM", "cpu_32 / litellm", 1 / 15),
    Goal("added time to first token at 32 streams, p50, ms", "added p50", 2.0),
    Goal("added time to first token at 32 streams, p99, ms", "added p99", 15.0),
    Goal("resident memory after the run, MB", "memory", 120.0),
    Goal("unpaced tokens per second at 64 streams, x nginx", "flood_64 / nginx", 0.5, False),
    Goal("CPU per token late / early in a long stream", "late / early", 1.2),
]


def _median_and_range(values: list[float]) -> dict[str, float]:
    """The median of the rounds, and their range."""
    return {"median": float(np.median(values)), "low": min(values), "high": max(values)}


def _added_latency(measurements: Measurements, name: str, percent: float) -> dict[str, float]:
    """A percentile of the time to first token minus that of direct requests, with a 95 %
    bootstrap interval over all requests."""
    rng = np.random.default_rng(0)
    through, direct = (np.concatenate(measurements.first_byte_ms[key]) for key in (name, "direct"))

    def resample(times: np.ndarray) -> np.ndarray:
        rows = rng.integers(0, len(times), (RESAMPLES, len(times)))
        return np.asarray(np.percentile(times[rows], percent, axis=1))

    added = resample(through) - resample(direct)
    low, high = np.percentile(added, [2.5, 97.5])
    value = np.percentile(through, percent) - np.percentile(direct, percent)
    return {"median": float(value), "low": float(low), "high": float(high)}


def summarize(measurements: Measurements) -> dict[str, Any]:
    """Each gateway's numbers, its ratios to the others within a round, and the goals."""
    rows: dict[str, dict[str, dict[str, float]]] = {name: {} for name in measurements.versions}
    for key, by_name in measurements.values.items():
        for name, values in by_name.items():
            rows[name][key] = _median_and_range(values)
            for other in ("nginx", "litellm"):
                if other != name and other in by_name:
                    ratios = [a / b for a, b in zip(values, by_name[other], strict=True)]
                    rows[name][f"{key} / {other}"] = _median_and_range(ratios)
    for name, early in measurements.values["early"].items():
        late = measurements.values["late"][name]
        rows[name]["late / early"] = _median_and_range(
            [b / a for a, b in zip(early, late, strict=True)]
        )
    for name, rounds in measurements.first_byte_ms.items():
        for percent in (50, 99):
            here = [float(np.percentile(times, percent)) for times in rounds]
            rows[name][f"first p{percent}"] = _median_and_range(here)
            if name != "direct" and "direct" in measurements.first_byte_ms:
                rows[name][f"added p{percent}"] = _added_latency(measurements, name, percent)
    ours = rows.get("adjourn", {})
    return {
        "versions": measurements.versions,
        "errors": dict(measurements.errors),
        "numbers": rows,
        "goals": [
            {
                "goal": goal.description,
                "limit": goal.limit,
                "at_most": goal.at_most,
                "reached": ours.get(goal.key),
                "met": goal.is_met(ours[goal.key]["median"]) if goal.key in ours else None,
            }
            for goal in GOALS
        ],
        "rounds": {key: dict(by_name) for key, by_name in measurements.values.items()},
        "first_bytes_ms": {
            name: [[round(ms, 3) for ms in times] for times in rounds]
            for name, rounds in measurements.first_byte_ms.items()
        },
    }


_COLOURS = {
    "direct": "#8a8a8a",
    "nginx": "#4c9f70",
    "adjourn": "#3f6fb5",
    "litellm": "#c8553d",
}
_COLUMNS = {
    "cpu_32": "CPU µs/token\n32 streams",
    "cpu_256": "CPU µs/token\n256 streams",
    "flood_64": "unpaced\ntokens/s, 64",
    "first p50": "first token\np50 ms",
    "first p99": "first token\np99 ms",
    "added p50": "added\np50 ms",
    "added p99": "added\np99 ms",
    "late / early": "late / early\nCPU",
    "memory": "memory\nMB",
}


def _format_value(value: dict[str, float] | None, *, brief: bool = False) -> str:
    if value is None:
        return "-"

    def number(x: float) -> str:
        return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"

    if brief or value["low"] == value["high"]:
        return number(value["median"])
    return f"{number(value['median'])}\n{number(value['low'])} to {number(value['high'])}"


def tables(report: dict[str, Any]) -> Iterator[Table]:
    """The tables of a report from `summarize`: medians, ratios, goals."""
    rows = report["numbers"]
    table = Table(title="Medians of the rounds, with their range (added: 95 % interval)")
    table.add_column("gateway")
    for title in _COLUMNS.values():
        table.add_column(title, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(_format_value(row.get(key)) for key in _COLUMNS))
    yield table

    table = Table(title="Ratios within a round")
    table.add_column("gateway")
    keys = [
        f"{key} / {other}"
        for other in ("nginx", "litellm")
        for key in ("cpu_32", "cpu_256", "flood_64", "memory")
        if any(f"{key} / {other}" in row for row in rows.values())
    ]
    for key in keys:
        table.add_column(key.replace(" / ", "\nx "), justify="right")
    for name, row in rows.items():
        table.add_row(name, *(_format_value(row.get(key)) for key in keys))
    yield table

    table = Table(title="Goals for adjourn")
    for title in ("goal", "limit", "reached", ""):
        table.add_column(title, justify="left" if title == "goal" else "right")
    for goal in report["goals"]:
        verdict = {None: "-", True: "[green]met[/]", False: "[red]missed[/]"}[goal["met"]]
        limit = f"{'≤' if goal['at_most'] else '≥'} {goal['limit']:.3g}"
        table.add_row(
            goal["goal"], limit, _format_value(goal["reached"]).replace("\n", "  "), verdict
        )
    yield table


def plot(measurements: Measurements, report: dict[str, Any], path: Path) -> None:
    """Save a figure with CPU costs, times to first token and throughput."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, (costs, latencies, throughputs) = pyplot.subplots(
        1, 3, figsize=(13, 4), layout="constrained"
    )
    rows = report["numbers"]
    bars: list[tuple[str, str]] = [
        (key, name) for key in ("cpu_32", "cpu_256") for name in rows if key in rows[name]
    ]
    _plot_bars(costs, rows, bars)
    costs.set_yscale("log")
    costs.set_title("CPU per streamed token, µs (32 and 256 paced streams)")
    for name, rounds in measurements.first_byte_ms.items():
        times = np.sort(np.concatenate(rounds))
        latencies.plot(
            times, np.arange(1, len(times) + 1) / len(times), label=name, color=_COLOURS[name]
        )
    latencies.set_xscale("log")
    latencies.set_title("Time to first token at 32 streams, ms")
    latencies.set_ylabel("share of requests")
    latencies.legend(frameon=False)
    _plot_bars(throughputs, rows, [("flood_64", name) for name in rows if "flood_64" in rows[name]])
    throughputs.set_yscale("log")
    throughputs.set_title("Tokens per second, 64 unpaced streams")
    plain = ticker.FuncFormatter(lambda value, _: f"{value:,g}")
    for axis in (costs.yaxis, latencies.xaxis, throughputs.yaxis):
        axis.set_major_locator(ticker.LogLocator(subs=(1.0, 3.0)))
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(ticker.NullFormatter())
    for axes in (costs, latencies, throughputs):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(10)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _plot_bars(axes: Any, rows: dict[str, Any], bars: list[tuple[str, str]]) -> None:
    for position, (key, name) in enumerate(bars):
        value = rows[name][key]
        median = value["median"]
        spread = [[median - value["low"]], [value["high"] - median]]
        axes.bar(position, median, yerr=spread, color=_COLOURS[name], capsize=3)
        axes.annotate(
            _format_value(value, brief=True),
            (position, value["high"]),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    several = len({key for key, _ in bars}) > 1
    labels = [f"{name}\n{key.split('_')[1]}" if several else name for key, name in bars]
    axes.set_xticks(range(len(bars)), labels)
