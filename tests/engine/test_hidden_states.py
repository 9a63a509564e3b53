"""Hidden states of a real vLLM: they are correct, do not change other requests, and `lynx` stops
traces with them."""

from __future__ import annotations

import base64
import json
import math
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from adjourn.policies.evidence.hidden_states import HiddenStates
from benchmarks.pocket import CHAINS
from benchmarks.services import (
    HIDDEN_STATE_LAYERS,
    ROOT,
    free_port,
    start_gateway,
)
from tests.engine.pocket_client import PROMPTS, send_chat

pytestmark = pytest.mark.engine

PROBE = ROOT / "benchmarks" / "pocket" / "lynx.json"
WIDTH = 192


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("lynx") / "adjourn.yaml"
    path.write_text(f"probes: {{pocket: {PROBE}}}\npolicy: lynx(probe='pocket')\nhold_out: 0\n")
    return str(path)


@pytest.fixture(scope="module")
def prompts(hidden_state_engine: str) -> list[list[int]]:
    """Prefixes of a trace, of 20 to 2,900 tokens: less than one block, several blocks, and several
    scheduler steps."""
    text = "<think>\n47 + 38 = 15 + 70 = 85\n85 - 9 = 6 + 70 = 76\nWait, let me check that again.\n"
    request = {"model": "pocket", "prompt": PROMPTS[0] + text * 90, "add_special_tokens": False}
    ids = httpx.post(f"{hidden_state_engine}/tokenize", json=request).json()["tokens"]
    assert len(ids) > 2900
    return [ids[:count] for count in (20, 64, 65, 300, 777, 2900)]


