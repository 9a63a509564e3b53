"""llama.cpp's server with the pocket model: traces are ended in place, within one stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from benchmarks.services import LLAMA, free_port, start_gateway, start_llama
from tests.engine.pocket_client import PROMPTS, join_deltas, send_chat, wait_until
from tests.gateway_client import CHAT, metric_value

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not LLAMA.exists(), reason="llama.cpp is not installed: run `make llama`"),
]

MISSING = {"log-probabilities of chosen tokens"}
Chunks = list[Any]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with start_llama(free_port()) as url:
        yield url


@pytest.fixture(scope="module")
def gateway(server: str) -> Iterator[str]:
    with start_gateway(server, free_port(), "--policy", "deer", "--hold-out", "0") as url:
        yield url


def stream(url: str, prompt: str, **fields: Any) -> Chunks:
    chunks = send_chat(url, prompt, stream=True, stream_options={"include_usage": True}, **fields)
    assert chunks.pop() == "[DONE]"
    return list(chunks)


def comparable(chunk: dict[str, Any]) -> dict[str, Any]:
    """The chunk without the fields that differ between two responses."""
    varying = ("id", "created", "timings", "usage", "adjourn")
    return {key: value for key, value in chunk.items() if key not in varying}


def test_engine_dialect_and_missing_capabilities_are_reported(gateway: str) -> None:
    """On /ready."""
    state = httpx.get(f"{gateway}/ready").json()
    assert state["engine"].startswith("llamacpp b")
    assert (state["models"], set(state["missing"])) == ({"pocket": "qwen3"}, MISSING)


@pytest.mark.parametrize("policy", ["off", "never"])
def test_an_unstopped_response_is_llama_cpps(server: str, gateway: str, policy: str) -> None:
    """Streamed or not: the same chunks, keys, texts and usage, and no unrequested token ids."""
    for prompt in PROMPTS[:2]:
        direct = stream(server, prompt)
        ours = stream(gateway, prompt, adjourn={"policy": policy})
        assert list(map(comparable, direct)) == list(map(comparable, ours))
        count = "completion_tokens"
        assert direct[-1]["usage"][count] == ours[-1]["usage"][count]
    direct_document, our_document = (
        send_chat(server, PROMPTS[0]),
        send_chat(gateway, PROMPTS[0], adjourn={"policy": policy}),
    )
    assert comparable(direct_document) == comparable(our_document)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_cut_is_one_stream(gateway: str, streamed: bool) -> None:
    """The trace ends soon after the position of the cut and the answer follows, all in the engine's
    own stream and with its usage."""
    failed = metric_value(gateway, "adjourn_fail_open_total")
    fields = {"adjourn": {"policy": "budget", "max": 60}}
    if streamed:
        chunks = stream(gateway, PROMPTS[0], **fields)
        assert len({chunk["id"] for chunk in chunks}) == 1
        reasoning, content = (
            join_deltas(chunks, "reasoning_content"),
            join_deltas(chunks, "content"),
        )
        last = chunks[-1]
    else:
        last = send_chat(gateway, PROMPTS[0], **fields)
        message = last["choices"][0]["message"]
        reasoning, content = message["reasoning_content"], message["content"]
    summary = last["adjourn"]
    assert (summary["stopped"], summary["action"]) == (True, "carried-out")
    uncut = stream(gateway, PROMPTS[0], adjourn={"policy": "never"})[-1]["adjourn"]["tokens"]
    assert 60 <= summary["position"] <= summary["tokens"]["reasoning"] < uncut["reasoning"]
    assert summary["tokens"]["wasted"] == summary["tokens"]["closing"] == 0
    assert "\\boxed{" in content
    assert "</think>" not in reasoning + content
    # Only the engine's usage counts the forced end marker.
    tokens = summary["tokens"]["reasoning"] + summary["tokens"]["answer"]
    assert tokens < last["usage"]["completion_tokens"] <= tokens + 8
    assert metric_value(gateway, "adjourn_fail_open_total") == failed


def test_concurrent_probes_save_tokens(gateway: str) -> None:
    """`deer` requests trial answers during the stream and ends confident traces: less reasoning
    over six problems, and no probe fails."""

    def summaries(policy: str) -> list[dict[str, Any]]:
        options = {"adjourn": {"policy": policy}}
        return [stream(gateway, prompt, **options)[-1]["adjourn"] for prompt in PROMPTS[:6]]

    def reasoning_tokens(summaries: list[dict[str, Any]]) -> int:
        return sum(summary["tokens"]["reasoning"] for summary in summaries)

    stopping = summaries("deer")
    assert any(summary["stopped"] for summary in stopping)
    # Only the trace is compared: a model this small may go on reasoning in its answer.
    assert reasoning_tokens(stopping) < reasoning_tokens(summaries("never"))
    assert metric_value(gateway, "adjourn_probes_total", outcome="ok") > 0
    assert metric_value(gateway, "adjourn_fail_open_total") == 0


def logprob_shapes(chunks: Chunks) -> list[tuple[list[str], int, int]]:
    """Keys, token id and number of top log-probabilities of each entry. The values are left out:
    they change with what is cached."""
    entries = [
        entry
        for chunk in chunks
        for choice in chunk["choices"]
        for entry in (choice.get("logprobs") or {}).get("content", ())
    ]
    assert entries
    return [(list(entry), entry["id"], len(entry["top_logprobs"])) for entry in entries]


def test_the_client_gets_the_logprobs_that_it_asked_for(server: str, gateway: str) -> None:
    """Or none, although the policy reads those of every token."""
    fields = {"max_tokens": 30, "logprobs": True, "top_logprobs": 2}
    assert logprob_shapes(stream(server, PROMPTS[1], **fields)) == logprob_shapes(
        stream(gateway, PROMPTS[1], adjourn={"policy": "cusum"}, **fields)
    )
    without = stream(gateway, PROMPTS[1], max_tokens=30, adjourn={"policy": "cusum"})
    assert not any("logprobs" in choice for chunk in without for choice in chunk["choices"])


def test_choices_are_ended_separately(gateway: str) -> None:
    """Each in its own stream. A cut is refused if the trace ended before the request to end it
    arrived: this model generates two thousand tokens a second."""
    reply = send_chat(
        gateway, PROMPTS[1], n=2, seed=3, temperature=0.9, adjourn={"policy": "budget", "max": 40}
    )
    actions = [summary["action"] for summary in reply["adjourn"]["choices"]]
    assert set(actions) <= {"carried-out", "refused"}
    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    assert all(choice["message"]["content"] for choice in reply["choices"])


@pytest.mark.parametrize(
    ("path", "fields", "reason"),
    [
        (CHAT, {"stop": ["§"]}, "stop-strings"),
        (CHAT, {"adjourn": {"policy": "margin"}}, "engine-cannot-score-endings"),
        (CHAT, {"adjourn": {"policy": "budget", "min": 50}}, "engine-cannot-reopen"),
        (CHAT, {"adjourn": {"policy": "tilt"}}, "engine-cannot-reopen"),
        ("/v1/completions", {"prompt": "Hi", "max_tokens": 4}, "engine-cannot-resume"),
    ],
)
def test_requests_that_need_a_missing_capability_pass_through(
    gateway: str, path: str, fields: dict[str, Any], reason: str
) -> None:
    """With the reason in a header; the response is llama.cpp's own."""
    request = {"model": "pocket", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
    if path != CHAT:
        del request["messages"]
    reply = httpx.post(gateway + path, json={**request, **fields}, timeout=60)
    assert (reply.status_code, reply.headers["x-adjourn-passed-through"]) == (200, reason)


def test_a_client_disconnect_ends_the_engine_request(server: str, gateway: str) -> None:
    """llama.cpp itself reports no busy slot."""
    request = {
        "model": "pocket",
        "messages": [{"role": "user", "content": PROMPTS[3]}],
        "stream": True,
        "ignore_eos": True,
        "max_tokens": 3900,
        "adjourn": {"policy": "never"},
    }

    def is_busy() -> bool:
        return any(slot["is_processing"] for slot in httpx.get(f"{server}/slots").json())

    with (
        httpx.Client(timeout=60) as client,
        client.stream("POST", gateway + CHAT, json=request) as response,
    ):
        next(response.iter_raw())
    wait_until(lambda: not is_busy())
