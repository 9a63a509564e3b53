"""Put problems to a model behind a gateway and keep what came back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import openai
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.pocket.task import Problem

__all__ = ["Asker", "Run", "ask_all", "lean", "official", "progress"]

TEMPERATURE = 0.6
LIMIT = 2000
Asker = Callable[[Problem, "str | None", int], Awaitable["Run"]]
"""(problem, policy, seed) to what came back; None asks an engine that knows of no policies."""


@dataclass(frozen=True, slots=True)
class Run:
    """One response. Tokens as usage and the gateway's note tell; seconds on the wall."""

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
    note: dict[str, Any] = field(default_factory=dict)

    @property
    def net(self) -> int:
        """All tokens that were decoded for this response."""
        return self.completion + self.probe + self.wasted


def progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip


async def ask_all(
    ask: Asker,
    problems: Sequence[Problem],
    policy: str | None,
    *,
    concurrency: int,
    bar: Progress,
    label: str | None = None,
) -> tuple[list[Run], float]:
    """Every problem once, ``concurrency`` at a time; the runs in order, and the seconds it took.

    The seed of a problem's sampling is its place in the list, so that two policies' traces of one
    problem begin alike.
    """
    task = bar.add_task(label or policy or "full thinking", total=len(problems))
    turns = asyncio.Semaphore(concurrency)

    async def one(seed: int, problem: Problem) -> Run:
        async with turns:
            run = await ask(problem, policy, seed)
        bar.advance(task)
        return run

    began = time.perf_counter()
    runs = await asyncio.gather(*(one(i, p) for i, p in enumerate(problems)))
    return list(runs), time.perf_counter() - began


def _body(problem: Problem, policy: str | None, seed: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": problem.prompt}],
        "temperature": TEMPERATURE,
        "seed": seed,
        "max_tokens": LIMIT,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return body if policy is None else {**body, "adjourn": {"policy": policy}}


@contextlib.asynccontextmanager
async def official(url: str, model: str = "pocket") -> AsyncIterator[Asker]:
    """By the ``openai`` package, streamed, as users do it."""
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600
    ) as client:

        async def ask(problem: Problem, policy: str | None, seed: int) -> Run:
            began = time.perf_counter()
            body = _body(problem, policy, seed)
            extra = {"adjourn": body.pop("adjourn")} if "adjourn" in body else {}
            thought, answer, usage, note = [], [], {}, {}
            stream = await client.chat.completions.create(model=model, **body, extra_body=extra)
            async for chunk in stream:
                usage = chunk.usage.model_dump() if chunk.usage else usage
                note = (chunk.model_extra or {}).get("adjourn") or note
                for choice in chunk.choices:
                    thought.append((choice.delta.model_extra or {}).get("reasoning") or "")
                    answer.append(choice.delta.content or "")
            seconds = time.perf_counter() - began
            return _run(problem, "".join(thought), "".join(answer), usage, note, seconds)

        yield ask


@contextlib.asynccontextmanager
async def lean(url: str, model: str = "pocket") -> AsyncIterator[Asker]:
    """Streamed as well, but read as bytes and decoded at the end: the client's own work must not
    be what is measured when it shares its cores with the engine."""
    # vLLM's server closes an idle connection after five seconds: we must be first.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def read(body: dict[str, Any], tries: int = 3) -> bytes:
            """As SDKs do, try again where the connection broke or the server failed."""
            try:
                async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
                    reply.raise_for_status()
                    return await reply.read()
            except aiohttp.ClientError:
                if tries == 1:
                    raise
            await asyncio.sleep(0.5)
            return await read(body, tries - 1)

        async def ask(problem: Problem, policy: str | None, seed: int) -> Run:
            began = time.perf_counter()
            body = {"model": model, **_body(problem, policy, seed)}
            raw = await read(body)
            seconds = time.perf_counter() - began
            lines = raw.split(b"\n\n")
            chunks = [json.loads(line[6:]) for line in lines if line[:7] == b"data: {"]
            deltas = [c["choices"][0]["delta"] for c in chunks if c.get("choices")]
            thought = "".join(d.get("reasoning") or "" for d in deltas)
            answer = "".join(d.get("content") or "" for d in deltas)
            note = chunks[-1].get("adjourn", {})
            return _run(problem, thought, answer, chunks[-1]["usage"], note, seconds)

        yield ask


def _run(
    problem: Problem,
    thought: str,
    answer: str,
    usage: dict[str, Any],
    note: dict[str, Any],
    seconds: float,
) -> Run:
    tokens = note.get("tokens", {})
    completion = usage["completion_tokens"]
    # vLLM's own count of a stream's reasoning falls short where texts were held back; the
    # gateway's ledger is exact, where there is one.
    details = usage.get("completion_tokens_details") or {}
    reasoning = tokens.get("reasoning", details.get("reasoning_tokens", 0))
    return Run(
        problem=problem,
        reasoning_text=thought,
        answer_text=answer,
        right=problem.right(answer),
        reasoning=reasoning,
        answer=completion - reasoning,
        probe=tokens.get("probe", 0),
        wasted=tokens.get("wasted", 0),
        completion=completion,
        seconds=seconds,
        note=note,
    )
