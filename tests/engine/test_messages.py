"""``/v1/messages`` on a real vLLM: responses through the gateway equal vLLM's own."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.engine.pocket_client import PROMPTS, named_events
from tests.gateway_client import metric_value

pytestmark = pytest.mark.engine

ENDPOINT = "/v1/messages"
USER = {"role": "user", "content": "Hm?"}  # the model's trace for it is short
LONG = {"messages": [{"role": "user", "content": PROMPTS[8]}]}
TEXT = {"type": "text", "text": "Why?", "cache_control": {"type": "ephemeral"}}
THINKING = {"type": "thinking", "thinking": "\nEasy.\n", "signature": "x"}
CALL = {"type": "tool_use", "id": "call_1", "name": "judge", "input": {"even": True, "why": "é"}}
RESULT = {"type": "tool_result", "tool_use_id": "call_1", "content": [TEXT]}
TOOL = {
    "name": "judge",
    "description": "Say whether the result is even.",
    "input_schema": {"properties": {"even": {"type": "boolean"}}, "required": ["even"]},
}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
HISTORY = [
    {"role": "user", "content": [TEXT, {"type": "text", "text": "Think."}]},
    {"role": "assistant", "content": [THINKING, {"type": "text", "text": "5."}]},
    {"role": "assistant", "content": [CALL]},
    {"role": "user", "content": [RESULT, {"type": "text", "text": "So?"}]},
]
BILLED = [{"type": "text", "text": "x-anthropic-billing-header: 7"}, {"type": "text", "text": "B."}]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "long": LONG,
    "system": {"system": "Be brief."},
    "system in blocks": {"system": BILLED},
    "system among the messages": {"messages": [USER, {"role": "system", "content": "Now."}, USER]},
    "history": {"messages": HISTORY, "tools": [TOOL]},
    "tool that may be called": {"tools": [TOOL]},
    "tool that must be called": {"tools": [TOOL], "tool_choice": {"type": "any"}},
    "tool by name": {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "judge"}},
    "no tools at all": {"tools": [], "tool_choice": {"type": "auto"}},
    "no tool": {"tools": [TOOL], "tool_choice": {"type": "none"}},
    "stop sequence": LONG | {"stop_sequences": ["boxed"]},
    "limit in the trace": {"max_tokens": 5},
    "limit in the answer": {"max_tokens": 15},
    "budget": {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    "no thinking": {"thinking": {"type": "disabled"}},
    "effort": {"output_config": {"effort": "low"}},
    "schema": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    "other fields": {"top_k": 3, "top_p": 0.9, "cache_salt": "s", "metadata": {"user_id": "u"}},
    "unknown field": {"context_management": {"edits": []}, "service_tier": "auto"},
}
# vLLM answers 400 when the arguments that the model generated are not a JSON object, as with this
# model.
FORCED = ("tool that must be called", "tool by name")


def post(url: str, **fields: Any) -> httpx.Response:
    request = {"model": "pocket", "max_tokens": 1500, "temperature": 0, "messages": [USER]}
    return httpx.post(url + ENDPOINT, json=request | fields, timeout=120)


def normalize(reply: Any) -> Any:
    """The response without what differs between two: ids, and how many tokens were cached."""
    if isinstance(reply, list):
        return [normalize(part) for part in reply]
    if not isinstance(reply, dict):
        return reply
    usage = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    if "output_tokens" in reply:
        total = sum(reply.get(key) or 0 for key in usage)
        return {"output": reply["output_tokens"], "input": total, "keys": sorted(reply)}
    ids = {key: "X" for key in ("id", "signature") if key in reply}
    return {key: normalize(value) for key, value in reply.items()} | ids


def merge_deltas(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge consecutive deltas of one kind: how the engine splits a text into chunks varies."""
    merged: list[dict[str, Any]] = []
    for event in events:
        last = merged[-1] if merged else {}
        delta = event.get("delta", {})
        kind = delta.get("type")
        key = {"thinking_delta": "thinking", "text_delta": "text"}.get(kind, "partial_json")
        if kind and last.get("delta", {}).get("type") == kind and last["index"] == event["index"]:
            last["delta"][key] += delta[key]
        else:
            merged.append(event)
    return merged


