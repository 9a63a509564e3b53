"""Auxiliary models on real pooling vLLMs: one embeds steps, another rewards traces."""

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
REDUNDANT = "redundancy(by='embedding', similarity=0.88, min_steps=2, confidence=0.9)"


@dataclass(frozen=True)
class EmbedderSetup:
    """A gateway's URL and its embedder's; ``stop_embedder`` ends the embedder."""

    url: str
    embedder: str
    stop_embedder: Callable[[], None]


@pytest.fixture(scope="module")
def embedder_setup(vllm: str) -> Iterator[EmbedderSetup]:
    with ExitStack() as stack, ExitStack() as embedder_stack:
        embedder = embedder_stack.enter_context(start_embedder(free_port()))
        env = {"ADJOURN_EMBEDDINGS_URL": embedder}
        options = "--policy", "never", "--hold-out", "0"
        url = stack.enter_context(start_gateway(vllm, free_port(), *options, env=env))
        yield EmbedderSetup(url, embedder, embedder_stack.close)


@pytest.fixture(scope="module")
def reward_model() -> Iterator[str]:
    with start_reward_model(free_port()) as url:
        yield url


@pytest.fixture(scope="module")
def reward_gateway(vllm: str, reward_model: str) -> Iterator[str]:
    options = "--policy", "partial-reward(traces=4, tokens=96)", "--hold-out", "0"
    env = {"ADJOURN_REWARD_URL": reward_model}
    with start_gateway(vllm, free_port(), *options, env=env) as url:
        yield url


def summaries(url: str, policy: str) -> list[dict[str, Any]]:
    """The summaries of six problems under the policy."""
    return [send_chat(url, prompt, adjourn={"policy": policy})["adjourn"] for prompt in PROMPTS[:6]]


def test_a_repeated_step_is_detected_by_its_embedding(embedder_setup: EmbedderSetup) -> None:
    """The pocket model repeats derivations, and its trial answer is confident. The embedder's
    tokens are in the metrics, not in the response."""
    all_summaries = summaries(embedder_setup.url, REDUNDANT)
    stopped = [summary for summary in all_summaries if summary["stopped"]]
    assert len(stopped) >= 3
    assert {summary["reason"] for summary in stopped} <= {"redundant", "redundant-stable"}
    assert metric_value(
        embedder_setup.url, "adjourn_pooling_requests_total", outcome="ok"
    ) >= 2 * len(stopped)
    assert metric_value(embedder_setup.url, "adjourn_pooling_tokens_total", kind="embedding") > 500
    assert max(summary["tokens"]["probe"] for summary in all_summaries) < 100


def test_the_similarity_threshold_changes_the_decision(embedder_setup: EmbedderSetup) -> None:
    """Hardly any two steps have a similarity of 1. In a composition the other policy still
    stops."""
    similar, identical = (
        sum(summary["stopped"] for summary in summaries(embedder_setup.url, policy))
        for policy in (REDUNDANT, REDUNDANT.replace("0.88", "1.0"))
    )
    assert identical < similar
    both = summaries(
        embedder_setup.url, f"any_of({REDUNDANT.replace('0.88', '1.0')}, budget(max=80))"
    )
    assert "budget" in {summary["reason"] for summary in both}


def test_embeddings_are_recorded_and_replayed(
    embedder_setup: EmbedderSetup, vllm: str, tmp_path: Path
) -> None:
    """A replay of the recording stops traces as the gateway does, with no probe missing."""
    prompts = tmp_path / "prompts.jsonl"
    rows = ({"prompt": one.prompt, "answer": one.answer} for one in CHAINS.held_out_problems(6))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "traces.jsonl"
    command = [str(Path(sys.executable).with_name("adjourn")), "record", str(prompts)]
    command += ["--upstream", vllm, "--embeddings-url", embedder_setup.embedder, "--for", REDUNDANT]
    command += ["--temperature", "0", "--max-tokens", "2000", "--out", str(path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    outcomes = replay_all(parse(REDUNDANT), ReplayDataset(path), instant=True)
    assert sum(outcome.stopped for outcome in outcomes) >= 3
    assert [outcome.missing_probes for outcome in outcomes] == [0] * 6


def test_the_reward_model_prefers_the_correct_derivation(reward_model: str) -> None:
    """Over a derivation with a wrong step, in nine of ten pairs; rendered by the reward model's own
    chat template."""
    rng, preferred, tried = random.Random(1), 0, 0
    for problem in CHAINS.held_out_problems(40, seed=3):
        correct = CHAINS.derive(problem, rng)
        wrong = next(
            (d for _ in range(40) if (d := CHAINS.derive(problem, rng)).slipped_steps), None
        )
        if wrong is None or correct.slipped_steps:
            continue
        traces = ["".join(span.text for span in derived.spans) for derived in (correct, wrong)]
        rewards = [reward(reward_model, problem.prompt, trace) for trace in traces]
        tried, preferred = tried + 1, preferred + (rewards[0] > rewards[1])
    assert tried >= 10
    assert preferred >= 0.9 * tried


def reward(url: str, prompt: str, trace: str) -> float:
    """The reward of a trace, from the reward model directly."""
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": trace}]
    reply = httpx.post(f"{url}/pooling", json={"messages": turns}, timeout=60).json()
    return float(reply["data"][0]["data"][-1])


@pytest.mark.parametrize("streamed", [False, True])
def test_the_trace_with_the_best_reward_continues(reward_gateway: str, streamed: bool) -> None:
    """Scored by the real model after 96 tokens; the other traces are aborted."""
    for problem in CHAINS.held_out_problems(3):
        fields = {"temperature": 0.6, "seed": 5, "stream": streamed}
        response = send_chat(reward_gateway, problem.prompt, **fields)
        summary = response[-2]["adjourn"] if streamed else response["adjourn"]
        rewards = [trace["reward"] for trace in summary["traces"]]
        assert summary["reason"] in ("last", "best")
        assert rewards[summary["chosen"]] == max(rewards)
        lost = [t["tokens"]["reasoning"] for t in summary["traces"] if t["outcome"] == "given-up"]
        assert len(lost) >= 2
        assert all(tokens < 400 for tokens in lost)
        if streamed:
            assert join_deltas(response, "content")
    assert (
        metric_value(reward_gateway, "adjourn_pooling_requests_total", kind="reward", outcome="ok")
        >= 12
    )


def test_an_embedder_that_is_down_does_not_change_the_stream(embedder_setup: EmbedderSetup) -> None:
    """Each step that could not be embedded is counted."""
    embedder_setup.stop_embedder()
    all_summaries = summaries(embedder_setup.url, REDUNDANT)
    assert [summary["stopped"] for summary in all_summaries] == [False] * 6
    assert (
        metric_value(embedder_setup.url, "adjourn_fail_open_total", reason="embedding-error") >= 6
    )
