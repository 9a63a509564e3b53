"""Requests with ``n`` > 1: each choice runs under the policy separately, in one response."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.gateway_client import CHAT, body, chat, engine_requests, events, metric_value, stream

CALM = {"standin": {"tokens": 30}}
CUT = {**CALM, "adjourn": {"policy": "budget", "max": 20, "grace": 0}}
USAGE = {"stream_options": {"include_usage": True}}


def of_choice(chunks: list[Any], index: int) -> list[dict[str, Any]]:
    """The chunks of one choice, renumbered as if it were the only choice."""
    own = [c["choices"][0] for c in chunks if c != "[DONE]" and c["choices"]]
    return [{**choice, "index": 0} for choice in own if choice["index"] == index]


@pytest.mark.parametrize("fields", [CUT, CALM], ids=["cut", "whole"])
def test_each_choice_equals_a_response_with_one_choice(
    adjourn: str, fields: dict[str, Any]
) -> None:
    """Role, reasoning, answer and finish reason of each choice; one id and one [DONE] for all."""
    alone = of_choice(stream(adjourn, **fields), 0)
    chunks = stream(adjourn, n=3, **fields)
    assert chunks.count("[DONE]") == 1
    assert chunks[-1] == "[DONE]"
    assert len({(c["id"], c["created"], c["model"]) for c in chunks[:-1]}) == 1
    for index in range(3):
        assert alone == of_choice(chunks, index)


def test_the_last_chunk_of_each_choice_has_its_summary(adjourn: str) -> None:
    """Without ``include_usage`` the summary is on the chunk with the choice's finish reason."""
    chunks = stream(adjourn, n=2, **CUT)
    with_summary = [c for c in chunks if "adjourn" in c]
    assert sorted(c["choices"][0]["index"] for c in with_summary) == [0, 1]
    assert all(c["choices"][0]["finish_reason"] == "stop" for c in with_summary)
    assert all(c["adjourn"]["position"] == 20 for c in with_summary)


def test_usage_sums_all_choices(adjourn: str) -> None:
    """It counts the prompt once and the completion of every choice; the summary lists all
    choices."""
    alone = stream(adjourn, **CUT, **USAGE)[-2]
    last = stream(adjourn, n=3, **CUT, **USAGE)[-2]
    assert last["choices"] == []
    one, all_ = alone["usage"], last["usage"]
    assert all_["prompt_tokens"] == one["prompt_tokens"]
    assert all_["completion_tokens"] == 3 * one["completion_tokens"]
    assert all_["total_tokens"] == all_["prompt_tokens"] + all_["completion_tokens"]
    reasoning_tokens = [u["completion_tokens_details"]["reasoning_tokens"] for u in (one, all_)]
    assert reasoning_tokens == [20, 60]
    summary = last["adjourn"]
    assert summary["stopped"] is True
    assert [choice["position"] for choice in summary["choices"]] == [20, 20, 20]
    assert summary["tokens"]["reasoning"] == 60
    assert summary["tokens"]["prompt"] == one["prompt_tokens"]


def test_an_unstreamed_response_has_all_choices(adjourn: str) -> None:
    """Each choice complete and in order, in one document."""
    alone = chat(adjourn, **CUT).json()["choices"][0]
    reply = chat(adjourn, n=2, **CUT)
    choices = reply.json()["choices"]
    assert [{**alone, "index": i} for i in range(2)] == choices
    assert json.loads(reply.headers["x-adjourn"])["stopped"] is True


def test_each_choice_is_a_separate_engine_request(adjourn: str, standin: str) -> None:
    """Without ``n``, and with the seed that the engine itself would use for that choice."""
    chat(adjourn, {"x-request-id": "seeded"}, n=3, seed=7, **CALM)
    sent = [
        r
        for r in engine_requests(standin)
        if r["headers"].get("x-request-id", "").startswith("seeded")
    ]
    bodies = [json.loads(request["body"]) for request in sent]
    assert sorted(b["seed"] for b in bodies) == [7, 8, 9]
    assert all("n" not in b for b in bodies)


def test_the_response_id_contains_the_clients_request_id(adjourn: str) -> None:
    """As the engine builds it for a single choice."""
    assert chat(adjourn, {"x-request-id": "mine"}, n=2, **CALM).json()["id"] == ("chatcmpl-mine")


def test_the_prompt_is_counted_once(adjourn: str) -> None:
    """In the metrics too, since all choices share the prompt."""
    before = metric_value(adjourn, "adjourn_tokens_total", kind="prompt")
    prompt = chat(adjourn, n=4, **CALM).json()["usage"]["prompt_tokens"]
    assert prompt == metric_value(adjourn, "adjourn_tokens_total", kind="prompt") - before


@pytest.mark.parametrize("streamed", [False, True])
def test_an_engine_error_is_returned_once_and_unmodified(
    adjourn: str, standin: str, streamed: bool
) -> None:
    """Although every choice received it."""
    fields = {"stream": streamed, "standin": {"status": 429, "retry_after": 7}}
    direct, ours = chat(standin, **fields), chat(adjourn, n=3, **fields)
    assert (direct.status_code, direct.content) == (ours.status_code, ours.content)


def test_a_choice_whose_stream_breaks_ends_the_response(adjourn: str) -> None:
    """With an error event, no [DONE], a closed connection, and one error in the metrics."""
    before = metric_value(adjourn, "adjourn_upstream_errors_total", reason="broken")
    request = body(n=2, stream=True, standin={"tokens": 60, "die_after": 9})
    received: list[bytes] = []

    def read() -> None:
        with httpx.stream("POST", adjourn + CHAT, json=request) as reply:
            received.extend(reply.iter_raw())

    with pytest.raises(httpx.RemoteProtocolError):
        read()
    chunks = events(b"".join(received))
    assert chunks[-1]["error"]["type"] == "upstream_error"
    assert "[DONE]" not in chunks
    assert metric_value(adjourn, "adjourn_upstream_errors_total", reason="broken") == before + 1


def test_an_unstreamed_choice_that_breaks_gives_502(adjourn: str) -> None:
    """As with one choice."""
    assert chat(adjourn, n=2, standin={"tokens": 60, "die_after": 9}).status_code == 502
