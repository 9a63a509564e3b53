"""Put problems through the official ``openai`` client and keep what came back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import openai
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.pocket.task import Problem, grade

__all__ = ["Run", "ask_all", "progress"]


@dataclass(frozen=True, slots=True)
class Run:
    """One response. Tokens as the client's usage and the gateway's note tell; seconds on the wall."""

    problem: Problem
    reasoning_text: str
    answer_text: str
    right: bool
    reasoning: int
    answer: int
    probe: int
    wasted: int
    completion: int
    seconds: float
    first_token: float
    note: dict[str, Any] = field(default_factory=dict)

    @property
    def net(self) -> int:
        """All tokens that were decoded for this response."""
        return self.completion + self.probe + self.wasted


def progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip


async def ask_all(
    url: str,
    problems: Sequence[Problem],
    policy: str,
    *,
    concurrency: int,
    bar: Progress,
    temperature: float = 0.6,
    label: str | None = None,
    model: str = "pocket",
) -> tuple[list[Run], float]:
    """Every problem once, ``concurrency`` at a time; the runs in order, and the seconds it took.

    ``policy`` is a specification, or ``off``. The seed of a problem's sampling is its place in
    the list, so that two policies' traces of one problem begin alike.
    """
    task = bar.add_task(label or policy, total=len(problems))
    turns = asyncio.Semaphore(concurrency)
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600
    ) as client:

        async def one(seed: int, problem: Problem) -> Run:
            async with turns:
                run = await _ask(client, model, problem, policy, temperature, seed)
            bar.advance(task)
            return run

        began = time.perf_counter()
        runs = await asyncio.gather(*(one(i, p) for i, p in enumerate(problems)))
        return list(runs), time.perf_counter() - began


async def _ask(
    client: openai.AsyncOpenAI,
    model: str,
    problem: Problem,
    policy: str,
    temperature: float,
    seed: int,
) -> Run:
    began = time.perf_counter()
    first = 0.0
    reasoning, answer = [], []
    note: dict[str, Any] = {}
    usage = None
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": problem.prompt}],
        temperature=temperature,
        seed=seed,
        max_tokens=2000,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"adjourn": {"policy": policy}},
    )
    async for chunk in stream:
        first = first or time.perf_counter()
        usage = chunk.usage or usage
        note = (chunk.model_extra or {}).get("adjourn") or note
        for choice in chunk.choices:
            reasoning.append((choice.delta.model_extra or {}).get("reasoning") or "")
            answer.append(choice.delta.content or "")
    if usage is None:
        raise RuntimeError("a stream came without usage")
    details = usage.completion_tokens_details
    thought = (details.reasoning_tokens if details else 0) or 0
    tokens = note.get("tokens", {})
    return Run(
        problem=problem,
        reasoning_text="".join(reasoning),
        answer_text="".join(answer),
        right=grade("".join(answer), problem),
        reasoning=thought,
        answer=usage.completion_tokens - thought,
        probe=tokens.get("probe", 0),
        wasted=tokens.get("wasted", 0),
        completion=usage.completion_tokens,
        seconds=time.perf_counter() - began,
        first_token=first - began,
        note=note,
    )
