"""Every policy of one trace over the same traces: its best point, beside the baselines.

    python -m benchmarks.policy_sweep [--task swaps] [--problems 300]

Records held-out problems of a task with full thinking and plays each policy's settings over them.
There is a recording for each kind of look, since probes of one kind delay those of another; the
engine gives the same trace for the same seed, so all hold the same traces. Each one's page to
explore lies beside it. Killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from adjourn.lab.baselines import Baselines
from adjourn.lab.comparison import compare
from adjourn.lab.grid import expand
from adjourn.lab.plot import plot
from adjourn.lab.points import Point, select_best
from adjourn.lab.replay_trace import ReplayDataset
from adjourn.lab.report import comparison_table
from benchmarks.pocket import CHAINS, TASKS
from benchmarks.pocket.task import Task
from benchmarks.services import ROOT, free_port, hidden_state_arguments, start_engine

__all__ = ["RECORDINGS", "best_per_policy", "main", "with_answer_kind"]

_LEARNED_OPTIONS = (
    "bias=2.5646, confidence=0.7314, first=0.2399, agreement=0.1501, changes=-0.7772, "
    "position=-0.6839, cues=1.0801"
)
"""What `adjourn learn` made of 800 other problems (those of seed 1)."""
_HIDDEN_STATES = "states"
RECORDINGS = {
    "cues": (
        "deer(threshold={0.9,0.95,0.97,0.98,0.985,0.99,0.992,0.995}, gate=0)",
        f"learned(threshold={{0.9,0.95,0.96,0.97,0.98,0.99}}, {_LEARNED_OPTIONS})",
        "first-try(easy={1,2,3}, hard=3)",
        "budget(max={200,300,400,600})",
        "all_of(deer(threshold={0.95,0.98}, gate=0), first-try(easy=2, hard=2))",
        "any_of(deer(threshold={0.985,0.99}, gate=0), first-try(easy={4,5}, hard=5))",
        "any_of(deer(threshold={0.985,0.988,0.99}, gate=0, gap=0), "
        "all_of(deer(threshold={0.95,0.96}, gate=0, gap=0), first-try(easy=3, hard=3)))",
    ),
    "inducers": ("deer-pro(threshold={0.8,0.9,0.95,0.98}, inducers={2,4})",),
    "intervals": ("convergence(window={2,3,4}, every={32,64}, floor={0.8,0.95,0.98})",),
    "steps": ("redundancy(min_steps={2,4}, confidence={0.98,0.995})",),
    "paragraphs": ("utility(patience={1,2,3})",),
    "settling": ("entropy(at='sentence', alpha={0.2,0.5}, delta={0.0002,0.002,0.02})",),
    "endings": ("margin(threshold={0.05,0.1,0.25,0.5})",),
    "tokens": (
        "cusum(reference={0.05,0.1,0.2}, threshold={12,24,36})",
        "deviation(window={64,128}, threshold={1.1,1.2,1.5})",
    ),
    _HIDDEN_STATES: ("lynx(probe='benchmarks/pocket/lynx.json', delta={0.01,0.02,0.05,0.1,0.2})",),
}
"""By what is looked at. The one of tokens needs log-probabilities with every token; that of hidden
states needs an engine that tells them, whose traces are others of the same problems."""
TOLERANCE = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policy_sweep")
    parser.add_argument("--task", choices=TASKS, default=CHAINS.name, help="what is thought about")
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--samples", type=int, default=1, help="traces a problem")
    parser.add_argument("--seed", type=int, default=0, help="which held-out problems")
    parser.add_argument("--recordings", nargs="+", choices=RECORDINGS, metavar="NAME")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--traces", type=Path, default=ROOT / ".bench" / "traces")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "policies")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 170)
    options.traces.mkdir(parents=True, exist_ok=True)
    task, out = TASKS[options.task], options.out / options.task
    prompts = options.traces / f"{task.name}-{options.problems}-{options.seed}.jsonl"
    prompts.write_text(_prompt_lines(task, options.problems, options.seed))
    # What reads hidden states was learned from those of the first model.
    wanted = options.recordings or [n for n in RECORDINGS if task is CHAINS or n != _HIDDEN_STATES]
    groups = {name: with_answer_kind(RECORDINGS[name], task) for name in wanted}
    chosen: list[Point] = []
    for telling in (False, True):
        names = [name for name in groups if (name == _HIDDEN_STATES) is telling]
        if not names:
            continue
        with start_engine(
            free_port(), *(hidden_state_arguments() if telling else ()), task=task
        ) as url:
            for name in names:
                traces = _recording_path(prompts, name, options.samples)
                _record(url, prompts, traces, groups[name], options.samples, options.concurrency)
    for name, group in groups.items():
        traces = _recording_path(prompts, name, options.samples)
        points = compare(traces, group, traces.with_suffix(""), TOLERANCE, console=console)
        chosen += [p for p in points if p.is_baseline and not chosen] + best_per_policy(points)
    marked = select_best(chosen, TOLERANCE)
    console.print(comparison_table(chosen, marked))
    out.mkdir(parents=True, exist_ok=True)
    first = _recording_path(prompts, wanted[0], options.samples)
    plot(chosen, Baselines(ReplayDataset(first)), marked, out / "pareto.png")
    names = ("name", "net_tokens", "probes_per_trace", "stopped_share", "stop_fraction")
    rows = [
        {name: getattr(point, name) for name in names}
        | {
            name: (estimate.value, estimate.low, estimate.high)
            for name in ("accuracy", "difference", "crt", "gain_over_budget")
            if (estimate := getattr(point, name)) is not None
        }
        for point in chosen
    ]
    (out / "best.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


def best_per_policy(points: Sequence[Point]) -> list[Point]:
    """Of each policy's settings the cheapest that is shown to lose at most the tolerance; where
    there is none, the one that comes nearest to that."""
    families: dict[str, list[Point]] = {}
    for point in points:
        if not point.is_baseline:
            families.setdefault(_policy_family(point.name), []).append(point)
    return [
        select_best(family, TOLERANCE) or max(family, key=lambda point: point.difference.low)
        for family in families.values()
    ]


def _policy_family(name: str) -> str:
    """A policy's name, and its members', without their settings."""
    return re.sub(r"\((?=\w+=)[^()]*\)", "", name)


def with_answer_kind(policies: Sequence[str], task: Task) -> list[str]:
    """These policies, drawing trial answers of the task's kind where they draw a kind at all."""
    if task.answer_kind == Task.answer_kind:
        return list(policies)
    drawing = r"\b(deer|convergence|redundancy|utility)\("
    return [re.sub(drawing, rf"\1(task={task.answer_kind!r}, ", one) for one in policies]


def _prompt_lines(task: Task, count: int, seed: int) -> str:
    lines = [
        {"id": f"held-out-{seed}-{n}", "prompt": one.prompt, "answer": one.answer}
        for n, one in enumerate(task.held_out_problems(count, seed))
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def _recording_path(prompts: Path, name: str, samples: int) -> Path:
    return prompts.with_name(f"{name}-{samples}-{prompts.stem}.jsonl")


def _record(
    url: str, prompts: Path, out: Path, policies: Sequence[str], samples: int, concurrency: int
) -> None:
    """Record these prompts for these policies."""
    specifications = [one for line in policies for one in expand(line)]
    wanted = [word for one in specifications for word in ("--for", one)]
    limits = ["--samples", samples, "--max-tokens", 3000, "--concurrency", concurrency]
    command = [ROOT / ".venv" / "bin" / "adjourn", "record", prompts, "--upstream", url]
    subprocess.run(list(map(str, [*command, "--out", out, *wanted, *limits])), check=True)


if __name__ == "__main__":
    main()
