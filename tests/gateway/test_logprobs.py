"""A policy that needs log-probabilities gets them; the client gets what it asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway_client import engine_requests, normalize, raw_stream, stream

CUSUM = {"policy": "cusum(reference=1, threshold=1e9)"}
SHORT = {"tokens": 12, "answer_tokens": 3}


def chats(standin: str) -> list[Any]:
    """The bodies of the latest chat requests."""
    bodies = [request["body"] for request in engine_requests(standin)]
    return [json.loads(body) for body in bodies if "messages" in body]


@pytest.mark.parametrize("ids", [False, True])
def test_a_client_that_asked_for_none_gets_none(adjourn: str, ids: bool) -> None:
    """Byte for byte the stream of a policy that needs none, padding chunks left out as there."""
    asked: dict[str, Any] = {"standin": {**SHORT, "empty": 3}, "return_token_ids": ids}
    plain = raw_stream(adjourn, adjourn={"policy": "never"}, **asked)
    judged = raw_stream(adjourn, adjourn=CUSUM, **asked)
    assert normalize(plain).replace(b'"never"', b'"cusum"') == normalize(judged)


@pytest.mark.parametrize("top", [0, 2])
def test_a_client_gets_as_many_as_it_asked_for(adjourn: str, top: int) -> None:
    """Fewer than the policy looks at; the engine is asked for the larger number."""
    asked = {"logprobs": True, "top_logprobs": top, "standin": SHORT}
    chunks = stream(adjourn, adjourn=CUSUM, **asked)
    told = [c["choices"][0]["logprobs"]["content"] for c in chunks[1:-1] if c["choices"]]
    assert {len(one["top_logprobs"]) for content in told for one in content} == {top}


def test_only_who_needs_them_asks_the_engine(adjourn: str, standin: str) -> None:
    """They are not free on the main stream; the answer behind a cut is asked for without them."""
    stream(adjourn, adjourn={"policy": "never"}, standin=SHORT)
    assert "logprobs" not in chats(standin)[-1]
    stream(
        adjourn,
        adjourn={"policy": "any_of(cusum(threshold=1e9), budget(max=5))"},
        standin={"tokens": 80, "answer_tokens": 3},
    )
    bodies = chats(standin)[-2:]
    assert [body.get("top_logprobs") for body in bodies] == [20, None]
    assert ["kv_transfer_params" in body for body in bodies] == [False, True]
