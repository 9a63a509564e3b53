"""Each policy against a real vLLM with the pocket model: that it acts, and what the client sees."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.test_real import PROBLEMS, ask, joined
from tests.exchange import metric

pytestmark = pytest.mark.engine

KINDS = ("reasoning", "marker", "closing", "answer")


def judged(url: str, prompt: str, policy: str, **fields: Any) -> tuple[list[Any], dict[str, Any]]:
    """A stream's chunks, and the gateway's note."""
    asked = {"stream": True, "stream_options": {"include_usage": True}, **fields}
    chunks = ask(url, prompt, adjourn={"policy": policy}, **asked)
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
        ("no-thinking", {"no-thinking"}),
    ],
)
def test_a_policy_stops_and_the_model_answers(real: str, policy: str, reasons: set[str]) -> None:
    """Over some problems it stops at least one, for its own reasons, and nothing fails open."""
    failed = metric(real, "adjourn_fail_open_total")
    stops = []
    for prompt in PROBLEMS[:6]:
        chunks, note = judged(real, prompt, policy)
        usage = chunks[-1]["usage"]
        assert usage["completion_tokens"] == sum(note["tokens"][kind] for kind in KINDS)
        assert "\\boxed{" in joined(chunks, "content")
        assert "</think>" not in joined(chunks, "content") + joined(chunks, "reasoning")
        stops += [note["reason"]] if note["stopped"] else []
    assert stops
    assert set(stops) <= reasons
    assert metric(real, "adjourn_fail_open_total") == failed


@pytest.mark.parametrize("policy", ["cusum", "deviation"])
def test_log_probabilities_that_only_the_policy_needs(vllm: str, real: str, policy: str) -> None:
    """A client that asked for none sees a stream with vLLM's own keys and no log-probabilities."""
    direct = ask(vllm, PROBLEMS[0], stream=True)
    ours, _ = judged(real, PROBLEMS[0], f"{policy}(min_tokens=5000)")
    texts = [(joined(each, "reasoning"), joined(each, "content")) for each in (direct, ours)]
    assert texts[0] == texts[1]
    shapes = [
        {tuple(c) for c in chunk["choices"]} for chunk in (*direct[:-1], *ours) if chunk["choices"]
    ]
    assert all(shape == shapes[0] for shape in shapes)
    assert {str(c["choices"][0]["logprobs"]) for c in ours if c["choices"]} == {"None"}


def test_a_trace_that_is_extended(vllm: str, real: str) -> None:
    """It thinks on behind "Wait", in one response, from the very ids that the client got."""
    prompt = PROBLEMS[0]
    short, note = judged(real, prompt, "never", return_token_ids=True)
    least = note["tokens"]["reasoning"] + 20
    chunks, note = judged(real, prompt, f"budget(min={least})", return_token_ids=True)
    assert note["extended"] >= 1
    assert note["tokens"]["reasoning"] >= least or note["extended"] == 4
    before, after = joined(short, "reasoning"), joined(chunks, "reasoning")
    assert after.startswith(before + "Wait")
    assert "\\boxed{" in joined(chunks, "content")
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
    direct = ask(
        vllm, prompt, stream=True, return_token_ids=True, max_tokens=40,
        kv_transfer_params={"prompt_token_ids": resumed},
    )  # fmt: skip
    said = [i for c in direct[:-1] if c["choices"] for i in c["choices"][0].get("token_ids") or []]
    assert said == ids[kept:]


def test_an_unstreamed_extension(real: str) -> None:
    """One document, whose reasoning holds what was put in."""
    reply = ask(real, PROBLEMS[1], adjourn={"policy": "budget(min=2000, waits=1)"})
    assert reply["adjourn"]["extended"] == 1
    assert "\nWait" in reply["choices"][0]["message"]["reasoning"]
    assert "\\boxed{" in reply["choices"][0]["message"]["content"]


def test_no_thinking_says_so(real: str) -> None:
    """What stands in the trace's place is what the client gets as reasoning."""
    chunks, note = judged(real, PROBLEMS[2], "no-thinking")
    assert joined(chunks, "reasoning").strip() == "Okay, I think I have finished thinking."
    assert note["stopped"]
