"""Latency of a request with full thinking, sent to the engine itself, and under a policy.

Both are streamed by the same lightweight client, with 1 and 16 concurrent requests and at
saturation, in alternating blocks of one run on one engine, so that other load affects both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

import matplotlib
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.client import ModelResponse, SendProblem, lightweight_client, progress_bar, send_all
from benchmarks.pocket import CHAINS
from benchmarks.services import ROOT, free_port, start_engine, start_gateway
from benchmarks.statistics import mean_ratio

__all__ = ["main"]

matplotlib.use("Agg")
console = Console(width=140)
_LOADS = ((1, 30), (16, 80), (64, 160))
"""(concurrent requests, requests per round)"""
_GOALS = {1: ("median", 0.75), 16: ("median", 0.75), 64: ("throughput", 1.2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="at least 2")
    parser.add_argument("--policy", default=CHAINS.policy)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with (
        start_engine(free_port()) as upstream,
        start_gateway(upstream, free_port(), "--hold-out", "0", "--log-level", "warning") as url,
    ):
        asyncio.run(_measure(upstream, url, options))


async def _measure(upstream: str, url: str, options: argparse.Namespace) -> None:
    rows = []
    with progress_bar() as bar:
        async with (
            lightweight_client(upstream) as direct,
            lightweight_client(url) as through_gateway,
        ):
            await send_all(
                direct,
                CHAINS.held_out_problems(32),
                None,
                concurrency=16,
                bar=bar,
                label="warming up",
            )
            await send_all(
                through_gateway,
                CHAINS.held_out_problems(32),
                options.policy,
                concurrency=16,
                bar=bar,
            )
            for concurrency, requests in _LOADS:
                rows.append(
                    await _measure_load(
                        concurrency, requests, direct, through_gateway, bar, options
                    )
                )
    _report(rows, options)


async def _measure_load(
    concurrency: int,
    requests: int,
    direct: SendProblem,
    through_gateway: SendProblem,
    bar: Progress,
    options: argparse.Namespace,
) -> dict:
    arms: dict[str, tuple[list[ModelResponse], list[float]]] = {
        "full": ([], []),
        "policy": ([], []),
    }
    problems = CHAINS.held_out_problems(requests * options.rounds)
    for round_number in range(options.rounds):
        block = problems[round_number * requests : (round_number + 1) * requests]
        # The arms alternate in going first.
        order = ("full", "policy") if round_number % 2 == 0 else ("policy", "full")
        for arm in order:
            policy = None if arm == "full" else options.policy
            runs, seconds = await send_all(
                direct if arm == "full" else through_gateway,
                block,
                policy,
                concurrency=concurrency,
                bar=bar,
                label=f"{concurrency} at a time, {policy or 'full thinking'}",
            )
            arms[arm][0].extend(runs)
            arms[arm][1].append(len(runs) / seconds)
    seconds = {arm: np.array([r.seconds for r in runs]) for arm, (runs, _) in arms.items()}
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(problems), (4000, len(problems)))
    ratios = np.median(seconds["policy"][rows], axis=1) / np.median(seconds["full"][rows], axis=1)
    throughput_ratios = np.array(arms["policy"][1]) / np.array(arms["full"][1])
    ratio, low, high = mean_ratio(throughput_ratios)
    return {
        "concurrency": concurrency,
        "median": {arm: float(np.median(s)) for arm, s in seconds.items()},
        "p95": {arm: float(np.percentile(s, 95)) for arm, s in seconds.items()},
        "median_ratio": float(np.median(seconds["policy"]) / np.median(seconds["full"])),
        "median_ratio_interval": [float(x) for x in np.percentile(ratios, (2.5, 97.5))],
        "throughput": {arm: float(np.mean(t)) for arm, (_, t) in arms.items()},
        "throughput_ratio": ratio,
        "throughput_ratio_interval": [low, high],
        "seconds": {arm: [round(float(x), 4) for x in s] for arm, s in seconds.items()},
    }


def _report(rows: list[dict], options: argparse.Namespace) -> None:
    table = Table(title=f"{options.policy} against full thinking at the engine itself")
    for column in (
        "at a time", "median s, full", options.policy, "ratio [95 %]", "p95 s, full",
        options.policy, "requests/s, full", options.policy, "ratio [95 %]", "goal",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for row in rows:
        low, high = row["median_ratio_interval"]
        throughput_low, throughput_high = row["throughput_ratio_interval"]
        metric, limit = _GOALS[row["concurrency"]]
        met = (
            row["median_ratio"] <= limit if metric == "median" else row["throughput_ratio"] >= limit
        )
        sign = "≤" if metric == "median" else "≥"
        table.add_row(
            str(row["concurrency"]),
            *(f"{row['median'][arm]:.3f}" for arm in ("full", "policy")),
            f"{row['median_ratio']:.2f} [{low:.2f}, {high:.2f}]",
            *(f"{row['p95'][arm]:.3f}" for arm in ("full", "policy")),
            *(f"{row['throughput'][arm]:.2f}" for arm in ("full", "policy")),
            f"{row['throughput_ratio']:.2f} [{throughput_low:.2f}, {throughput_high:.2f}]",
            f"{metric} {sign} {limit}: {'met' if met else 'missed'}",
        )
    console.print(table)
    _plot(rows, options)
    for row in rows:
        row.pop("seconds")
    path = options.out / "latency.json"
    path.write_text(json.dumps(rows, indent=2) + "\n")
    console.print(f"{path}, {path.with_suffix('.png')}")


def _plot(rows: list[dict], options: argparse.Namespace) -> None:
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(rows), figsize=(10, 3.4), layout="constrained")
    for axes, row in zip(panels, rows, strict=True):
        for arm, colour in (("full", "tab:green"), ("policy", "tab:blue")):
            times = np.sort(row["seconds"][arm])
            label = "full thinking" if arm == "full" else options.policy
            axes.step(times, np.linspace(0, 1, len(times)), color=colour, label=label)
        axes.set_title(f"{row['concurrency']} at a time")
        axes.set_xlabel("seconds per request")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share of requests")
    panels[0].legend()
    figure.savefig(options.out / "latency.png", dpi=120)


if __name__ == "__main__":
    main()
