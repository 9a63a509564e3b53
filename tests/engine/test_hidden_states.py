"""The real engine tells hidden states, leaves other requests alone, and `lynx` stops traces by
them."""

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
    hidden_state_arguments,
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
    """Beginnings of thinking, of 20 to 2,900 tokens: less than a block, several, and several steps
    of the scheduler."""
    text = "<think>\n47 + 38 = 15 + 70 = 85\n85 - 9 = 6 + 70 = 76\nWait, let me check that again.\n"
    asked = {"model": "pocket", "prompt": PROMPTS[0] + text * 90, "add_special_tokens": False}
    ids = httpx.post(f"{hidden_state_engine}/tokenize", json=asked).json()["tokens"]
    assert len(ids) > 2900
    return [ids[:count] for count in (20, 64, 65, 300, 777, 2900)]


def drawn(url: str, prompt: Sequence[int], **fields: Any) -> tuple[Any, HiddenStates]:
    asked = {"model": "pocket", "prompt": prompt, "max_tokens": 1, "temperature": 0, **fields}
    asked["kv_transfer_params"] = {"hidden_states": True}
    reply = httpx.post(f"{url}/v1/completions", json=asked, timeout=60)
    assert reply.status_code == 200, reply.text
    told = reply.json()["kv_transfer_params"]["hidden_states"]
    data = base64.b64decode(told["data"])
    return reply.json(), HiddenStates(tuple(told["layers"]), told["width"], data)


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """As a share of how long the states are."""
    return math.dist(one, other) / math.hypot(*other)


def test_they_are_the_models_own(hidden_state_engine: str, prompts: list[list[int]]) -> None:
    """As transformers computes them: of all layers and of the last three tokens, those behind the
    layer that is named and of the last token are the nearest, and near."""
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
        _, told = drawn(hidden_state_engine, prompt)
        assert (told.layers, told.width) == (HIDDEN_STATE_LAYERS, WIDTH)
        for layer in HIDDEN_STATE_LAYERS:
            states = told.at_layers([layer])
            far = {
                (number, place): distance(states, own)
                for number, tokens in enumerate(expected, start=1)
                for place, own in enumerate(tokens)
            }
            assert min(far, key=far.__getitem__) == (layer, 2)
            assert far[layer, 2] < 0.05


def test_they_are_the_same_from_the_cache(
    hidden_state_engine: str, prompts: list[list[int]]
) -> None:
    """Computed whole, with all that whole blocks hold from the cache, and beside others."""
    for number, prompt in enumerate(prompts):
        fresh, states = drawn(hidden_state_engine, prompt, cache_salt=f"{number}")
        again, cached = drawn(hidden_state_engine, prompt, cache_salt=f"{number}")
        hits = [r["usage"]["prompt_tokens_details"]["cached_tokens"] for r in (fresh, again)]
        assert hits == [0, (len(prompt) - 1) // 32 * 32]
        assert (
            distance(cached.at_layers(HIDDEN_STATE_LAYERS), states.at_layers(HIDDEN_STATE_LAYERS))
            < 0.01
        )
    with ThreadPoolExecutor(len(prompts)) as pool:
        beside = list(pool.map(lambda prompt: drawn(hidden_state_engine, prompt)[1], prompts))
    for prompt, told in zip(prompts, beside, strict=True):
        alone = drawn(hidden_state_engine, prompt)[1]
        assert (
            distance(told.at_layers(HIDDEN_STATE_LAYERS), alone.at_layers(HIDDEN_STATE_LAYERS))
            < 0.01
        )


def test_longer_answers_tell_the_prompts_last_token(
    hidden_state_engine: str, prompts: list[list[int]]
) -> None:
    """However many tokens follow."""
    short, long = (
        drawn(hidden_state_engine, prompts[3])[1],
        drawn(hidden_state_engine, prompts[3], max_tokens=9)[1],
    )
    assert (
        distance(long.at_layers(HIDDEN_STATE_LAYERS), short.at_layers(HIDDEN_STATE_LAYERS)) < 0.01
    )


def test_who_does_not_ask_gets_none(hidden_state_engine: str, prompts: list[list[int]]) -> None:
    asked = {"model": "pocket", "prompt": prompts[0], "max_tokens": 2}
    for extra in ({}, {"kv_transfer_params": {}}, {"kv_transfer_params": {"hidden_states": "1"}}):
        reply = httpx.post(f"{hidden_state_engine}/v1/completions", json={**asked, **extra}).json()
        assert reply["kv_transfer_params"] is None


def test_greedy_answers_are_those_of_a_stock_engine(hidden_state_engine: str, vllm: str) -> None:
    for prompt in PROMPTS[:2]:
        told, stock = (
            send_chat(url, prompt)["choices"][0]["message"] for url in (hidden_state_engine, vllm)
        )
        assert (told["reasoning"], told["content"]) == (stock["reasoning"], stock["content"])


def test_sampled_answers_are_right_as_often(hidden_state_engine: str) -> None:
    """Beside speculation the CPU's own sampling is noise, unless the connector mends it."""
    problems = CHAINS.held_out_problems(24)

    def right(seed: int) -> bool:
        fields = {"temperature": 0.6, "seed": seed}
        reply = send_chat(hidden_state_engine, problems[seed].prompt, **fields)
        return problems[seed].is_correct(reply["choices"][0]["message"]["content"] or "")

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(right, range(len(problems)))) >= 18


def test_lynx_stops_real_traces(hidden_state_engine: str, config: str) -> None:
    """From exact ids, in one response, with answers that are right."""
    with start_gateway(hidden_state_engine, free_port(), "--config", config) as url:
        assert "hidden states" not in httpx.get(f"{url}/ready").json()["missing"]
        problems = CHAINS.held_out_problems(12)
        with ThreadPoolExecutor(4) as pool:
            replies = list(
                pool.map(lambda one: send_chat(url, one.prompt, adjourn={"delta": 0.1}), problems)
            )
    notes = [reply["adjourn"] for reply in replies]
    stopped = [n for n, note in enumerate(notes) if note["stopped"]]
    assert len(stopped) >= 4
    assert {notes[n]["reason"] for n in stopped} == {"ready"}
    assert all(note["action"] == "carried-out" for note in notes if note["stopped"])
    assert all(note.get("muted") is None for note in notes)
    said = (replies[n]["choices"][0]["message"]["content"] for n in stopped)
    right = [problems[n].is_correct(text) for n, text in zip(stopped, said, strict=True)]
    assert sum(right) >= len(right) - 1


def test_a_stock_engine_is_refused_with_the_flags(vllm: str, config: str, tmp_path: Path) -> None:
    """Those that the engine above was started with."""
    log = tmp_path / "log"
    with start_gateway(vllm, free_port(), "--config", config, log=log) as url:
        told = httpx.get(f"{url}/ready").json()["missing"]["hidden states"]
        reply = httpx.post(
            f"{url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": 4},
        )
    assert reply.headers["x-adjourn-passed-through"] == "engine-tells-no-hidden-states"
    assert told in log.read_text().replace('\\"', '"')
    for argument in hidden_state_arguments():
        name, _, value = argument.partition("=")
        flag = told.partition(f"{name} '")[2].partition("'")[0]
        assert json.loads(flag) == json.loads(value)
