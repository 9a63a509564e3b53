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

from benchmarks.client import LIMIT, TEMPERATURE, progress
from benchmarks.lab.engine import Engine
from benchmarks.pocket import CHAINS
from benchmarks.pocket.task import Problem
from benchmarks.services import ROOT, engine, free_port, reward_model
from benchmarks.votes import TRACES, Sample, alone, majority, report, rotations, vote
from policies.answers import Classes, final_answer
from policies.dialect import Marks, builtin
from policies.events import Probe, Thought
from policies.meter import TOP, Meter
from policies.never import Never
from policies.registry import parse
from policies.sampling import Sampling

Call = Callable[[], Awaitable["Drawn"]]
EVERY = 32
"""Tokens between two rewards of a trace."""
WINDOW = 64


def policies(traces: int) -> list[str]:
    """Those that are shown so many traces."""
    beams = ((4, 64), (4, 96), (4, 128), (8, 96), (8, 128), (16, 64), (16, 96), (16, 128))
    window = f"window={WINDOW}, max={traces}"
    return [
        f"early-consistency(window=4, max={traces})",
        f"self-certainty(window=4, max={traces})",
        f"group-confidence(warmup={traces // 2}, batch=4, {window})",
        f"group-confidence(warmup={traces // 2}, batch=4, percentile=90, {window})",
        *(f"partial-reward(traces={n}, tokens={at})" for n, at in beams if n <= traces),
        f"partial-reward(traces={traces}, tokens=96, keep=0.5)",
    ]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A trace, its answer yet without a number. ``ids``: the prompt's and its own."""

    answer: str
    sample: Sample
    ids: list[int]


class Drawer:
    """Draws traces with all that is seen of them."""

    def __init__(
        self, model: Engine, marks: Marks, session: aiohttp.ClientSession, rewarding: str
    ) -> None:
        self._model = model
        self._marks = marks
        self._session = session
        self._rewarding = rewarding

    async def draw(self, problem: Problem, seed: int) -> Drawn:
        messages = [{"role": "user", "content": problem.prompt}]
        meter, texts, answer = Meter(Never(), WINDOW), list[str](), ""
        lows, rewards = list[tuple[int, float]](), dict[int, float]()
        prompt, ids, thought, goal, ended = list[int](), list[int](), 0, EVERY, False
        body = {
            "messages": messages,
            "temperature": TEMPERATURE,
            "seed": seed,
            "max_tokens": LIMIT,
            "logprobs": True,
            "top_logprobs": TOP,
        }
        async for chunk in self._model.chat(body):
            prompt = chunk.prompt_token_ids or prompt
            for choice in chunk.choices[:1]:
                ids += choice.token_ids or ()
                ended = choice.finish_reason == "stop"
                answer += choice.delta.content or ""
                if not choice.delta.thought:
                    continue
                thought += len(choice.token_ids or ())
                texts.append(choice.delta.thought)
                told = Thought(choice.delta.thought, (), thought, 0.0, choice.told)
                meter.observe(told)
                if meter.whole and meter.lowest != (lows[-1][1] if lows else None):
                    lows.append((thought, float(meter.lowest or 0.0)))
                if thought >= goal:
                    # A chunk may hold several tokens.
                    rewards[goal] = await self._reward(messages, "".join(texts))
                    goal = thought // EVERY * EVERY + EVERY
        rewards[thought] = await self._reward(messages, "".join(texts))
        if not lows and meter.lowest is not None:
            lows.append((thought, meter.lowest))
        right = problem.right(answer)
        sample = Sample(None, right, thought, len(ids), tuple(lows), None, rewards)
        # The end of the turn does not stand before what is asked of it.
        return Drawn(final_answer(answer), sample, [*prompt, *ids[: len(ids) - ended]])

    async def _reward(self, messages: list[dict[str, str]], thought: str) -> float:
        turns = [*messages, {"role": "assistant", "content": thought}]
        url = f"{self._rewarding}/pooling"
        async with self._session.post(url, json={"messages": turns}) as reply:
            reply.raise_for_status()
            told: Mapping[str, Any] = await reply.json()
        return float(told["data"][0]["data"][-1])

    async def asked(self, drawn: Drawn) -> Drawn:
        """With the model's word on its answer."""
        inducers, sample = self._marks.inducers, drawn.sample
        asked = Probe("correct", 1, ending=True)
        told = await self._model.draw([*drawn.ids, *inducers["correct"]], asked, inducers["yes"])
        assert told.ending is not None
        return replace(drawn, sample=replace(sample, certainty=math.exp(told.ending)))


