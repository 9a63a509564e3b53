"""Reasoning that a client sends back renders to the tokens that the engine generated, on vLLM.

Like Qwen3's, the pocket model's chat template keeps the reasoning of turns after the latest user
message (turns with tool calls) and drops that of earlier turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from benchmarks.services import free_port, start_gateway
from tests.engine.pocket_client import PROMPTS, join_deltas, send_chat
from tests.gateway_client import CHAT

pytestmark = pytest.mark.engine

USER = {"role": "user", "content": PROMPTS[0]}
NAMES = ("reasoning", "reasoning_content")
FIELD_KEYS = {
    "upstream": NAMES[:1],
    "reasoning": NAMES[:1],
    "reasoning_content": NAMES[1:],
    "both": NAMES,
    "tags": (),
}
"""By the value of ``reasoning_field``: the keys under which a client gets the reasoning."""
BLOCK = 32


@pytest.fixture(scope="module", params=FIELD_KEYS)
def field_gateway(
    vllm: str, request: pytest.FixtureRequest
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A gateway with this ``reasoning_field``, and the keys of its reasoning."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADJOURN_REASONING_FIELD", request.param)
        with start_gateway(vllm, free_port(), "--policy", "never", "--hold-out", "0") as url:
            yield url, FIELD_KEYS[request.param]


def first_turn(
    url: str, policy: str, streamed: bool
) -> tuple[dict[str, Any], list[int], list[int]]:
    """One turn: the assistant's message as the client gets it, the ids of prompt and trace, and the
    ids of the answer."""
    fields: dict[str, Any] = {"return_token_ids": True, "adjourn": {"policy": policy}}
    if not streamed:
        reply = send_chat(url, PROMPTS[0], **fields)
        choice = reply["choices"][0]
        texts = {key: choice["message"].get(key) for key in ("content", *NAMES)}
        prompt, ids = reply["prompt_token_ids"], choice["token_ids"]
    else:
        chunks = send_chat(url, PROMPTS[0], stream=True, **fields)[:-1]
        texts = {key: join_deltas(chunks, key) for key in ("content", *NAMES)}
        prompt = chunks[0]["prompt_token_ids"]
        ids = [i for chunk in chunks for c in chunk["choices"] for i in c.get("token_ids") or ()]
        reply = chunks[-1]
    summary = reply["adjourn"]
    assert summary["stopped"] == (policy != "never")
    message = {"role": "assistant", **{key: text for key, text in texts.items() if text}}
    trace_length = sum(summary["tokens"][kind] for kind in ("reasoning", "marker", "closing"))
    return message, [*prompt, *ids[:trace_length]], ids[trace_length:]


def render_history(url: str, *messages: dict[str, Any]) -> tuple[list[int], int]:
    """The prompt ids that the engine renders from a history, and how many of them were cached."""
    body = {"model": "pocket", "messages": [USER, *messages], "max_tokens": 1}
    body |= {"return_token_ids": True, "adjourn": {"policy": "off"}}
    reply = httpx.post(url + CHAT, json=body, timeout=120).json()
    cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    return reply["prompt_token_ids"], cached


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("policy", ["never", "budget(max=40)"])
def test_reasoning_sent_back_hits_the_cache(
    field_gateway: tuple[str, tuple[str, ...]], policy: str, streamed: bool
) -> None:
    """Uncut or cut, under any key: prompt, trace and closing sequence render to the same ids, and
    all their full blocks are cached. The answer's ids may differ, because a model may write a text
    in other tokens than the tokenizer."""
    url, names = field_gateway
    message, trace, answer = first_turn(url, policy, streamed)
    assert set(message) == {"role", "content", *names}
    assert names or message["content"].startswith("<think>\n")
    rendered, cached = render_history(
        url, message, {"role": "tool", "tool_call_id": "x", "content": "5"}
    )
    assert rendered[: len(trace)] == trace
    assert cached >= len(trace) // BLOCK * BLOCK >= 2 * BLOCK
    if policy == "never":
        expected = [*trace, *answer]
        assert rendered[: len(expected)] == expected
        assert cached >= (len(expected) - 1) // BLOCK * BLOCK


def test_reasoning_is_dropped_after_the_next_question(
    field_gateway: tuple[str, tuple[str, ...]],
) -> None:
    """The template renders nothing of the trace, whatever the client sends."""
    url, _ = field_gateway
    message, trace, _ = first_turn(url, "budget(max=40)", False)
    question = {"role": "user", "content": "And now?"}
    rendered, _ = render_history(url, message, question)
    plain = {"role": "assistant", "content": message["content"].split("</think>\n\n")[-1]}
    assert rendered == render_history(url, plain, question)[0]
    assert rendered[: len(trace)] != trace