@pytest.mark.parametrize("case", [case for case in CASES if case not in FORCED])
def test_a_document_is_vllms(vllm: str, never_gateway: str, case: str) -> None:
    """Except for ids, under a policy that never stops."""
    direct, ours = (post(url, **CASES[case]) for url in (vllm, never_gateway))
    assert direct.status_code == ours.status_code == 200, ours.text
    assert normalize(ours.json()) == normalize(direct.json())
    assert ("x-adjourn-passed-through" in ours.headers) == (case == "no thinking")


@pytest.mark.parametrize("case", CASES)
def test_a_stream_is_vllms(vllm: str, never_gateway: str, case: str) -> None:
    """The same events in the same order."""
    direct, ours = (
        normalize(merge_deltas(named_events(post(url, stream=True, **CASES[case]).content)))
        for url in (vllm, never_gateway)
    )
    assert ours == direct
    assert ours[-1] == {"type": "message_stop"}


@pytest.mark.parametrize("streamed", [True, False])
def test_a_cut_message_has_a_summary(deer_gateway: str, streamed: bool) -> None:
    """The trace ends early, the answer follows in its own content block, and the summary describes
    the cut."""
    fields = LONG | {"adjourn": {"policy": "budget", "max": 40}, "stream": streamed}
    before = metric_value(deer_gateway, "adjourn_stops_total", policy="budget")
    reply = post(deer_gateway, **fields)
    assert metric_value(deer_gateway, "adjourn_stops_total", policy="budget") == before + 1
    if streamed:
        events = merge_deltas(named_events(reply.content))
        deltas = [e["delta"] for e in events if e["type"] == "content_block_delta"]
        thinking, text = deltas[0]["thinking"], deltas[-1]["text"]
        last = events[-2]
    else:
        last = reply.json()
        thinking, text = last["content"][0]["thinking"], last["content"][1]["text"]
        assert "adjourn" in last
    summary, usage = last["adjourn"], last["usage"]
    assert summary["stopped"]
    assert "Wait" not in thinking
    assert "\\boxed{" in text
    tokens = summary["tokens"]
    kinds = ("reasoning", "marker", "closing", "answer")
    assert usage["output_tokens"] == sum(tokens[kind] for kind in kinds)
    input_kinds = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    assert sum(usage[key] for key in input_kinds) == tokens["prompt"]


def test_thinking_sent_back_hits_the_cache(deer_gateway: str) -> None:
    """The conversation renders to the tokens that the engine generated."""
    first = post(deer_gateway, messages=[{"role": "user", "content": PROMPTS[4]}]).json()
    message = {"role": "assistant", "content": first["content"]}
    turns = [{"role": "user", "content": PROMPTS[4]}, message, {"role": "user", "content": "Sure?"}]
    second = post(deer_gateway, messages=turns, max_tokens=5).json()
    assert second["usage"]["cache_read_input_tokens"] > 32


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "nobody"},
        {"messages": [{"role": "user", "content": "a " * 9000}]},
        {"temperature": -1},
        {"max_tokens": 0},
        {"thinking": {"type": "enabled", "budget_tokens": 5}},
        {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
    ],
)
def test_an_error_is_vllms(
    vllm: str, never_gateway: str, wrong: dict[str, Any], streamed: bool
) -> None:
    """Status, shape and wording."""
    direct, ours = (post(url, **wrong, stream=streamed) for url in (vllm, never_gateway))
    assert direct.status_code >= 400
    assert (ours.status_code, ours.json()) == (direct.status_code, direct.json())


def test_tool_arguments_that_are_not_an_object_are_a_400(vllm: str, never_gateway: str) -> None:
    """A document cannot represent them; vLLM answers the same."""
    for case in FORCED:
        direct, ours = (post(url, **CASES[case]) for url in (vllm, never_gateway))
        assert direct.status_code == ours.status_code == 400
        assert ours.json()["type"] == "error"
