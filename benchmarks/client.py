"""Send problems to a model, directly or through the gateway, and record the responses."""

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
"""(problem, policy, seed) -> response. The policy None omits the `adjourn` field, for an engine."""


@dataclass(frozen=True, slots=True)
class ModelResponse:
    """One response: token counts from `usage` and the `adjourn` field, wall-clock seconds."""

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
        """All tokens that the engine generated for this response, probes and waste included."""
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
    """Send every problem once, ``concurrency`` at a time.

    Returns the responses in order, and the seconds that all took. The seed of a request is the
    problem's index in the list, so that the traces of one problem under two policies begin alike.
    """
    task = bar.add_task(label or policy or "full thinking", total=len(problems))
    limit = asyncio.Semaphore(concurrency)

    async def send_one(seed: int, problem: Problem) -> ModelResponse:
        async with limit:
            response = await send(problem, policy, seed)
        bar.advance(task)
        return response

    started_at = time.perf_counter()
    responses = await asyncio.gather(*(send_one(i, p) for i, p in enumerate(problems)))
    return list(responses), time.perf_counter() - started_at


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
    """Streams with the ``openai`` package, as users do."""
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600
    ) as client:

        async def send(problem: Problem, policy: str | None, seed: int) -> ModelResponse:
            started_at = time.perf_counter()
            body = _request_body(problem, policy, seed)
            extra = {"adjourn": body.pop("adjourn")} if "adjourn" in body else {}
            reasoning, answer, usage, adjourn_field = [], [], {}, {}
            stream = await client.chat.completions.create(model=model, **body, extra_body=extra)
            async for chunk in stream:
                usage = chunk.usage.model_dump() if chunk.usage else usage
                adjourn_field = (chunk.model_extra or {}).get("adjourn") or adjourn_field
                for choice in chunk.choices:
                    reasoning.append((choice.delta.model_extra or {}).get("reasoning") or "")
                    answer.append(choice.delta.content or "")
            seconds = time.perf_counter() - started_at
            return _to_response(
                problem, "".join(reasoning), "".join(answer), usage, adjourn_field, seconds
            )

        yield send


@contextlib.asynccontextmanager
async def lightweight_client(url: str, model: str = "pocket") -> AsyncIterator[SendProblem]:
    """Streams too, but reads bytes and decodes them at the end.

    The client shares CPU cores with the engine, so its own work must not distort the measurement.
    """
    # vLLM's server closes an idle connection after five seconds: close it before that.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def read(body: dict[str, Any], attempts: int = 3) -> bytes:
            """Retry, as SDKs do, if the connection broke or the server failed."""
            try:
                async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
                    reply.raise_for_status()
                    return await reply.read()
            except aiohttp.ClientError:
                if attempts == 1:
                    raise
            await asyncio.sleep(0.5)
            return await read(body, attempts - 1)

        async def send(problem: Problem, policy: str | None, seed: int) -> ModelResponse:
            started_at = time.perf_counter()
            body = {"model": model, **_request_body(problem, policy, seed)}
            raw = await read(body)
            seconds = time.perf_counter() - started_at
            lines = raw.split(b"\n\n")
            chunks = [json.loads(line[6:]) for line in lines if line[:7] == b"data: {"]
            deltas = [c["choices"][0]["delta"] for c in chunks if c.get("choices")]
            reasoning = "".join(d.get("reasoning") or "" for d in deltas)
            answer = "".join(d.get("content") or "" for d in deltas)
            adjourn_field = chunks[-1].get("adjourn", {})
            return _to_response(
                problem, reasoning, answer, chunks[-1]["usage"], adjourn_field, seconds
            )

        yield send


def _to_response(
    problem: Problem,
    reasoning_text: str,
    answer_text: str,
    usage: dict[str, Any],
    adjourn_field: dict[str, Any],
    seconds: float,
) -> ModelResponse:
    tokens = adjourn_field.get("tokens", {})
    completion = usage["completion_tokens"]
    # vLLM's own count of reasoning tokens in a stream is too low if it held texts back; the
    # gateway's ledger, if there is one, is exact.
    details = usage.get("completion_tokens_details") or {}
    reasoning = tokens.get("reasoning", details.get("reasoning_tokens", 0))
    return ModelResponse(
        problem=problem,
        reasoning_text=reasoning_text,
        answer_text=answer_text,
        correct=problem.is_correct(answer_text),
        reasoning_tokens=reasoning,
        answer_tokens=completion - reasoning,
        probe_tokens=tokens.get("probe", 0),
        wasted_tokens=tokens.get("wasted", 0),
        completion_tokens=completion,
        seconds=seconds,
        adjourn_field=adjourn_field,
    )
