"""Policies over several traces, on a real vLLM."""

from __future__ import annotations

import json
from threading import Thread
from typing import Any

import httpx
import pytest

from tests.engine.pocket_client import (
    PROMPTS,
    join_deltas,
    send_chat,
    unfinished_requests,
    wait_until,
)
from tests.gateway_client import CHAT, metric_value

pytestmark = pytest.mark.engine

SAMPLED = {"seed": 11, "temperature": 0.6}
USAGE = {"stream_options": {"include_usage": True}}


def test_losers_end_when_the_first_ends_its_thinking(vllm: str, deer_gateway: str) -> None:
    """The engine runs one request from the moment on at which the winner is told."""
    wait_until(lambda: unfinished_requests(vllm) == 0)
    asked: dict[str, Any] = {
        "model": "pocket",
        "messages": [{"role": "user", "content": PROMPTS[2]}],
        "adjourn": {"policy": "first-finish", "traces": 6},
        "stream": True,
        "temperature": 0.9,
        "max_tokens": 2000,
    }
    told: list[Any] = []

    def read() -> None:
        with httpx.stream("POST", deer_gateway + CHAT, json=asked, timeout=120) as reply:
            told.extend(json.loads(x[6:]) for x in reply.iter_lines() if x[:7] == "data: {")

    client = Thread(target=read)
    client.start()
    wait_until(lambda: unfinished_requests(vllm) == 6)
    wait_until(lambda: told != [], timeout=60.0)
    wait_until(lambda: unfinished_requests(vllm) <= 1, timeout=2.0)
    client.join(60)
    note = told[-1]["adjourn"]
    outcomes = [trace["outcome"] for trace in note["traces"]]
    assert sorted(outcomes) == ["chosen", *["given-up"] * 5]
    shortest = note["tokens"]["reasoning"]
    assert all(trace["tokens"]["reasoning"] <= shortest + 60 for trace in note["traces"])
    wait_until(lambda: unfinished_requests(vllm) == 0)


@pytest.mark.parametrize("policy", ["first-finish", "early-consistency(deer, window=3, max=6)"])
def test_one_choice_of_the_ordinary_shape(vllm: str, deer_gateway: str, policy: str) -> None:
    """The keys of the engine's own reply, one choice, usage of what was told, and the note."""
    errors = metric_value(deer_gateway, "adjourn_fail_open_total")
    direct = send_chat(vllm, PROMPTS[0], **SAMPLED)
    reply = send_chat(deer_gateway, PROMPTS[0], adjourn={"policy": policy}, **SAMPLED)
    note, usage = reply.pop("adjourn"), reply["usage"]
    assert list(direct) == list(reply)
    assert len(reply["choices"]) == 1
    assert list(direct["choices"][0]) == list(reply["choices"][0])
    assert list(direct["choices"][0]["message"]) == list(reply["choices"][0]["message"])
    assert usage["prompt_tokens"] == note["tokens"]["prompt"] == direct["usage"]["prompt_tokens"]
    kinds = ("reasoning", "marker", "closing", "answer")
    assert usage["completion_tokens"] == sum(note["tokens"][kind] for kind in kinds)
    assert "boxed" in reply["choices"][0]["message"]["content"]
    assert note["tokens"]["wasted"] > 0
    assert metric_value(deer_gateway, "adjourn_fail_open_total") == errors
    wait_until(lambda: unfinished_requests(vllm) == 0)


def test_a_vote_over_traces_that_are_cut(vllm: str, deer_gateway: str) -> None:
    """``early-consistency(deer)`` streams one answer; traces of it were cut on their own."""
    policy = {"policy": "early-consistency(deer(threshold=0.8), window=4, max=4)"}
    chunks = send_chat(deer_gateway, PROMPTS[1], stream=True, adjourn=policy, **SAMPLED, **USAGE)
    note = chunks[-2]["adjourn"]
    assert chunks[-1] == "[DONE]"
    assert len({chunk["id"] for chunk in chunks[:-1]}) == 1
    assert "boxed" in join_deltas(chunks, "content")
    assert any(trace["stopped"] for trace in note["traces"])
    labels = [trace.get("answer") for trace in note["traces"]]
    assert labels[note["chosen"]] is not None
    assert labels.count(labels[note["chosen"]]) == note["votes"]
    wait_until(lambda: unfinished_requests(vllm) == 0)


def test_the_winner_is_the_trace_that_the_engine_would_have_drawn(
    vllm: str, deer_gateway: str
) -> None:
    """With the seed of its place, and nothing of it lost on the way."""
    reply = send_chat(deer_gateway, PROMPTS[3], adjourn={"policy": "first-finish"}, **SAMPLED)
    chosen = reply["adjourn"]["chosen"]
    direct = send_chat(vllm, PROMPTS[3], **{**SAMPLED, "seed": SAMPLED["seed"] + chosen})
    assert direct["choices"] == reply["choices"]


def test_the_model_is_asked_whether_an_answer_is_correct(vllm: str, deer_gateway: str) -> None:
    """One scored token an answer, whatever this model makes of the question."""
    errors = metric_value(deer_gateway, "adjourn_fail_open_total")
    policy = {"policy": "self-certainty", "window": 2, "max": 2}
    note = send_chat(deer_gateway, PROMPTS[4], adjourn=policy, **SAMPLED)["adjourn"]
    answered = [trace for trace in note["traces"] if "answer" in trace]
    assert note["tokens"]["probe"] >= len(answered) > 0
    assert metric_value(deer_gateway, "adjourn_fail_open_total") == errors


def test_confidence_is_measured_on_the_stream(vllm: str, deer_gateway: str) -> None:
    """Of each trace, over windows of its tokens; traces below the bar are ended early."""
    policy = {
        "policy": "group-confidence(warmup=3, batch=3, max=6)",
        "window": 32,
        "percentile": 90.0,
        "consensus": 1.0,
    }
    reply = send_chat(deer_gateway, PROMPTS[5], adjourn=policy, **{**SAMPLED, "temperature": 1.0})
    note = reply["adjourn"]
    lows = [trace["lowest"] for trace in note["traces"] if trace["outcome"] != "given-up"]
    assert len(set(lows)) > 1
    assert all(0 < low < 40 for low in lows)
    bar = max(trace["lowest"] for trace in note["traces"][:3])
    given_up = [trace for trace in note["traces"][3:] if trace["outcome"] == "given-up"]
    assert all(trace.get("lowest", 0.0) < bar for trace in given_up)
    assert reply["choices"][0]["logprobs"] is None
    wait_until(lambda: unfinished_requests(vllm) == 0)
