"""A chat request is read: what concerns the gateway, which policy judges it, what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.compose import AnyOf
from adjourn.policies.never import Never
from adjourn.policies.stopping.budget import Budget
from adjourn.policies.stopping.deer import Deer
from adjourn.policies.stopping.loop import Loop
from adjourn.server.api.request import ParsedRequest, parse_chat
from adjourn.server.config import Settings
from adjourn.server.errors import BadRequest

DEFAULT = Deer(gap=7)
MODELS: Mapping[str, Any] = {"m": None, "qwen3:8b": None}
USER = {"role": "user", "content": "How many?"}


def settings(**fields: Any) -> Settings:
    return Settings(**fields)


def read(
    headers: dict[str, str] | None = None,
    models: Mapping[str, Any] = MODELS,
    configured: Settings | None = None,
    **fields: Any,
) -> ParsedRequest:
    """A request with these fields, besides a model and a message."""
    body = json.dumps({"model": "m", "messages": [USER], **fields}).encode()
    return parse_chat(body, headers or {}, configured or settings(), DEFAULT, models)


# -- the body ----------------------------------------------------------------------------------


def test_the_body_goes_on_as_it_came() -> None:
    """Trap 11: every field keeps its bytes, unknown or oddly spaced; ours is taken out."""
    body = (
        b'{ "model":"m", "messages":[{"role":"user","content":"\\u00e9"}] ,"x_new":{"a" : [1.50]},'
        b'"adjourn":{"policy":"loop"},"temperature":1e0}'
    )
    fields = parse_chat(body, {}, settings(), DEFAULT, MODELS).fields
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
def test_what_is_read(fields: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """Trap 11: the fields that change what the gateway does, null as if they were absent."""
    asked = read(**fields)
    seen = (asked.stream, asked.include_usage, asked.include_reasoning, asked.return_token_ids)
    assert (*seen, asked.token_limit) == expected


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
def test_a_wrong_type_is_named(fields: dict[str, Any], param: str) -> None:
    """The message and ``param`` say where."""
    with pytest.raises(BadRequest) as caught:
        read(**fields)
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
def test_no_body_is_worse_than_bad(body: bytes) -> None:
    """What cannot be read, however it is broken, is the client's error and nothing else."""
    with pytest.raises(BadRequest):
        parse_chat(body, {}, settings(), DEFAULT, MODELS)


@pytest.mark.parametrize(
    ("choice", "silence"),
    [
        (None, None),
        ("auto", None),
        ("none", None),
        ("required", ""),
        ({"type": "function", "function": {"name": "judge"}}, ""),
    ],
)
def test_no_content_is_said_as_the_engine_says_it(choice: Any, silence: str | None) -> None:
    """Beside a tool that had to be called vLLM's content is an empty text, else null."""
    assert read(tool_choice=choice).empty_content == silence


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
_NAMES = ["model", "messages", "stream", "n", "adjourn", "max_tokens", "stream_options", "other"]


@given(st.dictionaries(st.sampled_from(_NAMES), _JSON), st.booleans())
def test_any_body_is_a_request_or_a_bad_one(fields: dict[str, Any], whole: bool) -> None:
    """Nothing else ever comes of reading one."""
    base = {"model": "m", "messages": [USER]} if whole else {}
    try:
        asked = parse_chat(json.dumps(base | fields).encode(), {}, settings(), DEFAULT, MODELS)
    except BadRequest as error:
        said = json.loads(error.body)["error"]
    else:
        said = {"message": "fine"}
        assert "adjourn" not in asked.fields
    assert said["message"]


