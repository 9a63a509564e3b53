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

from benchmarks.client import Run, ask_all, lean, progress
from benchmarks.pocket import CHAINS
from benchmarks.services import ROOT, engine, free_port, gateway
from benchmarks.statistics import paired_difference
from policies.answers import Classes, final_answer
from policies.registry import parse
from policies.sampling import (
    Answered,
    Begun,
    Choose,
    Closed,
    Event,
    GiveUp,
    Open,
    Reached,
    Sampling,
    Score,
    Scored,
    Sureness,
)

__all__ = ["Ballot", "Sample", "alone", "majority", "report", "rotations", "vote"]

TRACES = 16
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
class Sample:
    """A trace that was drawn. ``label`` numbers its answer; ``net`` is all that it cost.

    What some policies look at besides: ``lows``, the trace's least confidence so far, at the
    positions at which it fell; ``certainty``, the model's own in its answer; ``rewards`` by
    position, the last one at its end.
    """

    label: int | None
    right: bool
    reasoning: int
    net: int
    lows: tuple[tuple[int, float], ...] = ()
    certainty: float | None = None
    rewards: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ballot:
    """What a vote came to: whether it is right, what was decoded for it, how many traces."""

    right: bool
    net: int
    traces: int


def vote(policy: Sampling, samples: Sequence[Sample]) -> Ballot:
    """The policy over these traces, in their order. One that is given up has cost no more than the
    time it ran, in tokens; what is asked of an answer is one token more, a reward comes at once."""
    samples = [replace(one, net=one.net + policy.asks) for one in samples]
    sampler, now, opened, chosen = policy.sample(), 0, 0, None
    ends: dict[int, int] = {}  # of the traces that run
    began: dict[int, int] = {}
    due: list[tuple[int, int, Event]] = []
    spent = shown = 0
    commands = list(sampler.observe(Begun(0.0)))
    while chosen is None:
        for command in commands:
            match command:
                case Open(count):
                    for trace in range(opened, opened + count):
                        began[trace], ends[trace] = now, now + samples[trace].net
                        for event in _life(trace, samples[trace], policy.every, now):
                            heapq.heappush(due, (int(event.at), shown := shown + 1, event))
                    opened += count
                case Score(trace):
                    reward = _reward(samples[trace], now - began[trace])
                    event = Scored(trace, reward, now - began[trace], now)
                    heapq.heappush(due, (now, shown := shown + 1, event))
                case GiveUp(traces):
                    for trace in set(traces) & set(ends):
                        spent += now - began[trace]
                        del ends[trace]
                case Choose(chosen):
                    pass
        if chosen is None and not due:
            chosen = 0  # no answer at all: the first
        elif chosen is None:
            now, _, event = heapq.heappop(due)
            if event.trace not in ends and not isinstance(event, Scored):
                commands = []
                continue
            if isinstance(event, Answered):
                spent += samples[event.trace].net
                del ends[event.trace]
            commands = list(sampler.observe(event))
    for trace in ends:
        spent += samples[trace].net if trace == chosen else now - began[trace]
    return Ballot(samples[chosen].right, spent, opened)


def _life(trace: int, one: Sample, every: int, now: int) -> Iterator[Event]:
    """All that is heard of a trace that begins now, in order."""
    closed = now + min(one.reasoning, one.net)
    lows = [(now + position, position, low) for position, low in one.lows]
    for at, position, low in lows:
        if at < closed:
            yield Sureness(trace, low, position, at)
    for position in range(every, one.reasoning, every) if every else ():
        yield Reached(trace, position, now + position)
    if lows:
        yield Sureness(trace, lows[-1][2], lows[-1][1], closed)
    yield Closed(trace, one.reasoning, closed)
    end = now + one.net
    yield Answered(trace, str(one.label), one.label, one.net, end, one.certainty)


def _reward(one: Sample, position: int) -> float | None:
    """The latest that was told by then."""
    told = [at for at in one.rewards if at <= position]
    return one.rewards[max(told)] if told else None


def majority(samples: Sequence[Sample]) -> Ballot:
    """The most frequent answer of all; of equals the first."""
    labels = [s.label for s in samples if s.label is not None]
    leader = max(labels, key=labels.count) if labels else None
    right = any(s.right for s in samples if s.label == leader and leader is not None)
    return Ballot(right, sum(s.net for s in samples), len(samples))


def alone(samples: Sequence[Sample]) -> Ballot:
    return Ballot(samples[0].right, samples[0].net, 1)


def rotations(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Each of them first, once."""
    for first in range(len(samples)):
        yield [*samples[first:], *samples[:first]]


def _samples(runs: Sequence[Run], problems: int) -> list[list[Sample]]:
    """Those of each problem, their answers numbered by meaning."""
    told = []
    for problem in range(problems):
        classes = Classes()
        own = []
        for run in runs[problem::problems]:
            answer = final_answer(run.answer_text)
            label = classes.add(answer) if answer else None
            own.append(Sample(label, run.right, run.reasoning, run.net))
        told.append(own)
    return told


async def _draw(url: str, options: argparse.Namespace) -> dict[str, list[list[Sample]]]:
    problems = CHAINS.held_out(options.problems, options.seed)
    drawn = {}
    with progress() as bar:
        async with lean(url) as ask:
            for name, policy in (("", "off"), (options.policy, options.policy)):
                runs, _ = await ask_all(
                    ask, problems * TRACES, policy, concurrency=options.concurrency, bar=bar
                )
                drawn[name] = _samples(runs, len(problems))
    return drawn


def _rows(drawn: dict[str, list[list[Sample]]]) -> dict[str, list[list[Ballot]]]:
    """The ballots of each problem, over all rotations, by what was voted with."""
    rows: dict[str, list[list[Ballot]]] = {}

    def add(name: str, told: list[list[Sample]], by: Callable[[list[Sample]], Ballot]) -> None:
        rows[name] = [[by(turned) for turned in rotations(samples)] for samples in told]

    for trace, told in drawn.items():
        add(f"one trace{trace and ', ' + trace}", told, alone)
        add(f"majority of {TRACES}{trace and ', ' + trace}", told, majority)
        for name in POLICIES:
            inside = name.replace("(", f"({trace}, ", 1) if trace else name
            policy = parse(inside)
            assert isinstance(policy, Sampling)
            add(inside, told, lambda turned, policy=policy: vote(policy, turned))
    return rows


def report(rows: dict[str, list[list[Ballot]]], out: Path, traces: int = TRACES) -> None:
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
        right, net = flat(name, "right"), flat(name, "net")
        difference = paired_difference(right, flat(baseline, "right"), samples=traces)
        ratio = paired_difference(net, flat(baseline, "net"), samples=traces, ratio=True)
        written[name] = {
            "right": float(np.mean(right)),
            "traces": float(np.mean(flat(name, "traces"))),
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
        upstream = options.engine or stack.enter_context(engine(free_port()))
        flags = ("--hold-out", "0", "--log-level", "warning")
        url = stack.enter_context(gateway(upstream, free_port(), *flags))
        drawn = asyncio.run(_draw(url, options))
    report(_rows(drawn), options.out / "votes.json")


if __name__ == "__main__":
    main()
