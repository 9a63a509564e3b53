"""``/v1/responses`` on a real vLLM: responses through the gateway equal vLLM's own."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.engine.pocket_client import PROMPTS, named_events
from tests.gateway_client import metric_value

pytestmark = pytest.mark.engine

ENDPOINT = "/v1/responses"
LONG = {"input": PROMPTS[8]}
USER = {"role": "user", "content": "Hm?"}
PARTS = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Why?"}]}
ANSWER = {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed"}
ANSWER |= {"content": [{"type": "output_text", "text": "5.", "annotations": []}]}
REASONING = {"type": "reasoning", "id": "rs_1", "summary": []}
REASONING |= {"content": [{"type": "reasoning_text", "text": "\nEasy.\n"}]}
CALL = {"type": "function_call", "call_id": "call_1", "name": "judge", "arguments": '{"even":true}'}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "4"}
TOOL = {
    "type": "function",
    "name": "judge",
    "description": "Say whether the result is even.",
    "parameters": {"type": "object", "properties": {"even": {"type": "boolean"}}},
}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
JSON = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "long": LONG,
    "instructions": {"instructions": "Be brief."},
    "messages": {"input": [{"role": "developer", "content": "Now."}, PARTS]},
    "history": {"input": [USER, REASONING, ANSWER, PARTS]},
    "calls": {"input": [USER, REASONING, ANSWER, CALL, CALL, RESULT, PARTS], "tools": [TOOL]},
    "tool that may be called": {"tools": [TOOL]},
    "tool that must be called": {"tools": [TOOL], "tool_choice": "required"},
    "tool by name": {"tools": [TOOL], "tool_choice": {"type": "function", "name": "judge"}},
    "no tool": {"tools": [TOOL], "tool_choice": "none"},
    "limit in the trace": {"max_output_tokens": 5},
    "limit in the answer": {"max_output_tokens": 15},
    "no limit": {"max_output_tokens": None},
    "stop string": LONG | {"stop": ["boxed"]},
    "effort": {"reasoning": {"effort": "low", "summary": "auto"}},
    "no thinking": {"reasoning": {"effort": "none"}},
    "schema": {"text": JSON | {"verbosity": "low"}},
    "json": {"text": {"format": {"type": "json_object"}}},
    "text": {"text": {"format": {"type": "text"}}},
    "hidden reasoning": {"include_reasoning": False},
    "echoed fields": {
        "metadata": {"a": "b"},
        "user": "u",
        "max_tool_calls": 3,
        "truncation": "auto",
    },
    "codex": {"store": False, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k"},
    "own id": {"request_id": "resp_mine", "service_tier": "flex", "parallel_tool_calls": False},
    "penalties": {"frequency_penalty": 1, "presence_penalty": 0.5, "top_p": 0.9, "seed": 3},
    "almost greedy": {"temperature": 0.001, "seed": 3},
}


def post(url: str, **fields: Any) -> httpx.Response:
    request = {"model": "pocket", "max_output_tokens": 1500, "temperature": 0, "input": "Hm?"}
    return httpx.post(url + ENDPOINT, json=request | fields, timeout=120)


def normalize(reply: Any) -> Any:
    """The response without what differs between two: ids, times, and how many tokens were
    cached."""
    if isinstance(reply, list):
        return [normalize(part) for part in reply]
    if not isinstance(reply, dict):
        return reply
    varying = ("id", "item_id", "call_id", "created_at", "cached_tokens", "cache_write_tokens")
    ids = {key: "X" for key in varying if key in reply and reply[key] != "resp_mine"}
    return {key: normalize(value) for key, value in reply.items()} | ids


def merge_deltas(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge consecutive deltas of one kind: how the engine splits a text into chunks varies."""
    assert [event.pop("sequence_number") for event in events] == list(range(len(events)))
    merged: list[dict[str, Any]] = []
    for event in events:
        last = merged[-1] if merged else {"type": ""}
        if event["type"].endswith(".delta") and event["type"] == last["type"]:
            assert event["item_id"] == last["item_id"]
            last["delta"] += event["delta"]
        else:
            merged.append(event)
    return merged


@pytest.mark.parametrize("case", CASES)
def test_a_document_is_vllms(vllm: str, never_gateway: str, case: str) -> None:
    """Except for ids and times, under a policy that never stops."""
    direct, ours = (post(url, **CASES[case]) for url in (vllm, never_gateway))
    assert direct.status_code == ours.status_code == 200, ours.text
    assert normalize(ours.json()) == normalize(direct.json())
    assert ours.headers["x-adjourn-policy"] == "never"


