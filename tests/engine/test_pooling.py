"""Real models beside the real engine: one pooling vLLM embeds steps, another rewards traces."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from adjourn.lab.replay import replay_all
from adjourn.lab.replay_trace import ReplayDataset
from adjourn.policies.registry import parse
from benchmarks.pocket import CHAINS
from benchmarks.services import ROOT, free_port, start_embedder, start_gateway, start_reward_model
from tests.engine.pocket_client import PROMPTS, join_deltas, send_chat
from tests.gateway_client import metric_value

pytestmark = pytest.mark.engine
ALIKE = "redundancy(by='embedding', similarity=0.88, min_steps=2, confidence=0.9)"


@dataclass(frozen=True)
class Steps:
    """A gateway whose embedder ``end`` ends."""

    url: str
    embedder: str
    end: Callable[[], None]


@pytest.fixture(scope="module")
def steps(vllm: str) -> Iterator[Steps]:
    with ExitStack() as stack, ExitStack() as ending:
        beside = ending.enter_context(start_embedder(free_port()))
        env = {"ADJOURN_EMBEDDINGS_URL": beside}
        options = "--policy", "never", "--hold-out", "0"
        url = stack.enter_context(start_gateway(vllm, free_port(), *options, env=env))
        yield Steps(url, beside, ending.close)


@pytest.fixture(scope="module")
def rewarding() -> Iterator[str]:
    with start_reward_model(free_port()) as url:
        yield url


@pytest.fixture(scope="module")
def rewarded(vllm: str, rewarding: str) -> Iterator[str]:
    options = "--policy", "partial-reward(traces=4, tokens=96)", "--hold-out", "0"
    env = {"ADJOURN_REWARD_URL": rewarding}
    with start_gateway(vllm, free_port(), *options, env=env) as url:
        yield url


def notes(url: str, policy: str) -> list[dict[str, Any]]:
    return [send_chat(url, prompt, adjourn={"policy": policy})["adjourn"] for prompt in PROMPTS[:6]]


def test_a_step_that_repeats_is_found(steps: Steps) -> None:
    """The pocket model derives again what it derived: the same direction, and a sure answer. What
    the embedder read is counted, and is in no response."""
    told = notes(steps.url, ALIKE)
    stopped = [note for note in told if note["stopped"]]
    assert len(stopped) >= 3
    assert {note["reason"] for note in stopped} <= {"redundant", "redundant-stable"}
    assert metric_value(steps.url, "adjourn_pooling_requests_total", outcome="ok") >= 2 * len(
        stopped
    )
    assert metric_value(steps.url, "adjourn_pooling_tokens_total", kind="embedding") > 500
    assert max(note["tokens"]["probe"] for note in told) < 100


def test_another_similarity_is_another_decision(steps: Steps) -> None:
    """Little says the very same twice; and members of a composition are each heard."""
    alike, same = (
        sum(note["stopped"] for note in notes(steps.url, policy))
        for policy in (ALIKE, ALIKE.replace("0.88", "1.0"))
    )
    assert same < alike
    both = notes(steps.url, f"any_of({ALIKE.replace('0.88', '1.0')}, budget(max=80))")
    assert "budget" in {note["reason"] for note in both}


def test_steps_are_recorded_and_replayed(steps: Steps, vllm: str, tmp_path: Path) -> None:
    """The laboratory finds on a recording what the gateway finds."""
    prompts = tmp_path / "prompts.jsonl"
    rows = ({"prompt": one.prompt, "answer": one.answer} for one in CHAINS.held_out_problems(6))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "traces.jsonl"
    command = [str(Path(sys.executable).with_name("adjourn")), "record", str(prompts)]
    command += ["--upstream", vllm, "--embeddings-url", steps.embedder, "--for", ALIKE]
    command += ["--temperature", "0", "--max-tokens", "2000", "--out", str(path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    outcomes = replay_all(parse(ALIKE), ReplayDataset(path), instant=True)
    assert sum(outcome.stopped for outcome in outcomes) >= 3
    assert [outcome.missing_probes for outcome in outcomes] == [0] * 6


def test_the_reward_tells_a_slip(rewarding: str) -> None:
    """Of two derivations of which one slipped, the one that did not is the better, read through
    the reward model's own template."""
    rng, right, tried = random.Random(1), 0, 0
    for problem in CHAINS.held_out_problems(40, seed=3):
        good = CHAINS.derive(problem, rng)
        bad = next((d for _ in range(40) if (d := CHAINS.derive(problem, rng)).slipped_steps), None)
        if bad is None or good.slipped_steps:
            continue
        thoughts = ["".join(piece.text for piece in derived.spans) for derived in (good, bad)]
        rewards = [reward(rewarding, problem.prompt, thought) for thought in thoughts]
        tried, right = tried + 1, right + (rewards[0] > rewards[1])
    assert tried >= 10
    assert right >= 0.9 * tried


def reward(url: str, prompt: str, thought: str) -> float:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": thought}]
    told = httpx.post(f"{url}/pooling", json={"messages": turns}, timeout=60).json()
    return float(told["data"][0]["data"][-1])


@pytest.mark.parametrize("streamed", [False, True])
def test_the_best_of_four_goes_on(rewarded: str, streamed: bool) -> None:
    """Scored by the real model when they have thought so far; the others are ended there."""
    for problem in CHAINS.held_out_problems(3):
        fields = {"temperature": 0.6, "seed": 5, "stream": streamed}
        told = send_chat(rewarded, problem.prompt, **fields)
        note = told[-2]["adjourn"] if streamed else told["adjourn"]
        rewards = [trace["reward"] for trace in note["traces"]]
        assert note["reason"] in ("last", "best")
        assert rewards[note["chosen"]] == max(rewards)
        lost = [t["tokens"]["reasoning"] for t in note["traces"] if t["outcome"] == "given-up"]
        assert len(lost) >= 2
        assert all(tokens < 400 for tokens in lost)
        if streamed:
            assert join_deltas(told, "content")
    assert (
        metric_value(rewarded, "adjourn_pooling_requests_total", kind="reward", outcome="ok") >= 12
    )


def test_an_embedder_that_is_gone_stops_nothing(steps: Steps) -> None:
    """The streams go on to their own ends, and each step that was not embedded is counted."""
    steps.end()
    told = notes(steps.url, ALIKE)
    assert [note["stopped"] for note in told] == [False] * 6
    assert metric_value(steps.url, "adjourn_fail_open_total", reason="embedding-error") >= 6
