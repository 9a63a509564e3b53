"""Policies over several traces (races and votes), on a real vLLM."""

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


def test_losing_traces_are_aborted_when_the_first_ends(vllm: str, deer_gateway: str) -> None:
    """From the first event to the client on, the engine runs one request."""
    wait_until(lambda: unfinished_requests(vllm) == 0)
    request: dict[str, Any] = {
        "model": "pocket",
        "messages": [{"role": "user", "content": PROMPTS[2]}],
        "adjourn": {"policy": "first-finish", "traces": 6},
        "stream": True,
        "temperature": 0.9,
        "max_tokens": 2000,
    }
    chunks: list[Any] = []

    def read() -> None:
        with httpx.stream("POST", deer_gateway + CHAT, json=request, timeout=120) as reply:
            chunks.extend(json.loads(x[6:]) for x in reply.iter_lines() if x[:7] == "data: {")

    client = Thread(target=read)
    client.start()
    wait_until(lambda: unfinished_requests(vllm) == 6)
    wait_until(lambda: chunks != [], timeout=60.0)
    wait_until(lambda: unfinished_requests(vllm) <= 1, timeout=2.0)
    client.join(60)
    summary = chunks[-1]["adjourn"]
    outcomes = [trace["outcome"] for trace in summary["traces"]]
    assert sorted(outcomes) == ["chosen", *["given-up"] * 5]
    shortest = summary["tokens"]["reasoning"]
    assert all(trace["tokens"]["reasoning"] <= shortest + 60 for trace in summary["traces"])
    wait_until(lambda: unfinished_requests(vllm) == 0)


@pytest.mark.parametrize("policy", ["first-finish", "early-consistency(deer, window=3, max=6)"])
def test_the_response_has_the_engines_shape(vllm: str, deer_gateway: str, policy: str) -> None:
    """The keys of the engine's own response, one choice, its usage, and the summary."""
    errors = metric_value(deer_gateway, "adjourn_fail_open_total")
    direct = send_chat(vllm, PROMPTS[0], **SAMPLED)
    reply = send_chat(deer_gateway, PROMPTS[0], adjourn={"policy": policy}, **SAMPLED)
    summary, usage = reply.pop("adjourn"), reply["usage"]
    assert list(direct) == list(reply)
    assert len(reply["choices"]) == 1
    assert list(direct["choices"][0]) == list(reply["choices"][0])
    assert list(direct["choices"][0]["message"]) == list(reply["choices"][0]["message"])
    assert usage["prompt_tokens"] == summary["tokens"]["prompt"] == direct["usage"]["prompt_tokens"]
    kinds = ("reasoning", "marker", "closing", "answer")
    assert usage["completion_tokens"] == sum(summary["tokens"][kind] for kind in kinds)
    assert "boxed" in reply["choices"][0]["message"]["content"]
    assert summary["tokens"]["wasted"] > 0
    assert metric_value(deer_gateway, "adjourn_fail_open_total") == errors
    wait_until(lambda: unfinished_requests(vllm) == 0)


def test_a_vote_over_cut_traces(vllm: str, deer_gateway: str) -> None:
    """``early-consistency(deer)`` streams one answer, although some traces were cut."""
    policy = {"policy": "early-consistency(deer(threshold=0.8), window=4, max=4)"}
    chunks = send_chat(deer_gateway, PROMPTS[1], stream=True, adjourn=policy, **SAMPLED, **USAGE)
    summary = chunks[-2]["adjourn"]
    assert chunks[-1] == "[DONE]"
    assert len({chunk["id"] for chunk in chunks[:-1]}) == 1
    assert "boxed" in join_deltas(chunks, "content")
    assert any(trace["stopped"] for trace in summary["traces"])
    labels = [trace.get("answer") for trace in summary["traces"]]
    assert labels[summary["chosen"]] is not None
    assert labels.count(labels[summary["chosen"]]) == summary["votes"]
    wait_until(lambda: unfinished_requests(vllm) == 0)


def test_the_chosen_trace_equals_the_engines_own(vllm: str, deer_gateway: str) -> None:
    """Generated with the seed of that trace; no token is lost."""
    reply = send_chat(deer_gateway, PROMPTS[3], adjourn={"policy": "first-finish"}, **SAMPLED)
    chosen = reply["adjourn"]["chosen"]
    direct = send_chat(vllm, PROMPTS[3], **{**SAMPLED, "seed": SAMPLED["seed"] + chosen})
    assert direct["choices"] == reply["choices"]


def test_self_certainty_scores_one_token_per_answer(vllm: str, deer_gateway: str) -> None:
    """The model is asked whether the answer is correct; this test does not check its reply."""
    errors = metric_value(deer_gateway, "adjourn_fail_open_total")
    policy = {"policy": "self-certainty", "window": 2, "max": 2}
    summary = send_chat(deer_gateway, PROMPTS[4], adjourn=policy, **SAMPLED)["adjourn"]
    answered = [trace for trace in summary["traces"] if "answer" in trace]
    assert summary["tokens"]["probe"] >= len(answered) > 0
    assert metric_value(deer_gateway, "adjourn_fail_open_total") == errors


def test_group_confidence_ends_traces_below_the_threshold(vllm: str, deer_gateway: str) -> None:
    """The confidence of each trace is computed over windows of its tokens."""
    policy = {
        "policy": "group-confidence(warmup=3, batch=3, max=6)",
        "window": 32,
        "percentile": 90.0,
        "consensus": 1.0,
    }
    reply = send_chat(deer_gateway, PROMPTS[5], adjourn=policy, **{**SAMPLED, "temperature": 1.0})
    summary = reply["adjourn"]
    lowest = [trace["lowest"] for trace in summary["traces"] if trace["outcome"] != "given-up"]
    assert len(set(lowest)) > 1
    assert all(0 < value < 40 for value in lowest)
    threshold = max(trace["lowest"] for trace in summary["traces"][:3])
    given_up = [trace for trace in summary["traces"][3:] if trace["outcome"] == "given-up"]
    assert all(trace.get("lowest", 0.0) < threshold for trace in given_up)
    assert reply["choices"][0]["logprobs"] is None
    wait_until(lambda: unfinished_requests(vllm) == 0)
