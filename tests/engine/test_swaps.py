"""The other task of the pocket model: texts, other markers, cues in mid-paragraph, on a real vLLM
with that family's parser."""

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
    with start_engine(free_port(), task=SWAPS) as url:
        yield url


@pytest.fixture(scope="module")
def swaps_gateway(vllm: str) -> Iterator[str]:
    with start_gateway(vllm, free_port(), "--policy", SWAPS.policy, "--hold-out", "0") as url:
        yield url


@pytest.fixture(scope="module")
def replies(swaps_gateway: str) -> list[list[Any]]:
    """The chunks of each problem's stream, ids and all."""
    asked = {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
    return [
        send_chat(swaps_gateway, problem.prompt, temperature=0.6, seed=seed, **asked)[:-1]
        for seed, problem in enumerate(PROBLEMS)
    ]


def ids_of(chunks: list[Any]) -> list[int]:
    choices = (choice for chunk in chunks for choice in chunk["choices"])
    return [token for choice in choices for token in choice.get("token_ids") or ()]


def stopped(replies: list[list[Any]]) -> list[list[Any]]:
    return [chunks for chunks in replies if chunks[-1].get("adjourn", {}).get("stopped")]


def test_the_dialect_is_told(swaps_gateway: str) -> None:
    """By the vocabulary: the model's name tells nothing."""
    state = httpx.get(f"{swaps_gateway}/ready").json()
    assert (state["models"], state["missing"]) == ({"pocket": "seed"}, {})


def test_texts_are_cut_and_right(swaps_gateway: str, replies: list[list[Any]]) -> None:
    """Most traces end early, most answers are right, and nothing went wrong on the way."""
    right = [
        p.is_correct(join_deltas(c, "content")) for p, c in zip(PROBLEMS, replies, strict=True)
    ]
    assert sum(right) >= 0.8 * len(PROBLEMS)
    cut = stopped(replies)
    assert len(cut) >= len(PROBLEMS) // 3
    assert {chunks[-1]["adjourn"]["reason"] for chunks in cut} == {"confident"}
    assert metric_value(swaps_gateway, "adjourn_fail_open_total") == 0


def test_a_trace_without_a_cut_is_vllms(vllm: str, swaps_gateway: str) -> None:
    """Key for key, and text for text."""
    for problem in PROBLEMS[:2]:
        direct, ours = (
            send_chat(url, problem.prompt, **more)["choices"][0]["message"]
            for url, more in ((vllm, {}), (swaps_gateway, {"adjourn": {"policy": "never"}}))
        )
        assert direct == ours
        assert START not in direct["reasoning"]
        assert problem.is_correct(direct["content"])


def test_the_client_reads_what_the_model_saw(vllm: str, replies: list[list[Any]]) -> None:
    """The ids of a cut stream are its texts, and from the thought's ids the engine alone goes on to
    the very answer."""
    for chunks in stopped(replies)[:4]:
        ids, prompt = ids_of(chunks), chunks[0]["prompt_token_ids"]
        told = {"model": "pocket", "tokens": ids}
        text = httpx.post(f"{vllm}/detokenize", json=told).json()["prompt"]
        thought, _, answer = text.partition(END)
        assert thought.removeprefix(START).strip() == join_deltas(chunks, "reasoning").strip()
        assert answer.partition("<seed:eos>")[0].strip() == join_deltas(chunks, "content").strip()
        assert len(ids) == chunks[-1]["usage"]["completion_tokens"]
        tokens = chunks[-1]["adjourn"]["tokens"]
        kept = len(ids) - tokens["answer"]
        asked = {"model": "pocket", "prompt": [*prompt, *ids[:kept]], "temperature": 0}
        drawn = httpx.post(f"{vllm}/v1/completions", json={**asked, "max_tokens": 30}).json()
        assert drawn["choices"][0]["text"].strip() == join_deltas(chunks, "content").strip()


def test_cuts_fall_before_cues_within_a_paragraph(replies: list[list[Any]]) -> None:
    """What is kept ends with a whole sentence, and not always with a paragraph."""
    kept = [join_deltas(chunks, "reasoning") for chunks in stopped(replies)]
    assert any(not text.endswith("\n") for text in kept)
    for text in kept:
        assert not text.rstrip().endswith(tuple(SWAPS.cues))