async def _draw(upstream: str, rewarding: str, options: argparse.Namespace) -> list[list[Sample]]:
    problems = CHAINS.held_out(options.problems, options.seed)
    turns = asyncio.Semaphore(options.concurrency)
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    async with (
        Engine.at(upstream, None, None) as model,
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
    ):
        drawer = Drawer(model, await model.marks(builtin(), None), session, rewarding)
        with progress() as bar:

            async def all_of(label: str, calls: list[Call]) -> list[Drawn]:
                task = bar.add_task(label, total=len(calls))

                async def one(call: Call) -> Drawn:
                    async with turns:
                        drawn = await _stubborn(call)
                    bar.advance(task)
                    return drawn

                return await asyncio.gather(*map(one, calls))

            everything = enumerate(problems * options.traces)
            drawn = await all_of(
                "full thinking", [partial(drawer.draw, p, at) for at, p in everything]
            )
            # Not beside them: in a step that scores chosen tokens, vLLM 0.32 tells every other
            # stream of its own token alone.
            drawn = await all_of("certainty", [partial(drawer.asked, one) for one in drawn])
    return [_labelled(drawn[place :: len(problems)]) for place in range(len(problems))]


async def _stubborn(call: Call, tries: int = 4) -> Drawn:
    """As SDKs do, again where a connection broke."""
    try:
        return await call()
    except aiohttp.ClientError:
        if tries == 1:
            raise
    await asyncio.sleep(0.5)
    return await _stubborn(call, tries - 1)


def _labelled(drawn: list[Drawn]) -> list[Sample]:
    """Those of one problem, their answers numbered by meaning."""
    classes = Classes()
    return [
        replace(one.sample, label=classes.add(one.answer) if one.answer else None) for one in drawn
    ]


def _auroc(told: list[list[Sample]]) -> dict[str, float]:
    """How well each signal tells right traces from wrong ones: rewards at a few places, the last
    one, the certainty and the least confidence."""
    samples = [sample for own in told for sample in own]
    signals: dict[str, list[tuple[float, bool]]] = {}
    for sample in samples:
        for at in (32, 64, 96, 128, 192):
            if at in sample.rewards and at < sample.reasoning:
                signals.setdefault(f"reward at {at}", []).append((sample.rewards[at], sample.right))
        last = sample.rewards[max(sample.rewards)]
        signals.setdefault("reward at the end", []).append((last, sample.right))
        if sample.certainty is not None:
            signals.setdefault("certainty", []).append((sample.certainty, sample.right))
        if sample.lows:
            signals.setdefault("least confidence", []).append((sample.lows[-1][1], sample.right))
    return {name: _area(pairs) for name, pairs in signals.items()}


def _area(pairs: list[tuple[float, bool]]) -> float:
    right = [value for value, is_right in pairs if is_right]
    wrong = [value for value, is_right in pairs if not is_right]
    if not right or not wrong:
        return math.nan
    wins = sum((a > b) + (a == b) / 2 for a in right for b in wrong)
    return wins / len(right) / len(wrong)


def tell(told: list[list[Sample]], out: Path) -> None:
    """The table, its rows as JSON, and what the signals tell by themselves."""
    traces = len(told[0])
    rows = {
        "one trace": [[alone(turned) for turned in rotations(own)] for own in told],
        "majority of 4": [[majority(turned[:4]) for turned in rotations(own)] for own in told],
        f"majority of {traces}": [[majority(turned) for turned in rotations(own)] for own in told],
    }
    for name in policies(traces):
        policy = parse(name)
        assert isinstance(policy, Sampling)
        rows[name] = [[vote(policy, turned) for turned in rotations(own)] for own in told]
    report(rows, out / "signals.json", traces)
    for name, area in _auroc(told).items():
        print(f"AUROC of {name}: {area:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=160)
    parser.add_argument("--traces", type=int, default=TRACES)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0, help="which held-out problems")
    parser.add_argument("--engine", help="one that runs already")
    parser.add_argument("--reward", help="a reward model's that runs already")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        upstream = options.engine or stack.enter_context(engine(free_port()))
        rewarding = options.reward or stack.enter_context(reward_model(free_port()))
        told = asyncio.run(_draw(upstream, rewarding, options))
    tell(told, options.out)


if __name__ == "__main__":
    main()
