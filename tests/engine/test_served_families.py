"""Families whose markers differ, each served by a real vLLM with its own parser, and cut."""

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
THOUGHT, ANSWER = "".join(TRACE_LOOP * 4), "".join(ANSWER_TOKENS)


@pytest.fixture(scope="module", params=SERVED_FAMILIES)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """A family and the gateway before its model."""
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


def test_the_dialect_is_told(served: tuple[str, str]) -> None:
    """From the vocabulary, or the name where that tells nothing; and the engine lacks nothing."""
    name, url = served
    state = httpx.get(f"{url}/ready").json()
    assert (state["models"], state["missing"]) == ({f"{name}-tiny": name}, {})


def test_unjudged_it_thinks_for_ever(served: tuple[str, str]) -> None:
    """With no policy the limit ends the response, within the trace."""
    reply = ask(served, adjourn={"policy": "off"}).json()
    choice = reply["choices"][0]
    assert choice["finish_reason"] == "length"
    # Without an end marker not every parser of the engine's tells reasoning from content.
    said = (choice["message"]["reasoning"] or "") + (choice["message"]["content"] or "")
    assert THOUGHT[:20] in said
    assert reply["usage"]["completion_tokens"] == 60


def test_a_response_that_ends_in_its_trace_is_rescued(served: tuple[str, str]) -> None:
    """Where the limit is used up in the trace, an answer is drawn all the same."""
    reply = ask(served, adjourn={"policy": "never"}).json()
    note = reply["adjourn"]
    assert note["rescued"] == "length"
    assert reply["choices"][0]["message"]["content"] == ANSWER
    assert note["tokens"]["reasoning"] + note["tokens"]["marker"] == 60


def test_a_cut_is_seamless(served: tuple[str, str]) -> None:
    """Unstreamed: the trace as far as it was kept, the whole answer, one usage."""
    reply = ask(served).json()
    message, note = reply["choices"][0]["message"], reply["adjourn"]
    assert (note["stopped"], note["reason"]) == (True, "budget-hard")
    assert message["content"] == ANSWER
    assert message["reasoning"].strip()
    assert THOUGHT.startswith(message["reasoning"].strip())
    assert reply["choices"][0]["finish_reason"] == "stop"
    tokens = note["tokens"]
    kinds = ("reasoning", "marker", "closing", "answer")
    assert reply["usage"]["completion_tokens"] == sum(tokens[kind] for kind in kinds)
    assert tokens["answer"] == len(ANSWER_TOKENS) + 1  # and the end of the sequence
    assert tokens["reasoning"] == note["position"]


def test_a_cut_stream_is_seamless(served: tuple[str, str]) -> None:
    """Streamed: first all reasoning and then the whole answer, and ids that are all there. How far
    the trace was kept depends on how many tokens came at once."""
    options = {"stream": True, "return_token_ids": True, "stream_options": {"include_usage": True}}
    chunks = [chunk for chunk in events(ask(served, **options).content) if chunk != "[DONE]"]
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    kinds = [
        kind for choice in choices for kind in ("reasoning", "content") if choice["delta"].get(kind)
    ]
    assert kinds == sorted(kinds, reverse=True)
    thought, answer = (
        "".join(choice["delta"].get(kind) or "" for choice in choices)
        for kind in ("reasoning", "content")
    )
    assert thought.strip()
    assert THOUGHT.startswith(thought.strip())
    assert answer == ANSWER
    assert len({chunk["id"] for chunk in chunks}) == 1
    ids = [token for choice in choices for token in choice.get("token_ids") or ()]
    assert len(ids) == chunks[-1]["usage"]["completion_tokens"]
    assert chunks[-1]["adjourn"]["stopped"]
