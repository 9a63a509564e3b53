"""Parsing a chat request: decoded fields, bad bodies, ineligible requests, conversation ids."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.server.api.request import parse_chat
from adjourn.server.config import Settings
from adjourn.server.errors import BadRequest
from tests.server.api.request_helpers import (
    DEFAULT_POLICY,
    MODELS,
    USER_MESSAGE,
    parse_request,
)


def test_fields_keep_their_bytes() -> None:
    """Even unknown or oddly spaced ones. Only ``adjourn`` is removed."""
    body = (
        b'{ "model":"m", "messages":[{"role":"user","content":"\\u00e9"}] ,"x_new":{"a" : [1.50]},'
        b'"adjourn":{"policy":"loop"},"temperature":1e0}'
    )
    fields = parse_chat(body, {}, Settings(), DEFAULT_POLICY, MODELS).fields
    assert {name: bytes(value) for name, value in fields.items()} == {
        "model": b'"m"',
        "messages": b'[{"role":"user","content":"\\u00e9"}]',
        "x_new": b'{"a" : [1.50]}',
        "temperature": b"1e0",
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (False, False, True, False, None)),
        ({"stream": True}, (True, False, True, False, None)),
        ({"stream": None}, (False, False, True, False, None)),
        ({"stream_options": {"include_usage": True}}, (False, True, True, False, None)),
        ({"stream_options": None}, (False, False, True, False, None)),
        ({"include_reasoning": False}, (False, False, False, False, None)),
        ({"return_token_ids": True}, (False, False, True, True, None)),
        ({"max_tokens": 5}, (False, False, True, False, 5)),
        ({"max_tokens": 5, "max_completion_tokens": 6}, (False, False, True, False, 6)),
    ],
)
def test_a_null_field_counts_as_absent(fields: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """For all fields that change what the gateway does."""
    request = parse_request(**fields)
    values = (
        request.stream,
        request.include_usage,
        request.include_reasoning,
        request.return_token_ids,
        request.token_limit,
    )
    assert values == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 5}, "model"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [5]}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages"),
        ({"stream": "yes"}, "stream"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"stream_options": {"include_usage": 5}}, "stream_options"),
        ({"adjourn": "deer"}, "adjourn"),
    ],
)
def test_the_error_for_a_wrong_type_names_the_field(fields: dict[str, Any], param: str) -> None:
    """In the message and in ``param``."""
    with pytest.raises(BadRequest) as caught:
        parse_request(**fields)
    assert (caught.value.param or "").startswith(param)
    assert param in caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"5",
        b"[]",
        b"{",
        b'{"model":"m"}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}]} trailing',
        b'\xff{"model":"m"}',
        b'{"model":"\xff","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\xff\xfe"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"m","messages":[{"role":"user","content":' + b"[" * 9999 + b"]" * 9999 + b"}]}",
        b'{"model":"m","x":' + b"[" * 9999 + b"]" * 9999 + b',"messages":[]}',
        b'{"model":"m","adjourn":' + b'{"a":' * 9999 + b"1" + b"}" * 9999 + b',"messages":[]}',
        b"[" * 9999,
    ],
    ids=range(15),
)
def test_a_body_that_cannot_be_decoded_is_a_bad_request(body: bytes) -> None:
    """However it is broken, it raises no other error."""
    with pytest.raises(BadRequest):
        parse_chat(body, {}, Settings(), DEFAULT_POLICY, MODELS)


@pytest.mark.parametrize(
    ("choice", "content"),
    [
        (None, None),
        ("auto", None),
        ("none", None),
        ("required", ""),
        ({"type": "function", "function": {"name": "judge"}}, ""),
    ],
)
def test_missing_content_is_written_as_in_vllm(choice: Any, content: str | None) -> None:
    """It is an empty string if a tool call was required, else null."""
    assert parse_request(tool_choice=choice).empty_content == content


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
_NAMES = ["model", "messages", "stream", "n", "adjourn", "max_tokens", "stream_options", "other"]


@given(st.dictionaries(st.sampled_from(_NAMES), _JSON), st.booleans())
def test_any_body_is_a_request_or_a_bad_request(fields: dict[str, Any], valid: bool) -> None:
    """Parsing raises no other error."""
    base = {"model": "m", "messages": [USER_MESSAGE]} if valid else {}
    try:
        request = parse_chat(
            json.dumps(base | fields).encode(), {}, Settings(), DEFAULT_POLICY, MODELS
        )
    except BadRequest as error:
        message = json.loads(error.body)["error"]["message"]
    else:
        message = "no error"
        assert "adjourn" not in request.fields
    assert message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"n": 1}, None),
        ({"n": 2}, None),
        ({"n": 2, "temperature": 0}, "several-choices"),
        ({"n": 129}, "several-choices"),
        ({"n": -1}, "several-choices"),
        ({"use_beam_search": True}, "beam-search"),
        ({"echo": True}, "echo"),
        ({"kv_transfer_params": {}}, "kv-transfer"),
        ({"stream_options": {"continuous_usage_stats": True}}, None),
        ({"stop": ["END"]}, None),
        ({"stop": [*"abcd"]}, None),
        ({"stop": [*"abcde"]}, "stop-strings"),
        ({"stop": ["END", ""]}, "stop-strings"),
        ({"stop": ""}, "stop-strings"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, None),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not-text"),
        ({"messages": [USER_MESSAGE, {"role": "user", "content": ["x"]}]}, "not-text"),
        ({"messages": [{"role": "assistant", "content": None}]}, None),
    ],
)
def test_requests_that_cannot_be_cut_safely_are_ineligible(
    fields: dict[str, Any], expected: str | None
) -> None:
    """They are passed through, with a reason."""
    assert parse_request(**fields).ineligible_reason == expected


@pytest.mark.parametrize(
    ("mode", "stop", "expected"),
    [
        ("enforce", "END", "stop-strings"),
        ("enforce", [], None),
        ("observe", "END", None),
        ("observe", "", "stop-strings"),
    ],
)
def test_stop_strings_that_apply_to_the_trace_make_a_request_ineligible(
    mode: str, stop: Any, expected: str | None
) -> None:
    """The engine then delays text, so that a trace cannot be cut exactly."""
    settings = Settings(stop_in_answer=False, mode=mode)
    assert parse_request(settings=settings, stop=stop).ineligible_reason == expected


def test_requests_with_the_same_first_user_message_are_one_conversation() -> None:
    """Later turns and the system prompt make no difference."""
    later = [
        USER_MESSAGE,
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "Sure?"},
    ]
    assert parse_request(messages=later).conversation_id == parse_request().conversation_id
    system = [{"role": "system", "content": "Be brief."}, USER_MESSAGE]
    assert parse_request(messages=system).conversation_id == parse_request().conversation_id


def test_another_first_message_is_another_conversation() -> None:
    """Even if one character differs."""
    other = [{"role": "user", "content": "How many ?"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "How many?"}]}]
    ids = {
        parse_request().conversation_id,
        *(parse_request(messages=m).conversation_id for m in (other, parts)),
    }
    assert len(ids) == 3


def test_a_session_header_is_the_conversation_id() -> None:
    """It is used unchanged."""
    assert parse_request({"x-session-id": "s1"}).conversation_id == "s1"


@pytest.mark.parametrize(
    "fields",
    [
        {"session_id": "s1"},
        {"conversation": "c1"},
        {"conversation": {"id": "c1"}},
        {"metadata": {"conversation_id": "c1"}},
        {"metadata": {"session_id": "c1"}},
        {"metadata": {"thread_id": "c1"}},
        {"prompt_cache_key": "k"},
    ],
)
def test_an_id_in_the_body_identifies_the_conversation(fields: dict[str, Any]) -> None:
    """Whatever the first message is; the conversation id is valid in a header."""
    other = [{"role": "user", "content": "Something else"}]
    one, two = parse_request(**fields), parse_request(messages=other, **fields)
    assert one.conversation_id == two.conversation_id != parse_request().conversation_id
    assert one.conversation_id.isalnum()


def test_a_user_is_not_a_conversation() -> None:
    """Requests of one user with different first messages are different conversations."""
    other = [{"role": "user", "content": "Something else"}]
    ids = {
        parse_request().conversation_id,
        parse_request(user="u").conversation_id,
        parse_request(metadata={"user_id": "v"}).conversation_id,
        parse_request(user="u", messages=other).conversation_id,
    }
    assert len(ids) == 4


@pytest.mark.parametrize("name", ["x-session-id", "x-conversation-id", "x-claude-code-session-id"])
def test_a_session_header_takes_precedence_over_the_body(name: str) -> None:
    """For each of the header names that clients use."""
    assert parse_request({name: "h1"}, session_id="s1").conversation_id == "h1"


@pytest.mark.parametrize("odd", [5, [], {"a": [1]}, True])
def test_an_id_of_any_type_is_accepted(odd: Any) -> None:
    """The engine decides whether to refuse it."""
    parse_request(session_id=odd, conversation=odd, metadata=odd, user=odd, prompt_cache_key=odd)


def test_other_headers_are_ignored() -> None:
    """They do not affect the policy."""
    headers = {"content-type": "application/json", "x-stainless-lang": "python"}
    assert parse_request(headers).policy == DEFAULT_POLICY


def test_the_fields_encode_to_a_body() -> None:
    """Without ``adjourn``."""
    body = msgspec.json.encode(parse_request(adjourn={"policy": "loop"}, seed=4).fields)
    assert json.loads(body) == {"model": "m", "messages": [USER_MESSAGE], "seed": 4}
