"""Requests of other APIs: their chat requests, and which of them only the engine can serve."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from adjourn.policies.compose import AnyOf
from adjourn.policies.stopping.budget import Budget
from adjourn.policies.stopping.convergence import Convergence
from adjourn.server.api.request import ParsedRequest, parse_translated
from adjourn.server.api.translated.engine_defaults import EngineDefaults
from adjourn.server.api.translated.messages import MessagesTranslation
from adjourn.server.api.translated.responses import ResponsesTranslation
from adjourn.server.config import Settings
from adjourn.server.errors import BadRequest
from tests.server.api.translated.translation_helpers import (
    EXAMPLE_RESPONSE,
    MESSAGES_REQUEST,
    RESPONSES_REQUEST,
)

DEFAULT_POLICY = Convergence(window=4)
MODELS: Mapping[str, Any] = {"m": None}
UNKNOWN_MERGING = EngineDefaults(None, EXAMPLE_RESPONSE, False, 100, None)
IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
PICTURE = {"type": "input_image", "image_url": "http://x/y.png"}
HISTORY = [
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "c"},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": "é"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "1"}]}
        ],
    },
]


def parse_request(
    api_request: dict[str, Any],
    engine_defaults: EngineDefaults = UNKNOWN_MERGING,
    settings: Settings | None = None,
    headers: dict[str, str] | None = None,
    **fields: Any,
) -> ParsedRequest:
    api = MessagesTranslation if "messages" in api_request else ResponsesTranslation
    body = json.dumps({"model": "m", **api_request, **fields}).encode()
    return parse_translated(
        body,
        headers or {},
        settings or Settings(),
        DEFAULT_POLICY,
        MODELS,
        lambda given: api(given, engine_defaults),
    )


def chat_fields(request: ParsedRequest) -> dict[str, Any]:
    """The decoded fields of the chat request."""
    assert request.ineligible_reason is None
    return {name: json.loads(bytes(value)) for name, value in request.fields.items()}


def test_messages_become_chat_messages() -> None:
    """Tool results come before the rest of their turn."""
    request = parse_request(
        MESSAGES_REQUEST, messages=HISTORY, system=[{"type": "text", "text": "S"}]
    )
    call = {"name": "f", "arguments": '{"x": "\\u00e9"}'}
    assert chat_fields(request)["messages"] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]},
        {
            "role": "assistant",
            "content": "c",
            "reasoning": "hm",
            "tool_calls": [{"id": "t1", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "1"},
    ]


@pytest.mark.parametrize(("merges", "roles"), [(True, "su"), (False, "usu"), (None, None)])
def test_an_inline_system_message_goes_where_the_engine_puts_it(
    merges: bool | None, roles: str | None
) -> None:
    """If that is unknown, the request is passed to the engine's own endpoint."""
    turns = [{"role": role, "content": "x"} for role in ("user", "system", "user")]
    request = parse_request(MESSAGES_REQUEST, EngineDefaults(merges), messages=turns)
    if roles is None:
        assert request.ineligible_reason == "inline-system"
    else:
        assert "".join(m["role"][0] for m in chat_fields(request)["messages"]).startswith(roles)


