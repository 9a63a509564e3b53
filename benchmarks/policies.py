"""Every policy of one trace over the same traces: its best point, beside the baselines.

    python -m benchmarks.policies [--problems 300] [--out benchmarks/results/policies]

Records held-out problems with full thinking, once with every probe and once with the main stream's
log-probabilities (in one recording they would spoil each other, see docs/laboratory.md), and plays
each policy's settings over them. The engine gives the same trace for the same seed, so both hold
the same traces. Killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.lab.comparison import compare
from benchmarks.lab.points import Point, best
from benchmarks.lab.report import table
from benchmarks.pocket.task import held_out
from benchmarks.services import ROOT, engine, free_port

__all__ = ["PROBING", "TELLING", "main", "winners"]

PROBING = (
    "deer(threshold={0.9,0.95,0.98,0.99,0.992,0.995}, gate=0)",
    "deer-pro(threshold={0.8,0.9,0.95,0.98}, inducers={2,4})",
    "convergence(window={2,3,4}, every={32,64}, floor={0.8,0.95,0.98})",
    "entropy(at='sentence', alpha={0.2,0.5}, delta={0.0002,0.002,0.02})",
    "margin(threshold={0.05,0.1,0.25,0.5})",
    "redundancy(min_steps={2,4}, confidence={0.98,0.995})",
    "first-try(easy={1,2}, hard={2,3})",
    "budget(max={200,300,400,600})",
    "all_of(deer(threshold={0.95,0.98}, gate=0), first-try(easy=2, hard=2))",
    "any_of(deer(threshold={0.99,0.995}, gate=0), first-try(easy={3,4}, hard=4))",
    "any_of(deer(threshold={0.99,0.995}, gate=0), budget(max={600,800}))",
)
"""What is asked beside the stream, or nothing at all."""
TELLING = (
    "cusum(reference={0.05,0.1,0.2}, threshold={12,24,36})",
    "deviation(window={64,128}, threshold={1.1,1.2,1.5})",
)
"""What needs log-probabilities with every token."""
TOLERANCE = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policies")
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="which held-out problems")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--traces", type=Path, default=ROOT / ".bench" / "traces")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "policies")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 170)
    options.traces.mkdir(parents=True, exist_ok=True)
    prompts = options.traces / f"prompts-{options.problems}-{options.seed}.jsonl"
    prompts.write_text(_prompts(options.problems, options.seed))
    chosen = []
    with engine(free_port()) as url:
        recorded = [
            _record(url, prompts, group, number, options.concurrency)
            for number, group in enumerate((PROBING, TELLING))
        ]
    for group, traces in zip((PROBING, TELLING), recorded, strict=True):
        points = compare(traces, group, options.out / traces.stem, TOLERANCE, console=console)
        chosen += [p for p in points if p.baseline and not chosen] + winners(points)
    console.print(table(chosen, best(chosen, TOLERANCE)))
    names = ("name", "net", "probes", "stopped", "place")
    rows = [
        {name: getattr(point, name) for name in names}
        | {
            name: (estimate.value, estimate.low, estimate.high)
            for name in ("accuracy", "difference", "crt", "budget")
            if (estimate := getattr(point, name)) is not None
        }
        for point in chosen
    ]
    (options.out / "best.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


def winners(points: Sequence[Point]) -> list[Point]:
    """Of each policy's settings the cheapest that is shown to lose at most the tolerance; where
    there is none, the one that comes nearest to that."""
    families: dict[str, list[Point]] = {}
    for point in points:
        if not point.baseline:
            families.setdefault(_family(point.name), []).append(point)
    return [
        best(family, TOLERANCE) or max(family, key=lambda point: point.difference.low)
        for family in families.values()
    ]


def _family(name: str) -> str:
    """A policy's name; of a composition, with its members'."""
    head, _, rest = name.partition("(")
    if head not in ("any_of", "all_of"):
        return head
    members = [part for part in ("deer", "first-try", "budget", "loop") if part in rest]
    return f"{head}({', '.join(members)})"


def _prompts(count: int, seed: int) -> str:
    lines = [
        {"id": f"held-out-{seed}-{n}", "prompt": one.prompt, "answer": str(one.answer)}
        for n, one in enumerate(held_out(count, seed))
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def _record(
    url: str, prompts: Path, policies: Sequence[str], number: int, concurrency: int
) -> Path:
    """The recording of these prompts for these policies."""
    from benchmarks.lab.grid import expand

    out = prompts.with_name(f"{('probing', 'telling')[number]}-{prompts.stem}.jsonl")
    wanted = [word for line in policies for name in expand(line) for word in ("--for", name)]
    adjourn = ROOT / ".venv" / "bin" / "adjourn"
    limits = ["--max-tokens", "3000", "--concurrency", str(concurrency)]
    subprocess.run(
        [adjourn, "record", prompts, "--upstream", url, "--out", out, *wanted, *limits], check=True
    )
    return out


if __name__ == "__main__":
    main()
