"""Evaluate a task's model through a real vLLM: `python -m benchmarks.pocket.evaluate swaps --write`.

Generates a trace for each held-out problem at temperature 0.6 and replays `deer` on it: probes at each
cue in order, and cuts if the confidence of a greedy trial answer exceeds a threshold.
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

from adjourn.policies.evidence.answers import (
    INDUCERS_BY_KIND,
    answer_confidence,
    canonically_equal,
    extract_trial_answer,
)
from adjourn.policies.text.cues import CueScanner
from benchmarks.pocket import TASKS
from benchmarks.pocket.engine_client import PocketEngineClient
from benchmarks.pocket.task import Problem, Task
from benchmarks.services import free_port, start_engine

TEMPERATURE = 0.6
MAX_TOKENS = 2000
"""A trace without an answer after so many tokens counts as derailed."""


@dataclass
class TrialAnswerProbe:
    """A trial answer at a cue."""

    position: int
    """Reasoning tokens kept."""
    confidence: float
    """As in `deer`: the geometric mean over the answer's tokens of the largest token probability."""
    correct: bool
    tokens: int
    """Tokens generated for the probe."""


@dataclass
class EvaluatedTrace:
    """The full response to one problem, and the result of cutting it."""

    problem: Problem
    prompt_ids: list[int]
    output_ids: list[int]
    text: str
    is_closed: bool
    """Whether the trace ended with its marker within the limit."""
    cue_positions: list[int] = field(default_factory=list)
    """Reasoning tokens before each cue."""
    probes: list[TrialAnswerProbe] = field(default_factory=list)
    cut_tokens: int = 0
    """Reasoning kept + closing sequence + answer, without probes."""
    cut_correct: bool = False

    correct: bool = False
    """Whether the answer after the full trace is right."""
    first_candidate_correct: bool = False
    """Whether the first derivation's result is right."""


class Evaluator:
    """Runs a task's problems on one engine."""

    def __init__(self, task: Task, engine: PocketEngineClient, threshold: float):
        dialect = task.chat.dialect
        self.task, self.engine, self.threshold = task, engine, threshold
        self.closing_ids = engine.tokenize(dialect.closing)
        self.closing_on_newline_ids = engine.tokenize(dialect.closing.removeprefix("\n"))
        self.inducer_ids = engine.tokenize(dialect.inducers[INDUCERS_BY_KIND[task.answer_kind]])
        self.tokenizer = Tokenizer.from_file(str(task.model_path / "tokenizer.json"))
        self.end_marker_id = self.tokenizer.token_to_id(dialect.end[0])

    def generate_trace(self, index: int, problem: Problem, **extra) -> EvaluatedTrace:
        """Generate the full response to a problem. ``extra``: more fields of the request."""
        reply = self.engine.post(
            "/v1/chat/completions",
            messages=[{"role": "user", "content": problem.prompt}],
            temperature=TEMPERATURE,
            max_tokens=MAX_TOKENS,
            seed=index,
            return_token_ids=True,
            **extra,
        )
        output = reply["choices"][0]["token_ids"]
        text = self.tokenizer.decode(output)
        closed = self.end_marker_id in output and reply["choices"][0]["finish_reason"] == "stop"
        run = EvaluatedTrace(problem, reply["prompt_token_ids"], output, text, closed)
        run.cue_positions = self.find_cues(
            output[: output.index(self.end_marker_id)] if closed else output
        )
        run.correct = closed and problem.is_correct(
            text.rpartition(self.task.chat.dialect.end[0])[2]
        )
        run.first_candidate_correct = self.task.find_first_candidate(text) == problem.answer
        return run

    def find_cues(self, trace_ids: list[int]) -> list[int]:
        """The number of tokens before each cue, found as the gateway finds it."""
        ends = list(
            itertools.accumulate(len(self.tokenizer.decode([token])) for token in trace_ids)
        )
        scanner = CueScanner(self.task.chat.dialect.cues)
        found = scanner.feed(self.tokenizer.decode(trace_ids)) + scanner.close()
        return [sum(end <= cue.start for end in ends) for cue in found]

    def close_trace(self, run: EvaluatedTrace, position: int) -> list[int]:
        """Token ids of the prompt, of `position` reasoning tokens, and of the closing sequence."""
        on_newline = self.tokenizer.decode(run.output_ids[:position]).endswith("\n")
        closing = self.closing_on_newline_ids if on_newline else self.closing_ids
        return run.prompt_ids + run.output_ids[:position] + closing

    def probe(self, run: EvaluatedTrace, position: int) -> TrialAnswerProbe:
        """Generate a greedy trial answer after `position` reasoning tokens."""
        prompt, kind = self.close_trace(run, position) + self.inducer_ids, self.task.answer_kind
        choice = self.engine.post(
            "/v1/completions", prompt=prompt, temperature=0, max_tokens=20, logprobs=1
        )["choices"][0]
        logprobs = choice["logprobs"]
        answer = extract_trial_answer(choice["text"], kind)
        confidence = answer_confidence(logprobs["tokens"], logprobs["token_logprobs"], kind)
        return TrialAnswerProbe(
            position,
            confidence,
            canonically_equal(answer, run.problem.answer),
            len(logprobs["tokens"]),
        )

    def replay_deer(self, run: EvaluatedTrace) -> EvaluatedTrace:
        """`deer`: probe at each cue until the confidence exceeds the threshold, then generate the answer."""
        run.cut_tokens, run.cut_correct = len(run.output_ids), run.correct
        for position in run.cue_positions:
            run.probes.append(self.probe(run, position))
            if run.probes[-1].confidence > self.threshold:
                prompt_ids = self.close_trace(run, position)
                reply = self.engine.post(
                    "/v1/completions",
                    prompt=prompt_ids,
                    temperature=TEMPERATURE,
                    max_tokens=200,
                    seed=position,
                )
                run.cut_tokens = (
                    len(prompt_ids) - len(run.prompt_ids) + reply["usage"]["completion_tokens"]
                )
                run.cut_correct = run.problem.is_correct(reply["choices"][0]["text"])
                break
        return run


