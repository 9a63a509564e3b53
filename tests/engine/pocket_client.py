"""Talk to the pocket model, through the gateway or past it."""

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
    """One reply: the document, or the decoded chunks of a stream."""
    asked = {
        "model": "pocket",
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": 2000,
        **fields,
    }
    reply = httpx.post(url + CHAT, json=asked, timeout=120)
    assert reply.status_code == 200, reply.text
    return events(reply.content) if fields.get("stream") else reply.json()


def named_events(raw: bytes) -> list[dict[str, Any]]:
    """The events of a stream in which each stands under its type's name."""
    names = re.findall(r"^event: (.*)$", raw.decode(), re.MULTILINE)
    told: list[dict[str, Any]] = events(raw)
    assert names == [event["type"] for event in told]
    return told


def wait_until(condition: Callable[[], bool], timeout: float = 5.0) -> None:
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.02)


def unfinished_requests(vllm: str) -> float:
    return metric_value(vllm, "vllm:num_requests_running") + metric_value(
        vllm, "vllm:num_requests_waiting"
    )


def join_deltas(chunks: list[Any], key: str) -> str:
    return "".join(
        c["choices"][0]["delta"].get(key) or "" for c in chunks if c != "[DONE]" and c["choices"]
    )
