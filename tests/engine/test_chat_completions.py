"""Chat completions on a real vLLM with the pocket model."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.engine.pocket_client import (
    PROMPTS,
    join_deltas,
    send_chat,
    unfinished_requests,
    wait_until,
)
from tests.gateway_client import CHAT, events, metric_value, normalize

pytestmark = pytest.mark.engine


def test_a_stock_vllm_has_every_capability(deer_gateway: str) -> None:
    """The only engine flag required is the reasoning parser."""
    state = httpx.get(f"{deer_gateway}/ready").json()
    assert state["missing"] == {}
    assert state["models"] == {"pocket": "qwen3"}


@pytest.mark.parametrize("policy", ["off", "never"])
def test_an_unstopped_response_is_vllms(vllm: str, deer_gateway: str, policy: str) -> None:
    """Unstreamed: the same document, except for id, time and cached tokens."""

    def comparable(document: dict[str, Any]) -> dict[str, Any]:
        document.pop("id"), document.pop("created"), document.pop("adjourn", None)
        document["usage"].pop("prompt_tokens_details")
        return document

    for prompt in PROMPTS[:3]:
        direct = comparable(send_chat(vllm, prompt))
        ours = comparable(send_chat(deer_gateway, prompt, adjourn={"policy": policy}))
        assert list(direct) == list(ours)
        assert direct == ours


@pytest.mark.parametrize("policy", ["off", "never"])
def test_an_unstopped_stream_is_vllms(vllm: str, deer_gateway: str, policy: str) -> None:
    """The same texts and usage, chunks with the same keys, and no unrequested token ids."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for prompt in PROMPTS[:3]:
        direct = send_chat(vllm, prompt, **options)
        reply = httpx.post(
            deer_gateway + CHAT,
            json={
                "model": "pocket",
                "messages": [{"role": "user", "content": prompt}],
                "temperature": 0,
                "max_tokens": 2000,
                **options,
            },
            headers={"x-adjourn-policy": "off"} if policy == "off" else {},
        )
        ours = events(reply.content)
        if policy == "never":
            ours = send_chat(deer_gateway, prompt, adjourn={"policy": "never"}, **options)
        for key in ("reasoning", "content"):
            assert join_deltas(direct, key) == join_deltas(ours, key)
        assert direct[-2]["usage"]["completion_tokens"] == ours[-2]["usage"]["completion_tokens"]
        assert [list(c) for c in direct[:2]] == [list(c) for c in ours[:2]]
        assert direct[1]["choices"][0].keys() == ours[1]["choices"][0].keys()
        assert b'"token_ids":[' not in normalize(reply.content)


def test_the_ledger_equals_vllms_usage(deer_gateway: str) -> None:
    """On an uncut trace, every token is in the ledger once."""
    for prompt in PROMPTS[:4]:
        reply = send_chat(deer_gateway, prompt, adjourn={"policy": "never"})
        tokens, usage = reply["adjourn"]["tokens"], reply["usage"]
        kinds = ("reasoning", "marker", "closing", "answer")
        assert usage["completion_tokens"] == sum(tokens[kind] for kind in kinds)
        assert usage["completion_tokens_details"]["reasoning_tokens"] == tokens["reasoning"]
        assert usage["prompt_tokens"] == tokens["prompt"]


def test_a_cut_stream_is_one_response(deer_gateway: str) -> None:
    """Reasoning, then an answer that the model generated, with one id, one role and one usage."""
    for prompt in PROMPTS[:4]:
        chunks = send_chat(
            deer_gateway,
            prompt,
            stream=True,
            stream_options={"include_usage": True},
            adjourn={"policy": "budget", "max": 40},
        )
        assert chunks.pop() == "[DONE]"
        assert len({c["id"] for c in chunks}) == 1
        assert sum("role" in c["choices"][0]["delta"] for c in chunks if c["choices"]) == 1
        assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"
        usage, summary = chunks[-1]["usage"], chunks[-1]["adjourn"]
        assert summary["stopped"]
        assert usage["completion_tokens_details"]["reasoning_tokens"] <= 104
        assert "\\boxed{" in join_deltas(chunks, "content")
        assert "</think>" not in join_deltas(chunks, "content") + join_deltas(chunks, "reasoning")


def test_deer_saves_tokens_and_leaves_no_request_running(vllm: str, deer_gateway: str) -> None:
    """Over twelve problems."""
    full = [send_chat(vllm, prompt)["usage"]["completion_tokens"] for prompt in PROMPTS]
    ours = [send_chat(deer_gateway, prompt) for prompt in PROMPTS]
    stopped = [reply for reply in ours if reply.get("adjourn", {}).get("stopped")]
    assert stopped
    assert sum(r["usage"]["completion_tokens"] for r in ours) < sum(full)
    wait_until(lambda: unfinished_requests(vllm) == 0, timeout=30.0)
    assert metric_value(deer_gateway, "adjourn_fail_open_total") == 0


