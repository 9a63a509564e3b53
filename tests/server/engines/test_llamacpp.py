"""llama.cpp: requests and replies of its adapter. tests/engine runs the real server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from adjourn.policies.events import Probe
from adjourn.server.api.endpoint import PolicyExtras
from adjourn.server.api.request import parse_chat
from adjourn.server.config import Settings
from adjourn.server.engines.adapter import ProbeResponse
from adjourn.server.engines.llamacpp import LlamaCpp, LlamaCppChatEndpoint
from adjourn.server.upstream.client import BadReply, EngineClient
from tests.server.engines.scripted_engine import ScriptedTransport


def make_adapter(reply: Any) -> tuple[LlamaCpp, ScriptedTransport]:
    """An adapter whose engine answers each request with ``reply``."""
    transport = ScriptedTransport(lambda path, body: reply)
    return LlamaCpp(EngineClient(Settings(), transport)), transport


def make_endpoint(policy_logprobs: int = 0, **fields: Any) -> LlamaCppChatEndpoint:
    """The endpoint of a chat with these fields, under a policy that reads so many logprobs."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    request = parse_chat(json.dumps(body).encode(), {}, Settings(), None, {"m": None})
    return LlamaCppChatEndpoint(request, 0, PolicyExtras(logprobs=policy_logprobs))


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        (make_endpoint(), {"top_logprobs": 1, "post_sampling_probs": True}),
        (make_endpoint(5), {"top_logprobs": 5}),
        (make_endpoint(5, logprobs=True, top_logprobs=9), {"top_logprobs": 9}),
        (make_endpoint(logprobs=True, top_logprobs=0), {"top_logprobs": 1}),
    ],
)
def test_the_cheapest_logprobs_that_contain_token_ids_are_requested(
    endpoint: LlamaCppChatEndpoint, expected: dict[str, Any]
) -> None:
    """Those of the whole vocabulary only if the client or the policy reads them."""
    fields = {key: json.loads(bytes(value)) for key, value in endpoint.main_fields.items()}
    assert fields["logprobs"] is fields["reasoning_control"] is fields["stream"] is True
    names = ("top_logprobs", "post_sampling_probs")
    assert {name: fields[name] for name in names if name in fields} == expected


TOKEN = {"id": 40, "token": "I", "bytes": [73], "prob": 1.0, "top_probs": []}
CHUNK = {
    "choices": [
        {
            "finish_reason": None,
            "index": 0,
            "delta": {"reasoning_content": "I"},
            "logprobs": {"content": [TOKEN]},
        }
    ],
    "created": 1,
    "id": "chatcmpl-1",
}


def test_logprobs_that_only_the_gateway_requested_are_removed() -> None:
    """The token ids are read from them first."""
    endpoint = make_endpoint()
    data = json.dumps(CHUNK, separators=(",", ":")).encode()
    chunk = endpoint.decode(data)
    assert chunk.choices[0].token_ids == [40]
    event = endpoint.render_event(b"data: " + data + b"\n\n", chunk)
    assert event is not None
    choice = json.loads(event.removeprefix(b"data: "))["choices"][0]
    assert choice == {"finish_reason": None, "index": 0, "delta": {"reasoning_content": "I"}}


def test_a_probe_is_greedy_and_reads_the_logprobs() -> None:
    """It is sent to llama.cpp's own endpoint, with token ids as the prompt."""
    token = {"id": 4, "token": "4", "logprob": -0.1}
    other = {"id": 5, "token": "5", "logprob": -3.0}
    reply = {
        "content": "4}",
        "stop_type": "eos",
        "tokens_predicted": 3,
        "timings": {"prompt_n": 7},
        "completion_probabilities": [{**token, "top_logprobs": [other, token]}],
    }
    adapter, transport = make_adapter(reply)
    response = asyncio.run(
        adapter.probe("m", [1, 2], Probe(max_tokens=8, top_logprobs=2), [], {"a": 1})
    )
    assert response == ProbeResponse("4}", ("4",), (-0.1,), True, 7, 3, ((-0.1, -3.0),))
    path, body = transport.requests[0]
    assert path == "/completion"
    assert (body["prompt"], body["n_predict"], body["n_probs"]) == ([1, 2], 8, 2)
    assert body["temperature"] == 0


@pytest.mark.parametrize("reply", [{}, {"content": 1}, {"content": "4"}, 404])
def test_a_reply_without_logprobs_is_a_bad_reply(reply: Any) -> None:
    adapter, _ = make_adapter(reply)
    with pytest.raises(BadReply):
        asyncio.run(adapter.probe("m", [1], Probe(), [], {}))


def test_scoring_given_tokens_is_not_supported() -> None:
    """No request is sent."""
    adapter, transport = make_adapter({})
    with pytest.raises(BadReply):
        asyncio.run(adapter.probe("m", [1], Probe(), [], {}, ending_ids=(2,)))
    assert transport.requests == []


@pytest.mark.parametrize("reply", [{"success": False, "message": "no"}, {}, 404])
def test_a_trace_that_the_engine_does_not_end_is_a_bad_reply(reply: Any) -> None:
    """The stream has ended, or the server does not have this endpoint."""
    adapter, transport = make_adapter(reply)
    with pytest.raises(BadReply):
        asyncio.run(adapter.end_trace("chatcmpl-1", "m", []))
    expected = {"id": "chatcmpl-1", "model": "m", "action": "reasoning_end"}
    assert transport.requests == [("/v1/chat/completions/control", expected)]