def test_consecutive_items_of_an_assistant_become_one_chat_message() -> None:
    """Its reasoning, its text and its calls."""
    items = [
        {"role": "user", "content": "x"},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c"}]},
        {"type": "function_call", "call_id": "t1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "t2", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "t1", "output": "1"},
        {"role": "assistant", "content": "d"},
        {"role": "assistant", "content": "e"},
    ]
    messages = chat_fields(parse_request(RESPONSES_REQUEST, input=items, instructions="S"))[
        "messages"
    ]
    assert [m["role"] for m in messages] == [
        *("system", "user", "assistant", "tool", "assistant", "assistant")
    ]
    turn = messages[2]
    assert (turn["reasoning"], turn["content"]) == ("hm", "c")
    assert [call["id"] for call in turn["tool_calls"]] == ["t1", "t2"]


def test_assistant_items_are_not_merged_into_the_instructions() -> None:
    """An input that begins with reasoning gets an assistant message for it."""
    items = [{"type": "reasoning", "id": "r", "summary": []}]
    messages = chat_fields(parse_request(RESPONSES_REQUEST, input=items, instructions="S"))[
        "messages"
    ]
    assert messages == [{"role": "system", "content": "S"}, {"role": "assistant", "reasoning": ""}]


@pytest.mark.parametrize("api_request", [MESSAGES_REQUEST, RESPONSES_REQUEST])
def test_unknown_fields_are_kept_in_the_chat_request(api_request: dict[str, Any]) -> None:
    """Only the gateway's own and the translated fields are removed."""
    request = parse_request(
        api_request, x_new={"a": [1.5]}, adjourn={"policy": "loop"}, metadata={"user_id": "u"}
    )
    fields = chat_fields(request)
    assert fields["x_new"] == {"a": [1.5]}
    assert {"adjourn", "metadata"}.isdisjoint(fields)
    assert request.policy is not None
    assert request.policy.name == "loop"


@pytest.mark.parametrize("api_request", [MESSAGES_REQUEST, RESPONSES_REQUEST])
def test_the_passthrough_body_is_the_clients(api_request: dict[str, Any]) -> None:
    """Byte for byte, unless it contains an alias or fields for the gateway."""
    body = json.dumps({"model": "m", "n": 2, **api_request}, indent=1).encode()
    api = MessagesTranslation if "messages" in api_request else ResponsesTranslation

    def parse_body(body: bytes) -> ParsedRequest:
        args = (body, {}, Settings(aliases={"o": "m"}), DEFAULT_POLICY, MODELS)
        return parse_translated(*args, lambda given: api(given, UNKNOWN_MERGING))

    request = parse_body(body)
    assert (request.ineligible_reason, request.passthrough_body) == ("foreign-field", body)
    aliased = json.loads(body) | {"model": "o", "adjourn": {"policy": "loop"}}
    request = parse_body(json.dumps(aliased).encode())
    assert request.passthrough_body is not None
    assert json.loads(request.passthrough_body) == json.loads(body)


@pytest.mark.parametrize(
    ("api_request", "fields", "reason"),
    [
        (MESSAGES_REQUEST, {"thinking": {"type": "disabled"}}, "no-thinking"),
        (MESSAGES_REQUEST, {"thinking": {"type": "enabled", "budget_tokens": 9}}, "unreadable"),
        (MESSAGES_REQUEST, {"messages": [{"role": "user", "content": [IMAGE]}]}, "not-text"),
        (
            MESSAGES_REQUEST,
            {"messages": [{"role": "user", "content": [{"type": "x"}]}]},
            "unknown-content",
        ),
        (MESSAGES_REQUEST, {"messages": [{"role": "user"}]}, "unreadable"),
        (MESSAGES_REQUEST, {"system": [{"type": "tool_addition"}]}, "tool-changes"),
        (MESSAGES_REQUEST, {"tools": [{"type": "web_search_20250305", "name": "w"}]}, "unreadable"),
        (MESSAGES_REQUEST, {"logprobs": True}, "foreign-field"),
        (MESSAGES_REQUEST, {"kv_transfer_params": {}}, "kv-transfer"),
        (
            RESPONSES_REQUEST,
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "not-text",
        ),
        (RESPONSES_REQUEST, {"tools": [{"type": "custom", "name": "x"}]}, "tools"),
        (RESPONSES_REQUEST, {"previous_response_id": "resp_1"}, "stored"),
        (RESPONSES_REQUEST, {"background": True}, "background"),
        (RESPONSES_REQUEST, {"enable_response_messages": True}, "raw-messages"),
        (RESPONSES_REQUEST, {"input": [{"type": "computer_call_output"}]}, "unknown-content"),
        (RESPONSES_REQUEST, {"text": {"format": {"type": "grammar"}}}, "unreadable"),
        (RESPONSES_REQUEST, {"n": 2}, "foreign-field"),
    ],
)
def test_requests_without_an_equivalent_chat_request_are_ineligible(
    api_request: dict[str, Any], fields: dict[str, Any], reason: str
) -> None:
    """They are passed to the engine's own endpoint, with a reason."""
    assert parse_request(api_request, **fields).ineligible_reason == reason


def test_stored_responses_are_left_to_an_engine_that_stores_them() -> None:
    """A response that was generated by a chat request could not be fetched again."""
    stores = EngineDefaults(None, EXAMPLE_RESPONSE, True, 100, None)
    assert parse_request(RESPONSES_REQUEST, stores).ineligible_reason == "stored"
    assert parse_request(RESPONSES_REQUEST, stores, store=False).ineligible_reason is None


def test_responses_are_ineligible_without_an_example_response() -> None:
    """The format of the engine's own responses is then unknown."""
    assert parse_request(RESPONSES_REQUEST, EngineDefaults()).ineligible_reason == "unexamined-api"


@pytest.mark.parametrize(
    ("api_request", "fields"),
    [
        (MESSAGES_REQUEST, {"output_config": {"effort": "high"}}),
        (RESPONSES_REQUEST, {"reasoning": {"effort": "high"}}),
    ],
)
def test_the_effort_adjusts_the_default_policy(
    api_request: dict[str, Any], fields: dict[str, Any]
) -> None:
    """From each API's own field; the engine gets the effort too."""
    request = parse_request(api_request, **fields)
    assert isinstance(request.policy, Convergence)
    assert request.policy.window == 8
    assert chat_fields(request)["reasoning_effort"] == "high"
    assert parse_request(api_request, adjourn={"policy": "never"}, **fields).policy.name == "never"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("api_request", "fields"),
    [
        (
            MESSAGES_REQUEST,
            {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000},
        ),
        (RESPONSES_REQUEST, {"reasoning": {"max_tokens": 1024}}),
    ],
)
def test_a_thinking_budget_limits_the_trace(
    api_request: dict[str, Any], fields: dict[str, Any]
) -> None:
    """It is added to the policy, in tokens of the trace."""
    request = parse_request(api_request, **fields)
    assert isinstance(request.policy, AnyOf)
    assert request.policy.policies[1] == Budget(max=960, grace=64)


