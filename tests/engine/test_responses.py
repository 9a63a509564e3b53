"""``/v1/responses`` on a real vLLM: what comes through the gateway is what vLLM itself says."""

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
SAID = {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed"}
SAID |= {"content": [{"type": "output_text", "text": "5.", "annotations": []}]}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": []}
THOUGHT |= {"content": [{"type": "reasoning_text", "text": "\nEasy.\n"}]}
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
    "history": {"input": [USER, THOUGHT, SAID, PARTS]},
    "calls": {"input": [USER, THOUGHT, SAID, CALL, CALL, RESULT, PARTS], "tools": [TOOL]},
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
    "told again": {"metadata": {"a": "b"}, "user": "u", "max_tool_calls": 3, "truncation": "auto"},
    "codex": {"store": False, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k"},
    "own name": {"request_id": "resp_mine", "service_tier": "flex", "parallel_tool_calls": False},
    "penalties": {"frequency_penalty": 1, "presence_penalty": 0.5, "top_p": 0.9, "seed": 3},
    "greedy no more": {"temperature": 0.001, "seed": 3},
}


def post(url: str, **fields: Any) -> httpx.Response:
    asked = {"model": "pocket", "max_output_tokens": 1500, "temperature": 0, "input": "Hm?"}
    return httpx.post(url + ENDPOINT, json=asked | fields, timeout=120)


def same(reply: Any) -> Any:
    """Without what differs between two responses: ids, times, and how much the cache held."""
    if isinstance(reply, list):
        return [same(part) for part in reply]
    if not isinstance(reply, dict):
        return reply
    chance = ("id", "item_id", "call_id", "created_at", "cached_tokens", "cache_write_tokens")
    found = {key: "X" for key in chance if key in reply and reply[key] != "resp_mine"}
    return {key: same(value) for key, value in reply.items()} | found


def joined(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events, deltas of one kind in a row made one: how the engine cuts a text is chance."""
    assert [event.pop("sequence_number") for event in events] == list(range(len(events)))
    told: list[dict[str, Any]] = []
    for event in events:
        last = told[-1] if told else {"type": ""}
        if event["type"].endswith(".delta") and event["type"] == last["type"]:
            assert event["item_id"] == last["item_id"]
            last["delta"] += event["delta"]
        else:
            told.append(event)
    return told


@pytest.mark.parametrize("case", CASES)
def test_a_document_is_vllms(vllm: str, never_gateway: str, case: str) -> None:
    """Equal but for ids and times, judged by a policy that never stops."""
    direct, ours = (post(url, **CASES[case]) for url in (vllm, never_gateway))
    assert direct.status_code == ours.status_code == 200, ours.text
    assert same(ours.json()) == same(direct.json())
    assert ours.headers["x-adjourn-policy"] == "never"


# While it holds back what may be a stop string, vLLM's stream counts a token of reasoning less
# than its document.
@pytest.mark.parametrize("case", [case for case in CASES if case != "stop string"])
def test_a_stream_is_vllms(vllm: str, never_gateway: str, case: str) -> None:
    """The same events in the same order, under numbers without a gap."""
    direct, ours = (
        same(joined(named_events(post(url, stream=True, **CASES[case]).content)))
        for url in (vllm, never_gateway)
    )
    assert ours == direct
    assert ours[-1]["type"] == "response.completed"


def test_an_items_name_is_one(never_gateway: str) -> None:
    """The events of an item bear its id, and the last one the ids of all."""
    events = named_events(post(never_gateway, stream=True).content)
    output = events[-1]["response"]["output"]
    for index, item in enumerate(output):
        own = [event for event in events if event.get("output_index") == index]
        ids = {event.get("item_id") or event["item"]["id"] for event in own}
        assert ids == {item["id"]}
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1


@pytest.mark.parametrize("streamed", [True, False])
def test_a_cut(deer_gateway: str, streamed: bool) -> None:
    """The trace ends early, the answer follows in an item of its own, and the note says so."""
    chosen = LONG | {"adjourn": {"policy": "budget", "max": 40}, "stream": streamed}
    cut = metric_value(deer_gateway, "adjourn_stops_total", policy="budget")
    reply = post(deer_gateway, **chosen)
    assert metric_value(deer_gateway, "adjourn_stops_total", policy="budget") == cut + 1
    response = named_events(reply.content)[-1]["response"] if streamed else reply.json()
    thought, message = response["output"]
    note, usage = response["adjourn"], response["usage"]
    assert note["stopped"]
    assert "Wait" not in thought["content"][0]["text"]
    assert "\\boxed{" in message["content"][0]["text"]
    tokens = note["tokens"]
    kinds = ("reasoning", "marker", "closing", "answer")
    assert usage["output_tokens"] == sum(tokens[kind] for kind in kinds)
    assert usage["output_tokens_details"]["reasoning_tokens"] == tokens["reasoning"]
    assert usage["input_tokens"] == tokens["prompt"]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"previous_response_id": "resp_none"}, "stored"),
        ({"background": True}, "background"),
        ({"include": ["message.output_text.logprobs"]}, "logprobs"),
        ({"tools": [{"type": "web_search_preview"}]}, "tools"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "unknown-content"),
        ({"input": [SAID | {"status": "incomplete"}]}, "partial-message"),
    ],
)
def test_what_is_the_engines_alone(
    vllm: str, never_gateway: str, asked: dict[str, Any], reason: str
) -> None:
    """It is handed through, the reply says why, and it is vLLM's."""
    direct, ours = (post(url, **asked) for url in (vllm, never_gateway))
    assert ours.headers["x-adjourn-passed-through"] == reason
    assert (ours.status_code, same(ours.json())) == (direct.status_code, same(direct.json()))


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


def test_the_official_client(deer_gateway: str) -> None:
    """openai-python: a response, its stream put together, and one that is parsed."""
    client = openai.OpenAI(base_url=f"{deer_gateway}/v1", api_key="none", max_retries=0)
    asked: Any = {"model": "pocket:budget(max=40)", "input": PROMPTS[8], "temperature": 0}
    whole = client.responses.create(**asked)
    assert "\\boxed{" in whole.output_text
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    with client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds.count("response.completed") == 1
    assert "\\boxed{" in final.output_text
    assert final.usage is not None
    assert 0 < final.usage.output_tokens_details.reasoning_tokens < 100  # to the end of a sentence
    parsed = client.responses.parse(**asked, text_format=Number)
    assert isinstance(parsed.output_parsed, Number)


def test_the_official_client_sees_an_error(deer_gateway: str) -> None:
    """Of its own class."""
    client = openai.OpenAI(base_url=f"{deer_gateway}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="nobody", input="x")
