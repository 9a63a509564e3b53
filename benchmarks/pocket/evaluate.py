"""Evaluate a task's model through a real vLLM: `python -m benchmarks.pocket.evaluate swaps --write`.

Held-out problems are thought through at temperature 0.6, probed at their cues, and `deer` is replayed on them:
at each cue in turn, cut if the confidence of a greedy trial answer exceeds a threshold.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from tokenizers import Tokenizer
from tqdm import tqdm

from benchmarks.pocket import TASKS
from benchmarks.pocket.engine import Engine
from benchmarks.pocket.task import Problem, Task
from benchmarks.services import engine as started
from benchmarks.services import free_port
from policies.answers import INDUCERS, confidence, same, trial_answer
from policies.cues import CueScanner

TEMPERATURE = 0.6
LIMIT = 2000
"""Tokens after which a trace counts as derailed."""


@dataclass
class Probe:
    """A trial answer at a cue."""

    at: int
    """Tokens of thought kept."""
    confidence: float
    """As `deer` has it: the geometric mean over the answer's tokens of the largest token probability."""
    right: bool
    tokens: int
    """Tokens that the probe decoded."""


@dataclass
class Run:
    """One problem thought to its end, and what a cut made of it."""

    problem: Problem
    prompt: list[int]
    output: list[int]
    text: str
    closed: bool
    """Whether the thought ended with its marker within the limit."""
    cues: list[int] = field(default_factory=list)
    """Tokens of thought before each cue."""
    probes: list[Probe] = field(default_factory=list)
    cut_tokens: int = 0
    """Reasoning kept + closing + answer, without probes."""
    cut_right: bool = False

    right: bool = False
    """Whether the whole trace answers rightly."""
    first_right: bool = False
    """Whether the first derivation's result is the answer."""


class Bench:
    """Runs a task's problems through one engine."""

    def __init__(self, task: Task, engine: Engine, threshold: float):
        dialect = task.chat.dialect
        self.task, self.engine, self.threshold = task, engine, threshold
        self.closing = engine.encode(dialect.closing)
        self.closing_on_newline = engine.encode(dialect.closing.removeprefix("\n"))
        self.inducer = engine.encode(dialect.inducers[INDUCERS[task.answers]])
        self.tokenizer = Tokenizer.from_file(str(task.model / "tokenizer.json"))
        self.closing_marker = self.tokenizer.token_to_id(dialect.end[0])

    def think(self, index: int, problem: Problem, **extra) -> Run:
        """Let the model think to the end."""
        reply = self.engine.post(
            "/v1/chat/completions",
            messages=[{"role": "user", "content": problem.prompt}],
            temperature=TEMPERATURE,
            max_tokens=LIMIT,
            seed=index,
            return_token_ids=True,
            **extra,
        )
        output = reply["choices"][0]["token_ids"]
        text = self.tokenizer.decode(output)
        closed = self.closing_marker in output and reply["choices"][0]["finish_reason"] == "stop"
        run = Run(problem, reply["prompt_token_ids"], output, text, closed)
        run.cues = self.cues(output[: output.index(self.closing_marker)] if closed else output)
        run.right = closed and problem.right(text.rpartition(self.task.chat.dialect.end[0])[2])
        run.first_right = self.task.first_candidate(text) == problem.answer
        return run

    def cues(self, thought: list[int]) -> list[int]:
        """How many tokens stand before each cue, as the gateway finds them."""
        ends = list(itertools.accumulate(len(self.tokenizer.decode([token])) for token in thought))
        scanner = CueScanner(self.task.chat.dialect.cues)
        found = scanner.feed(self.tokenizer.decode(thought)) + scanner.close()
        return [sum(end <= cue.start for end in ends) for cue in found]

    def closed(self, run: Run, at: int) -> list[int]:
        """The prompt and `at` tokens of thought, closed."""
        on_newline = self.tokenizer.decode(run.output[:at]).endswith("\n")
        closing = self.closing_on_newline if on_newline else self.closing
        return run.prompt + run.output[:at] + closing

    def probe(self, run: Run, at: int) -> Probe:
        """Draw a greedy trial answer after `at` tokens of thought."""
        prompt, kind = self.closed(run, at) + self.inducer, self.task.answers
        choice = self.engine.post(
            "/v1/completions", prompt=prompt, temperature=0, max_tokens=20, logprobs=1
        )["choices"][0]
        found = choice["logprobs"]
        answer = trial_answer(choice["text"], kind)
        sure = confidence(found["tokens"], found["token_logprobs"], kind)
        return Probe(at, sure, same(answer, run.problem.answer), len(found["tokens"]))

    def replay(self, run: Run) -> Run:
        """`deer`: probe at each cue until the confidence exceeds the threshold, then let the model answer."""
        run.cut_tokens, run.cut_right = len(run.output), run.right
        for at in run.cues:
            run.probes.append(self.probe(run, at))
            if run.probes[-1].confidence > self.threshold:
                kept = self.closed(run, at)
                reply = self.engine.post(
                    "/v1/completions",
                    prompt=kept,
                    temperature=TEMPERATURE,
                    max_tokens=200,
                    seed=at,
                )
                run.cut_tokens = len(kept) - len(run.prompt) + reply["usage"]["completion_tokens"]
                run.cut_right = run.problem.right(reply["choices"][0]["text"])
                break
        return run


