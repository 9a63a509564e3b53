"""Raw completions under policies, on a real vLLM."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.engine.pocket_client import PROMPTS
from tests.gateway_client import events, metric_value

pytestmark = pytest.mark.engine

PATH = "/v1/completions"


def prompt_of(vllm: str, problem: str) -> list[int]:
    """The token ids of a rendered chat prompt."""
    request = {"model": "pocket", "messages": [{"role": "user", "content": problem}]}
    ids: list[int] = httpx.post(f"{vllm}/tokenize", json=request).json()["tokens"]
    return ids


def complete(url: str, prompt: Any, **fields: Any) -> Any:
    """One completion request. Returns the document or, with ``stream``, the decoded events."""
    request = {"model": "pocket", "prompt": prompt, "temperature": 0, "max_tokens": 1500, **fields}
    reply = httpx.post(url + PATH, json=request, timeout=120)
    assert reply.status_code == 200, reply.text
    return events(reply.content) if fields.get("stream") else reply.json()


def comparable(document: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that differ between two responses. Changes ``document``."""
    document.pop("id"), document.pop("created"), document.pop("adjourn", None)
    document["usage"].pop("prompt_tokens_details")
    return document


@pytest.mark.parametrize("fields", [{}, {"logprobs": 2}, {"return_token_ids": True}, {"n": 2}])
def test_an_unstopped_completion_is_vllms(
    vllm: str, deer_gateway: str, fields: dict[str, Any]
) -> None:
    """The same document, except for id, time and cached tokens."""
    prompt = prompt_of(vllm, PROMPTS[0])
    sampled = {"temperature": 0.9, "seed": 5} if "n" in fields else {}
    direct = comparable(complete(vllm, prompt, **fields, **sampled))
    ours = comparable(
        complete(deer_gateway, prompt, adjourn={"policy": "never"}, **fields, **sampled)
    )
    assert list(direct) == list(ours)
    assert direct == ours


@pytest.mark.parametrize("streamed", [True, False])
def test_a_cut_completion_is_one_text(vllm: str, deer_gateway: str, streamed: bool) -> None:
    """Trace, end marker and answer; token ids and usage are those of the text."""
    failed = metric_value(deer_gateway, "adjourn_fail_open_total")
    prompt = prompt_of(vllm, PROMPTS[1])
    fields: dict[str, Any] = {"return_token_ids": True, "adjourn": {"policy": "budget", "max": 40}}
    if streamed:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
        chunks = complete(deer_gateway, prompt, **fields)
        choices = [choice for c in chunks[:-1] for choice in c["choices"]]
        text = "".join(choice["text"] for choice in choices)
        ids = [token for choice in choices for token in choice["token_ids"] or ()]
        last = chunks[-2]
        assert choices[-1]["finish_reason"] == "stop"
    else:
        last = complete(deer_gateway, prompt, **fields)
        text, ids = last["choices"][0]["text"], last["choices"][0]["token_ids"]
    reasoning, marker, answer = text.partition("</think>")
    assert marker
    assert reasoning.endswith("\n")
    assert "\\boxed{" in answer
    assert last["adjourn"]["stopped"] is True
    assert last["usage"]["completion_tokens"] == len(ids)
    detokenized = httpx.post(f"{vllm}/detokenize", json={"model": "pocket", "tokens": ids}).json()
    assert detokenized["prompt"].startswith(text)
    assert metric_value(deer_gateway, "adjourn_fail_open_total") == failed


@pytest.mark.parametrize("policy", ["never", "budget(max=40)"])
def test_a_stop_string_applies_to_the_answer_only(
    vllm: str, deer_gateway: str, policy: str
) -> None:
    """If the prompt opens a trace, stop strings apply after the end of the trace."""
    marker = {"model": "pocket", "prompt": "<think>\n", "add_special_tokens": False}
    opening = httpx.post(f"{vllm}/tokenize", json=marker).json()["tokens"]
    prompt = [*prompt_of(vllm, PROMPTS[0]), *opening]
    choice = complete(deer_gateway, prompt, stop=[" = ", "boxed"], adjourn={"policy": policy})[
        "choices"
    ][0]
    reasoning, _, answer = choice["text"].partition("</think>")
    assert " = " in reasoning
    assert answer.endswith("\\")
    assert choice["stop_reason"] == "boxed"


