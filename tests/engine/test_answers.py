"""Stop strings, rescues and usage on every chunk, on a real vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.talk import PROBLEMS, ask, joined
from tests.exchange import metric

pytestmark = pytest.mark.engine


def message(reply: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = reply["choices"][0]["message"]
    return found


@pytest.mark.parametrize("policy", ["never", "budget(max=40)"])
def test_a_stop_string_ends_the_answer_and_not_the_trace(vllm: str, real: str, policy: str) -> None:
    """The engine alone stops in the trace; here the answer ends where the string would stand."""
    failed = metric(real, "adjourn_fail_open_total")
    stop = {"stop": [" = ", "boxed"]}
    assert message(ask(vllm, PROBLEMS[0], **stop))["content"] is None
    reply = ask(real, PROBLEMS[0], adjourn={"policy": policy}, **stop)
    choice = reply["choices"][0]
    assert " = " in choice["message"]["reasoning"]
    assert choice["message"]["content"].endswith("\\")
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "boxed")
    assert metric(real, "adjourn_fail_open_total") == failed


def test_a_stop_string_that_never_comes_changes_nothing(vllm: str, real: str) -> None:
    """The same trace and the same answer at temperature 0, though two calls drew them."""
    for prompt in PROBLEMS[:3]:
        direct = ask(vllm, prompt)
        ours = ask(real, prompt, stop=["§"], adjourn={"policy": "never"})
        assert message(direct) == message(ours)
        for key in ("prompt_tokens", "completion_tokens", "completion_tokens_details"):
            assert direct["usage"][key] == ours["usage"][key]


@pytest.mark.parametrize("streamed", [True, False])
def test_a_rescue(vllm: str, real: str, streamed: bool) -> None:
    """Where the engine alone brings no content, there is an answer behind all that was thought."""
    direct = ask(vllm, PROBLEMS[2], max_tokens=30)
    assert message(direct)["content"] is None
    before = metric(real, "adjourn_rescues_total", reason="length")
    reply = ask(real, PROBLEMS[2], max_tokens=30, stream=streamed)
    assert metric(real, "adjourn_rescues_total", reason="length") == before + 1
    if streamed:
        thought, content = joined(reply, "reasoning"), joined(reply, "content")
    else:
        thought, content = message(reply)["reasoning"], message(reply)["content"]
    assert thought == message(direct)["reasoning"]
    assert "\\boxed{" in content


def test_usage_on_every_chunk(vllm: str, real: str) -> None:
    """As the engine sends it where nothing is cut; over a cut it goes on from where it was."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    options["stream_options"]["continuous_usage_stats"] = True

    def counts(url: str, **fields: Any) -> list[int]:
        chunks = ask(url, PROBLEMS[3], **options, **fields)
        return [c["usage"]["completion_tokens"] for c in chunks[:-1]]

    whole = counts(vllm)
    ours = counts(real, adjourn={"policy": "never"})
    assert ours == sorted(ours)
    assert ours[-2:] == whole[-2:]
    cut = counts(real, adjourn={"policy": "budget", "max": 40})
    assert cut == sorted(cut)
    assert cut[-1] < whole[-1]
