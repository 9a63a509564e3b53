"""Cuts in model families with different markers, each served by a real vLLM with its own parser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.services import free_port, start_gateway
from tests.engine.tiny_model import ANSWER_TOKENS, SERVED_FAMILIES, TRACE_LOOP
from tests.engine.tiny_server import serve_tiny_model
from tests.gateway_client import CHAT, events

pytestmark = pytest.mark.engine

BUDGET = "budget(max=12,grace=0)"
FULL_TRACE, ANSWER = "".join(TRACE_LOOP * 4), "".join(ANSWER_TOKENS)


@pytest.fixture(scope="module", params=SERVED_FAMILIES)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """The family's name, and a gateway in front of its tiny model."""
    name = request.param
    folder: Path = tmp_path_factory.mktemp(name)
    with (
        serve_tiny_model(name, folder) as url,
        start_gateway(url, free_port(), "--policy", BUDGET, "--hold-out", "0") as ours,
    ):
        yield name, ours


def ask(served: tuple[str, str], **fields: Any) -> httpx.Response:
    name, url = served
    body = {
        "model": f"{name}-tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 0,
    }
    reply = httpx.post(url + CHAT, json={**body, "max_tokens": 60, **fields}, timeout=120)
    assert reply.status_code == 200, reply.text
    return reply


def test_the_dialect_is_recognised(served: tuple[str, str]) -> None:
    """From the vocabulary, or else from the model's name; no capability is missing."""
    name, url = served
    state = httpx.get(f"{url}/ready").json()
    assert (state["models"], state["missing"]) == ({f"{name}-tiny": name}, {})


def test_without_a_policy_the_trace_never_ends(served: tuple[str, str]) -> None:
    """The token limit ends the response within the trace."""
    reply = ask(served, adjourn={"policy": "off"}).json()
    choice = reply["choices"][0]
    assert choice["finish_reason"] == "length"
    # Without an end marker some parsers of the engine return reasoning as content.
    text = (choice["message"]["reasoning"] or "") + (choice["message"]["content"] or "")
    assert FULL_TRACE[:20] in text
    assert reply["usage"]["completion_tokens"] == 60


def test_a_response_that_ends_in_its_trace_is_rescued(served: tuple[str, str]) -> None:
    """After the token limit, the answer comes from a second engine request."""
    reply = ask(served, adjourn={"policy": "never"}).json()
    summary = reply["adjourn"]
    assert summary["rescued"] == "length"
    assert reply["choices"][0]["message"]["content"] == ANSWER
    assert summary["tokens"]["reasoning"] + summary["tokens"]["marker"] == 60


def test_a_cut_document_is_complete(served: tuple[str, str]) -> None:
    """The kept trace, the whole answer, and one usage."""
    reply = ask(served).json()
    message, summary = reply["choices"][0]["message"], reply["adjourn"]
    assert (summary["stopped"], summary["reason"]) == (True, "budget-hard")
    assert message["content"] == ANSWER
    assert message["reasoning"].strip()
    assert FULL_TRACE.startswith(message["reasoning"].strip())
    assert reply["choices"][0]["finish_reason"] == "stop"
    tokens = summary["tokens"]
    kinds = ("reasoning", "marker", "closing", "answer")
    assert reply["usage"]["completion_tokens"] == sum(tokens[kind] for kind in kinds)
    assert tokens["answer"] == len(ANSWER_TOKENS) + 1  # plus the end-of-sequence token
    assert tokens["reasoning"] == summary["position"]


def test_a_cut_stream_is_complete(served: tuple[str, str]) -> None:
    """All reasoning first, then the whole answer, and every token id. The length of the kept trace
    depends on how many tokens come in one chunk."""
    options = {"stream": True, "return_token_ids": True, "stream_options": {"include_usage": True}}
    chunks = [chunk for chunk in events(ask(served, **options).content) if chunk != "[DONE]"]
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    kinds = [
        kind for choice in choices for kind in ("reasoning", "content") if choice["delta"].get(kind)
    ]
    assert kinds == sorted(kinds, reverse=True)
    reasoning, answer = (
        "".join(choice["delta"].get(kind) or "" for choice in choices)
        for kind in ("reasoning", "content")
    )
    assert reasoning.strip()
    assert FULL_TRACE.startswith(reasoning.strip())
    assert answer == ANSWER
    assert len({chunk["id"] for chunk in chunks}) == 1
    ids = [token for choice in choices for token in choice.get("token_ids") or ()]
    assert len(ids) == chunks[-1]["usage"]["completion_tokens"]
    assert chunks[-1]["adjourn"]["stopped"]
