"""Raw completions under the policies, on a real vLLM."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.engine.pocket_client import PROMPTS
from tests.gateway_client import events, metric_value

pytestmark = pytest.mark.engine

PATH = "/v1/completions"


def prompt_of(vllm: str, problem: str) -> list[int]:
    """The ids of a chat's prompt, as a client that renders for itself has them."""
    asked = {"model": "pocket", "messages": [{"role": "user", "content": problem}]}
    ids: list[int] = httpx.post(f"{vllm}/tokenize", json=asked).json()["tokens"]
    return ids


def complete(url: str, prompt: Any, **fields: Any) -> Any:
    asked = {"model": "pocket", "prompt": prompt, "temperature": 0, "max_tokens": 1500, **fields}
    reply = httpx.post(url + PATH, json=asked, timeout=120)
    assert reply.status_code == 200, reply.text
    return events(reply.content) if fields.get("stream") else reply.json()


def plain(document: dict[str, Any]) -> dict[str, Any]:
    document.pop("id"), document.pop("created"), document.pop("adjourn", None)
    document["usage"].pop("prompt_tokens_details")
    return document


@pytest.mark.parametrize("fields", [{}, {"logprobs": 2}, {"return_token_ids": True}, {"n": 2}])
def test_an_unstopped_completion_is_vllms(
    vllm: str, deer_gateway: str, fields: dict[str, Any]
) -> None:
    """The same document, key for key, but for id, time and cache."""
    prompt = prompt_of(vllm, PROMPTS[0])
    sampled = {"temperature": 0.9, "seed": 5} if "n" in fields else {}
    direct = plain(complete(vllm, prompt, **fields, **sampled))
    ours = plain(complete(deer_gateway, prompt, adjourn={"policy": "never"}, **fields, **sampled))
    assert list(direct) == list(ours)
    assert direct == ours


@pytest.mark.parametrize("streamed", [True, False])
def test_a_cut_is_text(vllm: str, deer_gateway: str, streamed: bool) -> None:
    """The trace, the marker and an answer in one text; ids and usage are those of the text."""
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
    thought, marker, answer = text.partition("</think>")
    assert marker
    assert thought.endswith("\n")
    assert "\\boxed{" in answer
    assert last["adjourn"]["stopped"] is True
    assert last["usage"]["completion_tokens"] == len(ids)
    told = httpx.post(f"{vllm}/detokenize", json={"model": "pocket", "tokens": ids}).json()
    assert told["prompt"].startswith(text)
    assert metric_value(deer_gateway, "adjourn_fail_open_total") == failed


@pytest.mark.parametrize("policy", ["never", "budget(max=40)"])
def test_a_stop_string_is_for_the_answer(vllm: str, deer_gateway: str, policy: str) -> None:
    """Where the prompt opens a trace, stop strings wait for its end."""
    marker = {"model": "pocket", "prompt": "<think>\n", "add_special_tokens": False}
    opening = httpx.post(f"{vllm}/tokenize", json=marker).json()["tokens"]
    prompt = [*prompt_of(vllm, PROMPTS[0]), *opening]
    text = complete(deer_gateway, prompt, stop=[" = ", "boxed"], adjourn={"policy": policy})[
        "choices"
    ][0]
    thought, _, answer = text["text"].partition("</think>")
    assert " = " in thought
    assert answer.endswith("\\")
    assert text["stop_reason"] == "boxed"


def test_a_prompt_without_a_trace_keeps_its_stop_strings(vllm: str, deer_gateway: str) -> None:
    """They are the engine's: there is no trace to keep them from."""
    fields: dict[str, Any] = {"stop": ["9"], "max_tokens": 40}
    reply = httpx.post(
        deer_gateway + PATH,
        json={"model": "pocket", "prompt": "I start", "temperature": 0, **fields},
    )
    assert reply.headers["x-adjourn-passed-through"] == "stop-strings"
    direct = complete(vllm, "I start", **fields)["choices"]
    assert direct == reply.json()["choices"]


def test_no_rescue(vllm: str, deer_gateway: str) -> None:
    """Who asks for so many tokens of a trace gets them and no more."""
    prompt = prompt_of(vllm, PROMPTS[2])
    direct = complete(vllm, prompt, max_tokens=20)["choices"]
    assert direct == complete(deer_gateway, prompt, max_tokens=20)["choices"]


@pytest.mark.parametrize("fields", [{}, {"logprobs": 2}])
def test_log_probabilities_that_only_the_policy_needs(
    vllm: str, deer_gateway: str, fields: dict[str, Any]
) -> None:
    """The client gets those that it asked for, to the last one, though the policy has twenty."""
    prompt = prompt_of(vllm, PROMPTS[0])
    direct = plain(complete(vllm, prompt, **fields))
    policy = {"policy": "cusum", "min_tokens": 5000}
    ours = plain(complete(deer_gateway, prompt, adjourn=policy, **fields))
    for document in (direct, ours):  # which of two equally probable ones is told is no matter
        told = document["choices"][0]["logprobs"] or {}
        told["top_logprobs"] = [sorted(one.values()) for one in told.get("top_logprobs", ())]
    assert direct == ours


def test_words_that_are_put_in_are_text(vllm: str, deer_gateway: str) -> None:
    """The trace goes on behind "Wait" in one text; ids and usage are those of the text."""
    prompt = prompt_of(vllm, PROMPTS[1])
    policy = {"policy": "budget", "min": 2000, "waits": 1}
    reply = complete(deer_gateway, prompt, return_token_ids=True, adjourn=policy)
    choice = reply["choices"][0]
    assert reply["adjourn"]["extended"] == 1
    assert "\nWait" in choice["text"]
    assert choice["text"].count("</think>") == 1
    assert reply["usage"]["completion_tokens"] == len(choice["token_ids"])
    told = {"model": "pocket", "tokens": choice["token_ids"]}
    assert httpx.post(f"{vllm}/detokenize", json=told).json()["prompt"].startswith(choice["text"])


def test_raw_completions_race_too(vllm: str, deer_gateway: str) -> None:
    """One trace's text, as the engine would have drawn it with that trace's seed."""
    prompt = prompt_of(vllm, PROMPTS[2])
    sampled = {"temperature": 0.6, "seed": 21}
    raced = complete(
        deer_gateway, prompt, adjourn={"policy": "first-finish", "traces": 3}, **sampled
    )
    seed = 21 + raced["adjourn"]["chosen"]
    direct = plain(complete(vllm, prompt, **{**sampled, "seed": seed}))
    assert direct == plain(raced)
    vote = {"policy": "early-consistency", "window": 2, "max": 4}
    note = complete(deer_gateway, prompt, adjourn=vote, **sampled)["adjourn"]
    assert all(isinstance(trace.get("answer"), int) for trace in note["traces"])
