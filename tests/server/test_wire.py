"""What the gateway reads of a chunk, and what it edits in its bytes: that, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from server.wire import (
    Chunk,
    Renamer,
    decode_chunk,
    event_of,
    given,
    hide_ids,
    is_padding,
    with_key,
    without_reasoning,
)

_IDS = st.lists(st.integers(0, 10**6), max_size=4)
_TRICKY = st.text(max_size=12) | st.sampled_from(
    ['"token_ids":[1]', '\\"token_ids":[', '"delta":{}', '],"x":[', '"id":"b"', "]", "\\"]
)


def encoded(chunk: Any) -> bytes:
    """As vLLM writes it: no spaces, text beyond ASCII as it is."""
    return json.dumps(chunk, separators=(",", ":"), ensure_ascii=False).encode()


def chunk_of(delta: dict[str, Any], **choice: Any) -> dict[str, Any]:
    return {
        "id": "a",
        "object": "chat.completion.chunk",
        "created": 5,
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": None, **choice}],
    }


def read(chunk: dict[str, Any]) -> Chunk:
    return decode_chunk(encoded(chunk))


# -- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ({"reasoning": "so"}, "so"),
        ({"reasoning_content": "so"}, "so"),
        ({"reasoning": "", "reasoning_content": "so"}, "so"),
        ({"reasoning": None, "content": "x"}, ""),
        ({}, ""),
    ],
)
def test_the_thought_goes_by_two_names(delta: dict[str, Any], expected: str) -> None:
    """Engines call it ``reasoning`` or ``reasoning_content``."""
    assert read(chunk_of(delta)).choices[0].delta.thought == expected


def test_what_is_not_known_does_not_matter() -> None:
    """Fields of tomorrow are no error."""
    chunk = chunk_of({"content": "x", "mood": {"a": [1]}}, token_ids=[1], novelty=[{}])
    read_ = read(chunk | {"system_fingerprint": "f", "usage": None, "metrics": {}})
    assert (read_.choices[0].delta.content, read_.choices[0].token_ids) == ("x", [1])


def test_a_usage_chunk_has_no_choices() -> None:
    """Trap 11: an empty ``choices`` list is no error, nor is a finish reason that is missing."""
    chunk = decode_chunk(b'{"id":"a","choices":[],"usage":{"prompt_tokens":3}}')
    assert (chunk.choices, chunk.usage) == ([], {"prompt_tokens": 3})
    assert decode_chunk(b'{"choices":[{"delta":{}}]}').choices[0].finish_reason is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"choices":5}', b'{"choices":[{"delta":5}]}'])
def test_what_is_no_chunk_is_said_to_be_none(data: bytes) -> None:
    """One kind of error, whatever is wrong."""
    with pytest.raises(msgspec.MsgspecError):
        decode_chunk(data)


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ({}, False),
        ({"tool_calls": None}, False),
        ({"tool_calls": []}, False),
        ({"tool_calls": [{"index": 0}]}, True),
    ],
)
def test_a_tool_call_is_seen(delta: dict[str, Any], expected: bool) -> None:
    """An empty list of calls is none."""
    assert given(read(chunk_of(delta)).choices[0].delta.tool_calls) is expected


# -- hiding ids --------------------------------------------------------------------------------


@for_all(_TRICKY, _IDS)
def test_only_the_ids_are_hidden(text: str, ids: list[int]) -> None:
    """Whatever the text says, what comes out is the chunk with null where the ids were."""
    chunk = chunk_of({"content": text}, token_ids=ids)
    expected = chunk_of({"content": text}, token_ids=None)
    assert hide_ids(event_of(encoded(chunk))) == event_of(encoded(expected))


@for_all(_TRICKY, _IDS)
def test_the_prompts_ids_are_hidden(text: str, ids: list[int]) -> None:
    """The first chunk's, by their own key; the choice's stay."""
    chunk = chunk_of({"content": text}, token_ids=[7])
    event = event_of(encoded(chunk | {"prompt_token_ids": ids}))
    expected = event_of(encoded(chunk | {"prompt_token_ids": None}))
    assert hide_ids(event, b'"prompt_token_ids":[') == expected


@for_all(_TRICKY)
def test_without_ids_nothing_changes(text: str) -> None:
    """A chunk that has none is the same bytes, however much its text looks like ids."""
    event = event_of(encoded(chunk_of({"content": text, "role": text})))
    assert hide_ids(event) == event


@pytest.mark.parametrize(
    ("delta", "choice", "expected"),
    [
        ({}, {}, True),
        ({}, {"logprobs": None}, True),
        ({}, {"logprobs": {"content": []}}, False),
        ({}, {"finish_reason": "stop"}, False),
        ({"content": ""}, {}, False),
        ({"content": '"delta":{}'}, {}, False),
        ({"reasoning": "x"}, {}, False),
    ],
)
def test_padding(delta: dict[str, Any], choice: dict[str, Any], expected: bool) -> None:
    """A chunk that holds ids and nothing else would not have come without them."""
    chunk = chunk_of(delta, token_ids=[1], **choice)
    assert is_padding(event_of(encoded(chunk)), read(chunk).choices[0]) is expected


# -- adding and taking -------------------------------------------------------------------------


@for_all(st.dictionaries(st.text(max_size=4), st.integers() | _TRICKY, min_size=1, max_size=3))
def test_a_key_is_added_at_the_end(chunk: dict[str, Any]) -> None:
    """The bytes before it stay as they were."""
    data, note = encoded(chunk), {"stopped": True, "reason": 'a"b'}
    longer = with_key(data + b" \n", "adjourn", note)
    assert longer.startswith(data[:-1])
    assert json.loads(longer) == {**chunk, "adjourn": note}


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_a_client_that_wants_no_reasoning(key: str) -> None:
    """A chunk of nothing else does not come; of more, the rest does, without ids."""
    assert without_reasoning(encoded(chunk_of({key: "so"}, token_ids=[1]))) is None
    shown = without_reasoning(encoded(chunk_of({key: "so", "content": "7"}, token_ids=[1])))
    expected = chunk_of({"content": "7"}, token_ids=None, logprobs=None)
    assert json.loads(shown or b"") == expected


def test_the_last_chunk_comes_in_any_case() -> None:
    """A finish reason is for every client."""
    shown = without_reasoning(encoded(chunk_of({"reasoning": "so"}, finish_reason="length")))
    assert json.loads(shown or b"")["choices"][0]["finish_reason"] == "length"


def test_an_answer_is_not_touched() -> None:
    """What holds no reasoning comes as it was."""
    chunk = chunk_of({"content": "7"}, logprobs=None)
    assert json.loads(without_reasoning(encoded(chunk)) or b"") == chunk


# -- one response of two -----------------------------------------------------------------------


@for_all(_TRICKY)
def test_the_second_stream_bears_the_firsts_name(text: str) -> None:
    """Id and time are the first's; a text that spells the second's id is left alone."""
    first, second = Chunk(id="a", created=5), Chunk(id="b", created=6)
    chunk = chunk_of({"content": text, "tool_calls": [{"id": "b"}]}) | {"id": "b", "created": 6}
    renamed = Renamer(first, second)(event_of(encoded(chunk)))
    assert renamed == event_of(encoded(chunk | {"id": "a", "created": 5}))


def test_an_error_event_has_no_name_to_change() -> None:
    """What does not bear the second's id goes through."""
    event = b'data: {"error":{"message":"x","id":"c"}}\n\n'
    assert Renamer(Chunk(id="a"), Chunk(id="b"))(event) == event
