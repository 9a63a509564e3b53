"""The events of a translated stream: well-formed, complete, and equal to the JSON document."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.api.translated.translation_helpers import (
    APIS,
    USAGE,
    make_chat_stream,
    parse_request,
    respond,
    translate_stream,
)

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=4)
CALLS = st.lists(st.tuples(TEXT, st.dictionaries(TEXT, TEXT, max_size=2)), max_size=3)
Reply = tuple[list[dict[str, Any]], str, str, list[tuple[str, str]]]


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    """(deltas as an engine may send them, their reasoning, content and tool calls)."""
    reasoning = draw(st.lists(TEXT, max_size=4))
    content = draw(st.lists(TEXT, max_size=4))
    calls = [(name, json.dumps(arguments)) for name, arguments in draw(CALLS)]
    deltas: list[dict[str, Any]] = [{"reasoning": text} for text in reasoning]
    content_deltas: list[dict[str, Any]] = [{"content": text} for text in content]
    if deltas and content_deltas and draw(st.booleans()):
        content_deltas[0] |= deltas.pop()  # both in one chunk
    deltas += content_deltas
    for index, (name, arguments) in enumerate(calls):
        split = draw(st.integers(0, len(arguments)))
        first = {"index": index, "id": f"call_{index}", "type": "function"}
        first["function"] = {"name": name, "arguments": arguments[:split]}
        deltas.append({"tool_calls": [first]})
        rest = {"index": index, "function": {"arguments": arguments[split:]}}
        deltas.append({"tool_calls": [rest]})
    deltas = [delta for each in deltas for delta in (each, {})[: draw(st.integers(1, 2))]]
    return deltas, "".join(reasoning), "".join(content), calls


def build_document(api: str, reply: Reply, finish_reason: str) -> Any:
    """The document of the same reply."""
    _, reasoning, content, calls = reply
    translation = parse_request(api).translation
    assert translation is not None
    tool_calls = [
        {"id": f"call_{i}", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls)
    ]
    message = {"reasoning": reasoning, "content": content, "tool_calls": tool_calls}
    choice = {"message": message, "finish_reason": finish_reason, "stop_reason": None}
    chat = {"id": "chatcmpl-1", "created": 7, "model": "m", "choices": [choice], "usage": USAGE}
    return translation.build_document(chat)


@given(replies(), st.sampled_from(["stop", "length", "tool_calls"]))
def test_a_messages_stream_equals_its_document(reply: Reply, finish_reason: str) -> None:
    """Assembled as a client does it: blocks in order, each started, filled and stopped once."""
    start, *events = translate_stream("messages", make_chat_stream(reply[0], finish_reason))
    message = start["message"]
    assert (start["type"], message["usage"]["input_tokens"]) == ("message_start", 9)
    assert events.pop() == {"type": "message_stop"}
    message_delta = events.pop()
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in events:
        kind = event["type"].removeprefix("content_block_")
        assert is_open == (kind != "start")
        assert event["index"] == len(blocks) - is_open
        if kind == "start":
            blocks.append(event["content_block"] | {"json": ""})
        for key, text in event.get("delta", {}).items():
            if key != "type":
                name = "json" if key == "partial_json" else key
                blocks[-1][name] = blocks[-1].get(name, "") + text
        is_open = kind != "stop"
    assert not is_open
    for block in blocks:
        if arguments := block.pop("json"):
            block["input"] = json.loads(arguments)
        block.pop("signature", None)
    document = build_document("messages", reply, finish_reason)
    for block in document["content"]:
        block.pop("signature", None)
    assert (blocks or [{"type": "text", "text": ""}]) == document["content"]
    assert message_delta["usage"] == document["usage"]
    assert message_delta["delta"]["stop_reason"] == document["stop_reason"]
    usage = {"input_tokens": 3, "output_tokens": 5}
    usage |= {"cache_creation_input_tokens": 2, "cache_read_input_tokens": 4}
    assert message_delta["usage"] == usage


@given(replies(), st.sampled_from(["stop", "length", "tool_calls"]))
def test_a_responses_stream_equals_its_document(reply: Reply, finish_reason: str) -> None:
    """Each item is added, filled and done under one id and index; sequence numbers have no gap."""
    events = translate_stream("responses", make_chat_stream(reply[0], finish_reason))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    created, in_progress, *events, completed = events
    assert created["response"] == in_progress["response"]
    assert [e["type"] for e in (created, in_progress, completed)] == [
        *("response.created", "response.in_progress", "response.completed"),
    ]
    items: list[dict[str, Any]] = []
    current: dict[str, Any] = {}
    text = ""
    for event in events:
        kind = event["type"]
        assert event["output_index"] == len(items)
        if kind == "response.output_item.added":
            assert not current
            current, text = event["item"], ""
        elif kind == "response.output_item.done":
            assert event["item"]["id"] == current["id"]
            items.append(event["item"])
            current = {}
        else:
            assert event["item_id"] == current["id"]
            if kind.endswith(".delta"):
                text += event["delta"]
            elif not kind.startswith("response.content_part."):
                assert event.get("text", event.get("arguments")) == text
    assert not current
    response = completed["response"]
    assert response["output"] == items
    document = build_document("responses", reply, finish_reason)
    assert without_ids(response) == without_ids(document)


def without_ids(response: Any) -> Any:
    """Without item ids, and without the status of reasoning items, which only streams state."""
    output = [
        {
            k: v
            for k, v in item.items()
            if k != "id" and (k, item["type"]) != ("status", "reasoning")
        }
        for item in response["output"]
    ]
    return {**response, "output": output}


def test_the_output_limit_is_the_clients_or_what_the_context_leaves() -> None:
    """The latter is the context length less the tokens of the prompt."""
    stream = make_chat_stream([], "stop")
    assert translate_stream("responses", stream)[0]["response"]["max_output_tokens"] == 91
    limited = respond("responses", stream, max_output_tokens=7)
    assert limited.events[0]["response"]["max_output_tokens"] == 7


@pytest.mark.parametrize("api", APIS)
def test_a_translation_is_finished_with_its_last_event(api: str) -> None:
    """Even if the engine's stream goes on."""
    request = parse_request(api, stream=True)
    assert request.translation is not None
    *most, usage, done = make_chat_stream([{"content": "x"}], "stop")
    for event in most:
        request.translation.translate_event(event)
        assert not request.translation.finished
    for event in (usage, done):
        request.translation.translate_event(event)
    assert request.translation.finished
