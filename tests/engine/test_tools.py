"""Tool calls and escapes (a trace that is opened again), on a real vLLM with tiny models that do
only that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from benchmarks.services import free_port, start_gateway
from tests.engine.tiny_model import ANSWER_TOKENS, TOOL_CALLS, TRACE_LOOP
from tests.engine.tiny_server import serve_tiny_model
from tests.gateway_client import CHAT, events, metric_value

pytestmark = pytest.mark.engine

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
USER = {"role": "user", "content": "Hi"}
BUDGET = "budget(max=12,grace=0)"
KINDS = ("reasoning", "marker", "closing", "answer")
Both = tuple[str, str]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """An engine whose model answers with two tool calls, and a gateway in front of it; two URLs."""
    flags = ("--enable-auto-tool-choice", "--tool-call-parser=hermes")
    flags = (*flags, "--enable-prompt-tokens-details")
    with (
        serve_tiny_model("calls", tmp_path_factory.mktemp("calls"), *flags) as url,
        start_gateway(url, free_port(), "--policy", BUDGET, "--hold-out", "0") as ours,
    ):
        yield url, ours


@pytest.fixture(scope="module")
def escapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """An engine whose model opens a second trace after the first, and a gateway; two URLs."""
    with (
        serve_tiny_model("escapes", tmp_path_factory.mktemp("escapes")) as url,
        start_gateway(url, free_port(), "--policy", BUDGET, "--hold-out", "0") as ours,
    ):
        yield url, ours


def ask(url: str, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [USER], "temperature": 0, "max_tokens": 90}
    reply = httpx.post(url + CHAT, json={**body, **fields}, timeout=120)
    assert reply.status_code == 200, reply.text
    return reply


def tokenize(url: str, model: str, text: str) -> list[int]:
    """The token ids of a text, without special tokens."""
    request = {"model": model, "prompt": text, "add_special_tokens": False}
    found: list[int] = httpx.post(f"{url}/tokenize", json=request).json()["tokens"]
    return found


def tool_calls_of(message: dict[str, Any]) -> list[Any]:
    """Names and parsed arguments of a message's tool calls."""
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    return [{"name": f["name"], "arguments": json.loads(f["arguments"])} for f in functions]


