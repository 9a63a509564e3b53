"""Policies that need no answer format, on a real vLLM, with answers in every format.

The trace of the tiny model ``forms`` contains a program and a string; the prompt selects the answer
format. See ``tests.engine.answer_formats``.
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
FULL_TRACE = "".join(TRACE_TOKENS)
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
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
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
    # The model is sure enough within the program; the policy must wait for the program's end.
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
"""Specification, stop reason, and the kept texts that are allowed: later ones if a probe was slow.
``{:02}`` takes digits that do not matter but make each specification new, so that each request has
its own probe cost model."""
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
    """Send one request. Returns the chunks of a stream, or a list with the one document."""
    word, more = REQUESTS[form]
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


def assemble(chunks: list[Any]) -> dict[str, Any]:
    """Assemble chunks or a document into texts, calls, log-probabilities and usage."""
    response: dict[str, Any] = {"reasoning": "", "content": "", "calls": [], "logprobs": []}
    response["sizes"] = set()  # tokens per chunk of the trace
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        message = choice.get("delta") or choice.get("message") or {}
        for key in ("reasoning", "content"):
            response[key] += message.get(key) or ""
        if "delta" not in choice or message.get("reasoning"):
            response["sizes"].add(len(choice.get("token_ids") or ()))
        for position, call in enumerate(message.get("tool_calls") or ()):
            index = call.get("index", position)
            if index == len(response["calls"]):
                response["calls"].append({"name": "", "arguments": ""})
            for key in response["calls"][index]:
                response["calls"][index][key] += call["function"].get(key) or ""
        response["logprobs"] += (choice["logprobs"] or {}).get("content") or []
        response["finish"] = choice["finish_reason"] or response.get("finish")
    for call in response["calls"]:
        call["arguments"] = json.loads(call["arguments"])
    response |= {"usage": chunks[-1]["usage"], "summary": chunks[-1]["adjourn"]}
    return response


def check_kept_text(response: dict[str, Any], allowed: list[str]) -> None:
    """If each chunk had one token, the trace ends at an allowed text. On a busy machine a chunk has
    several tokens and the cut falls before it, but never within the program or the string."""
    kept = response["reasoning"].rstrip()
    if response["sizes"] <= {1}:
        assert kept in allowed
    fences = FenceScanner()
    fences.feed(response["reasoning"], 0)
    assert not fences.is_open
    assert FULL_TRACE.startswith(kept)


def run_policy(url: str, form: str, policy: str, **fields: Any) -> dict[str, Any]:
    """The response under the policy. Tries up to four times, because on a busy machine the probes
    may cost too much for the whole trace, or much of the trace may come in one chunk, before which
    there is nothing to keep."""
    for _ in range(4):
        response = assemble(ask(url, form, policy.format(next(_fresh)), **fields))
        if response["summary"]["stopped"] and response["summary"]["tokens"]["reasoning"]:
            break
    return response


@cache
def uncut(url: str, form: str, stream: bool) -> dict[str, Any]:
    """The response when no policy stops it."""
    return assemble(ask(url, form, "never", stream=stream))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("form", REQUESTS)
@pytest.mark.parametrize("name", POLICIES)
def test_the_answer_after_a_cut_is_complete(forms: str, name: str, form: str, stream: bool) -> None:
    """The trace ends at an allowed text, outside program and string; the answer is that of the
    uncut response, and usage equals the ledger."""
    policy, reason, allowed = POLICIES[name]
    failed = metric_value(forms, "adjourn_fail_open_total")
    full = uncut(forms, form, stream)
    response = run_policy(forms, form, policy, stream=stream)
    assert metric_value(forms, "adjourn_fail_open_total") == failed
    assert full["reasoning"].rstrip() == FULL_TRACE
    summary = response["summary"]
    assert (summary["stopped"], summary["reason"]) == (True, reason)
    check_kept_text(response, allowed)
    assert response["content"].strip() == full["content"].strip()
    assert (response["calls"], response["finish"]) == (full["calls"], full["finish"])
    if form.startswith("tools"):
        assert (response["calls"], response["finish"]) == (CALLS, "tool_calls")
        assert not response["content"].strip()
    else:
        assert response["content"].strip() == "".join(ANSWER_FORMATS[REQUESTS[form][0]])
        assert response["finish"] == "stop"
    if form.startswith("json"):
        jsonschema.validate(json.loads(response["content"]), SCHEMA)
    ledger, usage = summary["tokens"], response["usage"]
    assert usage["completion_tokens"] == sum(ledger[kind] for kind in KINDS)
    assert usage["prompt_tokens"] == full["usage"]["prompt_tokens"] == ledger["prompt"]
    assert usage["completion_tokens"] < full["usage"]["completion_tokens"]
    assert response["logprobs"] == []


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", POLICIES)
def test_the_client_gets_the_log_probabilities_that_it_asked_for(
    forms: str, name: str, stream: bool
) -> None:
    """Three per token, for trace and answer, whatever the policy needs; those of the kept trace
    equal those of the uncut response."""
    policy, _, _ = POLICIES[name]
    fields = {"stream": stream, "logprobs": True, "top_logprobs": 3}
    full = assemble(ask(forms, "prose", "never", **fields))
    response = run_policy(forms, "prose", policy, **fields)
    assert response["summary"]["stopped"]
    assert {len(token["top_logprobs"]) for token in response["logprobs"]} == {3}
    texts = [token["token"] for token in response["logprobs"]]
    assert "".join(texts).endswith("".join(ANSWER_FORMATS["prose"]) + "<|eos|>")
    kept = response["summary"]["tokens"]["reasoning"]
    for ours, theirs in zip(response["logprobs"][:kept], full["logprobs"], strict=False):
        assert ours["token"] == theirs["token"]
        assert ours["logprob"] == pytest.approx(theirs["logprob"], abs=1e-3)
