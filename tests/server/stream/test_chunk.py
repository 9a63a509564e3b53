"""What the gateway reads of a chunk, and the edits in its bytes: those and no others."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from adjourn.server.stream.chunk import (
    Chunk,
    IdRewriter,
    build_reasoning_chunk,
    decode_chunk,
    encode_event,
    has_only_token_ids,
    has_value,
    hide_ids,
    top_logprobs,
    trim_logprobs,
    with_key,
    with_logit_bias,
    without_reasoning,
)

_IDS = st.lists(st.integers(0, 10**6), max_size=4)
_TRICKY = st.text(max_size=12) | st.sampled_from(
    ['"token_ids":[1]', '\\"token_ids":[', '"delta":{}', '],"x":[', '"id":"b"', "]", "\\"]
)


def encoded(chunk: Any) -> bytes:
    """As vLLM writes it: no spaces, non-ASCII text unescaped."""
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
def test_reasoning_has_two_names(delta: dict[str, Any], expected: str) -> None:
    """Engines call it ``reasoning`` or ``reasoning_content``."""
    assert read(chunk_of(delta)).choices[0].delta.reasoning_text == expected


def test_unknown_fields_are_ignored() -> None:
    """Fields of later versions are no error."""
    chunk = chunk_of({"content": "x", "mood": {"a": [1]}}, token_ids=[1], novelty=[{}])
    read_ = read(chunk | {"system_fingerprint": "f", "usage": None, "metrics": {}})
    assert (read_.choices[0].delta.content, read_.choices[0].token_ids) == ("x", [1])


def test_a_usage_chunk_has_no_choices() -> None:
    """Trap 11: an empty ``choices`` list or a missing finish reason is no error."""
    chunk = decode_chunk(b'{"id":"a","choices":[],"usage":{"prompt_tokens":3}}')
    assert (chunk.choices, chunk.usage) == ([], {"prompt_tokens": 3})
    assert decode_chunk(b'{"choices":[{"delta":{}}]}').choices[0].finish_reason is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"choices":5}', b'{"choices":[{"delta":5}]}'])
def test_invalid_chunks_raise_one_kind_of_error(data: bytes) -> None:
    """Whatever is wrong."""
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
    """An empty list of calls does not count."""
    assert has_value(read(chunk_of(delta)).choices[0].delta.tool_calls) is expected


@for_all(_TRICKY, _IDS)
def test_only_the_ids_are_hidden(text: str, ids: list[int]) -> None:
    """Whatever the text contains, only the ids become null."""
    chunk = chunk_of({"content": text}, token_ids=ids)
    expected = chunk_of({"content": text}, token_ids=None)
    assert hide_ids(encode_event(encoded(chunk))) == encode_event(encoded(expected))


@for_all(_TRICKY, _IDS)
def test_the_prompts_ids_are_hidden(text: str, ids: list[int]) -> None:
    """By their own key in the first chunk; the choice's ids stay."""
    chunk = chunk_of({"content": text}, token_ids=[7])
    event = encode_event(encoded(chunk | {"prompt_token_ids": ids}))
    expected = encode_event(encoded(chunk | {"prompt_token_ids": None}))
    assert hide_ids(event, b'"prompt_token_ids":[') == expected


@for_all(_TRICKY)
def test_without_ids_nothing_changes(text: str) -> None:
    """A chunk without ids keeps its bytes, even if its text looks like ids."""
    event = encode_event(encoded(chunk_of({"content": text, "role": text})))
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
def test_chunks_with_token_ids_only(
    delta: dict[str, Any], choice: dict[str, Any], expected: bool
) -> None:
    """The engine sends them only because ids were requested."""
    chunk = chunk_of(delta, token_ids=[1], **choice)
    assert has_only_token_ids(encode_event(encoded(chunk)), read(chunk).choices[0]) is expected


@for_all(st.dictionaries(st.text(max_size=4), st.integers() | _TRICKY, min_size=1, max_size=3))
def test_a_key_is_added_at_the_end(chunk: dict[str, Any]) -> None:
    """The bytes before it stay the same."""
    data, note = encoded(chunk), {"stopped": True, "reason": 'a"b'}
    longer = with_key(data + b" \n", "adjourn", note)
    assert longer.startswith(data[:-1])
    assert json.loads(longer) == {**chunk, "adjourn": note}


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_a_client_that_wants_no_reasoning(key: str) -> None:
    """A chunk of reasoning only is dropped; of others the rest is sent, without ids."""
    assert without_reasoning(encoded(chunk_of({key: "so"}, token_ids=[1]))) is None
    shown = without_reasoning(encoded(chunk_of({key: "so", "content": "7"}, token_ids=[1])))
    expected = chunk_of({"content": "7"}, token_ids=None, logprobs=None)
    assert json.loads(shown or b"") == expected


def test_a_finish_reason_is_always_sent() -> None:
    """Every client gets it."""
    shown = without_reasoning(encoded(chunk_of({"reasoning": "so"}, finish_reason="length")))
    assert json.loads(shown or b"")["choices"][0]["finish_reason"] == "length"


def test_an_answer_is_unchanged() -> None:
    """A chunk without reasoning keeps its content."""
    chunk = chunk_of({"content": "7"}, logprobs=None)
    assert json.loads(without_reasoning(encoded(chunk)) or b"") == chunk