def assemble(reply: httpx.Response) -> tuple[dict[str, Any], dict[str, Any]]:
    """Assemble a stream into the message that a client builds from it; also returns the last
    chunk."""
    chunks = [chunk for chunk in events(reply.content) if chunk != "[DONE]"]
    message: dict[str, Any] = {"reasoning": "", "content": "", "tool_calls": []}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        delta = choice["delta"]
        for key in ("reasoning", "content"):
            message[key] += delta.get(key) or ""
        for call in delta.get("tool_calls") or ():
            if call["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({"function": {"name": "", "arguments": ""}})
            function = message["tool_calls"][call["index"]]["function"]
            for key in function:
                function[key] += call["function"].get(key) or ""
    return message, chunks[-1]


CALLS = [json.loads(call) for call in TOOL_CALLS]


@pytest.mark.parametrize("stream", [True, False])
def test_tool_calls_after_a_cut(calls: Both, stream: bool) -> None:
    """The engine's tool parser reads the resumed stream: two calls, and no text of them in the
    content."""
    reply = ask(calls[1], "calls-tiny", tools=[TOOL], stream=stream)
    if stream:
        message, last = assemble(reply)
        choice = last["choices"][0]
    else:
        last = reply.json()
        choice = last["choices"][0]
        message = choice["message"]
    assert last["adjourn"]["stopped"]
    assert tool_calls_of(message) == CALLS
    assert choice["finish_reason"] == "tool_calls"
    assert not message["content"]
    assert "".join(TRACE_LOOP * 20).startswith(message["reasoning"].strip())


@pytest.mark.parametrize("stream", [True, False])
def test_nothing_is_cut_after_a_tool_call_has_begun(calls: Both, stream: bool) -> None:
    """The call begins in the trace, before the budget is used up, and comes from the main
    stream."""
    call_start = tokenize(calls[0], "calls-tiny", "<tool_call>")
    fields = {"tools": [TOOL], "logit_bias": {call_start[0]: 50}, "stream": stream}
    direct = ask(calls[0], "calls-tiny", **fields)
    ours = ask(calls[1], "calls-tiny", adjourn={"policy": "budget(max=1,grace=0)"}, **fields)
    late = ask(calls[1], "calls-tiny", adjourn={"policy": "budget(max=7,grace=0)"}, **fields)
    read = (
        (lambda reply: assemble(reply)[0])
        if stream
        else (lambda reply: reply.json()["choices"][0]["message"])
    )
    summary = assemble(late)[1]["adjourn"] if stream else late.json()["adjourn"]
    assert (summary["stopped"], summary["tokens"]["wasted"]) == (False, 0)
    assert tool_calls_of(read(direct)) == tool_calls_of(read(late)) == CALLS
    assert read(direct)["reasoning"] == read(late)["reasoning"]
    # With a smaller budget the cut falls before the call, which then follows the cut.
    assert tool_calls_of(read(ours)) == CALLS
    assert len(read(ours)["reasoning"]) < len(read(direct)["reasoning"])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_tool_choice_applies_after_a_cut(deer_gateway: str, choice: Any) -> None:
    """The answer can only be a call. The pocket model never calls a tool by itself."""
    body = {"model": "pocket", "tools": [TOOL], "tool_choice": choice, "max_tokens": 200}
    reply = httpx.post(
        deer_gateway + CHAT,
        json={
            **body,
            "messages": [{"role": "user", "content": "Compute 4: + 3."}],
            "temperature": 0,
            "adjourn": {"policy": "budget", "max": 3, "grace": 0},
        },
        timeout=120,
    ).json()
    message = reply["choices"][0]["message"]
    assert reply["adjourn"]["stopped"]
    assert message["content"] == ""
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["add"]


@pytest.mark.parametrize("policy", ["never", BUDGET])
def test_a_tool_turn_sent_back_hits_the_cache(calls: Both, policy: str) -> None:
    """Reasoning and calls, as the client got them, render to the tokens that the engine
    generated."""
    _, ours = calls
    limit = {} if policy == BUDGET else {"max_tokens": 60}
    fields = {"tools": [TOOL], "return_token_ids": True, "adjourn": {"policy": policy}, **limit}
    reply = ask(ours, "calls-tiny", **fields).json()
    choice = reply["choices"][0]
    assert tool_calls_of(choice["message"]) == CALLS
    message = {key: choice["message"][key] for key in ("role", "reasoning", "tool_calls")}
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "2"}
    second = ask(
        ours,
        "calls-tiny",
        messages=[USER, message, result],
        return_token_ids=True,
        max_tokens=1,
        adjourn={"policy": "off"},
    ).json()
    expected = [*reply["prompt_token_ids"], *choice["token_ids"]]
    assert second["prompt_token_ids"][: len(expected)] == expected
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= (len(expected) - 1) // 32 * 32 > 0


@pytest.mark.parametrize("stream", [True, False])
def test_an_escape_is_closed(escapes: Both, stream: bool) -> None:
    """The model opens another trace after the cut; the gateway closes it, and the content is only
    the answer."""
    _, ours = escapes
    before = metric_value(ours, "adjourn_escapes_total", action="ended")
    reply = ask(ours, "escapes-tiny", stream=stream, return_token_ids=True)
    if stream:
        message, last = assemble(reply)
        choices = [c for chunk in events(reply.content)[:-1] for c in chunk["choices"]]
        ids = [token for choice in choices for token in choice.get("token_ids") or ()]
    else:
        last = reply.json()
        message, ids = last["choices"][0]["message"], last["choices"][0]["token_ids"]
    assert metric_value(ours, "adjourn_escapes_total", action="ended") == before + 1
    assert metric_value(ours, "adjourn_fail_open_total") == 0
    assert message["content"] == "".join(ANSWER_TOKENS)
    ledger = last["adjourn"]["tokens"]
    assert ledger["closing"] > 4
    assert len(ids) == sum(ledger[kind] for kind in KINDS)


def test_the_same_model_escapes_without_a_gateway(escapes: Both) -> None:
    """Proves that the previous test is meaningful: from the same closed prefix, the engine alone
    opens another trace."""
    url, ours = escapes
    first = ask(ours, "escapes-tiny", return_token_ids=True).json()
    ledger = first["adjourn"]["tokens"]
    trace = first["choices"][0]["token_ids"][: ledger["reasoning"] + ledger["marker"]]
    closing = tokenize(url, "escapes-tiny", "\n</think>\n\n")
    ids = [*first["prompt_token_ids"], *trace, *closing]
    direct = httpx.post(
        f"{url}/v1/completions",
        json={"model": "escapes-tiny", "prompt": ids, "max_tokens": 8, "temperature": 0},
        timeout=60,
    ).json()
    assert direct["choices"][0]["text"].startswith("<think>")
