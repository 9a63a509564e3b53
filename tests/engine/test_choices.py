"""Several choices of one response, on a real vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.pocket_client import PROMPTS, send_chat, unfinished_requests, wait_until
from tests.gateway_client import metric_value

pytestmark = pytest.mark.engine

SAMPLED = {"n": 3, "seed": 11, "temperature": 0.9}


def test_choices_are_those_of_the_engines_n(vllm: str, deer_gateway: str) -> None:
    """With a seed, uncut choices and usage equal those of the engine's own ``n``."""

    def comparable(document: dict[str, Any]) -> dict[str, Any]:
        document.pop("id"), document.pop("created"), document.pop("adjourn", None)
        document["usage"].pop("prompt_tokens_details")
        return document

    direct = comparable(send_chat(vllm, PROMPTS[0], **SAMPLED))
    ours = comparable(send_chat(deer_gateway, PROMPTS[0], adjourn={"policy": "never"}, **SAMPLED))
    assert list(direct) == list(ours)
    assert direct == ours


def test_each_choice_is_cut_separately(vllm: str, deer_gateway: str) -> None:
    """Different traces, an answer for each, and no request left running."""
    errors = metric_value(deer_gateway, "adjourn_fail_open_total")
    reply = send_chat(deer_gateway, PROMPTS[1], adjourn={"policy": "budget", "max": 40}, **SAMPLED)
    summaries, choices = reply["adjourn"]["choices"], reply["choices"]
    assert [summary["stopped"] for summary in summaries] == [True] * 3
    assert len({choice["message"]["reasoning"] for choice in choices}) > 1
    assert all(choice["message"]["content"] for choice in choices)
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    tokens, usage = reply["adjourn"]["tokens"], reply["usage"]
    kinds = ("reasoning", "marker", "closing", "answer")
    assert usage["completion_tokens"] == sum(tokens[kind] for kind in kinds)
    assert usage["prompt_tokens"] == tokens["prompt"]
    assert metric_value(deer_gateway, "adjourn_fail_open_total") == errors
    wait_until(lambda: unfinished_requests(vllm) == 0, timeout=10.0)
