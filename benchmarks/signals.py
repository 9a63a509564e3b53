"""Accuracy and cost of multi-trace policies that use more signals than the answers.

Samples traces of each held-out problem, sixteen or --traces, on a real engine with all signals that
such policies use: log-probabilities of each token, the model's certainty of its own answer, and the
rewards of a second engine, which serves the pocket reward model, every few tokens. Then simulates
each policy on them as `benchmarks.votes` does. Prints a table, and writes its rows as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from adjourn.lab.engine_client import EngineClient
from adjourn.policies.events import Probe, ReasoningChunk
from adjourn.policies.evidence.answers import AnswerClasses, extract_final_answer
from adjourn.policies.never import Never
from adjourn.policies.parallel.confidence_meter import CONFIDENCE_TOP_LOGPROBS, ConfidenceMeter
from adjourn.policies.registry import parse
from adjourn.policies.sampling import SamplingPolicy
from adjourn.policies.text.dialect import TokenizedDialect, builtin_dialects
from benchmarks.client import MAX_TOKENS, TEMPERATURE, progress_bar
from benchmarks.pocket import CHAINS
from benchmarks.pocket.task import Problem
from benchmarks.services import ROOT, free_port, start_engine, start_reward_model
from benchmarks.votes import (
    TRACE_COUNT,
    TraceSample,
    majority_vote,
    report,
    rotations,
    simulate_vote,
    single_trace,
)

SampleCall = Callable[[], Awaitable["UnlabelledTrace"]]
REWARD_INTERVAL = 32
"""Reasoning tokens between two rewards of a trace."""
CONFIDENCE_WINDOW = 64


def policy_specifications(traces: int) -> list[str]:
    """The policies to simulate with this number of traces."""
    beams = ((4, 64), (4, 96), (4, 128), (8, 96), (8, 128), (16, 64), (16, 96), (16, 128))
    window = f"window={CONFIDENCE_WINDOW}, max={traces}"
    return [
        f"early-consistency(window=4, max={traces})",
        f"self-certainty(window=4, max={traces})",
        f"group-confidence(warmup={traces // 2}, batch=4, {window})",
        f"group-confidence(warmup={traces // 2}, batch=4, percentile=90, {window})",
        *(f"partial-reward(traces={n}, tokens={at})" for n, at in beams if n <= traces),
        f"partial-reward(traces={traces}, tokens=96, keep=0.5)",
    ]


@dataclass(frozen=True, slots=True)
class UnlabelledTrace:
    """A trace whose answer has no label yet. ``token_ids``: of the prompt and the response."""

    answer: str
    sample: TraceSample
    token_ids: list[int]


class TraceSampler:
    """Samples traces with their signals."""

    def __init__(
        self,
        engine: EngineClient,
        dialect: TokenizedDialect,
        session: aiohttp.ClientSession,
        reward_url: str,
    ) -> None:
        self._engine = engine
        self._dialect = dialect
        self._session = session
        self._reward_url = reward_url

    async def sample_trace(self, problem: Problem, seed: int) -> UnlabelledTrace:
        """Generate a full response, with confidences and rewards but without certainty."""
        messages = [{"role": "user", "content": problem.prompt}]
        meter, texts, answer = ConfidenceMeter(Never(), CONFIDENCE_WINDOW), list[str](), ""
        lows, rewards = list[tuple[int, float]](), dict[int, float]()
        prompt, ids, reasoning_tokens, next_reward_at, ended = (
            list[int](),
            list[int](),
            0,
            REWARD_INTERVAL,
            False,
        )
        body = {
            "messages": messages,
            "temperature": TEMPERATURE,
            "seed": seed,
            "max_tokens": MAX_TOKENS,
            "logprobs": True,
            "top_logprobs": CONFIDENCE_TOP_LOGPROBS,
        }
        async for chunk in self._engine.chat(body):
            prompt = chunk.prompt_token_ids or prompt
            for choice in chunk.choices[:1]:
                ids += choice.token_ids or ()
                ended = choice.finish_reason == "stop"
                answer += choice.delta.content or ""
                if not choice.delta.reasoning_text:
                    continue
                reasoning_tokens += len(choice.token_ids or ())
                texts.append(choice.delta.reasoning_text)
                event = ReasoningChunk(
                    choice.delta.reasoning_text, (), reasoning_tokens, 0.0, choice.sorted_logprobs
                )
                meter.observe(event)
                if meter.window_filled and meter.lowest != (lows[-1][1] if lows else None):
                    lows.append((reasoning_tokens, float(meter.lowest or 0.0)))
                if reasoning_tokens >= next_reward_at:
                    # A chunk may contain several tokens.
                    rewards[next_reward_at] = await self._score_trace(messages, "".join(texts))
                    next_reward_at = (
                        reasoning_tokens // REWARD_INTERVAL * REWARD_INTERVAL + REWARD_INTERVAL
                    )
        rewards[reasoning_tokens] = await self._score_trace(messages, "".join(texts))
        if not lows and meter.lowest is not None:
            lows.append((reasoning_tokens, meter.lowest))
        correct = problem.is_correct(answer)
        sample = TraceSample(None, correct, reasoning_tokens, len(ids), tuple(lows), None, rewards)
        # Drop the end-of-turn token: the certainty probe continues the turn.
        return UnlabelledTrace(
            extract_final_answer(answer), sample, [*prompt, *ids[: len(ids) - ended]]
        )

    async def _score_trace(self, messages: list[dict[str, str]], trace_text: str) -> float:
        turns = [*messages, {"role": "assistant", "content": trace_text}]
        url = f"{self._reward_url}/pooling"
        async with self._session.post(url, json={"messages": turns}) as reply:
            reply.raise_for_status()
            body: Mapping[str, Any] = await reply.json()
        return float(body["data"][0]["data"][-1])

    async def with_certainty(self, trace: UnlabelledTrace) -> UnlabelledTrace:
        """A copy with the model's certainty that its answer is correct."""
        inducers, sample = self._dialect.inducers, trace.sample
        probe = Probe("correct", 1, score_end=True)
        result = await self._engine.run_probe(
            [*trace.token_ids, *inducers["correct"]], probe, inducers["yes"]
        )
        assert result.end_logprob is not None
        return replace(trace, sample=replace(sample, certainty=math.exp(result.end_logprob)))


