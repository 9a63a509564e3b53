"""Each policy against a real vLLM with the pocket model: that it acts, and what the client sees."""

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
    """A stream's chunks, and the gateway's note."""
    asked = {"stream": True, "stream_options": {"include_usage": True}, **fields}
    chunks = send_chat(url, prompt, adjourn={"policy": policy}, **asked)
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
def test_a_policy_stops_and_the_model_answers(
    deer_gateway: str, policy: str, reasons: set[str]
) -> None:
    """Over some problems it stops at least one, for its own reasons, and nothing fails open."""
    failed = metric_value(deer_gateway, "adjourn_fail_open_total")
    stops = []
    for prompt in PROMPTS[:6]:
        chunks, note = run_policy(deer_gateway, prompt, policy)
        usage = chunks[-1]["usage"]
        assert usage["completion_tokens"] == sum(note["tokens"][kind] for kind in KINDS)
        # A model this small may think on inside the answer, but it gives one.
        assert "\\boxed{" in join_deltas(chunks, "content")
        assert "</think>" not in join_deltas(chunks, "reasoning")
        stops += [note["reason"]] if note["stopped"] else []
    assert stops
    assert set(stops) <= reasons
    assert metric_value(deer_gateway, "adjourn_fail_open_total") == failed


@pytest.mark.parametrize("policy", ["cusum", "deviation"])
def test_log_probabilities_that_only_the_policy_needs(
    vllm: str, deer_gateway: str, policy: str
) -> None:
    """A client that asked for none sees a stream with vLLM's own keys and no log-probabilities."""
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


def test_a_trace_that_is_extended(vllm: str, deer_gateway: str) -> None:
    """It thinks on behind "Wait", in one response, from the very ids that the client got."""
    prompt = PROMPTS[0]
    short, note = run_policy(deer_gateway, prompt, "never", return_token_ids=True)
    least = note["tokens"]["reasoning"] + 20
    chunks, note = run_policy(deer_gateway, prompt, f"budget(min={least})", return_token_ids=True)
    assert note["extended"] >= 1
    assert note["tokens"]["reasoning"] >= least or note["extended"] == 4
    before, after = join_deltas(short, "reasoning"), join_deltas(chunks, "reasoning")
    assert after.startswith(before + "Wait")
    assert "\\boxed{" in join_deltas(chunks, "content")
    assert len({c["id"] for c in chunks}) == 1
    assert sum("role" in c["choices"][0]["delta"] for c in chunks if c["choices"]) == 1
    usage = chunks[-1]["usage"]
    assert usage["completion_tokens"] == sum(note["tokens"][kind] for kind in KINDS)
    assert usage["prompt_tokens"] == note["tokens"]["prompt"] == short[-1]["usage"]["prompt_tokens"]
    ids = [i for c in chunks if c["choices"] for i in c["choices"][0].get("token_ids") or []]
    assert len(ids) == usage["completion_tokens"]
    # The engine itself goes on from a prefix of those ids as the client saw it go on.
    kept = len(ids) - 40
    resumed = [*chunks[0]["prompt_token_ids"], *ids[:kept]]
    direct = send_chat(
        vllm, prompt, stream=True, return_token_ids=True, max_tokens=40,
        kv_transfer_params={"prompt_token_ids": resumed},
    )  # fmt: skip
    said = [i for c in direct[:-1] if c["choices"] for i in c["choices"][0].get("token_ids") or []]
    assert said == ids[kept:]


def test_an_unstreamed_extension(deer_gateway: str) -> None:
    """One document, whose reasoning holds what was put in."""
    reply = send_chat(deer_gateway, PROMPTS[1], adjourn={"policy": "budget(min=2000, waits=1)"})
    assert reply["adjourn"]["extended"] == 1
    assert "\nWait" in reply["choices"][0]["message"]["reasoning"]
    assert "\\boxed{" in reply["choices"][0]["message"]["content"]


def test_no_thinking_says_so(deer_gateway: str) -> None:
    """What stands in the trace's place is what the client gets as reasoning, and counts as such."""
    chunks, note = run_policy(deer_gateway, PROMPTS[2], "no-thinking")
    assert join_deltas(chunks, "reasoning").strip() == "Okay, I think I have finished thinking."
    assert (note["stopped"], note["reason"]) == (True, "no-thinking")
    usage = chunks[-1]["usage"]
    assert usage["completion_tokens"] == sum(note["tokens"][kind] for kind in KINDS)


def test_a_tilted_model_ends_by_itself(deer_gateway: str) -> None:
    """With a bias that rises it ends sooner, in its own way: nothing is stopped or put in."""
    whole, tilted = (
        [run_policy(deer_gateway, prompt, policy)[1] for prompt in PROMPTS[:6]]
        for policy in ("never", "tilt(bias=1, slope=20, every=100)")
    )
    assert not any(note["stopped"] or note.get("extended") or note.get("muted") for note in tilted)
    thought = [sum(note["tokens"]["reasoning"] for note in notes) for notes in (tilted, whole)]
    assert thought[0] < thought[1]
    assert sum(note["tokens"]["wasted"] for note in tilted) > 0
