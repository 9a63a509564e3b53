"""Policies that read log-probabilities get them; clients get exactly those that they asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway_client import engine_requests, normalize, raw_stream, stream

CUSUM = {"policy": "cusum(reference=1, threshold=1e9)"}
SHORT = {"tokens": 12, "answer_tokens": 3}


def chat_bodies(standin: str) -> list[Any]:
    """The bodies of the latest chat requests at the stand-in."""
    bodies = [request["body"] for request in engine_requests(standin)]
    return [json.loads(body) for body in bodies if "messages" in body]


@pytest.mark.parametrize("ids", [False, True])
def test_a_client_that_asked_for_none_gets_none(adjourn: str, ids: bool) -> None:
    """Byte for byte the stream of a policy that needs none, with the same empty chunks left out."""
    fields: dict[str, Any] = {"standin": {**SHORT, "empty": 3}, "return_token_ids": ids}
    plain = raw_stream(adjourn, adjourn={"policy": "never"}, **fields)
    with_logprobs = raw_stream(adjourn, adjourn=CUSUM, **fields)
    assert normalize(plain).replace(b'"never"', b'"cusum"') == normalize(with_logprobs)


@pytest.mark.parametrize("top", [0, 2])
def test_a_client_gets_as_many_as_it_asked_for(adjourn: str, top: int) -> None:
    """Fewer than the policy reads; the engine is asked for the larger number."""
    fields = {"logprobs": True, "top_logprobs": top, "standin": SHORT}
    chunks = stream(adjourn, adjourn=CUSUM, **fields)
    received = [c["choices"][0]["logprobs"]["content"] for c in chunks[1:-1] if c["choices"]]
    assert {len(one["top_logprobs"]) for content in received for one in content} == {top}


def test_log_probabilities_are_requested_only_when_needed(adjourn: str, standin: str) -> None:
    """They cost time on the main stream; the answer after a cut is requested without them."""
    stream(adjourn, adjourn={"policy": "never"}, standin=SHORT)
    assert "logprobs" not in chat_bodies(standin)[-1]
    stream(
        adjourn,
        adjourn={"policy": "any_of(cusum(threshold=1e9), budget(max=5))"},
        standin={"tokens": 80, "answer_tokens": 3},
    )
    bodies = chat_bodies(standin)[-2:]
    assert [body.get("top_logprobs") for body in bodies] == [20, None]
    assert ["kv_transfer_params" in body for body in bodies] == [False, True]