def hidden_states_of(url: str, prompt: Sequence[int], **fields: Any) -> tuple[Any, HiddenStates]:
    """The document of one completion, and the hidden states of its prompt's last token."""
    request = {"model": "pocket", "prompt": prompt, "max_tokens": 1, "temperature": 0, **fields}
    request["kv_transfer_params"] = {"hidden_states": True}
    reply = httpx.post(f"{url}/v1/completions", json=request, timeout=60)
    assert reply.status_code == 200, reply.text
    encoded = reply.json()["kv_transfer_params"]["hidden_states"]
    data = base64.b64decode(encoded["data"])
    return reply.json(), HiddenStates(tuple(encoded["layers"]), encoded["width"], data)


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The distance relative to the length of ``other``."""
    return math.dist(one, other) / math.hypot(*other)


def test_states_are_those_of_transformers(
    hidden_state_engine: str, prompts: list[list[int]]
) -> None:
    """Of all layers and the last three tokens in transformers' states, the named layer's at the
    last token is the nearest, within 5 %."""
    python = ROOT / ".engine" / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "tests.engine.reference_hidden_states", str(CHAINS.model_path)],
        input=json.dumps(prompts),
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for prompt, expected in zip(prompts, json.loads(done.stdout), strict=True):
        _, states_at = hidden_states_of(hidden_state_engine, prompt)
        assert (states_at.layers, states_at.width) == (HIDDEN_STATE_LAYERS, WIDTH)
        for layer in HIDDEN_STATE_LAYERS:
            states = states_at.at_layers([layer])
            distances = {
                (number, token): distance(states, reference)
                for number, tokens in enumerate(expected, start=1)
                for token, reference in enumerate(tokens)
            }
            assert min(distances, key=distances.__getitem__) == (layer, 2)
            assert distances[layer, 2] < 0.05


def test_states_do_not_depend_on_cache_or_batch(
    hidden_state_engine: str, prompts: list[list[int]]
) -> None:
    """Computed completely, from cached blocks, and concurrently with other requests."""
    for number, prompt in enumerate(prompts):
        fresh, states = hidden_states_of(hidden_state_engine, prompt, cache_salt=f"{number}")
        again, cached = hidden_states_of(hidden_state_engine, prompt, cache_salt=f"{number}")
        hits = [r["usage"]["prompt_tokens_details"]["cached_tokens"] for r in (fresh, again)]
        assert hits == [0, (len(prompt) - 1) // 32 * 32]
        assert (
            distance(cached.at_layers(HIDDEN_STATE_LAYERS), states.at_layers(HIDDEN_STATE_LAYERS))
            < 0.01
        )
    with ThreadPoolExecutor(len(prompts)) as pool:
        concurrent = list(
            pool.map(lambda prompt: hidden_states_of(hidden_state_engine, prompt)[1], prompts)
        )
    for prompt, batched in zip(prompts, concurrent, strict=True):
        alone = hidden_states_of(hidden_state_engine, prompt)[1]
        assert (
            distance(batched.at_layers(HIDDEN_STATE_LAYERS), alone.at_layers(HIDDEN_STATE_LAYERS))
            < 0.01
        )


def test_states_are_of_the_prompts_last_token(
    hidden_state_engine: str, prompts: list[list[int]]
) -> None:
    """However many tokens are generated after it."""
    short, long = (
        hidden_states_of(hidden_state_engine, prompts[3])[1],
        hidden_states_of(hidden_state_engine, prompts[3], max_tokens=9)[1],
    )
    assert (
        distance(long.at_layers(HIDDEN_STATE_LAYERS), short.at_layers(HIDDEN_STATE_LAYERS)) < 0.01
    )


def test_states_are_returned_on_request_only(
    hidden_state_engine: str, prompts: list[list[int]]
) -> None:
    request = {"model": "pocket", "prompt": prompts[0], "max_tokens": 2}
    for extra in ({}, {"kv_transfer_params": {}}, {"kv_transfer_params": {"hidden_states": "1"}}):
        reply = httpx.post(
            f"{hidden_state_engine}/v1/completions", json={**request, **extra}
        ).json()
        assert reply["kv_transfer_params"] is None


def test_greedy_responses_equal_a_stock_engines(hidden_state_engine: str, vllm: str) -> None:
    for prompt in PROMPTS[:2]:
        ours, stock = (
            send_chat(url, prompt)["choices"][0]["message"] for url in (hidden_state_engine, vllm)
        )
        assert (ours["reasoning"], ours["content"]) == (stock["reasoning"], stock["content"])


def test_sampled_answers_stay_correct(hidden_state_engine: str) -> None:
    """On the CPU, vLLM samples noise when speculative decoding is on, unless the connector fixes
    it."""
    problems = CHAINS.held_out_problems(24)

    def is_correct(seed: int) -> bool:
        fields = {"temperature": 0.6, "seed": seed}
        reply = send_chat(hidden_state_engine, problems[seed].prompt, **fields)
        return problems[seed].is_correct(reply["choices"][0]["message"]["content"] or "")

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(is_correct, range(len(problems)))) >= 18


def test_lynx_stops_traces_with_correct_answers(hidden_state_engine: str, config: str) -> None:
    """The cuts are carried out without a policy error."""
    with start_gateway(hidden_state_engine, free_port(), "--config", config) as url:
        assert "hidden states" not in httpx.get(f"{url}/ready").json()["missing"]
        problems = CHAINS.held_out_problems(12)
        with ThreadPoolExecutor(4) as pool:
            replies = list(
                pool.map(lambda one: send_chat(url, one.prompt, adjourn={"delta": 0.1}), problems)
            )
    summaries = [reply["adjourn"] for reply in replies]
    stopped = [n for n, summary in enumerate(summaries) if summary["stopped"]]
    assert len(stopped) >= 4
    assert {summaries[n]["reason"] for n in stopped} == {"ready"}
    assert all(summary["action"] == "carried-out" for summary in summaries if summary["stopped"])
    assert all(summary.get("muted") is None for summary in summaries)
    answers = (replies[n]["choices"][0]["message"]["content"] for n in stopped)
    correct = [problems[n].is_correct(text) for n, text in zip(stopped, answers, strict=True)]
    assert sum(correct) >= len(correct) - 1


def test_a_stock_engine_is_reported_with_the_missing_flags(
    vllm: str, config: str, tmp_path: Path
) -> None:
    """Those with which ``hidden_state_engine`` was started."""
    log = tmp_path / "log"
    with start_gateway(vllm, free_port(), "--config", config, log=log) as url:
        reported = httpx.get(f"{url}/ready").json()["missing"]["hidden states"]
        reply = httpx.post(
            f"{url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": 4},
        )
    assert reply.headers["x-adjourn-passed-through"] == "engine-tells-no-hidden-states"
    assert reported in log.read_text().replace('\\"', '"')
