"""Votes: what policies over several traces cost and reach, against a majority vote of sixteen.

Sixteen sampled traces of each held-out problem, in full and under ``deer``, are drawn once on a
real engine; each policy is then shown them as a server would, every trace of the sixteen being the
first once. Time is counted in tokens, as if traces that run together kept step. Writes a table and
the rows as JSON.
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
    """A trace that was drawn. ``label`` numbers its answer; ``net`` is all that it cost.

    What some policies look at besides: ``lows``, the trace's least confidence so far, at the
    positions at which it fell; ``certainty``, the model's own in its answer; ``rewards`` by
    position, the last one at its end.
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
    """What a vote came to: whether it is right, what was decoded for it, how many traces."""

    correct: bool
    net_tokens: int
    trace_count: int


def simulate_vote(policy: SamplingPolicy, samples: Sequence[TraceSample]) -> VoteResult:
    """The policy over these traces, in their order. One that is given up has cost no more than the
    time it ran, in tokens; what is asked of an answer is one token more, a reward comes at once."""
    samples = [replace(one, net_tokens=one.net_tokens + policy.asks_if_correct) for one in samples]
    sampler, now, opened, chosen = policy.start_sampler(), 0, 0, None
    ends: dict[int, int] = {}  # of the traces that run
    began: dict[int, int] = {}
    due: list[tuple[int, int, SamplingEvent]] = []
    spent = shown = 0
    commands = list(sampler.observe(RequestStarted(0.0)))
    while chosen is None:
        for command in commands:
            match command:
                case OpenTraces(count):
                    for trace in range(opened, opened + count):
                        began[trace], ends[trace] = now, now + samples[trace].net_tokens
                        for event in _trace_events(
                            trace, samples[trace], policy.report_interval, now
                        ):
                            heapq.heappush(due, (int(event.at), shown := shown + 1, event))
                    opened += count
                case ScoreTrace(trace):
                    reward = _latest_reward(samples[trace], now - began[trace])
                    event = TraceScored(trace, reward, now - began[trace], now)
                    heapq.heappush(due, (now, shown := shown + 1, event))
                case AbortTraces(traces):
                    for trace in set(traces) & set(ends):
                        spent += now - began[trace]
                        del ends[trace]
                case ChooseTrace(chosen):
                    pass
        if chosen is None and not due:
            chosen = 0  # no answer at all: the first
        elif chosen is None:
            now, _, event = heapq.heappop(due)
            if event.trace not in ends and not isinstance(event, TraceScored):
                commands = []
                continue
            if isinstance(event, TraceAnswered):
                spent += samples[event.trace].net_tokens
                del ends[event.trace]
            commands = list(sampler.observe(event))
    for trace in ends:
        spent += samples[trace].net_tokens if trace == chosen else now - began[trace]
    return VoteResult(samples[chosen].correct, spent, opened)


def _trace_events(trace: int, one: TraceSample, every: int, now: int) -> Iterator[SamplingEvent]:
    """All that is heard of a trace that begins now, in order."""
    closed = now + min(one.reasoning_tokens, one.net_tokens)
    lows = [(now + position, position, low) for position, low in one.lowest_confidences]
    for at, position, low in lows:
        if at < closed:
            yield ConfidenceReport(trace, low, position, at)
    for position in range(every, one.reasoning_tokens, every) if every else ():
        yield TokensReached(trace, position, now + position)
    if lows:
        yield ConfidenceReport(trace, lows[-1][2], lows[-1][1], closed)
    yield TraceClosed(trace, one.reasoning_tokens, closed)
    end = now + one.net_tokens
    yield TraceAnswered(
        trace, str(one.answer_label), one.answer_label, one.net_tokens, end, one.certainty
    )


def _latest_reward(one: TraceSample, position: int) -> float | None:
    """The latest that was told by then."""
    told = [at for at in one.rewards if at <= position]
    return one.rewards[max(told)] if told else None


def majority_vote(samples: Sequence[TraceSample]) -> VoteResult:
    """The most frequent answer of all; of equals the first."""
    labels = [s.answer_label for s in samples if s.answer_label is not None]
    leader = max(labels, key=labels.count) if labels else None
    right = any(s.correct for s in samples if s.answer_label == leader and leader is not None)
    return VoteResult(right, sum(s.net_tokens for s in samples), len(samples))


def single_trace(samples: Sequence[TraceSample]) -> VoteResult:
    return VoteResult(samples[0].correct, samples[0].net_tokens, 1)


def rotations(samples: Sequence[TraceSample]) -> Iterator[list[TraceSample]]:
    """Each of them first, once."""
    for first in range(len(samples)):
        yield [*samples[first:], *samples[:first]]


def _label_responses(runs: Sequence[ModelResponse], problems: int) -> list[list[TraceSample]]:
    """Those of each problem, their answers numbered by meaning."""
    told = []
    for problem in range(problems):
        classes = AnswerClasses()
        own = []
        for run in runs[problem::problems]:
            answer = extract_final_answer(run.answer_text)
            label = classes.add(answer) if answer else None
            own.append(TraceSample(label, run.correct, run.reasoning_tokens, run.net_tokens))
        told.append(own)
    return told


async def _sample_traces(
    url: str, options: argparse.Namespace
) -> dict[str, list[list[TraceSample]]]:
    problems = CHAINS.held_out_problems(options.problems, options.seed)
    drawn = {}
    with progress_bar() as bar:
        async with lightweight_client(url) as ask:
            for name, policy in (("", "off"), (options.policy, options.policy)):
                runs, _ = await send_all(
                    ask, problems * TRACE_COUNT, policy, concurrency=options.concurrency, bar=bar
                )
                drawn[name] = _label_responses(runs, len(problems))
    return drawn


def _vote_results(drawn: dict[str, list[list[TraceSample]]]) -> dict[str, list[list[VoteResult]]]:
    """The ballots of each problem, over all rotations, by what was voted with."""
    rows: dict[str, list[list[VoteResult]]] = {}

    def add(
        name: str, told: list[list[TraceSample]], by: Callable[[list[TraceSample]], VoteResult]
    ) -> None:
        rows[name] = [[by(turned) for turned in rotations(samples)] for samples in told]

    for trace, told in drawn.items():
        add(f"one trace{trace and ', ' + trace}", told, single_trace)
        add(f"majority of {TRACE_COUNT}{trace and ', ' + trace}", told, majority_vote)
        for name in POLICIES:
            inside = name.replace("(", f"({trace}, ", 1) if trace else name
            policy = parse(inside)
            assert isinstance(policy, SamplingPolicy)
            add(inside, told, lambda turned, policy=policy: simulate_vote(policy, turned))
    return rows


def report(rows: dict[str, list[list[VoteResult]]], out: Path, traces: int = TRACE_COUNT) -> None:
    """Print the table, and write its rows."""
    baseline = f"majority of {traces}"

    def flat(name: str, key: str) -> list[float]:
        """Rotation by rotation, as the statistics want it: problems in order, over again."""
        return [getattr(own[k], key) for k in range(traces) for own in rows[name]]

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
        "--policy", default=CHAINS.policy, help="what each trace runs in the second half"
    )
    parser.add_argument("--engine", help="one that runs already")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        upstream = options.engine or stack.enter_context(start_engine(free_port()))
        flags = ("--hold-out", "0", "--log-level", "warning")
        url = stack.enter_context(start_gateway(upstream, free_port(), *flags))
        drawn = asyncio.run(_sample_traces(url, options))
    report(_vote_results(drawn), options.out / "votes.json")


if __name__ == "__main__":
    main()