# -- the policy --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "headers", "expected"),
    [
        ({}, {}, DEFAULT),
        ({"adjourn": {}}, {}, DEFAULT),
        ({"adjourn": None}, {}, DEFAULT),
        ({"adjourn": {"policy": "loop"}}, {}, Loop()),
        ({"adjourn": {"policy": "any_of(deer, loop)"}}, {}, AnyOf((Deer(), Loop()))),
        ({"adjourn": {"policy": "budget", "max": 9}}, {}, Budget(max=9)),
        ({"adjourn": {"policy": "budget(max=9)", "grace": 0}}, {}, Budget(max=9, grace=0)),
        ({"adjourn": {"policy": "off"}}, {}, None),
        ({}, {"x-adjourn-policy": "loop"}, Loop()),
        ({}, {"x-adjourn-policy": "off"}, None),
        ({"adjourn": {"policy": "never"}}, {"x-adjourn-policy": "loop"}, Never()),
        ({"adjourn": {"max": 9}}, {"x-adjourn-policy": "budget"}, Budget(max=9)),
        ({"model": "m:loop"}, {}, Loop()),
        ({"model": "m:off"}, {}, None),
        ({"model": "m:loop"}, {"x-adjourn-policy": "never"}, Never()),
        ({"model": "m:budget", "adjourn": {"max": 9}}, {}, Budget(max=9)),
        ({"adjourn": {"threshold": 0.9}}, {}, Deer(threshold=0.9)),
    ],
)
def test_who_chooses(fields: dict[str, Any], headers: dict[str, str], expected: Any) -> None:
    """The field, else the header, else the alias, else the server's default; options on top."""
    asked = read(headers, **fields)
    assert asked.policy == expected
    assert asked.model == "m"
    assert asked.always_summarize == bool(
        fields.get("adjourn") is not None or headers or "model" in fields
    )


@pytest.mark.parametrize("policy", [5, False, True, [], {}, ["deer"]])
def test_a_policy_is_named_by_a_text(policy: Any) -> None:
    """``false`` is not "off", and surely not the default."""
    with pytest.raises(BadRequest, match="text"):
        read(adjourn={"policy": policy})


@pytest.mark.parametrize(
    ("fields", "headers", "named"),
    [
        ({"adjourn": {"policy": "dear"}}, {}, "deer"),
        ({"adjourn": {"policy": "deer", "treshold": 1}}, {}, "threshold"),
        ({"adjourn": {"policy": "deer", "threshold": 3}}, {}, "between 0 and 1"),
        ({"adjourn": {"treshold": 1}}, {}, "threshold"),
        ({}, {"x-adjourn-policy": "dear"}, "deer"),
        ({}, {"x-adjourn-policy": "a" + "+a" * 900}, "deer"),
        ({"model": "m:dear"}, {}, "deer"),
    ],
)
def test_an_unknown_policy_is_told_the_valid(
    fields: dict[str, Any], headers: dict[str, str], named: str
) -> None:
    """A 400 that names what would have been right."""
    with pytest.raises(BadRequest, match=named) as caught:
        read(headers, **fields)
    assert (caught.value.status, caught.value.code) == (400, "bad_policy")


def test_options_without_a_policy_to_take_them() -> None:
    """Where the server's default is off, options alone mean nothing."""
    with pytest.raises(BadRequest, match="names no policy"):
        read(configured=settings(policy="off"), adjourn={"threshold": 0.9})


# -- the model ---------------------------------------------------------------------------------

ALIASES = {"fast": "m:loop", "plain": "m", "own:name": "m", "tall": "qwen3:8b:never"}


@pytest.mark.parametrize(
    ("named", "model", "policy"),
    [
        ("m", "m", DEFAULT),
        ("fast", "m", Loop()),
        ("plain", "m", DEFAULT),
        ("plain:loop", "m", Loop()),
        ("own:name", "m", DEFAULT),
        ("qwen3:8b", "qwen3:8b", DEFAULT),
        ("qwen3:8b:loop", "qwen3:8b", Loop()),
        ("tall", "qwen3:8b", Never()),
        ("nobody", "nobody", DEFAULT),
        ("nobody:loop", "nobody:loop", DEFAULT),
    ],
)
def test_aliases(named: str, model: str, policy: Any) -> None:
    """A name of the operator's, a model and a policy, a model's own name with a colon."""
    asked = read(model=named, configured=settings(aliases=ALIASES))
    assert (asked.model, asked.policy) == (model, policy)
    assert json.loads(bytes(asked.fields["model"])) == model


