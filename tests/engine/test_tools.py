"""Tool calls, and traces that are opened again, on a real vLLM with models that do just that."""

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
    """An engine whose model answers with two tool calls, and the gateway before it."""
    flags = ("--enable-auto-tool-choice", "--tool-call-parser=hermes")
    flags = (*flags, "--enable-prompt-tokens-details")
    with (
        serve_tiny_model("calls", tmp_path_factory.mktemp("calls"), *flags) as url,
        start_gateway(url, free_port(), "--policy", BUDGET, "--hold-out", "0") as ours,
    ):
        yield url, ours


@pytest.fixture(scope="module")
def escapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """One whose model opens another trace behind the first."""
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


def tokens(url: str, model: str, text: str) -> list[int]:
    """The ids of a fixed text."""
    asked = {"model": model, "prompt": text, "add_special_tokens": False}
    found: list[int] = httpx.post(f"{url}/tokenize", json=asked).json()["tokens"]
    return found


def called(message: dict[str, Any]) -> list[Any]:
    """Names and arguments of a message's calls."""
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    return [{"name": f["name"], "arguments": json.loads(f["arguments"])} for f in functions]


def streamed(reply: httpx.Response) -> tuple[dict[str, Any], dict[str, Any]]:
    """A stream as the message that a client makes of it, and its last chunk."""
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
def test_tool_calls_behind_a_cut(calls: Both, stream: bool) -> None:
    """The resumed stream runs the engine's tool parser: two calls, and nothing of them as text."""
    reply = ask(calls[1], "calls-tiny", tools=[TOOL], stream=stream)
    if stream:
        message, last = streamed(reply)
        choice = last["choices"][0]
    else:
        last = reply.json()
        choice = last["choices"][0]
        message = choice["message"]
    assert last["adjourn"]["stopped"]
    assert called(message) == CALLS
    assert choice["finish_reason"] == "tool_calls"
    assert not message["content"]
    assert "".join(TRACE_LOOP * 20).startswith(message["reasoning"].strip())


@pytest.mark.parametrize("stream", [True, False])
def test_a_trace_is_not_cut_once_a_tool_call_has_begun(calls: Both, stream: bool) -> None:
    """It begins within the trace, before the budget is used up, and is the main stream's own."""
    begin = tokens(calls[0], "calls-tiny", "<tool_call>")
    fields = {"tools": [TOOL], "logit_bias": {begin[0]: 50}, "stream": stream}
    direct = ask(calls[0], "calls-tiny", **fields)
    ours = ask(calls[1], "calls-tiny", adjourn={"policy": "budget(max=1,grace=0)"}, **fields)
    late = ask(calls[1], "calls-tiny", adjourn={"policy": "budget(max=7,grace=0)"}, **fields)
    read = (
        (lambda reply: streamed(reply)[0])
        if stream
        else (lambda reply: reply.json()["choices"][0]["message"])
    )
    note = streamed(late)[1]["adjourn"] if stream else late.json()["adjourn"]
    assert (note["stopped"], note["tokens"]["wasted"]) == (False, 0)
    assert called(read(direct)) == called(read(late)) == CALLS
    assert read(direct)["reasoning"] == read(late)["reasoning"]
    # With less to spend it is cut before, and calls behind the cut.
    assert called(read(ours)) == CALLS
    assert len(read(ours)["reasoning"]) < len(read(direct)["reasoning"])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_tool_that_must_be_called(deer_gateway: str, choice: Any) -> None:
    """Behind a cut too a call is the only answer; the pocket model knows no tool by itself."""
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
def test_a_tool_turn_sent_back_renders_to_what_the_engine_saw(calls: Both, policy: str) -> None:
    """Reasoning and calls as the client got them: the same tokens, found in the prefix cache."""
    _, ours = calls
    begin = {} if policy == BUDGET else {"max_tokens": 60}
    asked = {"tools": [TOOL], "return_token_ids": True, "adjourn": {"policy": policy}, **begin}
    reply = ask(ours, "calls-tiny", **asked).json()
    choice = reply["choices"][0]
    assert called(choice["message"]) == CALLS
    message = {key: choice["message"][key] for key in ("role", "reasoning", "tool_calls")}
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "2"}
    again = ask(
        ours,
        "calls-tiny",
        messages=[USER, message, result],
        return_token_ids=True,
        max_tokens=1,
        adjourn={"policy": "off"},
    ).json()
    seen = [*reply["prompt_token_ids"], *choice["token_ids"]]
    assert again["prompt_token_ids"][: len(seen)] == seen
    cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= (len(seen) - 1) // 32 * 32 > 0


@pytest.mark.parametrize("stream", [True, False])
def test_an_escape_is_ended(escapes: Both, stream: bool) -> None:
    """Behind the cut the model thinks again: that trace is closed, and the answer is clean."""
    _, ours = escapes
    before = metric_value(ours, "adjourn_escapes_total", action="ended")
    reply = ask(ours, "escapes-tiny", stream=stream, return_token_ids=True)
    if stream:
        message, last = streamed(reply)
        choices = [c for chunk in events(reply.content)[:-1] for c in chunk["choices"]]
        ids = [token for choice in choices for token in choice.get("token_ids") or ()]
    else:
        last = reply.json()
        message, ids = last["choices"][0]["message"], last["choices"][0]["token_ids"]
    assert metric_value(ours, "adjourn_escapes_total", action="ended") == before + 1
    assert metric_value(ours, "adjourn_fail_open_total") == 0
    assert message["content"] == "".join(ANSWER_TOKENS)
    told = last["adjourn"]["tokens"]
    assert told["closing"] > 4
    assert len(ids) == sum(told[kind] for kind in KINDS)


def test_the_same_model_escapes_without_a_gateway(escapes: Both) -> None:
    """Or the test above would show nothing: from the same closed prefix the engine alone goes on to
    think."""
    url, ours = escapes
    first = ask(ours, "escapes-tiny", return_token_ids=True).json()
    told = first["adjourn"]["tokens"]
    trace = first["choices"][0]["token_ids"][: told["reasoning"] + told["marker"]]
    closing = tokens(url, "escapes-tiny", "\n</think>\n\n")
    ids = [*first["prompt_token_ids"], *trace, *closing]
    direct = httpx.post(
        f"{url}/v1/completions",
        json={"model": "escapes-tiny", "prompt": ids, "max_tokens": 8, "temperature": 0},
        timeout=60,
    ).json()
    assert direct["choices"][0]["text"].startswith("<think>")
