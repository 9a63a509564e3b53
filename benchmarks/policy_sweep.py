"""Compare the best setting of every single-trace policy with the baselines, on the same traces.

    python -m benchmarks.policy_sweep [--task swaps] [--problems 300]

Records held-out problems of a task with full thinking, and replays each policy's settings on them.
There is one recording for each kind of checkpoint, because probes of one kind delay those of
another; the engine generates the same trace for the same seed, so all recordings have the same
traces. Next to each recording is a page to explore its results. A restarted run continues.
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
"""The weights that `adjourn learn` fitted on 800 other problems (seed 1)."""
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
"""Policies by recording. "tokens" needs log-probabilities of every token. "states" needs an engine
that returns hidden states, which generates other traces for the same problems."""
TOLERANCE = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policy_sweep")
    parser.add_argument(
        "--task", choices=TASKS, default=CHAINS.name, help="the task of the pocket model"
    )
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--samples", type=int, default=1, help="traces per problem")
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
    # The probe of lynx was trained on the hidden states of the chains model only.
    recordings = options.recordings or [
        n for n in RECORDINGS if task is CHAINS or n != _HIDDEN_STATES
    ]
    groups = {name: with_answer_kind(RECORDINGS[name], task) for name in recordings}
    chosen: list[Point] = []
    for with_states in (False, True):
        names = [name for name in groups if (name == _HIDDEN_STATES) is with_states]
        if not names:
            continue
        with start_engine(
            free_port(), *(hidden_state_arguments() if with_states else ()), task=task
        ) as url:
            for name in names:
                traces = _recording_path(prompts, name, options.samples)
                _record(url, prompts, traces, groups[name], options.samples, options.concurrency)
    for name, group in groups.items():
        traces = _recording_path(prompts, name, options.samples)
        points = compare(traces, group, traces.with_suffix(""), TOLERANCE, console=console)
        chosen += [p for p in points if p.is_baseline and not chosen] + best_per_policy(points)
    best = select_best(chosen, TOLERANCE)
    console.print(comparison_table(chosen, best))
    out.mkdir(parents=True, exist_ok=True)
    first = _recording_path(prompts, recordings[0], options.samples)
    plot(chosen, Baselines(ReplayDataset(first)), best, out / "pareto.png")
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
    """For each policy the cheapest point shown to lose at most TOLERANCE in accuracy.

    If there is none, the point whose lower bound of the difference is highest.
    """
    families: dict[str, list[Point]] = {}
    for point in points:
        if not point.is_baseline:
            families.setdefault(_policy_family(point.name), []).append(point)
    return [
        select_best(family, TOLERANCE) or max(family, key=lambda point: point.difference.low)
        for family in families.values()
    ]


def _policy_family(name: str) -> str:
    """The name of a policy and of its members, without their settings."""
    return re.sub(r"\((?=\w+=)[^()]*\)", "", name)


def with_answer_kind(policies: Sequence[str], task: Task) -> list[str]:
    """These policies with the option ``task`` set to the task's answer kind, if they have it."""
    if task.answer_kind == Task.answer_kind:
        return list(policies)
    pattern = r"\b(deer|convergence|redundancy|utility)\("
    return [re.sub(pattern, rf"\1(task={task.answer_kind!r}, ", policy) for policy in policies]


def _prompt_lines(task: Task, count: int, seed: int) -> str:
    lines = [
        {"id": f"held-out-{seed}-{n}", "prompt": problem.prompt, "answer": problem.answer}
        for n, problem in enumerate(task.held_out_problems(count, seed))
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def _recording_path(prompts: Path, name: str, samples: int) -> Path:
    return prompts.with_name(f"{name}-{samples}-{prompts.stem}.jsonl")


def _record(
    url: str, prompts: Path, out: Path, policies: Sequence[str], samples: int, concurrency: int
) -> None:
    """Run `adjourn record` on these prompts with the probes of these policies."""
    specifications = [specification for line in policies for specification in expand(line)]
    policy_arguments = [
        word for specification in specifications for word in ("--for", specification)
    ]
    limits = ["--samples", samples, "--max-tokens", 3000, "--concurrency", concurrency]
    command = [ROOT / ".venv" / "bin" / "adjourn", "record", prompts, "--upstream", url]
    subprocess.run(list(map(str, [*command, "--out", out, *policy_arguments, *limits])), check=True)


if __name__ == "__main__":
    main()
