"""Stop strings, rescues and usage on every chunk, on a real vLLM."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.engine.pocket_client import PROMPTS, join_deltas, send_chat
from tests.gateway_client import CHAT, metric_value

pytestmark = pytest.mark.engine


def message(reply: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = reply["choices"][0]["message"]
    return found


@pytest.mark.parametrize("policy", ["never", "budget(max=40)"])
def test_a_stop_string_ends_the_answer_and_not_the_trace(
    vllm: str, deer_gateway: str, policy: str
) -> None:
    """The engine alone stops in the trace; here the answer ends where the string would stand."""
    failed = metric_value(deer_gateway, "adjourn_fail_open_total")
    stop = {"stop": [" = ", "boxed"]}
    assert message(send_chat(vllm, PROMPTS[0], **stop))["content"] is None
    reply = send_chat(deer_gateway, PROMPTS[0], adjourn={"policy": policy}, **stop)
    choice = reply["choices"][0]
    assert " = " in choice["message"]["reasoning"]
    assert choice["message"]["content"].endswith("\\")
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "boxed")
    assert metric_value(deer_gateway, "adjourn_fail_open_total") == failed


def test_a_stop_string_that_never_comes_changes_nothing(vllm: str, deer_gateway: str) -> None:
    """The same trace and the same answer at temperature 0, though two calls drew them."""
    for prompt in PROMPTS[:3]:
        direct = send_chat(vllm, prompt)
        ours = send_chat(deer_gateway, prompt, stop=["§"], adjourn={"policy": "never"})
        assert message(direct) == message(ours)
        for key in ("prompt_tokens", "completion_tokens", "completion_tokens_details"):
            assert direct["usage"][key] == ours["usage"][key]


@pytest.mark.parametrize("streamed", [True, False])
def test_a_rescue(vllm: str, deer_gateway: str, streamed: bool) -> None:
    """Where the engine alone brings no content, there is an answer behind all that was thought."""
    direct = send_chat(vllm, PROMPTS[2], max_tokens=30)
    assert message(direct)["content"] is None
    before = metric_value(deer_gateway, "adjourn_rescues_total", reason="length")
    reply = send_chat(deer_gateway, PROMPTS[2], max_tokens=30, stream=streamed)
    assert metric_value(deer_gateway, "adjourn_rescues_total", reason="length") == before + 1
    if streamed:
        thought, content = join_deltas(reply, "reasoning"), join_deltas(reply, "content")
    else:
        thought, content = message(reply)["reasoning"], message(reply)["content"]
    assert thought == message(direct)["reasoning"]
    assert "\\boxed{" in content


def test_usage_on_every_chunk(vllm: str, deer_gateway: str) -> None:
    """As the engine sends it where nothing is cut; over a cut it goes on from where it was."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    options["stream_options"]["continuous_usage_stats"] = True

    def counts(url: str, **fields: Any) -> list[int]:
        chunks = send_chat(url, PROMPTS[3], **options, **fields)
        return [c["usage"]["completion_tokens"] for c in chunks[:-1]]

    whole = counts(vllm)
    ours = counts(deer_gateway, adjourn={"policy": "never"})
    assert ours == sorted(ours)
    assert ours[-2:] == whole[-2:]
    cut = counts(deer_gateway, adjourn={"policy": "budget", "max": 40})
    assert cut == sorted(cut)
    assert cut[-1] < whole[-1]


WORDS = ["alpha", "beta"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"structured_outputs": {"choice": WORDS}}, WORDS),
        ({"structured_outputs": {"regex": "(yes|no)"}}, ["yes", "no"]),
        ({"guided_choice": WORDS}, None),
    ],
)
def test_a_grammar_holds_behind_a_cut(
    deer_gateway: str, fields: dict[str, Any], expected: list[str] | None
) -> None:
    """And on no token of the trace before it; a field that the engine does not know changes
    nothing."""
    reply = send_chat(deer_gateway, PROMPTS[0], adjourn={"policy": "budget", "max": 40}, **fields)
    assert reply["adjourn"]["stopped"]
    assert len(message(reply)["reasoning"]) > 40
    content = message(reply)["content"]
    assert content in expected if expected else "\\boxed{" in content


def token(vllm: str, text: str) -> int:
    asked = {"model": "pocket", "prompt": text, "add_special_tokens": False}
    (only,) = httpx.post(f"{vllm}/tokenize", json=asked).json()["tokens"]
    return int(only)


def test_a_bias_holds_behind_a_cut(vllm: str, deer_gateway: str) -> None:
    """What the client forbids stands in neither trace nor answer."""
    fields = {"adjourn": {"policy": "budget", "max": 40}, "max_tokens": 300}
    free = send_chat(deer_gateway, PROMPTS[0], **fields)
    bound = send_chat(
        deer_gateway, PROMPTS[0], logit_bias={str(token(vllm, "boxed")): -100}, **fields
    )
    assert "boxed" in message(free)["content"]
    assert bound["adjourn"]["stopped"]
    assert "boxed" not in message(bound)["content"] + message(bound)["reasoning"]


def test_penalties_hold_behind_a_cut(vllm: str, deer_gateway: str) -> None:
    """They go to both calls: trace and answer are others than without, and there is an answer."""
    fields = {"adjourn": {"policy": "budget", "max": 150}, "max_tokens": 400}
    free, bound = (
        send_chat(deer_gateway, PROMPTS[0], frequency_penalty=penalty, **fields)
        for penalty in (0, -1)
    )
    assert bound["adjourn"]["stopped"]
    assert message(bound)["content"]
    assert message(bound)["reasoning"] != message(free)["reasoning"]


def test_a_seed_draws_the_same_trace_again(deer_gateway: str) -> None:
    """As far as both were kept: where a cut falls depends on how many tokens came at once."""
    fields = {"seed": 7, "temperature": 0.9, "adjourn": {"policy": "budget", "max": 40}}
    first, second = (send_chat(deer_gateway, PROMPTS[1], **fields) for _ in range(2))
    assert first["adjourn"]["stopped"]
    traces = sorted((message(first)["reasoning"], message(second)["reasoning"]), key=len)
    assert traces[1].startswith(traces[0])
    if traces[0] == traces[1]:
        assert message(first)["content"] == message(second)["content"]


@pytest.mark.parametrize("kind", ["image_url", "input_audio"])
def test_what_a_text_model_says_to_a_picture(vllm: str, deer_gateway: str, kind: str) -> None:
    """The engine's own refusal, unmodified."""
    part = {"type": kind, kind: {"url": "data:image/png;base64,AA==", "data": "", "format": "wav"}}
    asked = {"model": "pocket", "messages": [{"role": "user", "content": [part]}]}
    direct, ours = (httpx.post(url + CHAT, json=asked, timeout=60) for url in (vllm, deer_gateway))
    assert 400 <= direct.status_code < 600
    assert (direct.status_code, direct.content) == (ours.status_code, ours.content)
    assert ours.headers["x-adjourn-passed-through"] == "not-text"