def auroc(scored: Iterable[tuple[float, bool]]) -> float:
    """The chance that a right one scores above a wrong one; ties count half."""
    scored = list(scored)
    right, wrong = ([s for s, good in scored if good is side] for side in (True, False))
    if not right or not wrong:
        return math.nan
    return fmean((a > b) + (a == b) / 2 for a in right for b in wrong)


def share(values: Iterable[bool]) -> str:
    """A percentage with its 95 % Wilson interval."""
    values = list(values)
    n, p, z = len(values), fmean(values), 1.96
    middle, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2) / (1 + z * z / n),
    )
    return f"{p:.1%} ({max(0.0, middle - half):.1%} to {min(1.0, middle + half):.1%})"


def mean(values: Iterable[float], digits: int = 1) -> str:
    """A mean with its 95 % interval (normal)."""
    values = list(values)
    m = fmean(values)
    half = 1.96 * math.sqrt(fmean((v - m) ** 2 for v in values) / len(values))
    return f"{m:.{digits}f} ± {half:.{digits}f}"


def calibration(probes: list[Probe]) -> list[str]:
    """Rows of a table: trial answers by confidence, and how many of them were right."""
    rows, edges = (
        ["| confidence | trial answers | mean confidence | right |", "|---|---|---|---|"],
        (0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.01),
    )
    for low, high in itertools.pairwise(edges):
        inside = [p for p in probes if low <= p.confidence < high]
        if inside:
            rows.append(
                f"| {low}–{min(high, 1)} | {len(inside)} | {fmean(p.confidence for p in inside):.3f} | {share(p.right for p in inside)} |"
            )
    return rows


