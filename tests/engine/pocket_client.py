"""Requests to the pocket model, through the gateway or directly to the engine."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import httpx

from benchmarks.pocket import CHAINS
from tests.gateway_client import CHAT, events, metric_value

__all__ = [
    "PROMPTS",
    "join_deltas",
    "named_events",
    "send_chat",
    "unfinished_requests",
    "wait_until",
]

PROMPTS = [problem.prompt for problem in CHAINS.held_out_problems(12)]


def send_chat(url: str, prompt: str, **fields: Any) -> Any:
    """One chat request. Returns the document or, with ``stream``, the decoded events."""
    request = {
        "model": "pocket",
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": 2000,
        **fields,
    }
    reply = httpx.post(url + CHAT, json=request, timeout=120)
    assert reply.status_code == 200, reply.text
    return events(reply.content) if fields.get("stream") else reply.json()


def named_events(raw: bytes) -> list[dict[str, Any]]:
    """The events of a stream whose SSE event names must equal their ``type``."""
    names = re.findall(r"^event: (.*)$", raw.decode(), re.MULTILINE)
    decoded: list[dict[str, Any]] = events(raw)
    assert names == [event["type"] for event in decoded]
    return decoded


def wait_until(condition: Callable[[], bool], timeout: float = 5.0) -> None:
    """Poll ``condition`` for up to ``timeout`` seconds; fail if it does not become true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.02)


def unfinished_requests(vllm: str) -> float:
    """The number of requests that vLLM runs or queues."""
    return metric_value(vllm, "vllm:num_requests_running") + metric_value(
        vllm, "vllm:num_requests_waiting"
    )


def join_deltas(chunks: list[Any], key: str) -> str:
    """The text of ``key`` over all deltas of a chat stream."""
    return "".join(
        c["choices"][0]["delta"].get(key) or "" for c in chunks if c != "[DONE]" and c["choices"]
    )
