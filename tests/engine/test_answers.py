"""Stop strings, rescues, continuous usage and other request fields, on a real vLLM."""

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
def test_a_stop_string_ends_the_answer_but_not_the_trace(
    vllm: str, deer_gateway: str, policy: str
) -> None:
    """The engine alone stops within the trace; with the gateway the answer ends before the
    string."""
    failed = metric_value(deer_gateway, "adjourn_fail_open_total")
    stop = {"stop": [" = ", "boxed"]}
    assert message(send_chat(vllm, PROMPTS[0], **stop))["content"] is None
    reply = send_chat(deer_gateway, PROMPTS[0], adjourn={"policy": policy}, **stop)
    choice = reply["choices"][0]
    assert " = " in choice["message"]["reasoning"]
    assert choice["message"]["content"].endswith("\\")
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "boxed")
    assert metric_value(deer_gateway, "adjourn_fail_open_total") == failed


def test_an_unmatched_stop_string_changes_nothing(vllm: str, deer_gateway: str) -> None:
    """The same trace and answer at temperature 0, although two requests generated them."""
    for prompt in PROMPTS[:3]:
        direct = send_chat(vllm, prompt)
        ours = send_chat(deer_gateway, prompt, stop=["§"], adjourn={"policy": "never"})
        assert message(direct) == message(ours)
        for key in ("prompt_tokens", "completion_tokens", "completion_tokens_details"):
            assert direct["usage"][key] == ours["usage"][key]


@pytest.mark.parametrize("streamed", [True, False])
def test_a_rescue_adds_an_answer(vllm: str, deer_gateway: str, streamed: bool) -> None:
    """The engine alone returns no content; with the gateway an answer follows the whole trace."""
    direct = send_chat(vllm, PROMPTS[2], max_tokens=30)
    assert message(direct)["content"] is None
    before = metric_value(deer_gateway, "adjourn_rescues_total", reason="length")
    reply = send_chat(deer_gateway, PROMPTS[2], max_tokens=30, stream=streamed)
    assert metric_value(deer_gateway, "adjourn_rescues_total", reason="length") == before + 1
    if streamed:
        reasoning, content = join_deltas(reply, "reasoning"), join_deltas(reply, "content")
    else:
        reasoning, content = message(reply)["reasoning"], message(reply)["content"]
    assert reasoning == message(direct)["reasoning"]
    assert "\\boxed{" in content


def test_continuous_usage(vllm: str, deer_gateway: str) -> None:
    """As the engine sends it if nothing is cut; it increases over a cut."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    options["stream_options"]["continuous_usage_stats"] = True

    def counts(url: str, **fields: Any) -> list[int]:
        chunks = send_chat(url, PROMPTS[3], **options, **fields)
        return [c["usage"]["completion_tokens"] for c in chunks[:-1]]

    full = counts(vllm)
    ours = counts(deer_gateway, adjourn={"policy": "never"})
    assert ours == sorted(ours)
    assert ours[-2:] == full[-2:]
    cut = counts(deer_gateway, adjourn={"policy": "budget", "max": 40})
    assert cut == sorted(cut)
    assert cut[-1] < full[-1]


WORDS = ["alpha", "beta"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"structured_outputs": {"choice": WORDS}}, WORDS),
        ({"structured_outputs": {"regex": "(yes|no)"}}, ["yes", "no"]),
        ({"guided_choice": WORDS}, None),
    ],
)
def test_a_grammar_constrains_the_answer_after_a_cut(
    deer_gateway: str, fields: dict[str, Any], expected: list[str] | None
) -> None:
    """And not the trace before it. A field that the engine does not know changes nothing."""
    reply = send_chat(deer_gateway, PROMPTS[0], adjourn={"policy": "budget", "max": 40}, **fields)
    assert reply["adjourn"]["stopped"]
    assert len(message(reply)["reasoning"]) > 40
    content = message(reply)["content"]
    assert content in expected if expected else "\\boxed{" in content


def token(vllm: str, text: str) -> int:
    request = {"model": "pocket", "prompt": text, "add_special_tokens": False}
    (found,) = httpx.post(f"{vllm}/tokenize", json=request).json()["tokens"]
    return int(found)


def test_a_bias_applies_after_a_cut(vllm: str, deer_gateway: str) -> None:
    """A token that the client forbids is in neither trace nor answer."""
    fields = {"adjourn": {"policy": "budget", "max": 40}, "max_tokens": 300}
    plain = send_chat(deer_gateway, PROMPTS[0], **fields)
    biased = send_chat(
        deer_gateway, PROMPTS[0], logit_bias={str(token(vllm, "boxed")): -100}, **fields
    )
    assert "boxed" in message(plain)["content"]
    assert biased["adjourn"]["stopped"]
    assert "boxed" not in message(biased)["content"] + message(biased)["reasoning"]


def test_penalties_apply_after_a_cut(vllm: str, deer_gateway: str) -> None:
    """Both engine requests get them: the trace differs from one without, and there is an answer."""
    fields = {"adjourn": {"policy": "budget", "max": 150}, "max_tokens": 400}
    plain, penalized = (
        send_chat(deer_gateway, PROMPTS[0], frequency_penalty=penalty, **fields)
        for penalty in (0, -1)
    )
    assert penalized["adjourn"]["stopped"]
    assert message(penalized)["content"]
    assert message(penalized)["reasoning"] != message(plain)["reasoning"]


def test_a_seed_reproduces_the_trace(deer_gateway: str) -> None:
    """Up to the earlier cut: its position depends on how many tokens come in one chunk."""
    fields = {"seed": 7, "temperature": 0.9, "adjourn": {"policy": "budget", "max": 40}}
    first, second = (send_chat(deer_gateway, PROMPTS[1], **fields) for _ in range(2))
    assert first["adjourn"]["stopped"]
    traces = sorted((message(first)["reasoning"], message(second)["reasoning"]), key=len)
    assert traces[1].startswith(traces[0])
    if traces[0] == traces[1]:
        assert message(first)["content"] == message(second)["content"]


@pytest.mark.parametrize("kind", ["image_url", "input_audio"])
def test_a_text_models_error_for_an_image_is_returned(
    vllm: str, deer_gateway: str, kind: str
) -> None:
    """Unmodified, as the engine sent it."""
    part = {"type": kind, kind: {"url": "data:image/png;base64,AA==", "data": "", "format": "wav"}}
    request = {"model": "pocket", "messages": [{"role": "user", "content": [part]}]}
    direct, ours = (
        httpx.post(url + CHAT, json=request, timeout=60) for url in (vllm, deer_gateway)
    )
    assert 400 <= direct.status_code < 600
    assert (direct.status_code, direct.content) == (ours.status_code, ours.content)
    assert ours.headers["x-adjourn-passed-through"] == "not-text"