def auroc(scored: Iterable[tuple[float, bool]]) -> float:
    """The probability that a right one scores above a wrong one; ties count half."""
    scored = list(scored)
    right, wrong = ([s for s, good in scored if good is side] for side in (True, False))
    if not right or not wrong:
        return math.nan
    return fmean((a > b) + (a == b) / 2 for a in right for b in wrong)


def format_share(values: Iterable[bool]) -> str:
    """A percentage with its 95 % Wilson interval."""
    values = list(values)
    n, p, z = len(values), fmean(values), 1.96
    middle, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2) / (1 + z * z / n),
    )
    return f"{p:.1%} ({max(0.0, middle - half):.1%} to {min(1.0, middle + half):.1%})"


def format_mean(values: Iterable[float], digits: int = 1) -> str:
    """A mean with its 95 % interval (normal)."""
    values = list(values)
    m = fmean(values)
    half = 1.96 * math.sqrt(fmean((v - m) ** 2 for v in values) / len(values))
    return f"{m:.{digits}f} ± {half:.{digits}f}"


def calibration_rows(probes: list[TrialAnswerProbe]) -> list[str]:
    """Lines of a table: trial answers by confidence, and the share that is right."""
    rows, edges = (
        ["| confidence | trial answers | mean confidence | right |", "|---|---|---|---|"],
        (0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.01),
    )
    for low, high in itertools.pairwise(edges):
        inside = [p for p in probes if low <= p.confidence < high]
        if inside:
            rows.append(
                f"| {low}–{min(high, 1)} | {len(inside)} | {fmean(p.confidence for p in inside):.3f} | {format_share(p.correct for p in inside)} |"
            )
    return rows


