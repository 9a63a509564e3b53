"""The policies that need no answer format, on a real vLLM, before answers of every form.

The model thinks one text, in which a program and a string stand, and answers as it is asked to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import count
from typing import Any

import httpx
import jsonschema
import pytest

from adjourn.policies.text.fences import FenceScanner
from benchmarks.services import free_port, start_gateway
from tests.engine.answer_formats import ANSWER_FORMATS, SENTENCE_PREFIXES, TOOL_CALLS, TRACE_TOKENS
from tests.engine.tiny_server import serve_tiny_model
from tests.gateway_client import CHAT, events, metric_value

pytestmark = pytest.mark.engine

KINDS = ("reasoning", "marker", "closing", "answer")
WHOLE = "".join(TRACE_TOKENS)
CALLS = [json.loads(call) for call in TOOL_CALLS]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "steps": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["name", "steps"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"to": {"type": "integer"}},
            "required": ["to"],
        },
    },
}
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "prose": ("prose", {}),
    "code": ("code", {}),
    "json_schema": (
        "json",
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "it", "schema": SCHEMA},
            }
        },
    ),
    "json_object": ("json", {"response_format": {"type": "json_object"}}),
    "tools": ("tools", {"tools": [TOOL]}),
    "tools_required": ("tools", {"tools": [TOOL], "tool_choice": "required"}),
}


CODE = next(place for place, end in enumerate(SENTENCE_PREFIXES) if end.endswith("```"))
POLICIES: dict[str, tuple[str, str, list[str]]] = {
    # Sure enough within the program, it waits for the end of it.
    "cusum": ("cusum(threshold=0.4500{:02}, min_tokens=0)", "sure", [SENTENCE_PREFIXES[CODE]]),
    "deviation": (
        "deviation(window=20, threshold=1.2000{:02}, min_tokens=0)",
        "deviating",
        ["".join(TRACE_TOKENS[: TRACE_TOKENS.index(" Hmm")]).rstrip()],
    ),
    "margin": ("margin(threshold=4.00{:02})", "narrow", SENTENCE_PREFIXES[CODE:]),
    "entropy": (
        "entropy(at='sentence', alpha=0.9, delta=0.01{:02})",
        "settled",
        SENTENCE_PREFIXES[4:],
    ),
}
"""What is asked for, why it stops, and the places at which it may: later ones where a probe took
its time. A number that makes no difference gives each request a price of its own."""
_fresh = count(1)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    flags = ("--enable-auto-tool-choice", "--tool-call-parser=hermes")
    with (
        serve_tiny_model("forms", tmp_path_factory.mktemp("forms"), *flags) as url,
        start_gateway(url, free_port(), "--policy", "never", "--hold-out", "0") as ours,
    ):
        yield ours


def ask(url: str, form: str, policy: str, **fields: Any) -> list[Any]:
    """The chunks of a stream, or the one document."""
    word, more = ASKED[form]
    body = {
        "model": "forms-tiny",
        "messages": [{"role": "user", "content": word}],
        "temperature": 0,
        "max_tokens": 300,
        "adjourn": {"policy": policy},
        "return_token_ids": True,
        **more,
        **fields,
    }
    if fields.get("stream"):
        body["stream_options"] = {"include_usage": True}
    reply = httpx.post(url + CHAT, json=body, timeout=120)
    assert reply.status_code == 200, reply.text
    if not fields.get("stream"):
        return [reply.json()]
    chunks = events(reply.content)
    assert chunks.pop() == "[DONE]"
    return chunks


def read(chunks: list[Any]) -> dict[str, Any]:
    """What a client makes of them."""
    made: dict[str, Any] = {"reasoning": "", "content": "", "calls": [], "logprobs": []}
    made["sizes"] = set()  # of a stream's chunks within the trace, in tokens
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        said = choice.get("delta") or choice.get("message") or {}
        for key in ("reasoning", "content"):
            made[key] += said.get(key) or ""
        if "delta" not in choice or said.get("reasoning"):
            made["sizes"].add(len(choice.get("token_ids") or ()))
        for place, call in enumerate(said.get("tool_calls") or ()):
            index = call.get("index", place)
            if index == len(made["calls"]):
                made["calls"].append({"name": "", "arguments": ""})
            for key in made["calls"][index]:
                made["calls"][index][key] += call["function"].get(key) or ""
        made["logprobs"] += (choice["logprobs"] or {}).get("content") or []
        made["finish"] = choice["finish_reason"] or made.get("finish")
    for call in made["calls"]:
        call["arguments"] = json.loads(call["arguments"])
    made |= {"usage": chunks[-1]["usage"], "note": chunks[-1]["adjourn"]}
    return made


def check_place(made: dict[str, Any], places: list[str]) -> None:
    """A stream whose tokens came one by one ends at one of the places; where a busy machine sent
    several at once a cut is made before them, but within no program and no string."""
    kept = made["reasoning"].rstrip()
    if made["sizes"] <= {1}:
        assert kept in places
    enclosures = FenceScanner()
    enclosures.feed(made["reasoning"], 0)
    assert not enclosures.is_open
    assert WHOLE.startswith(kept)


def run_policy(url: str, form: str, policy: str, **fields: Any) -> dict[str, Any]:
    """What comes of it under the policy. On a busy machine probes may not be worth their price for
    the length of a trace, or much of it comes in one piece, before which there is nothing to keep:
    then it is asked again."""
    for _ in range(4):
        made = read(ask(url, form, policy.format(next(_fresh)), **fields))
        if made["note"]["stopped"] and made["note"]["tokens"]["reasoning"]:
            break
    return made


@cache
def by_itself(url: str, form: str, stream: bool) -> dict[str, Any]:
    """What the model says where nothing stops it."""
    return read(ask(url, form, "never", stream=stream))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("form", ASKED)
@pytest.mark.parametrize("name", POLICIES)
def test_the_answer_is_whole(forms: str, name: str, form: str, stream: bool) -> None:
    """The trace ends where the policy says, and not within program or string; behind it stands the
    very answer that the model gives by itself, cut nowhere, and counted."""
    policy, reason, places = POLICIES[name]
    failed = metric_value(forms, "adjourn_fail_open_total")
    alone = by_itself(forms, form, stream)
    made = run_policy(forms, form, policy, stream=stream)
    assert metric_value(forms, "adjourn_fail_open_total") == failed
    assert alone["reasoning"].rstrip() == WHOLE
    note = made["note"]
    assert (note["stopped"], note["reason"]) == (True, reason)
    check_place(made, places)
    assert made["content"].strip() == alone["content"].strip()
    assert (made["calls"], made["finish"]) == (alone["calls"], alone["finish"])
    if form.startswith("tools"):
        assert (made["calls"], made["finish"]) == (CALLS, "tool_calls")
        assert not made["content"].strip()
    else:
        assert made["content"].strip() == "".join(ANSWER_FORMATS[ASKED[form][0]])
        assert made["finish"] == "stop"
    if form.startswith("json"):
        jsonschema.validate(json.loads(made["content"]), SCHEMA)
    told, usage = note["tokens"], made["usage"]
    assert usage["completion_tokens"] == sum(told[kind] for kind in KINDS)
    assert usage["prompt_tokens"] == alone["usage"]["prompt_tokens"] == told["prompt"]
    assert usage["completion_tokens"] < alone["usage"]["completion_tokens"]
    assert made["logprobs"] == []


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", POLICIES)
def test_log_probabilities_that_the_client_asked_for(forms: str, name: str, stream: bool) -> None:
    """It gets its own three a token, and no more, for trace and answer, whatever the policy needs;
    those of the kept trace are what it would have got."""
    policy, _, _ = POLICIES[name]
    fields = {"stream": stream, "logprobs": True, "top_logprobs": 3}
    alone = read(ask(forms, "prose", "never", **fields))
    made = run_policy(forms, "prose", policy, **fields)
    assert made["note"]["stopped"]
    assert {len(token["top_logprobs"]) for token in made["logprobs"]} == {3}
    texts = [token["token"] for token in made["logprobs"]]
    assert "".join(texts).endswith("".join(ANSWER_FORMATS["prose"]) + "<|eos|>")
    kept = made["note"]["tokens"]["reasoning"]
    for ours, theirs in zip(made["logprobs"][:kept], alone["logprobs"], strict=False):
        assert ours["token"] == theirs["token"]
        assert ours["logprob"] == pytest.approx(theirs["logprob"], abs=1e-3)
