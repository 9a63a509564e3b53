"""Accuracy and tokens of policies on held-out problems.

Compares full thinking, ``deer`` at several thresholds, and fixed budgets, one of them with the same
mean net tokens as ``deer``, in one run on one engine. Prints a table; writes a plot and JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from rich.console import Console

from benchmarks.client import ModelResponse, lightweight_client, progress_bar, send_all
from benchmarks.demo import cost_table
from benchmarks.pocket import CHAINS
from benchmarks.services import ROOT, free_port, start_engine, start_gateway
from benchmarks.statistics import paired_difference, share_interval

__all__ = ["main"]

matplotlib.use("Agg")
console = Console(width=170)
Arm = tuple[list[ModelResponse], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=2, help="traces per problem")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0, help="which held-out problems")
    parser.add_argument(
        "--policy", default=CHAINS.policy, help="the policy that is compared with the goals"
    )
    parser.add_argument("--thresholds", type=float, nargs="*", default=[0.9, 0.95, 0.995])
    parser.add_argument("--budgets", type=int, nargs="*", default=[150, 400])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with (
        start_engine(free_port()) as upstream,
        start_gateway(upstream, free_port(), "--hold-out", "0", "--log-level", "warning") as url,
    ):
        asyncio.run(_measure(url, options))


async def _measure(url: str, options: argparse.Namespace) -> None:
    problems = CHAINS.held_out_problems(options.problems, options.seed) * options.samples
    with progress_bar() as bar:
        async with lightweight_client(url) as send:

            async def arm(policy: str) -> Arm:
                return await send_all(
                    send, problems, policy, concurrency=options.concurrency, bar=bar
                )

            arms = {"off": await arm("off"), options.policy: await arm(options.policy)}
            equal_cost = _budget_of_equal_cost(*(runs for runs, _ in arms.values()))
            budget = f"budget(max={equal_cost}, grace=16)"
            arms[budget] = await arm(budget)
            for threshold in options.thresholds:
                policy = f"deer(threshold={threshold}, gate=0)"
                arms[policy] = await arm(policy)
            for limit in options.budgets:
                arms[f"budget(max={limit})"] = await arm(f"budget(max={limit}, grace=16)")
    console.print(cost_table(arms, options.samples))
    _report(arms, options.policy, budget, options)


def _budget_of_equal_cost(full_runs: list[ModelResponse], policy_runs: list[ModelResponse]) -> int:
    """The budget with which cut full traces have the same mean net tokens as the policy."""
    full = np.array([r.reasoning_tokens for r in full_runs])
    target = np.mean([r.net_tokens for r in policy_runs]) - np.mean(
        [r.answer_tokens for r in policy_runs]
    )
    candidates = np.arange(8, int(full.max()) + 1)
    costs = np.array([np.minimum(full, limit).mean() for limit in candidates])
    return int(candidates[np.abs(costs - target).argmin()])


def _report(
    arms: dict[str, Arm], policy: str, budget_name: str, options: argparse.Namespace
) -> None:
    difference = partial(paired_difference, samples=options.samples)
    out = options.out
    full, under_policy, under_budget = arms["off"][0], arms[policy][0], arms[budget_name][0]
    ratio, low, high = difference(
        [r.net_tokens for r in under_policy], [r.net_tokens for r in full], ratio=True
    )
    console.print(
        f"{policy} saves {100 * (1 - ratio):.1f} % net of probes and waste, 95 % interval "
        f"[{100 * (1 - high):.1f}, {100 * (1 - low):.1f}] (goal: at least 35 %)"
    )
    for name, other in (("full thinking", full), (budget_name, under_budget)):
        delta, low, high = difference([r.correct for r in under_policy], [r.correct for r in other])
        console.print(
            f"{policy} against {name}: accuracy {100 * delta:+.2f} points, paired 95 % interval "
            f"[{100 * low:+.2f}, {100 * high:+.2f}]"
        )
    rows = {
        name: {
            "right": share_interval([r.correct for r in runs], options.samples),
            "net": float(np.mean([r.net_tokens for r in runs])),
            "reasoning": float(np.mean([r.reasoning_tokens for r in runs])),
            "probe": float(np.mean([r.probe_tokens for r in runs])),
            "wasted": float(np.mean([r.wasted_tokens for r in runs])),
            "stopped": float(np.mean([bool(r.adjourn_field.get("stopped")) for r in runs])),
            "difference": difference([r.correct for r in runs], [r.correct for r in full]),
            "ratio": difference(
                [r.net_tokens for r in runs], [r.net_tokens for r in full], ratio=True
            ),
            "seconds": seconds,
        }
        for name, (runs, seconds) in arms.items()
    }
    (out / "quality.json").write_text(json.dumps(rows, indent=2) + "\n")
    _plot(rows, out / "quality.png")
    console.print(f"{out / 'quality.json'}, {out / 'quality.png'}")


def _plot(rows: dict, path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    for kind, colour, marker in (("budget", "tab:grey", "s"), ("deer", "tab:blue", "o")):
        points = sorted(
            (row["net"], *row["right"], name) for name, row in rows.items() if name[:4] == kind[:4]
        )
        net, right, low, high, names = zip(*points, strict=True)
        errors = [np.subtract(right, low) * 100, np.subtract(high, right) * 100]
        axes.errorbar(
            net, np.array(right) * 100, errors, marker=marker, color=colour, capsize=2, label=kind
        )
        for x, y, name in zip(net, right, names, strict=True):
            axes.annotate(name, (x, y * 100), (4, -10), textcoords="offset points", fontsize=7)
    right, low, high = (100 * x for x in rows["off"]["right"])
    axes.errorbar(
        rows["off"]["net"], right, [[right - low], [high - right]], marker="*", markersize=12,
        color="tab:green", capsize=2, label="full thinking",
    )  # fmt: skip
    axes.set_xlabel("net tokens per request (answer, probes and waste included)")
    axes.set_ylabel("right, % (95 % interval)")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