def report_lines(
    runs: list[EvaluatedTrace], direct: list[EvaluatedTrace], threshold: float
) -> list[str]:
    """The lines of the report in Markdown.

    ``direct``: responses without reasoning.
    """
    first = [run.probes[0] for run in runs if run.probes]
    first_of_right = [
        run.probes[0].confidence > threshold
        for run in runs
        if run.probes and run.first_candidate_correct
    ]
    full, cut = sum(len(r.output_ids) for r in runs), sum(r.cut_tokens for r in runs)
    probing = sum(p.tokens for r in runs for p in r.probes)
    stopped = [r for r in runs if r.probes and r.probes[-1].confidence > threshold]
    numbers: list[tuple[str, str]] = [
        ("problems", str(len(runs))),
        ("right with full thinking", format_share(r.correct for r in runs)),
        ("first candidate right", format_share(r.first_candidate_correct for r in runs)),
        (
            "right without thinking (`enable_thinking: false`)",
            format_share(r.correct for r in direct),
        ),
        ("cues per trace", format_mean(len(r.cue_positions) for r in runs)),
        ("tokens per trace, answer included", format_mean((len(r.output_ids) for r in runs), 0)),
        ("derailed", format_share(not r.is_closed for r in runs)),
        ("trial answer at the first cue right", format_share(p.correct for p in first)),
        (
            "AUROC of its confidence, against the trial answer's correctness",
            f"{auroc((p.confidence, p.correct) for p in first):.3f}",
        ),
        (
            "AUROC of its confidence, against the first candidate's correctness",
            f"{auroc((r.probes[0].confidence, r.first_candidate_correct) for r in runs if r.probes):.3f}",
        ),
        (f"right first candidates with confidence > {threshold}", format_share(first_of_right)),
        (f"deer at {threshold}: traces cut", format_share(bool(r in stopped) for r in runs)),
        ("deer: right", format_share(r.cut_correct for r in runs)),
        (
            "deer: paired accuracy difference, points",
            format_mean((100.0 * (r.cut_correct - r.correct) for r in runs), 2),
        ),
        ("deer: probes per trace", format_mean((len(r.probes) for r in runs), 2)),
        ("deer: tokens saved, without probes (1 − CR)", f"{1 - cut / full:.1%}"),
        ("deer: tokens saved, net of probes (1 − CRT)", f"{1 - (cut + probing) / full:.1%}"),
    ]
    by_hard = [
        "| hard steps | problems | first candidate right | right with full thinking | right with deer |",
        "|---|---|---|---|---|",
    ]
    for hard in sorted({r.problem.hard_steps for r in runs}):
        subset = [r for r in runs if r.problem.hard_steps == hard]
        by_hard.append(
            f"| {hard} | {len(subset)} | {format_share(r.first_candidate_correct for r in subset)} | {format_share(r.correct for r in subset)} | {format_share(r.cut_correct for r in subset)} |"
        )
    return [
        "| quantity | value (95 % interval) |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in numbers),
        "",
        "By difficulty:",
        "",
        *by_hard,
        "",
        "Calibration of the trial answer at the first cue:",
        "",
        *calibration_rows(first),
    ]


def run_parallel(
    work: Callable[..., EvaluatedTrace], jobs: list[tuple], label: str, workers: int
) -> list[EvaluatedTrace]:
    """Run jobs in threads with a progress bar; returns the results in order."""
    with ThreadPoolExecutor(workers) as pool:
        return list(
            tqdm(pool.map(lambda job: work(*job), jobs), total=len(jobs), desc=label, mininterval=5)
        )


def main() -> None:
    """Parse the command line, evaluate, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--n", type=int, default=1000, help="held-out problems")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threshold", type=float, default=0.95)
    parser.add_argument("--workers", type=int, default=48, help="concurrent requests")
    parser.add_argument(
        "--url", help="an engine that already serves the model (default: start one)"
    )
    parser.add_argument(
        "--write", action="store_true", help="replace the numbers in the report of the task"
    )
    options = parser.parse_args()
    task = TASKS[options.task]
    with nullcontext(options.url) if options.url else start_engine(free_port(), task=task) as url:
        evaluator = Evaluator(task, PocketEngineClient(url), options.threshold)
        problems = list(enumerate(task.held_out_problems(options.n, options.seed)))
        runs = run_parallel(evaluator.generate_trace, problems, "thinking", options.workers)
        runs = run_parallel(
            evaluator.replay_deer, [(run,) for run in runs], "probing", options.workers
        )
        no_thinking = {"chat_template_kwargs": {"enable_thinking": False}}
        direct = run_parallel(
            lambda i, p: evaluator.generate_trace(i, p, **no_thinking),
            problems[:200],
            "without thinking",
            options.workers,
        )
    lines = report_lines(runs, direct, options.threshold)
    print("\n".join(lines))
    for run in [r for r in runs if not r.is_closed][:3]:
        print(f"derailed: {run.problem.key}: …{run.text[-200:]!r}", file=sys.stderr)
    if options.write:
        report = Path(__file__).parent / f"{task.name}.md"
        head = report.read_text().partition("## Numbers")[0]
        report.write_text(head + "## Numbers\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
