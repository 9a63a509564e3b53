"""A request of another API is read: what a chat is asked for, and what only the engine can do."""

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
from tests.server.api.translated.test_events import (
    EXAMPLE_RESPONSE,
    MESSAGES_REQUEST,
    RESPONSES_REQUEST,
)

DEFAULT = Convergence(window=4)
MODELS: Mapping[str, Any] = {"m": None}
UNKNOWN = EngineDefaults(None, EXAMPLE_RESPONSE, False, 100, None)
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


def read(
    own: dict[str, Any],
    habits: EngineDefaults = UNKNOWN,
    settings: Settings | None = None,
    headers: dict[str, str] | None = None,
    **fields: Any,
) -> ParsedRequest:
    api = MessagesTranslation if "messages" in own else ResponsesTranslation
    body = json.dumps({"model": "m", **own, **fields}).encode()
    return parse_translated(
        body,
        headers or {},
        settings or Settings(),
        DEFAULT,
        MODELS,
        lambda given: api(given, habits),
    )


def chat(asked: ParsedRequest) -> dict[str, Any]:
    assert asked.ineligible_reason is None
    return {name: json.loads(bytes(value)) for name, value in asked.fields.items()}


def test_messages_as_a_chat() -> None:
    """Blocks become what a chat has for them; the results of tools stand before what is said."""
    asked = read(MESSAGES_REQUEST, messages=HISTORY, system=[{"type": "text", "text": "S"}])
    call = {"name": "f", "arguments": '{"x": "\\u00e9"}'}
    assert chat(asked)["messages"] == [
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
def test_a_system_prompt_among_the_messages(merges: bool | None, roles: str | None) -> None:
    """Where the engine puts it; where that is not known, the engine does it."""
    turns = [{"role": role, "content": "x"} for role in ("user", "system", "user")]
    asked = read(MESSAGES_REQUEST, EngineDefaults(merges), messages=turns)
    if roles is None:
        assert asked.ineligible_reason == "inline-system"
    else:
        assert "".join(m["role"][0] for m in chat(asked)["messages"]).startswith(roles)


def test_an_input_as_a_chat() -> None:
    """What an assistant thinks, says and calls in a row is one turn of it."""
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
    told = chat(read(RESPONSES_REQUEST, input=items, instructions="S"))["messages"]
    assert [m["role"] for m in told] == [
        *("system", "user", "assistant", "tool", "assistant", "assistant")
    ]
    turn = told[2]
    assert (turn["reasoning"], turn["content"]) == ("hm", "c")
    assert [call["id"] for call in turn["tool_calls"]] == ["t1", "t2"]


def test_an_instruction_is_no_turn_to_add_to() -> None:
    """An input that begins with what an assistant thought has a turn for it."""
    items = [{"type": "reasoning", "id": "r", "summary": []}]
    told = chat(read(RESPONSES_REQUEST, input=items, instructions="S"))["messages"]
    assert told == [{"role": "system", "content": "S"}, {"role": "assistant", "reasoning": ""}]


@pytest.mark.parametrize("own", [MESSAGES_REQUEST, RESPONSES_REQUEST])
def test_fields_that_nobody_knows_go_on(own: dict[str, Any]) -> None:
    """To the chat, as the bytes they were written in; less what is for the gateway."""
    asked = read(own, x_new={"a": [1.5]}, adjourn={"policy": "loop"}, metadata={"user_id": "u"})
    fields = chat(asked)
    assert fields["x_new"] == {"a": [1.5]}
    assert {"adjourn", "metadata"}.isdisjoint(fields)
    assert asked.policy is not None
    assert asked.policy.name == "loop"


@pytest.mark.parametrize("own", [MESSAGES_REQUEST, RESPONSES_REQUEST])
def test_what_is_handed_through_is_what_came(own: dict[str, Any]) -> None:
    """Byte for byte, unless there is something in it for the gateway."""
    body = json.dumps({"model": "m", "n": 2, **own}, indent=1).encode()
    api = MessagesTranslation if "messages" in own else ResponsesTranslation

    def read_it(body: bytes) -> ParsedRequest:
        args = (body, {}, Settings(aliases={"o": "m"}), DEFAULT, MODELS)
        return parse_translated(*args, lambda given: api(given, UNKNOWN))

    asked = read_it(body)
    assert (asked.ineligible_reason, asked.passthrough_body) == ("foreign-field", body)
    aliased = json.loads(body) | {"model": "o", "adjourn": {"policy": "loop"}}
    asked = read_it(json.dumps(aliased).encode())
    assert asked.passthrough_body is not None
    assert json.loads(asked.passthrough_body) == json.loads(body)


@pytest.mark.parametrize(
    ("own", "fields", "reason"),
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
def test_what_a_chat_cannot_be_asked_for(
    own: dict[str, Any], fields: dict[str, Any], reason: str
) -> None:
    """It is the engine's, and the reason is told."""
    assert read(own, **fields).ineligible_reason == reason


def test_an_engine_that_stores() -> None:
    """A response that was drawn by a chat would not be there when it is asked for again."""
    stores = EngineDefaults(None, EXAMPLE_RESPONSE, True, 100, None)
    assert read(RESPONSES_REQUEST, stores).ineligible_reason == "stored"
    assert read(RESPONSES_REQUEST, stores, store=False).ineligible_reason is None


def test_an_engine_that_showed_no_response() -> None:
    """What its own would look like is not known."""
    assert read(RESPONSES_REQUEST, EngineDefaults()).ineligible_reason == "unexamined-api"


@pytest.mark.parametrize(
    ("own", "fields"),
    [
        (MESSAGES_REQUEST, {"output_config": {"effort": "high"}}),
        (RESPONSES_REQUEST, {"reasoning": {"effort": "high"}}),
    ],
)
def test_an_effort_turns_the_policy(own: dict[str, Any], fields: dict[str, Any]) -> None:
    """The dial, under each API's own name for it; the engine gets it too."""
    asked = read(own, **fields)
    assert isinstance(asked.policy, Convergence)
    assert asked.policy.window == 8
    assert chat(asked)["reasoning_effort"] == "high"
    assert read(own, adjourn={"policy": "never"}, **fields).policy.name == "never"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("own", "fields"),
    [
        (
            MESSAGES_REQUEST,
            {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000},
        ),
        (RESPONSES_REQUEST, {"reasoning": {"max_tokens": 1024}}),
    ],
)
def test_a_budget_is_a_ceiling(own: dict[str, Any], fields: dict[str, Any]) -> None:
    """Beside the policy, in tokens of the trace."""
    asked = read(own, **fields)
    assert isinstance(asked.policy, AnyOf)
    assert asked.policy.policies[1] == Budget(max=960, grace=64)


@pytest.mark.parametrize("own", [MESSAGES_REQUEST, RESPONSES_REQUEST])
def test_a_conversation_has_one_key(own: dict[str, Any]) -> None:
    """The client's own id, wherever it stands; else its user and how it all began."""
    user, other = {"metadata": {"user_id": "u"}}, {"metadata": {"user_id": "v"}}
    assert read(own, **user).conversation_id == read(own, temperature=1, **user).conversation_id
    assert read(own, **user).conversation_id != read(own, **other).conversation_id
    headers = {"x-claude-code-session-id": "s"}
    assert read(own, headers=headers).conversation_id == "s"
    named = {"prompt_cache_key": "k"}
    assert read(own, **user, **named).conversation_id == read(own, **other, **named).conversation_id


@pytest.mark.parametrize("own", [MESSAGES_REQUEST, RESPONSES_REQUEST])
@pytest.mark.parametrize("wrong", [{"stream": "yes"}, {"adjourn": {"policy": "nope"}}])
def test_what_is_the_clients_error(own: dict[str, Any], wrong: dict[str, Any]) -> None:
    """What the gateway itself must understand."""
    with pytest.raises(BadRequest):
        read(own, **wrong)