# With a stop string, vLLM's stream counts one reasoning token less than its document, because it
# holds back text that may begin the string.
@pytest.mark.parametrize("case", [case for case in CASES if case != "stop string"])
def test_a_stream_is_vllms(vllm: str, never_gateway: str, case: str) -> None:
    """The same events in the same order, with consecutive sequence numbers."""
    direct, ours = (
        normalize(merge_deltas(named_events(post(url, stream=True, **CASES[case]).content)))
        for url in (vllm, never_gateway)
    )
    assert ours == direct
    assert ours[-1]["type"] == "response.completed"


def test_item_ids_are_consistent(never_gateway: str) -> None:
    """All events of an item have its id, and all events with a response have one response id."""
    events = named_events(post(never_gateway, stream=True).content)
    output = events[-1]["response"]["output"]
    for index, item in enumerate(output):
        own = [event for event in events if event.get("output_index") == index]
        ids = {event.get("item_id") or event["item"]["id"] for event in own}
        assert ids == {item["id"]}
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1


@pytest.mark.parametrize("streamed", [True, False])
def test_a_cut_response_has_a_summary(deer_gateway: str, streamed: bool) -> None:
    """The trace ends early, the answer follows in its own item, and the summary describes the
    cut."""
    fields = LONG | {"adjourn": {"policy": "budget", "max": 40}, "stream": streamed}
    before = metric_value(deer_gateway, "adjourn_stops_total", policy="budget")
    reply = post(deer_gateway, **fields)
    assert metric_value(deer_gateway, "adjourn_stops_total", policy="budget") == before + 1
    response = named_events(reply.content)[-1]["response"] if streamed else reply.json()
    reasoning, message = response["output"]
    summary, usage = response["adjourn"], response["usage"]
    assert summary["stopped"]
    assert "Wait" not in reasoning["content"][0]["text"]
    assert "\\boxed{" in message["content"][0]["text"]
    tokens = summary["tokens"]
    kinds = ("reasoning", "marker", "closing", "answer")
    assert usage["output_tokens"] == sum(tokens[kind] for kind in kinds)
    assert usage["output_tokens_details"]["reasoning_tokens"] == tokens["reasoning"]
    assert usage["input_tokens"] == tokens["prompt"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"previous_response_id": "resp_none"}, "stored"),
        ({"background": True}, "background"),
        ({"include": ["message.output_text.logprobs"]}, "logprobs"),
        ({"tools": [{"type": "web_search_preview"}]}, "tools"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "unknown-content"),
        ({"input": [ANSWER | {"status": "incomplete"}]}, "partial-message"),
    ],
)
def test_untranslatable_requests_pass_through(
    vllm: str, never_gateway: str, fields: dict[str, Any], reason: str
) -> None:
    """With the reason in a header; the response is vLLM's own."""
    direct, ours = (post(url, **fields) for url in (vllm, never_gateway))
    assert ours.headers["x-adjourn-passed-through"] == reason
    assert (ours.status_code, normalize(ours.json())) == (
        direct.status_code,
        normalize(direct.json()),
    )


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "nobody"},
        {"input": "a " * 9000},
        {"temperature": -1},
        {"tool_choice": "required"},
        {"prompt": {"id": "x"}},
        {"top_p": 7},
    ],
)
def test_an_error_is_vllms(
    vllm: str, never_gateway: str, wrong: dict[str, Any], streamed: bool
) -> None:
    """Status, shape and wording."""
    direct, ours = (post(url, **wrong, stream=streamed) for url in (vllm, never_gateway))
    assert direct.status_code >= 400
    assert (ours.status_code, ours.json()) == (direct.status_code, direct.json())


class Number(BaseModel):
    n: int


def test_openai_python_reads_a_cut_response(deer_gateway: str) -> None:
    """Unstreamed, streamed, and parsed into a model."""
    client = openai.OpenAI(base_url=f"{deer_gateway}/v1", api_key="none", max_retries=0)
    request: Any = {"model": "pocket:budget(max=40)", "input": PROMPTS[8], "temperature": 0}
    response = client.responses.create(**request)
    assert "\\boxed{" in response.output_text
    assert [item.type for item in response.output] == ["reasoning", "message"]
    with client.responses.stream(**request) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds.count("response.completed") == 1
    assert "\\boxed{" in final.output_text
    assert final.usage is not None
    # The cut falls at the end of the sentence after 40 tokens.
    assert 0 < final.usage.output_tokens_details.reasoning_tokens < 100
    parsed = client.responses.parse(**request, text_format=Number)
    assert isinstance(parsed.output_parsed, Number)


def test_openai_python_raises_its_own_error_class(deer_gateway: str) -> None:
    """``NotFoundError`` for an unknown model."""
    client = openai.OpenAI(base_url=f"{deer_gateway}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="nobody", input="x")
