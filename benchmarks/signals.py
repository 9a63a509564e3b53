"""Signals: what policies over several traces cost and reach that look at more than answers.

Sampled traces of each held-out problem, sixteen or --traces, are drawn on a real engine with all
that such policies see of them: log-probabilities at each token, the model's word on its own answer,
and what a second engine, which serves the pocket reward model, says of the trace every few tokens.
Each policy is then shown them as in `benchmarks.votes`. Writes a table and the rows as JSON.
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
"""Tokens between two rewards of a trace."""
CONFIDENCE_WINDOW = 64


def policy_specifications(traces: int) -> list[str]:
    """Those that are shown so many traces."""
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
    """A trace, its answer yet without a number. ``ids``: the prompt's and its own."""

    answer: str
    sample: TraceSample
    token_ids: list[int]


class TraceSampler:
    """Draws traces with all that is seen of them."""

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
        messages = [{"role": "user", "content": problem.prompt}]
        meter, texts, answer = ConfidenceMeter(Never(), CONFIDENCE_WINDOW), list[str](), ""
        lows, rewards = list[tuple[int, float]](), dict[int, float]()
        prompt, ids, thought, goal, ended = list[int](), list[int](), 0, REWARD_INTERVAL, False
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
                thought += len(choice.token_ids or ())
                texts.append(choice.delta.reasoning_text)
                told = ReasoningChunk(
                    choice.delta.reasoning_text, (), thought, 0.0, choice.sorted_logprobs
                )
                meter.observe(told)
                if meter.window_filled and meter.lowest != (lows[-1][1] if lows else None):
                    lows.append((thought, float(meter.lowest or 0.0)))
                if thought >= goal:
                    # A chunk may hold several tokens.
                    rewards[goal] = await self._score_trace(messages, "".join(texts))
                    goal = thought // REWARD_INTERVAL * REWARD_INTERVAL + REWARD_INTERVAL
        rewards[thought] = await self._score_trace(messages, "".join(texts))
        if not lows and meter.lowest is not None:
            lows.append((thought, meter.lowest))
        right = problem.is_correct(answer)
        sample = TraceSample(None, right, thought, len(ids), tuple(lows), None, rewards)
        # The end of the turn does not stand before what is asked of it.
        return UnlabelledTrace(
            extract_final_answer(answer), sample, [*prompt, *ids[: len(ids) - ended]]
        )

    async def _score_trace(self, messages: list[dict[str, str]], thought: str) -> float:
        turns = [*messages, {"role": "assistant", "content": thought}]
        url = f"{self._reward_url}/pooling"
        async with self._session.post(url, json={"messages": turns}) as reply:
            reply.raise_for_status()
            told: Mapping[str, Any] = await reply.json()
        return float(told["data"][0]["data"][-1])

    async def with_certainty(self, trace: UnlabelledTrace) -> UnlabelledTrace:
        """With the model's word on its answer."""
        inducers, sample = self._dialect.inducers, trace.sample
        asked = Probe("correct", 1, score_end=True)
        told = await self._engine.run_probe(
            [*trace.token_ids, *inducers["correct"]], asked, inducers["yes"]
        )
        assert told.end_logprob is not None
        return replace(trace, sample=replace(sample, certainty=math.exp(told.end_logprob)))


async def _sample_traces(
    upstream: str, rewarding: str, options: argparse.Namespace
) -> list[list[TraceSample]]:
    problems = CHAINS.held_out_problems(options.problems, options.seed)
    turns = asyncio.Semaphore(options.concurrency)
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    async with (
        EngineClient.connect(upstream, None, None) as model,
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
    ):
        drawer = TraceSampler(
            model, await model.resolve_dialect(builtin_dialects(), None), session, rewarding
        )
        with progress_bar() as bar:

            async def all_of(label: str, calls: list[SampleCall]) -> list[UnlabelledTrace]:
                task = bar.add_task(label, total=len(calls))

                async def one(call: SampleCall) -> UnlabelledTrace:
                    async with turns:
                        drawn = await _retry(call)
                    bar.advance(task)
                    return drawn

                return await asyncio.gather(*map(one, calls))

            everything = enumerate(problems * options.traces)
            drawn = await all_of(
                "full thinking", [partial(drawer.sample_trace, p, at) for at, p in everything]
            )
            # Not beside them: in a step that scores chosen tokens, vLLM 0.32 tells every other
            # stream of its own token alone.
            drawn = await all_of(
                "certainty", [partial(drawer.with_certainty, one) for one in drawn]
            )
    return [_label_answers(drawn[place :: len(problems)]) for place in range(len(problems))]


async def _retry(call: SampleCall, tries: int = 4) -> UnlabelledTrace:
    """As SDKs do, again where a connection broke."""
    try:
        return await call()
    except aiohttp.ClientError:
        if tries == 1:
            raise
    await asyncio.sleep(0.5)
    return await _retry(call, tries - 1)


def _label_answers(drawn: list[UnlabelledTrace]) -> list[TraceSample]:
    """Those of one problem, their answers numbered by meaning."""
    classes = AnswerClasses()
    return [
        replace(one.sample, answer_label=classes.add(one.answer) if one.answer else None)
        for one in drawn
    ]


def _signal_aurocs(told: list[list[TraceSample]]) -> dict[str, float]:
    """How well each signal tells right traces from wrong ones: rewards at a few places, the last
    one, the certainty and the least confidence."""
    samples = [sample for own in told for sample in own]
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
            signals.setdefault("least confidence", []).append(
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
    """The table, its rows as JSON, and what the signals tell by themselves."""
    traces = len(samples[0])
    rows = {
        "one trace": [[single_trace(turned) for turned in rotations(own)] for own in samples],
        "majority of 4": [
            [majority_vote(turned[:4]) for turned in rotations(own)] for own in samples
        ],
        f"majority of {traces}": [
            [majority_vote(turned) for turned in rotations(own)] for own in samples
        ],
    }
    for name in policy_specifications(traces):
        policy = parse(name)
        assert isinstance(policy, SamplingPolicy)
        rows[name] = [
            [simulate_vote(policy, turned) for turned in rotations(own)] for own in samples
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
    parser.add_argument("--engine", help="one that runs already")
    parser.add_argument("--reward", help="a reward model's that runs already")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        upstream = options.engine or stack.enter_context(start_engine(free_port()))
        rewarding = options.reward or stack.enter_context(start_reward_model(free_port()))
        told = asyncio.run(_sample_traces(upstream, rewarding, options))
    report_signals(told, options.out)


if __name__ == "__main__":
    main()
