"""llama.cpp's server with the pocket model: traces that are ended in place."""

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
    pytest.mark.skipif(not LLAMA.exists(), reason="no llama.cpp here: `make llama` brings it"),
]

LACKS = {"log-probabilities of chosen tokens"}
Chunks = list[Any]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with start_llama(free_port()) as url:
        yield url


@pytest.fixture(scope="module")
def ours(server: str) -> Iterator[str]:
    with start_gateway(server, free_port(), "--policy", "deer", "--hold-out", "0") as url:
        yield url


def stream(url: str, prompt: str, **fields: Any) -> Chunks:
    chunks = send_chat(url, prompt, stream=True, stream_options={"include_usage": True}, **fields)
    assert chunks.pop() == "[DONE]"
    return list(chunks)


def plain(chunk: dict[str, Any]) -> dict[str, Any]:
    """Less what differs between two replies."""
    gone = ("id", "created", "timings", "usage", "adjourn")
    return {key: value for key, value in chunk.items() if key not in gone}


def test_it_says_what_it_is_and_what_it_lacks(ours: str) -> None:
    """The engine is recognised, its dialect told, and what is off is named."""
    state = httpx.get(f"{ours}/ready").json()
    assert state["engine"].startswith("llamacpp b")
    assert (state["models"], set(state["missing"])) == ({"pocket": "qwen3"}, LACKS)


@pytest.mark.parametrize("policy", ["off", "never"])
def test_an_unstopped_reply_is_llamas(server: str, ours: str, policy: str) -> None:
    """Streamed and not: the same chunks, keys, texts and usage, and no ids left behind."""
    for prompt in PROMPTS[:2]:
        direct = stream(server, prompt)
        judged = stream(ours, prompt, adjourn={"policy": policy})
        assert list(map(plain, direct)) == list(map(plain, judged))
        count = "completion_tokens"
        assert direct[-1]["usage"][count] == judged[-1]["usage"][count]
    whole, reply = (
        send_chat(server, PROMPTS[0]),
        send_chat(ours, PROMPTS[0], adjourn={"policy": policy}),
    )
    assert plain(whole) == plain(reply)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_cut_is_one_stream(ours: str, streamed: bool) -> None:
    """The trace ends soon behind the place where the policy said so, and the answer follows: all
    of it the engine's own response, with its own usage."""
    failed = metric_value(ours, "adjourn_fail_open_total")
    fields = {"adjourn": {"policy": "budget", "max": 60}}
    if streamed:
        chunks = stream(ours, PROMPTS[0], **fields)
        assert len({chunk["id"] for chunk in chunks}) == 1
        thought, content = join_deltas(chunks, "reasoning_content"), join_deltas(chunks, "content")
        last = chunks[-1]
    else:
        last = send_chat(ours, PROMPTS[0], **fields)
        message = last["choices"][0]["message"]
        thought, content = message["reasoning_content"], message["content"]
    note = last["adjourn"]
    assert (note["stopped"], note["action"]) == (True, "carried-out")
    whole = stream(ours, PROMPTS[0], adjourn={"policy": "never"})[-1]["adjourn"]["tokens"]
    assert 60 <= note["position"] <= note["tokens"]["reasoning"] < whole["reasoning"]
    assert note["tokens"]["wasted"] == note["tokens"]["closing"] == 0
    assert "\\boxed{" in content
    assert "</think>" not in thought + content
    # The forced marker is in the engine's count alone.
    tokens = note["tokens"]["reasoning"] + note["tokens"]["answer"]
    assert tokens < last["usage"]["completion_tokens"] <= tokens + 8
    assert metric_value(ours, "adjourn_fail_open_total") == failed


