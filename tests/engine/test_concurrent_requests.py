"""What runs beside a request on one real vLLM takes nothing from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any

import httpx
import pytest

from tests.engine.pocket_client import PROMPTS, send_chat

pytestmark = pytest.mark.engine

TOLD = 5
UNTOLD = -9000.0
"""vLLM writes -9999 where it has nothing to say."""


def tops(url: str, **fields: Any) -> list[list[float]]:
    """For each token of one stream, the log-probabilities of the most probable ones."""
    asked = {"stream": True, "logprobs": True, "top_logprobs": TOLD, "max_tokens": 400}
    chunks = send_chat(url, PROMPTS[0], **asked, **fields)[:-1]
    told = [c["choices"][0]["logprobs"] for c in chunks if c["choices"]]
    tokens = [token for one in told if one for token in one["content"]]
    return [[top["logprob"] for top in token["top_logprobs"]] for token in tokens]


def beside(work: Callable[[int], Any], url: str, **fields: Any) -> list[list[float]]:
    """What that stream is told while three others ``work`` until it has ended."""
    with ThreadPoolExecutor(4) as pool:
        stream = pool.submit(tops, url, **fields)

        def repeat(number: int) -> Iterator[int]:
            times = 0
            while not stream.done():
                work(number + 3 * times)
                times += 1
            yield times

        counts = list(pool.map(lambda number: next(repeat(number)), range(3)))
    assert min(counts) >= 1
    return stream.result()


@pytest.mark.parametrize("direct", [True, False])
def test_probes_leave_the_log_probabilities_of_others_alone(
    vllm: str, deer_gateway: str, direct: bool
) -> None:
    """`margin` scores the end of its own trace at every sentence; a client's stream beside it,
    with the gateway or without, is told what it is told when it is alone."""
    url = vllm if direct else deer_gateway
    fields = {} if direct else {"adjourn": {"policy": "never"}}
    asked = {"adjourn": {"policy": "margin(threshold=0)"}, "max_tokens": 300}
    told = beside(lambda n: send_chat(deer_gateway, PROMPTS[n % 12], **asked), url, **fields)
    assert len(told) > 200
    assert {len(token) for token in told} == {TOLD}
    assert min(map(min, told)) > UNTOLD
    # Batching changes the numbers a little, and with them, at a near tie, the token: from there on
    # the two are different texts.
    alone = tops(url, **fields)
    pairs = zip(told[:50], alone[:50], strict=True)
    same = list(takewhile(lambda pair: pair[0] == pytest.approx(pair[1], abs=0.05), pairs))
    assert len(same) >= 10


def test_the_engines_own_field_does_not(vllm: str) -> None:
    """Why it is not used: in each step in which it scores chosen tokens for one request, vLLM 0.32
    tells the others of no token but their own. Should this fail, it has been mended there."""
    end = httpx.post(
        f"{vllm}/tokenize",
        json={"model": "pocket", "prompt": "</think>", "add_special_tokens": False},
        timeout=30,
    ).json()["tokens"]
    body = {"model": "pocket", "prompt": "1 +", "max_tokens": 8, "temperature": 0, "logprobs": 1}
    body["logprob_token_ids"] = end

    def score(number: int) -> None:
        reply = httpx.post(f"{vllm}/v1/completions", json=body, timeout=60)
        assert reply.status_code == 200, reply.text

    told = beside(score, vllm)
    assert min(map(min, told)) < UNTOLD
