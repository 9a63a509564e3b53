"""Each policy on a real vLLM with the pocket model: it stops traces, and the response is
complete."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.pocket_client import PROMPTS, join_deltas, send_chat
from tests.gateway_client import metric_value

pytestmark = pytest.mark.engine

KINDS = ("reasoning", "marker", "closing", "answer")


def run_policy(
    url: str, prompt: str, policy: str, **fields: Any
) -> tuple[list[Any], dict[str, Any]]:
    """Stream one response under the policy. Returns its chunks and the summary."""
    options = {"stream": True, "stream_options": {"include_usage": True}, **fields}
    chunks = send_chat(url, prompt, adjourn={"policy": policy}, **options)
    assert chunks.pop() == "[DONE]"
    return chunks, chunks[-1]["adjourn"]


@pytest.mark.parametrize(
    ("policy", "reasons"),
    [
        ("deer-pro(threshold=0.8)", {"confident"}),
        ("margin(threshold=0.7)", {"narrow"}),
        ("entropy(at='sentence', alpha=0.5, delta=0.05)", {"settled"}),
        ("cusum", {"sure"}),
        ("deviation", {"deviating"}),
        ("first-try", {"answered"}),
        ("redundancy(min_steps=2)", {"redundant", "redundant-stable"}),
        ("utility(patience=1)", {"no-gain"}),
    ],
)
def test_a_policy_stops_traces_and_the_model_answers(
    deer_gateway: str, policy: str, reasons: set[str]
) -> None:
    """At least one of six, for the policy's own reasons, and nothing fails open."""
    failed = metric_value(deer_gateway, "adjourn_fail_open_total")
    stops = []
    for prompt in PROMPTS[:6]:
        chunks, summary = run_policy(deer_gateway, prompt, policy)
        usage = chunks[-1]["usage"]
        assert usage["completion_tokens"] == sum(summary["tokens"][kind] for kind in KINDS)
        # A model this small may go on reasoning in the answer, but it gives one.
        assert "\\boxed{" in join_deltas(chunks, "content")
        assert "</think>" not in join_deltas(chunks, "reasoning")
        stops += [summary["reason"]] if summary["stopped"] else []
    assert stops
    assert set(stops) <= reasons
    assert metric_value(deer_gateway, "adjourn_fail_open_total") == failed


@pytest.mark.parametrize("policy", ["cusum", "deviation"])
def test_log_probabilities_of_the_policy_are_not_sent(
    vllm: str, deer_gateway: str, policy: str
) -> None:
    """A client that asked for none gets vLLM's own keys and no log-probabilities."""
    direct = send_chat(vllm, PROMPTS[0], stream=True)
    ours, _ = run_policy(deer_gateway, PROMPTS[0], f"{policy}(min_tokens=5000)")
    texts = [
        (join_deltas(each, "reasoning"), join_deltas(each, "content")) for each in (direct, ours)
    ]
    assert texts[0] == texts[1]
    shapes = [
        {tuple(chunk["choices"][0]) for chunk in chunks if chunk != "[DONE]" and chunk["choices"]}
        for chunks in (direct, ours)
    ]
    assert shapes[0] == shapes[1]
    assert {str(c["choices"][0]["logprobs"]) for c in ours if c["choices"]} == {"None"}


def test_an_extended_trace_is_one_response(vllm: str, deer_gateway: str) -> None:
    """The model continues after "Wait", from the ids that the client got."""
    prompt = PROMPTS[0]
    short, summary = run_policy(deer_gateway, prompt, "never", return_token_ids=True)
    minimum = summary["tokens"]["reasoning"] + 20
    chunks, summary = run_policy(
        deer_gateway, prompt, f"budget(min={minimum})", return_token_ids=True
    )
    assert summary["extended"] >= 1
    assert summary["tokens"]["reasoning"] >= minimum or summary["extended"] == 4
    before, after = join_deltas(short, "reasoning"), join_deltas(chunks, "reasoning")
    assert after.startswith(before + "Wait")
    assert "\\boxed{" in join_deltas(chunks, "content")
    assert len({c["id"] for c in chunks}) == 1
    assert sum("role" in c["choices"][0]["delta"] for c in chunks if c["choices"]) == 1
    usage = chunks[-1]["usage"]
    assert usage["completion_tokens"] == sum(summary["tokens"][kind] for kind in KINDS)
    assert (
        usage["prompt_tokens"] == summary["tokens"]["prompt"] == short[-1]["usage"]["prompt_tokens"]
    )
    ids = [i for c in chunks if c["choices"] for i in c["choices"][0].get("token_ids") or []]
    assert len(ids) == usage["completion_tokens"]
    # The engine alone continues a prefix of those ids with the ids that the client got.
    kept = len(ids) - 40
    resumed = [*chunks[0]["prompt_token_ids"], *ids[:kept]]
    direct = send_chat(
        vllm, prompt, stream=True, return_token_ids=True, max_tokens=40,
        kv_transfer_params={"prompt_token_ids": resumed},
    )  # fmt: skip
    direct_ids = [
        i for c in direct[:-1] if c["choices"] for i in c["choices"][0].get("token_ids") or []
    ]
    assert direct_ids == ids[kept:]


def test_an_unstreamed_extension_gives_one_document(deer_gateway: str) -> None:
    """Its reasoning contains the inserted text."""
    reply = send_chat(deer_gateway, PROMPTS[1], adjourn={"policy": "budget(min=2000, waits=1)"})
    assert reply["adjourn"]["extended"] == 1
    assert "\nWait" in reply["choices"][0]["message"]["reasoning"]
    assert "\\boxed{" in reply["choices"][0]["message"]["content"]


def test_no_thinking_replaces_the_trace_with_a_fixed_text(deer_gateway: str) -> None:
    """The client gets the text as reasoning, and it counts as reasoning."""
    chunks, summary = run_policy(deer_gateway, PROMPTS[2], "no-thinking")
    assert join_deltas(chunks, "reasoning").strip() == "Okay, I think I have finished thinking."
    assert (summary["stopped"], summary["reason"]) == (True, "no-thinking")
    usage = chunks[-1]["usage"]
    assert usage["completion_tokens"] == sum(summary["tokens"][kind] for kind in KINDS)


def test_tilt_makes_the_model_end_its_trace_sooner(deer_gateway: str) -> None:
    """With a rising bias on the end marker; nothing is stopped or inserted."""
    uncut, tilted = (
        [run_policy(deer_gateway, prompt, policy)[1] for prompt in PROMPTS[:6]]
        for policy in ("never", "tilt(bias=1, slope=20, every=100)")
    )
    assert not any(
        summary["stopped"] or summary.get("extended") or summary.get("muted") for summary in tilted
    )
    reasoning_tokens = [
        sum(summary["tokens"]["reasoning"] for summary in summaries)
        for summaries in (tilted, uncut)
    ]
    assert reasoning_tokens[0] < reasoning_tokens[1]
    assert sum(summary["tokens"]["wasted"] for summary in tilted) > 0