async def _sample_traces(
    upstream: str, reward_url: str, options: argparse.Namespace
) -> list[list[TraceSample]]:
    problems = CHAINS.held_out_problems(options.problems, options.seed)
    limit = asyncio.Semaphore(options.concurrency)
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    async with (
        EngineClient.connect(upstream, None, None) as engine,
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
    ):
        sampler = TraceSampler(
            engine, await engine.resolve_dialect(builtin_dialects(), None), session, reward_url
        )
        with progress_bar() as bar:

            async def all_of(label: str, calls: list[SampleCall]) -> list[UnlabelledTrace]:
                task = bar.add_task(label, total=len(calls))

                async def one(call: SampleCall) -> UnlabelledTrace:
                    async with limit:
                        trace = await _retry(call)
                    bar.advance(task)
                    return trace

                return await asyncio.gather(*map(one, calls))

            numbered_problems = enumerate(problems * options.traces)
            traces = await all_of(
                "full thinking",
                [partial(sampler.sample_trace, p, at) for at, p in numbered_problems],
            )
            # Not concurrently with the traces: in a step that scores chosen tokens, vLLM 0.32
            # returns to every other stream only the log-probability of its own token.
            traces = await all_of(
                "certainty", [partial(sampler.with_certainty, one) for one in traces]
            )
    return [_label_answers(traces[index :: len(problems)]) for index in range(len(problems))]


async def _retry(call: SampleCall, attempts: int = 4) -> UnlabelledTrace:
    """Retry, as SDKs do, if a connection broke."""
    try:
        return await call()
    except aiohttp.ClientError:
        if attempts == 1:
            raise
    await asyncio.sleep(0.5)
    return await _retry(call, attempts - 1)


def _label_answers(traces: list[UnlabelledTrace]) -> list[TraceSample]:
    """The samples of one problem; equal answers get the same label."""
    classes = AnswerClasses()
    return [
        replace(trace.sample, answer_label=classes.add(trace.answer) if trace.answer else None)
        for trace in traces
    ]


def _signal_aurocs(samples_by_problem: list[list[TraceSample]]) -> dict[str, float]:
    """The AUROC of each signal for right against wrong traces: rewards at a few positions, the last
    reward, the certainty, and the lowest confidence."""
    samples = [sample for own in samples_by_problem for sample in own]
    signals: dict[str, list[tuple[float, bool]]] = {}
    for sample in samples:
        for at in (32, 64, 96, 128, 192):
            if at in sample.rewards and at < sample.reasoning_tokens:
                signals.setdefault(f"reward at {at}", []).append(
                    (sample.rewards[at], sample.correct)
                )
        last = sample.rewards[max(sample.rewards)]
        signals.setdefault("reward at the end", []).append((last, sample.correct))
        if sample.certainty is not None:
            signals.setdefault("certainty", []).append((sample.certainty, sample.correct))
        if sample.lowest_confidences:
            signals.setdefault("lowest confidence", []).append(
                (sample.lowest_confidences[-1][1], sample.correct)
            )
    return {name: _auroc(pairs) for name, pairs in signals.items()}


def _auroc(pairs: list[tuple[float, bool]]) -> float:
    right = [value for value, is_right in pairs if is_right]
    wrong = [value for value, is_right in pairs if not is_right]
    if not right or not wrong:
        return math.nan
    wins = sum((a > b) + (a == b) / 2 for a in right for b in wrong)
    return wins / len(right) / len(wrong)


def report_signals(samples: list[list[TraceSample]], out: Path) -> None:
    """Print the table and the AUROC of each signal, and write the rows as JSON."""
    traces = len(samples[0])
    rows = {
        "one trace": [[single_trace(rotated) for rotated in rotations(own)] for own in samples],
        "majority of 4": [
            [majority_vote(rotated[:4]) for rotated in rotations(own)] for own in samples
        ],
        f"majority of {traces}": [
            [majority_vote(rotated) for rotated in rotations(own)] for own in samples
        ],
    }
    for name in policy_specifications(traces):
        policy = parse(name)
        assert isinstance(policy, SamplingPolicy)
        rows[name] = [
            [simulate_vote(policy, rotated) for rotated in rotations(own)] for own in samples
        ]
    report(rows, out / "signals.json", traces)
    for name, area in _signal_aurocs(samples).items():
        print(f"AUROC of {name}: {area:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=160)
    parser.add_argument("--traces", type=int, default=TRACE_COUNT)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0, help="which held-out problems")
    parser.add_argument("--engine", help="URL of a running engine (default: start one)")
    parser.add_argument("--reward", help="URL of a running reward model (default: start one)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        upstream = options.engine or stack.enter_context(start_engine(free_port()))
        reward_url = options.reward or stack.enter_context(start_reward_model(free_port()))
        samples = asyncio.run(_sample_traces(upstream, reward_url, options))
    report_signals(samples, options.out)


if __name__ == "__main__":
    main()