def table(runs: list[Run], direct: list[Run], threshold: float) -> list[str]:
    """The report's lines."""
    first = [run.probes[0] for run in runs if run.probes]
    first_of_right = [
        run.probes[0].confidence > threshold for run in runs if run.probes and run.first_right
    ]
    full, cut = sum(len(r.output) for r in runs), sum(r.cut_tokens for r in runs)
    probing = sum(p.tokens for r in runs for p in r.probes)
    stopped = [r for r in runs if r.probes and r.probes[-1].confidence > threshold]
    numbers: list[tuple[str, str]] = [
        ("problems", str(len(runs))),
        ("full thinking right", share(r.right for r in runs)),
        ("first candidate right", share(r.first_right for r in runs)),
        (
            "right without thinking (`enable_thinking: false`)",
            share(r.right for r in direct),
        ),
        ("cues a trace", mean(len(r.cues) for r in runs)),
        ("tokens a trace, answer included", mean((len(r.output) for r in runs), 0)),
        ("derailed", share(not r.closed for r in runs)),
        ("trial answer at the first cue right", share(p.right for p in first)),
        (
            "AUROC of its confidence, against the trial answer's correctness",
            f"{auroc((p.confidence, p.right) for p in first):.3f}",
        ),
        (
            "AUROC of its confidence, against the first candidate's correctness",
            f"{auroc((r.probes[0].confidence, r.first_right) for r in runs if r.probes):.3f}",
        ),
        (f"right first candidates with confidence > {threshold}", share(first_of_right)),
        (f"deer at {threshold}: traces cut", share(bool(r in stopped) for r in runs)),
        ("deer: right", share(r.cut_right for r in runs)),
        (
            "deer: paired accuracy difference, points",
            mean((100.0 * (r.cut_right - r.right) for r in runs), 2),
        ),
        ("deer: probes a trace", mean((len(r.probes) for r in runs), 2)),
        ("deer: tokens saved, without probes (1 − CR)", f"{1 - cut / full:.1%}"),
        ("deer: tokens saved, net of probes (1 − CRT)", f"{1 - (cut + probing) / full:.1%}"),
    ]
    by_hard = [
        "| hard steps | problems | first candidate right | full thinking right | right with deer |",
        "|---|---|---|---|---|",
    ]
    for hard in sorted({r.problem.hard for r in runs}):
        some = [r for r in runs if r.problem.hard == hard]
        by_hard.append(
            f"| {hard} | {len(some)} | {share(r.first_right for r in some)} | {share(r.right for r in some)} | {share(r.cut_right for r in some)} |"
        )
    return [
        "| what | value (95 % interval) |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in numbers),
        "",
        "By difficulty:",
        "",
        *by_hard,
        "",
        "Calibration of the trial answer at the first cue:",
        "",
        *calibration(first),
    ]


def every(work: Callable[..., Run], jobs: list[tuple], what: str, workers: int) -> list[Run]:
    """Run jobs side by side, in order, with a progress bar."""
    with ThreadPoolExecutor(workers) as pool:
        return list(
            tqdm(pool.map(lambda job: work(*job), jobs), total=len(jobs), desc=what, mininterval=5)
        )


def main() -> None:
    """Parse the command line, evaluate, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--n", type=int, default=1000, help="held-out problems")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threshold", type=float, default=0.95)
    parser.add_argument("--workers", type=int, default=48, help="requests at once")
    parser.add_argument(
        "--url", help="an engine that already serves the model; else one is started"
    )
    parser.add_argument(
        "--write", action="store_true", help="replace the numbers of the task's own report"
    )
    options = parser.parse_args()
    task = TASKS[options.task]
    with nullcontext(options.url) if options.url else started(free_port(), task=task) as url:
        bench = Bench(task, Engine(url), options.threshold)
        problems = list(enumerate(task.held_out(options.n, options.seed)))
        runs = every(bench.think, problems, "thinking", options.workers)
        runs = every(bench.replay, [(run,) for run in runs], "probing", options.workers)
        off = {"chat_template_kwargs": {"enable_thinking": False}}
        direct = every(
            lambda i, p: bench.think(i, p, **off),
            problems[:200],
            "without thinking",
            options.workers,
        )
    lines = table(runs, direct, options.threshold)
    print("\n".join(lines))
    for run in [r for r in runs if not r.closed][:3]:
        print(f"derailed: {run.problem.key}: …{run.text[-200:]!r}", file=sys.stderr)
    if options.write:
        report = Path(__file__).parent / f"{task.name}.md"
        head = report.read_text().partition("## Numbers")[0]
        report.write_text(head + "## Numbers\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
