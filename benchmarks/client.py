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

__all__ = [
    "ModelResponse",
    "SendProblem",
    "lightweight_client",
    "openai_client",
    "progress_bar",
    "send_all",
]

TEMPERATURE = 0.6
MAX_TOKENS = 2000
SendProblem = Callable[[Problem, "str | None", int], Awaitable["ModelResponse"]]
"""(problem, policy, seed) to what came back; None asks an engine that knows of no policies."""


@dataclass(frozen=True, slots=True)
class ModelResponse:
    """One response. Tokens as usage and the gateway's note tell; seconds on the wall."""

    problem: Problem
    reasoning_text: str
    answer_text: str
    correct: bool
    reasoning_tokens: int
    answer_tokens: int
    probe_tokens: int
    wasted_tokens: int
    completion_tokens: int
    seconds: float
    adjourn_field: dict[str, Any] = field(default_factory=dict)

    @property
    def net_tokens(self) -> int:
        """All tokens that were decoded for this response."""
        return self.completion_tokens + self.probe_tokens + self.wasted_tokens


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip


async def send_all(
    send: SendProblem,
    problems: Sequence[Problem],
    policy: str | None,
    *,
    concurrency: int,
    bar: Progress,
    label: str | None = None,
) -> tuple[list[ModelResponse], float]:
    """Every problem once, ``concurrency`` at a time; the runs in order, and the seconds it took.

    The seed of a problem's sampling is its place in the list, so that two policies' traces of one
    problem begin alike.
    """
    task = bar.add_task(label or policy or "full thinking", total=len(problems))
    turns = asyncio.Semaphore(concurrency)

    async def one(seed: int, problem: Problem) -> ModelResponse:
        async with turns:
            run = await send(problem, policy, seed)
        bar.advance(task)
        return run

    began = time.perf_counter()
    runs = await asyncio.gather(*(one(i, p) for i, p in enumerate(problems)))
    return list(runs), time.perf_counter() - began


def _request_body(problem: Problem, policy: str | None, seed: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": problem.prompt}],
        "temperature": TEMPERATURE,
        "seed": seed,
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return body if policy is None else {**body, "adjourn": {"policy": policy}}


@contextlib.asynccontextmanager
async def openai_client(url: str, model: str = "pocket") -> AsyncIterator[SendProblem]:
    """By the ``openai`` package, streamed, as users do it."""
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600
    ) as client:

        async def ask(problem: Problem, policy: str | None, seed: int) -> ModelResponse:
            began = time.perf_counter()
            body = _request_body(problem, policy, seed)
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
            return _to_response(problem, "".join(thought), "".join(answer), usage, note, seconds)

        yield ask


@contextlib.asynccontextmanager
async def lightweight_client(url: str, model: str = "pocket") -> AsyncIterator[SendProblem]:
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

        async def ask(problem: Problem, policy: str | None, seed: int) -> ModelResponse:
            began = time.perf_counter()
            body = {"model": model, **_request_body(problem, policy, seed)}
            raw = await read(body)
            seconds = time.perf_counter() - began
            lines = raw.split(b"\n\n")
            chunks = [json.loads(line[6:]) for line in lines if line[:7] == b"data: {"]
            deltas = [c["choices"][0]["delta"] for c in chunks if c.get("choices")]
            thought = "".join(d.get("reasoning") or "" for d in deltas)
            answer = "".join(d.get("content") or "" for d in deltas)
            note = chunks[-1].get("adjourn", {})
            return _to_response(problem, thought, answer, chunks[-1]["usage"], note, seconds)

        yield ask


def _to_response(
    problem: Problem,
    thought: str,
    answer: str,
    usage: dict[str, Any],
    note: dict[str, Any],
    seconds: float,
) -> ModelResponse:
    tokens = note.get("tokens", {})
    completion = usage["completion_tokens"]
    # vLLM's own count of a stream's reasoning falls short where texts were held back; the
    # gateway's ledger is exact, where there is one.
    details = usage.get("completion_tokens_details") or {}
    reasoning = tokens.get("reasoning", details.get("reasoning_tokens", 0))
    return ModelResponse(
        problem=problem,
        reasoning_text=thought,
        answer_text=answer,
        correct=problem.is_correct(answer),
        reasoning_tokens=reasoning,
        answer_tokens=completion - reasoning,
        probe_tokens=tokens.get("probe", 0),
        wasted_tokens=tokens.get("wasted", 0),
        completion_tokens=completion,
        seconds=seconds,
        adjourn_field=note,
    )