# -- what no policy may touch ------------------------------------------------------------------


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
        ({"messages": [USER, {"role": "user", "content": ["x"]}]}, "not-text"),
        ({"messages": [{"role": "assistant", "content": None}]}, None),
    ],
)
def test_untouchable(fields: dict[str, Any], expected: str | None) -> None:
    """What cannot be cut safely is handed through, by name."""
    assert read(**fields).ineligible_reason == expected


@pytest.mark.parametrize(
    ("mode", "stop", "expected"),
    [
        ("enforce", "END", "stop-strings"),
        ("enforce", [], None),
        ("observe", "END", None),
        ("observe", "", "stop-strings"),
    ],
)
def test_stop_strings_that_end_the_trace(mode: str, stop: Any, expected: str | None) -> None:
    """Where they may, text lags behind its tokens, so nothing can be cut exactly."""
    configured = settings(stop_in_answer=False, mode=mode)
    assert read(configured=configured, stop=stop).ineligible_reason == expected


# -- the conversation --------------------------------------------------------------------------


def test_a_conversation_keeps_its_arm() -> None:
    """Later requests of a conversation begin with the same user message."""
    later = [USER, {"role": "assistant", "content": "7"}, {"role": "user", "content": "Sure?"}]
    assert read(messages=later).conversation_id == read().conversation_id
    system = [{"role": "system", "content": "Be brief."}, USER]
    assert read(messages=system).conversation_id == read().conversation_id


def test_other_conversations_are_others() -> None:
    """Another first message is another conversation, to its last character."""
    other = [{"role": "user", "content": "How many ?"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "How many?"}]}]
    names = {read().conversation_id, *(read(messages=m).conversation_id for m in (other, parts))}
    assert len(names) == 3


def test_a_clients_own_id_goes_first() -> None:
    """Who names his conversation is believed."""
    assert read({"x-session-id": "s1"}).conversation_id == "s1"


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
def test_an_id_in_the_body(fields: dict[str, Any]) -> None:
    """It makes one conversation of what begins differently, and is fit for a header."""
    other = [{"role": "user", "content": "Something else"}]
    one, two = read(**fields), read(messages=other, **fields)
    assert one.conversation_id == two.conversation_id != read().conversation_id
    assert one.conversation_id.isalnum()


def test_a_user_is_no_conversation() -> None:
    """Who sends the same user with everything still has a conversation a question."""
    other = [{"role": "user", "content": "Something else"}]
    names = {
        read().conversation_id,
        read(user="u").conversation_id,
        read(metadata={"user_id": "v"}).conversation_id,
        read(user="u", messages=other).conversation_id,
    }
    assert len(names) == 4


@pytest.mark.parametrize("name", ["x-session-id", "x-conversation-id", "x-claude-code-session-id"])
def test_a_header_names_the_conversation(name: str) -> None:
    """It goes before what the body says."""
    assert read({name: "h1"}, session_id="s1").conversation_id == "h1"


@pytest.mark.parametrize("odd", [5, [], {"a": [1]}, True])
def test_an_odd_id_is_no_error(odd: Any) -> None:
    """Its type is the engine's affair."""
    read(session_id=odd, conversation=odd, metadata=odd, user=odd, prompt_cache_key=odd)


def test_a_header_that_is_no_ids() -> None:
    """A request keeps working with headers of every kind around."""
    headers = {"content-type": "application/json", "x-stainless-lang": "python"}
    assert read(headers).policy == DEFAULT


def test_the_fields_can_be_written_again() -> None:
    """What was read is a body again."""
    body = msgspec.json.encode(read(adjourn={"policy": "loop"}, seed=4).fields)
    assert json.loads(body) == {"model": "m", "messages": [USER], "seed": 4}
