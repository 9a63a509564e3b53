"""Accuracy and cost of multi-trace policies against a majority vote of sixteen traces.

Samples sixteen traces of each held-out problem once on a real engine, in full and under ``deer``.
Then simulates each policy on them in all sixteen rotations, with the events that the gateway would
send. Time is counted in tokens, as if concurrent traces were generated at the same rate. Prints a
table, and writes its rows as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from adjourn.policies.evidence.answers import AnswerClasses, extract_final_answer
from adjourn.policies.registry import parse
from adjourn.policies.sampling import (
    AbortTraces,
    ChooseTrace,
    ConfidenceReport,
    OpenTraces,
    RequestStarted,
    SamplingEvent,
    SamplingPolicy,
    ScoreTrace,
    TokensReached,
    TraceAnswered,
    TraceClosed,
    TraceScored,
)
from benchmarks.client import ModelResponse, lightweight_client, progress_bar, send_all
from benchmarks.pocket import CHAINS
from benchmarks.services import ROOT, free_port, start_engine, start_gateway
from benchmarks.statistics import paired_difference

__all__ = [
    "TraceSample",
    "VoteResult",
    "majority_vote",
    "report",
    "rotations",
    "simulate_vote",
    "single_trace",
]

TRACE_COUNT = 16
POLICIES = (
    "first-finish(traces=4)",
    "early-consistency(window=3, max=16)",
    "early-consistency(window=4, max=16)",
    "early-consistency(window=5, max=16)",
    "early-consistency(window=3, max=16, target=0.95)",
    "adaptive-consistency(window=2, max=16)",
    "adaptive-consistency(window=4, max=16)",
    "difficulty-adaptive(tokens=1000, max=16)",
    "anytime-consistency(window=4, max=16)",
)


@dataclass(frozen=True, slots=True)
class TraceSample:
    """A sampled trace with its signals.

    ``answer_label``: equal answers to one problem have the same number; None without an answer.
    ``net_tokens``: all tokens generated for it. ``lowest_confidences``: (position, lowest
    confidence so far) wherever it fell. ``certainty``: the model's probability that its answer is
    correct. ``rewards``: by position, the last at the end of the trace. Positions are in reasoning
    tokens.
    """

    answer_label: int | None
    correct: bool
    reasoning_tokens: int
    net_tokens: int
    lowest_confidences: tuple[tuple[int, float], ...] = ()
    certainty: float | None = None
    rewards: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VoteResult:
    """The result of a vote: whether it is right, all tokens generated, traces opened."""

    correct: bool
    net_tokens: int
    trace_count: int


def simulate_vote(policy: SamplingPolicy, samples: Sequence[TraceSample]) -> VoteResult:
    """Run a multi-trace policy on these traces, opened in this order.

    An aborted trace costs the tokens generated until then. A probe whether an answer is correct
    costs one token per trace; a reward is available at once.
    """
    samples = [
        replace(sample, net_tokens=sample.net_tokens + policy.asks_if_correct) for sample in samples
    ]
    sampler, now, opened, chosen = policy.start_sampler(), 0, 0, None
    ends: dict[int, int] = {}  # of the running traces
    started: dict[int, int] = {}
    queue: list[tuple[int, int, SamplingEvent]] = []
    spent_tokens = event_number = 0
    commands = list(sampler.observe(RequestStarted(0.0)))
    while chosen is None:
        for command in commands:
            match command:
                case OpenTraces(count):
                    for trace in range(opened, opened + count):
                        started[trace], ends[trace] = now, now + samples[trace].net_tokens
                        for event in _trace_events(
                            trace, samples[trace], policy.report_interval, now
                        ):
                            heapq.heappush(
                                queue, (int(event.at), event_number := event_number + 1, event)
                            )
                    opened += count
                case ScoreTrace(trace):
                    reward = _latest_reward(samples[trace], now - started[trace])
                    event = TraceScored(trace, reward, now - started[trace], now)
                    heapq.heappush(queue, (now, event_number := event_number + 1, event))
                case AbortTraces(traces):
                    for trace in set(traces) & set(ends):
                        spent_tokens += now - started[trace]
                        del ends[trace]
                case ChooseTrace(chosen):
                    pass
        if chosen is None and not queue:
            chosen = 0  # no trace has an answer: choose the first
        elif chosen is None:
            now, _, event = heapq.heappop(queue)
            if event.trace not in ends and not isinstance(event, TraceScored):
                commands = []
                continue
            if isinstance(event, TraceAnswered):
                spent_tokens += samples[event.trace].net_tokens
                del ends[event.trace]
            commands = list(sampler.observe(event))
    for trace in ends:
        spent_tokens += samples[trace].net_tokens if trace == chosen else now - started[trace]
    return VoteResult(samples[chosen].correct, spent_tokens, opened)


def _trace_events(
    trace: int, sample: TraceSample, report_interval: int, now: int
) -> Iterator[SamplingEvent]:
    """All events of a trace that starts at time `now`, in order of their position."""
    closed = now + min(sample.reasoning_tokens, sample.net_tokens)
    confidences = [(now + position, position, low) for position, low in sample.lowest_confidences]
    for at, position, low in confidences:
        if at < closed:
            yield ConfidenceReport(trace, low, position, at)
    for position in (
        range(report_interval, sample.reasoning_tokens, report_interval) if report_interval else ()
    ):
        yield TokensReached(trace, position, now + position)
    if confidences:
        yield ConfidenceReport(trace, confidences[-1][2], confidences[-1][1], closed)
    yield TraceClosed(trace, sample.reasoning_tokens, closed)
    end = now + sample.net_tokens
    yield TraceAnswered(
        trace,
        str(sample.answer_label),
        sample.answer_label,
        sample.net_tokens,
        end,
        sample.certainty,
    )


def _latest_reward(sample: TraceSample, position: int) -> float | None:
    """The latest reward at or before this position; None if there is none."""
    positions = [at for at in sample.rewards if at <= position]
    return sample.rewards[max(positions)] if positions else None


def majority_vote(samples: Sequence[TraceSample]) -> VoteResult:
    """Choose the most frequent answer; among equally frequent ones the first."""
    labels = [s.answer_label for s in samples if s.answer_label is not None]
    leader = max(labels, key=labels.count) if labels else None
    right = any(s.correct for s in samples if s.answer_label == leader and leader is not None)
    return VoteResult(right, sum(s.net_tokens for s in samples), len(samples))


def single_trace(samples: Sequence[TraceSample]) -> VoteResult:
    """Choose the first trace, without a vote."""
    return VoteResult(samples[0].correct, samples[0].net_tokens, 1)


def rotations(samples: Sequence[TraceSample]) -> Iterator[list[TraceSample]]:
    """All rotations of the samples, so that each is the first once."""
    for first in range(len(samples)):
        yield [*samples[first:], *samples[:first]]


def _label_responses(runs: Sequence[ModelResponse], problem_count: int) -> list[list[TraceSample]]:
    """The samples of each problem; equal answers to a problem get the same label."""
    samples_by_problem = []
    for problem in range(problem_count):
        classes = AnswerClasses()
        samples = []
        for run in runs[problem::problem_count]:
            answer = extract_final_answer(run.answer_text)
            label = classes.add(answer) if answer else None
            samples.append(TraceSample(label, run.correct, run.reasoning_tokens, run.net_tokens))
        samples_by_problem.append(samples)
    return samples_by_problem


async def _sample_traces(
    url: str, options: argparse.Namespace
) -> dict[str, list[list[TraceSample]]]:
    problems = CHAINS.held_out_problems(options.problems, options.seed)
    samples = {}
    with progress_bar() as bar:
        async with lightweight_client(url) as send:
            for name, policy in (("", "off"), (options.policy, options.policy)):
                runs, _ = await send_all(
                    send, problems * TRACE_COUNT, policy, concurrency=options.concurrency, bar=bar
                )
                samples[name] = _label_responses(runs, len(problems))
    return samples


def _vote_results(
    samples_by_policy: dict[str, list[list[TraceSample]]],
) -> dict[str, list[list[VoteResult]]]:
    """By method, the vote results of each problem in all rotations."""
    rows: dict[str, list[list[VoteResult]]] = {}

    def add(
        name: str,
        samples_by_problem: list[list[TraceSample]],
        vote: Callable[[list[TraceSample]], VoteResult],
    ) -> None:
        rows[name] = [
            [vote(rotated) for rotated in rotations(samples)] for samples in samples_by_problem
        ]

    for trace_policy, samples_by_problem in samples_by_policy.items():
        add(f"one trace{trace_policy and ', ' + trace_policy}", samples_by_problem, single_trace)
        add(
            f"majority of {TRACE_COUNT}{trace_policy and ', ' + trace_policy}",
            samples_by_problem,
            majority_vote,
        )
        for name in POLICIES:
            specification = name.replace("(", f"({trace_policy}, ", 1) if trace_policy else name
            policy = parse(specification)
            assert isinstance(policy, SamplingPolicy)
            add(
                specification,
                samples_by_problem,
                lambda rotated, policy=policy: simulate_vote(policy, rotated),
            )
    return rows


def report(rows: dict[str, list[list[VoteResult]]], out: Path, traces: int = TRACE_COUNT) -> None:
    """Print a table of the vote results by method and problem, and write its rows as JSON."""
    baseline = f"majority of {traces}"

    def flat(name: str, key: str) -> list[float]:
        """All problems in order, repeated for each rotation, as `paired_difference` expects."""
        return [getattr(results[k], key) for k in range(traces) for results in rows[name]]

    table = Table(
        "", "right, %", "traces", "net tokens", "of the majority's, %", "difference, points"
    )
    written = {}
    for name in rows:
        right, net = flat(name, "correct"), flat(name, "net_tokens")
        difference = paired_difference(right, flat(baseline, "correct"), samples=traces)
        ratio = paired_difference(net, flat(baseline, "net_tokens"), samples=traces, ratio=True)
        written[name] = {
            "right": float(np.mean(right)),
            "traces": float(np.mean(flat(name, "trace_count"))),
            "net": float(np.mean(net)),
            "ratio": ratio,
            "difference": difference,
        }
        table.add_row(
            name,
            f"{100 * np.mean(right):.1f}",
            f"{written[name]['traces']:.1f}",
            f"{np.mean(net):.0f}",
            "{:.1f} ({:.1f} to {:.1f})".format(*(100 * x for x in ratio)),
            "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * x for x in difference)),
        )
    Console(width=170).print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(written, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="which held-out problems")
    parser.add_argument(
        "--policy", default=CHAINS.policy, help="the policy of each trace in the second set"
    )
    parser.add_argument("--engine", help="URL of a running engine (default: start one)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        upstream = options.engine or stack.enter_context(start_engine(free_port()))
        flags = ("--hold-out", "0", "--log-level", "warning")
        url = stack.enter_context(start_gateway(upstream, free_port(), *flags))
        samples = asyncio.run(_sample_traces(url, options))
    report(_vote_results(samples), options.out / "votes.json")


if __name__ == "__main__":
    main()