def test_stop_strings_pass_through_without_an_open_trace(vllm: str, deer_gateway: str) -> None:
    """There is no trace to protect from them."""
    fields: dict[str, Any] = {"stop": ["9"], "max_tokens": 40}
    reply = httpx.post(
        deer_gateway + PATH,
        json={"model": "pocket", "prompt": "I start", "temperature": 0, **fields},
    )
    assert reply.headers["x-adjourn-passed-through"] == "stop-strings"
    direct = complete(vllm, "I start", **fields)["choices"]
    assert direct == reply.json()["choices"]


def test_completions_are_not_rescued(vllm: str, deer_gateway: str) -> None:
    """A client that asks for 20 tokens gets 20 tokens, even if all belong to the trace."""
    prompt = prompt_of(vllm, PROMPTS[2])
    direct = complete(vllm, prompt, max_tokens=20)["choices"]
    assert direct == complete(deer_gateway, prompt, max_tokens=20)["choices"]


@pytest.mark.parametrize("fields", [{}, {"logprobs": 2}])
def test_log_probabilities_of_the_policy_are_not_sent(
    vllm: str, deer_gateway: str, fields: dict[str, Any]
) -> None:
    """The client gets exactly those that it asked for, although the policy reads twenty."""
    prompt = prompt_of(vllm, PROMPTS[0])
    direct = comparable(complete(vllm, prompt, **fields))
    policy = {"policy": "cusum", "min_tokens": 5000}
    ours = comparable(complete(deer_gateway, prompt, adjourn=policy, **fields))
    for document in (direct, ours):  # which of two equally probable tokens is listed may differ
        logprobs = document["choices"][0]["logprobs"] or {}
        logprobs["top_logprobs"] = [
            sorted(one.values()) for one in logprobs.get("top_logprobs", ())
        ]
    assert direct == ours


def test_inserted_text_is_part_of_the_completion(vllm: str, deer_gateway: str) -> None:
    """The trace continues after "Wait" in one text; ids and usage are those of the text."""
    prompt = prompt_of(vllm, PROMPTS[1])
    policy = {"policy": "budget", "min": 2000, "waits": 1}
    reply = complete(deer_gateway, prompt, return_token_ids=True, adjourn=policy)
    choice = reply["choices"][0]
    assert reply["adjourn"]["extended"] == 1
    assert "\nWait" in choice["text"]
    assert choice["text"].count("</think>") == 1
    assert reply["usage"]["completion_tokens"] == len(choice["token_ids"])
    request = {"model": "pocket", "tokens": choice["token_ids"]}
    assert (
        httpx.post(f"{vllm}/detokenize", json=request).json()["prompt"].startswith(choice["text"])
    )


def test_completions_may_race_and_vote(vllm: str, deer_gateway: str) -> None:
    """The response is the text that the engine generates with the chosen trace's seed."""
    prompt = prompt_of(vllm, PROMPTS[2])
    sampled = {"temperature": 0.6, "seed": 21}
    raced = complete(
        deer_gateway, prompt, adjourn={"policy": "first-finish", "traces": 3}, **sampled
    )
    seed = 21 + raced["adjourn"]["chosen"]
    direct = comparable(complete(vllm, prompt, **{**sampled, "seed": seed}))
    assert direct == comparable(raced)
    vote = {"policy": "early-consistency", "window": 2, "max": 4}
    summary = complete(deer_gateway, prompt, adjourn=vote, **sampled)["adjourn"]
    assert all(isinstance(trace.get("answer"), int) for trace in summary["traces"])
