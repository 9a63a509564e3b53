"""Concurrent requests on one real vLLM do not change each other's results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any

import httpx
import pytest

from tests.engine.pocket_client import PROMPTS, send_chat

pytestmark = pytest.mark.engine

TOP_LOGPROBS = 5
MISSING_BELOW = -9000.0
"""vLLM writes -9999 for a missing log-probability."""


def top_logprobs_of(url: str, **fields: Any) -> list[list[float]]:
    """For each token of one stream, the log-probabilities of its most probable tokens."""
    options = {"stream": True, "logprobs": True, "top_logprobs": TOP_LOGPROBS, "max_tokens": 400}
    chunks = send_chat(url, PROMPTS[0], **options, **fields)[:-1]
    contents = [c["choices"][0]["logprobs"] for c in chunks if c["choices"]]
    tokens = [token for one in contents if one for token in one["content"]]
    return [[top["logprob"] for top in token["top_logprobs"]] for token in tokens]


def top_logprobs_during(work: Callable[[int], Any], url: str, **fields: Any) -> list[list[float]]:
    """The same, while three other threads call ``work`` until the stream has ended."""
    with ThreadPoolExecutor(4) as pool:
        stream = pool.submit(top_logprobs_of, url, **fields)

        def repeat(number: int) -> Iterator[int]:
            rounds = 0
            while not stream.done():
                work(number + 3 * rounds)
                rounds += 1
            yield rounds

        counts = list(pool.map(lambda number: next(repeat(number)), range(3)))
    assert min(counts) >= 1
    return stream.result()


@pytest.mark.parametrize("direct", [True, False])
def test_probes_do_not_change_other_streams_log_probabilities(
    vllm: str, deer_gateway: str, direct: bool
) -> None:
    """`margin` scores the end of its trace at every sentence. A concurrent client's stream, direct
    or through the gateway, has the log-probabilities that it has when it runs alone."""
    url = vllm if direct else deer_gateway
    fields = {} if direct else {"adjourn": {"policy": "never"}}
    probing = {"adjourn": {"policy": "margin(threshold=0)"}, "max_tokens": 300}
    concurrent = top_logprobs_during(
        lambda n: send_chat(deer_gateway, PROMPTS[n % 12], **probing), url, **fields
    )
    assert len(concurrent) > 200
    assert {len(token) for token in concurrent} == {TOP_LOGPROBS}
    assert min(map(min, concurrent)) > MISSING_BELOW
    # Batching changes the numbers slightly and so, at a near tie, the next token: from there on the
    # two texts differ.
    alone = top_logprobs_of(url, **fields)
    pairs = zip(concurrent[:50], alone[:50], strict=True)
    same = list(takewhile(lambda pair: pair[0] == pytest.approx(pair[1], abs=0.05), pairs))
    assert len(same) >= 10


def test_vllms_logprob_token_ids_field_changes_other_streams(vllm: str) -> None:
    """The reason why the gateway does not use it: in a step that scores chosen tokens for one
    request, vLLM 0.32 gives other requests the log-probability of their own token only. If this
    test fails, vLLM has fixed that."""
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

    concurrent = top_logprobs_during(score, vllm)
    assert min(map(min, concurrent)) < MISSING_BELOW
