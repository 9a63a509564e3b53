"""The pocket model's other task, swaps: answers are texts, with other markers and with cues within
a paragraph, on a real vLLM with that family's parser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from benchmarks.pocket import SWAPS
from benchmarks.services import free_port, start_engine, start_gateway
from tests.engine.pocket_client import join_deltas, send_chat
from tests.gateway_client import metric_value

pytestmark = pytest.mark.engine

PROBLEMS = SWAPS.held_out_problems(16, 4)
START, END = SWAPS.chat.dialect.start[0], SWAPS.chat.dialect.end[0]
Reply = dict[str, Any]


@pytest.fixture(scope="module")
def vllm() -> Iterator[str]:
    """An engine with the model of the task ``SWAPS``."""
    with start_engine(free_port(), task=SWAPS) as url:
        yield url


@pytest.fixture(scope="module")
def swaps_gateway(vllm: str) -> Iterator[str]:
    with start_gateway(vllm, free_port(), "--policy", SWAPS.policy, "--hold-out", "0") as url:
        yield url


@pytest.fixture(scope="module")
def replies(swaps_gateway: str) -> list[list[Any]]:
    """The chunks of each problem's stream, with token ids."""
    options = {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
    return [
        send_chat(swaps_gateway, problem.prompt, temperature=0.6, seed=seed, **options)[:-1]
        for seed, problem in enumerate(PROBLEMS)
    ]


def ids_of(chunks: list[Any]) -> list[int]:
    choices = (choice for chunk in chunks for choice in chunk["choices"])
    return [token for choice in choices for token in choice.get("token_ids") or ()]


def stopped(replies: list[list[Any]]) -> list[list[Any]]:
    return [chunks for chunks in replies if chunks[-1].get("adjourn", {}).get("stopped")]


def test_the_dialect_is_recognised(swaps_gateway: str) -> None:
    """From the vocabulary: the model's name does not contain it."""
    state = httpx.get(f"{swaps_gateway}/ready").json()
    assert (state["models"], state["missing"]) == ({"pocket": "seed"}, {})


def test_traces_are_cut_and_answers_are_correct(
    swaps_gateway: str, replies: list[list[Any]]
) -> None:
    """At least a third of the traces end early, most answers are correct, and nothing fails
    open."""
    correct = [
        p.is_correct(join_deltas(c, "content")) for p, c in zip(PROBLEMS, replies, strict=True)
    ]
    assert sum(correct) >= 0.8 * len(PROBLEMS)
    cut = stopped(replies)
    assert len(cut) >= len(PROBLEMS) // 3
    assert {chunks[-1]["adjourn"]["reason"] for chunks in cut} == {"confident"}
    assert metric_value(swaps_gateway, "adjourn_fail_open_total") == 0


def test_an_uncut_response_is_vllms(vllm: str, swaps_gateway: str) -> None:
    """The same message."""
    for problem in PROBLEMS[:2]:
        direct, ours = (
            send_chat(url, problem.prompt, **more)["choices"][0]["message"]
            for url, more in ((vllm, {}), (swaps_gateway, {"adjourn": {"policy": "never"}}))
        )
        assert direct == ours
        assert START not in direct["reasoning"]
        assert problem.is_correct(direct["content"])


def test_token_ids_of_a_cut_stream_are_its_texts(vllm: str, replies: list[list[Any]]) -> None:
    """And the engine alone, given the ids of the kept trace, generates the same answer."""
    for chunks in stopped(replies)[:4]:
        ids, prompt = ids_of(chunks), chunks[0]["prompt_token_ids"]
        request = {"model": "pocket", "tokens": ids}
        text = httpx.post(f"{vllm}/detokenize", json=request).json()["prompt"]
        reasoning, _, answer = text.partition(END)
        assert reasoning.removeprefix(START).strip() == join_deltas(chunks, "reasoning").strip()
        assert answer.partition("<seed:eos>")[0].strip() == join_deltas(chunks, "content").strip()
        assert len(ids) == chunks[-1]["usage"]["completion_tokens"]
        tokens = chunks[-1]["adjourn"]["tokens"]
        kept = len(ids) - tokens["answer"]
        completion = {"model": "pocket", "prompt": [*prompt, *ids[:kept]], "temperature": 0}
        direct = httpx.post(f"{vllm}/v1/completions", json={**completion, "max_tokens": 30}).json()
        assert direct["choices"][0]["text"].strip() == join_deltas(chunks, "content").strip()


def test_cuts_fall_before_cues_within_a_paragraph(replies: list[list[Any]]) -> None:
    """The kept trace never ends with a cue, and not always with a paragraph."""
    kept = [join_deltas(chunks, "reasoning") for chunks in stopped(replies)]
    assert any(not text.endswith("\n") for text in kept)
    for text in kept:
        assert not text.rstrip().endswith(tuple(SWAPS.cues))