@pytest.mark.parametrize("api_request", [MESSAGES_REQUEST, RESPONSES_REQUEST])
def test_requests_of_a_conversation_have_the_same_id(api_request: dict[str, Any]) -> None:
    """The client's own id from the header or the body, else its user and the first message."""
    user, other = {"metadata": {"user_id": "u"}}, {"metadata": {"user_id": "v"}}
    assert (
        parse_request(api_request, **user).conversation_id
        == parse_request(api_request, temperature=1, **user).conversation_id
    )
    assert (
        parse_request(api_request, **user).conversation_id
        != parse_request(api_request, **other).conversation_id
    )
    headers = {"x-claude-code-session-id": "s"}
    assert parse_request(api_request, headers=headers).conversation_id == "s"
    named = {"prompt_cache_key": "k"}
    assert (
        parse_request(api_request, **user, **named).conversation_id
        == parse_request(api_request, **other, **named).conversation_id
    )


@pytest.mark.parametrize("api_request", [MESSAGES_REQUEST, RESPONSES_REQUEST])
@pytest.mark.parametrize("wrong", [{"stream": "yes"}, {"adjourn": {"policy": "nope"}}])
def test_wrong_fields_of_the_gateway_are_bad_requests(
    api_request: dict[str, Any], wrong: dict[str, Any]
) -> None:
    """These are the fields that the gateway itself decodes."""
    with pytest.raises(BadRequest):
        parse_request(api_request, **wrong)