@for_all(_TRICKY)
def test_the_second_stream_gets_the_firsts_id(text: str) -> None:
    """And its time; a text that contains the second's id is unchanged."""
    first, second = Chunk(id="a", created=5), Chunk(id="b", created=6)
    chunk = chunk_of({"content": text, "tool_calls": [{"id": "b"}]}) | {"id": "b", "created": 6}
    renamed = IdRewriter(first, second)(encode_event(encoded(chunk)))
    assert renamed == encode_event(encoded(chunk | {"id": "a", "created": 5}))


def test_events_without_the_id_are_unchanged() -> None:
    """For example an error event."""
    event = b'data: {"error":{"message":"x","id":"c"}}\n\n'
    assert IdRewriter(Chunk(id="a"), Chunk(id="b"))(event) == event


def told(token: str, *logprobs: float) -> dict[str, Any]:
    """A token's entry as vLLM writes it: the sampled token, then the most probable ones."""
    tops = [{"token": f"{token}{n}", "logprob": p} for n, p in enumerate(logprobs)]
    return {"token": token, "logprob": logprobs[0] if logprobs else 0.0, "top_logprobs": tops}


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        (None, []),
        ({"content": None}, []),
        ({"content": [told("a", -2.0, -0.1), told("b")]}, [[-0.1, -2.0], []]),
    ],
)
def test_the_most_probable_come_first(logprobs: Any, expected: list[list[float]]) -> None:
    """One list per token; vLLM puts the sampled token before the most probable ones."""
    chunk = read(chunk_of({"reasoning": "a"}, logprobs=logprobs))
    assert top_logprobs(chunk.choices[0].logprobs) == expected


def test_missing_log_probabilities_are_empty() -> None:
    """While vLLM scores chosen tokens for another request, it tells of the token itself and writes
    -9999 for the rest; a rest that cannot come beside two that can is told."""
    tokens = [told("a", -1.5, -9999.0, -9999.0), told("b", -0.7, -0.7, -9999.0), told("c", -0.1)]
    chunk = read(chunk_of({"reasoning": "a"}, logprobs={"content": tokens}))
    assert top_logprobs(chunk.choices[0].logprobs) == [[], [-0.7, -0.7, -9999.0], [-0.1]]


@for_all(text=_TRICKY, logprobs=st.lists(st.floats(-30, 0), max_size=4))
def test_unrequested_log_probabilities_are_removed(text: str, logprobs: list[float]) -> None:
    """The client gets the chunk as it would have come without them, to the byte."""
    with_them = chunk_of({"reasoning": text}, logprobs={"content": [told(text, *logprobs)]})
    event = encode_event(encoded(with_them))
    choice = read(with_them).choices[0]
    plain = encode_event(encoded(chunk_of({"reasoning": text}, logprobs=None)))
    assert trim_logprobs(event, choice, None) == plain
    assert not has_value(choice.logprobs)


def test_log_probabilities_without_content() -> None:
    """Requested but empty log-probabilities stay as they are."""
    chunk = chunk_of({"reasoning": "x"}, logprobs={"content": None})
    event = encode_event(encoded(chunk))
    assert trim_logprobs(event, read(chunk).choices[0], 2) == event


@pytest.mark.parametrize("asked", [0, 1, 3])
def test_log_probabilities_are_trimmed_to_the_request(asked: int) -> None:
    """A client that requests fewer than the policy gets its own number; the rest is unchanged."""
    full = chunk_of({"reasoning": "x"}, logprobs={"content": [told("x", -0.1, -2.0, -3.0)]})
    mine = chunk_of({"reasoning": "x"}, logprobs={"content": [told("x", -0.1, -2.0, -3.0)]})
    del mine["choices"][0]["logprobs"]["content"][0]["top_logprobs"][asked:]
    event = trim_logprobs(encode_event(encoded(full)), read(full).choices[0], asked)
    assert event == encode_event(encoded(mine))


@for_all(text=_TRICKY)
def test_inserted_text_is_a_chunk_of_the_response(text: str) -> None:
    """With reasoning only, and ids if they were requested."""
    chunk = read(chunk_of({"role": "assistant"}))
    said = decode_chunk(build_reasoning_chunk(chunk, "m", text, (7, 8)))
    assert (said.id, said.created) == (chunk.id, chunk.created)
    assert (said.choices[0].delta.reasoning_text, said.choices[0].token_ids) == (text, [7, 8])
    assert not said.choices[0].delta.content
    assert (
        json.loads(build_reasoning_chunk(chunk, "m", text, None))["choices"][0]["token_ids"] is None
    )


@pytest.mark.parametrize(
    ("given_bias", "expected"),
    [
        (b"{}", {"2": 1.5}),
        (b"null", {"2": 1.5}),
        (b'{"2":-1,"7":3}', {"2": 0.5, "7": 3.0}),
        (b'{"2":99}', {"2": 100.0}),
        (b'{"x":"y"}', {"x": "y"}),
    ],
)
def test_a_bias_is_added_to_the_clients(given_bias: bytes, expected: dict[str, Any]) -> None:
    """An invalid bias is left for the engine to refuse."""
    assert json.loads(bytes(with_logit_bias(msgspec.Raw(given_bias), 2, 1.5))) == expected
