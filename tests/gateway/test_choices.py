"""Several choices of one response: each judged on its own, told as one."""

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
    """The choice's own chunks, as those of a response that has only it."""
    own = [c["choices"][0] for c in chunks if c != "[DONE]" and c["choices"]]
    return [{**choice, "index": 0} for choice in own if choice["index"] == index]


@pytest.mark.parametrize("fields", [CUT, CALM], ids=["cut", "whole"])
def test_each_choice_is_told_as_if_it_were_alone(adjourn: str, fields: dict[str, Any]) -> None:
    """Role, reasoning, answer and finish of every choice, under one id, with one end."""
    alone = of_choice(stream(adjourn, **fields), 0)
    chunks = stream(adjourn, n=3, **fields)
    assert chunks.count("[DONE]") == 1
    assert chunks[-1] == "[DONE]"
    assert len({(c["id"], c["created"], c["model"]) for c in chunks[:-1]}) == 1
    for index in range(3):
        assert alone == of_choice(chunks, index)


def test_a_choice_that_finishes_says_what_was_done(adjourn: str) -> None:
    """Without usage the note stands where its choice ends."""
    chunks = stream(adjourn, n=2, **CUT)
    noted = [c for c in chunks if "adjourn" in c]
    assert sorted(c["choices"][0]["index"] for c in noted) == [0, 1]
    assert all(c["choices"][0]["finish_reason"] == "stop" for c in noted)
    assert all(c["adjourn"]["position"] == 20 for c in noted)


def test_one_usage_for_all(adjourn: str) -> None:
    """The prompt once, what was said of every choice, and all the notes."""
    alone = stream(adjourn, **CUT, **USAGE)[-2]
    last = stream(adjourn, n=3, **CUT, **USAGE)[-2]
    assert last["choices"] == []
    one, all_ = alone["usage"], last["usage"]
    assert all_["prompt_tokens"] == one["prompt_tokens"]
    assert all_["completion_tokens"] == 3 * one["completion_tokens"]
    assert all_["total_tokens"] == all_["prompt_tokens"] + all_["completion_tokens"]
    thought = [u["completion_tokens_details"]["reasoning_tokens"] for u in (one, all_)]
    assert thought == [20, 60]
    note = last["adjourn"]
    assert note["stopped"] is True
    assert [choice["position"] for choice in note["choices"]] == [20, 20, 20]
    assert note["tokens"]["reasoning"] == 60
    assert note["tokens"]["prompt"] == one["prompt_tokens"]


def test_an_unstreamed_reply_has_all_choices(adjourn: str) -> None:
    """Each choice whole, in order, in one document."""
    alone = chat(adjourn, **CUT).json()["choices"][0]
    reply = chat(adjourn, n=2, **CUT)
    choices = reply.json()["choices"]
    assert [{**alone, "index": i} for i in range(2)] == choices
    assert json.loads(reply.headers["x-adjourn"])["stopped"] is True


def test_the_engine_is_asked_for_each(adjourn: str, standin: str) -> None:
    """One request a choice, with the seed that the engine itself would give it, and no ``n``."""
    chat(adjourn, {"x-request-id": "seeded"}, n=3, seed=7, **CALM)
    asked = [
        r
        for r in engine_requests(standin)
        if r["headers"].get("x-request-id", "").startswith("seeded")
    ]
    bodies = [json.loads(request["body"]) for request in asked]
    assert sorted(b["seed"] for b in bodies) == [7, 8, 9]
    assert all("n" not in b for b in bodies)


def test_the_response_has_the_clients_id(adjourn: str) -> None:
    """The id that the engine makes of the client's, as with one choice."""
    assert chat(adjourn, {"x-request-id": "mine"}, n=2, **CALM).json()["id"] == ("chatcmpl-mine")


def test_the_prompt_is_counted_once(adjourn: str) -> None:
    """The choices share it, in the metrics too."""
    before = metric_value(adjourn, "adjourn_tokens_total", kind="prompt")
    prompt = chat(adjourn, n=4, **CALM).json()["usage"]["prompt_tokens"]
    assert prompt == metric_value(adjourn, "adjourn_tokens_total", kind="prompt") - before


@pytest.mark.parametrize("streamed", [False, True])
def test_a_refusal_is_the_engines(adjourn: str, standin: str, streamed: bool) -> None:
    """Once, unmodified, whatever became of the other choices."""
    fields = {"stream": streamed, "standin": {"status": 429, "retry_after": 7}}
    direct, ours = chat(standin, **fields), chat(adjourn, n=3, **fields)
    assert (direct.status_code, direct.content) == (ours.status_code, ours.content)


def test_a_choice_that_breaks_off_breaks_the_response(adjourn: str) -> None:
    """An error event, no [DONE], a broken connection, and one error counted."""
    before = metric_value(adjourn, "adjourn_upstream_errors_total", reason="broken")
    asked = body(n=2, stream=True, standin={"tokens": 60, "die_after": 9})
    received: list[bytes] = []

    def read() -> None:
        with httpx.stream("POST", adjourn + CHAT, json=asked) as reply:
            received.extend(reply.iter_raw())

    with pytest.raises(httpx.RemoteProtocolError):
        read()
    told = events(b"".join(received))
    assert told[-1]["error"]["type"] == "upstream_error"
    assert "[DONE]" not in told
    assert metric_value(adjourn, "adjourn_upstream_errors_total", reason="broken") == before + 1


def test_an_unstreamed_reply_that_breaks_off(adjourn: str) -> None:
    """502, as with one choice."""
    assert chat(adjourn, n=2, standin={"tokens": 60, "die_after": 9}).status_code == 502