def test_probes_beside_the_stream(ours: str) -> None:
    """`deer` asks the engine for an answer on the trace so far and ends what is sure: fewer tokens
    over some problems, no probe lost."""

    def notes(policy: str) -> list[dict[str, Any]]:
        asked = {"adjourn": {"policy": policy}}
        return [stream(ours, prompt, **asked)[-1]["adjourn"] for prompt in PROMPTS[:6]]

    def thought(notes: list[dict[str, Any]]) -> int:
        return sum(note["tokens"]["reasoning"] for note in notes)

    judged = notes("deer")
    assert any(note["stopped"] for note in judged)
    # What a model this small thinks on in its answer is not the trace's.
    assert thought(judged) < thought(notes("never"))
    assert metric_value(ours, "adjourn_probes_total", outcome="ok") > 0
    assert metric_value(ours, "adjourn_fail_open_total") == 0


def told(chunks: Chunks) -> list[tuple[list[str], int, int]]:
    """What stands in log-probabilities, less their values, which differ with what is cached."""
    entries = [
        one
        for chunk in chunks
        for choice in chunk["choices"]
        for one in (choice.get("logprobs") or {}).get("content", ())
    ]
    assert entries
    return [(list(one), one["id"], len(one["top_logprobs"])) for one in entries]


def test_logprobs_are_those_that_were_asked_for(server: str, ours: str) -> None:
    """A policy that reads each token's takes nothing from a client that asks for some, and gives
    nothing to one that does not."""
    fields = {"max_tokens": 30, "logprobs": True, "top_logprobs": 2}
    assert told(stream(server, PROMPTS[1], **fields)) == told(
        stream(ours, PROMPTS[1], adjourn={"policy": "cusum"}, **fields)
    )
    bare = stream(ours, PROMPTS[1], max_tokens=30, adjourn={"policy": "cusum"})
    assert not any("logprobs" in choice for chunk in bare for choice in chunk["choices"])


def test_several_choices_are_ended_apart(ours: str) -> None:
    """Each in its own stream, unless its trace was over before the word came: this model thinks two
    thousand tokens a second."""
    reply = send_chat(
        ours, PROMPTS[1], n=2, seed=3, temperature=0.9, adjourn={"policy": "budget", "max": 40}
    )
    actions = [note["action"] for note in reply["adjourn"]["choices"]]
    assert set(actions) <= {"carried-out", "refused"}
    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    assert all(choice["message"]["content"] for choice in reply["choices"])


@pytest.mark.parametrize(
    ("path", "fields", "why"),
    [
        (CHAT, {"stop": ["§"]}, "stop-strings"),
        (CHAT, {"adjourn": {"policy": "margin"}}, "engine-cannot-score-endings"),
        (CHAT, {"adjourn": {"policy": "budget", "min": 50}}, "engine-cannot-reopen"),
        (CHAT, {"adjourn": {"policy": "tilt"}}, "engine-cannot-reopen"),
        ("/v1/completions", {"prompt": "Hi", "max_tokens": 4}, "engine-cannot-resume"),
    ],
)
def test_what_it_cannot_do_is_handed_through(
    ours: str, path: str, fields: dict[str, Any], why: str
) -> None:
    """With the reason; the reply is llama.cpp's own."""
    asked = {"model": "pocket", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
    if path != CHAT:
        del asked["messages"]
    reply = httpx.post(ours + path, json={**asked, **fields}, timeout=60)
    assert (reply.status_code, reply.headers["x-adjourn-passed-through"]) == (200, why)


def test_leaving_ends_the_engines_work(server: str, ours: str) -> None:
    """llama.cpp itself says that no slot is busy."""
    asked = {
        "model": "pocket",
        "messages": [{"role": "user", "content": PROMPTS[3]}],
        "stream": True,
        "ignore_eos": True,
        "max_tokens": 3900,
        "adjourn": {"policy": "never"},
    }

    def busy() -> bool:
        return any(slot["is_processing"] for slot in httpx.get(f"{server}/slots").json())

    with httpx.Client(timeout=60) as client, client.stream("POST", ours + CHAT, json=asked) as got:
        next(got.iter_raw())
    wait_until(lambda: not busy())