def test_probes_hit_the_prefix_cache(deer_gateway: str) -> None:
    """A probe prefills only the tail of the prefix that the running request computed."""
    before = metric_value(deer_gateway, "adjourn_tokens_total", kind="prefilled")
    probes = metric_value(deer_gateway, "adjourn_probes_total", outcome="ok")
    for prompt in PROMPTS[:4]:
        send_chat(deer_gateway, prompt, adjourn={"policy": "convergence(every=40, window=9)"})
    prefilled = metric_value(deer_gateway, "adjourn_tokens_total", kind="prefilled") - before
    sent = metric_value(deer_gateway, "adjourn_probes_total", outcome="ok") - probes
    assert sent >= 4
    # Blocks of 32 tokens: the last, partial block, the closing sequence and the inducer are new.
    assert prefilled / sent < 80


def test_structured_output_after_a_cut(deer_gateway: str) -> None:
    """The engine's grammar constrains the answer."""
    schema = {
        "type": "object",
        "properties": {"result": {"type": "integer"}},
        "required": ["result"],
        "additionalProperties": False,
    }
    reply = send_chat(
        deer_gateway,
        PROMPTS[0],
        max_tokens=400,
        response_format={"type": "json_schema", "json_schema": {"name": "r", "schema": schema}},
        adjourn={"policy": "budget", "max": 40},
    )
    assert reply["adjourn"]["stopped"]
    content = reply["choices"][0]["message"]["content"]
    if reply["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(content)["result"], int)
    else:  # a model this small may write digits until the limit
        assert content.lstrip().startswith("{")


def test_logprobs_are_merged_over_a_cut(deer_gateway: str) -> None:
    """One entry per token that the client got as text, for trace and answer."""
    reply = send_chat(
        deer_gateway,
        PROMPTS[1],
        logprobs=True,
        top_logprobs=2,
        adjourn={"policy": "budget", "max": 40},
    )
    tokens = reply["adjourn"]["tokens"]
    entries = reply["choices"][0]["logprobs"]["content"]
    assert tokens["reasoning"] + tokens["marker"] + tokens["answer"] == len(entries)


def test_a_response_without_a_trace_is_not_cut(deer_gateway: str) -> None:
    """With thinking switched off."""
    reply = send_chat(
        deer_gateway,
        PROMPTS[2],
        chat_template_kwargs={"enable_thinking": False},
        adjourn={"policy": "budget", "max": 1},
    )
    assert reply["adjourn"]["stopped"] is False
    assert reply["adjourn"]["tokens"]["reasoning"] == 0


def test_a_prompt_that_is_too_long_is_the_engines_400(vllm: str, deer_gateway: str) -> None:
    """Unmodified."""
    request = {"model": "pocket", "messages": [{"role": "user", "content": "9" * 9000}]}
    direct, ours = (
        httpx.post(vllm + CHAT, json=request),
        httpx.post(deer_gateway + CHAT, json=request),
    )
    assert ours.status_code == 400
    assert direct.content == ours.content


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_disconnect_ends_the_engine_request(
    vllm: str, deer_gateway: str, path: str, streamed: bool
) -> None:
    """vLLM's own metrics report no running request."""
    wait_until(lambda: unfinished_requests(vllm) == 0, timeout=30.0)
    turns = [{"role": "user", "content": PROMPTS[3]}]
    own = {"input": turns} if path == "/v1/responses" else {"messages": turns, "max_tokens": 3900}
    policy = {"policy": "never"}
    request = {"model": "pocket", "stream": streamed, "ignore_eos": True, "adjourn": policy, **own}
    with httpx.Client(timeout=60) as client:
        if streamed:
            with client.stream("POST", deer_gateway + path, json=request) as reply:
                next(reply.iter_raw())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(deer_gateway + path, json=request, timeout=1.0)
    wait_until(
        lambda: unfinished_requests(vllm) == 0, timeout=5.0
    )  # without an abort it would run for longer


def test_openai_python_reads_a_stream_under_a_policy(deer_gateway: str) -> None:
    """Its reasoning, content and usage."""
    client = openai.OpenAI(base_url=f"{deer_gateway}/v1", api_key="none")
    reasoning, content, usage = "", "", None
    for chunk in client.chat.completions.create(
        model="pocket:deer",
        messages=[{"role": "user", "content": PROMPTS[4]}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            reasoning += (choice.delta.model_extra or {}).get("reasoning") or ""
            content += choice.delta.content or ""
    assert reasoning
    assert "\\boxed{" in content
    assert usage is not None
    assert usage.completion_tokens_details.reasoning_tokens > 0
