"""`adjourn record` and replay against a real vLLM with the pocket model."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import httpx
import pytest

from adjourn.lab.replay import replay_all
from adjourn.lab.replay_trace import ReplayDataset
from adjourn.policies.registry import parse
from benchmarks.pocket import CHAINS
from benchmarks.services import ROOT, free_port, start_engine, start_gateway
from tests.gateway_client import CHAT
from tests.lab.gateway_sessions import decisions, replay_decisions, run_through_gateway

pytestmark = pytest.mark.engine

PROBLEMS = CHAINS.held_out_problems(10, 3)
GREEDY = {"model": "pocket", "temperature": 0, "max_tokens": 900}


@pytest.fixture(scope="module")
def vllm() -> Iterator[str]:
    """An engine of its own: recordings are made while no other test uses it."""
    with start_engine(free_port()) as url:
        yield url


@pytest.fixture(scope="module")
def recording(vllm: str, tmp_path_factory: pytest.TempPathFactory) -> ReplayDataset:
    """Greedy traces of the problems, recorded one at a time."""
    folder = tmp_path_factory.mktemp("lab")
    rows = ({"prompt": p.prompt, "answer": p.answer, "id": p.key} for p in PROBLEMS)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        str(ROOT / ".venv" / "bin" / "adjourn"), "record", str(folder / "prompts.jsonl"),
        "--upstream", vllm, "--out", str(folder / "traces.jsonl"), "--for", "deer",
        "--for", "margin", "--for", "cusum", "--temperature", "0", "--max-tokens", "900",
        "--concurrency", "1", "--serve", "0.3",
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    return ReplayDataset(folder / "traces.jsonl")


def body(prompt: str) -> dict[str, object]:
    return {**GREEDY, "messages": [{"role": "user", "content": prompt}]}


@pytest.mark.parametrize(
    "policy",
    [
        "deer(threshold=0.9)",
        "convergence(effort='max')",
        "budget(max=150, grace=16)",
        "margin(threshold=1.5)",
        "deer-pro(threshold=0.9)",
        "cusum",
    ],
)
def test_a_replay_decides_as_the_gateway_did(vllm: str, policy: str) -> None:
    """The events of the gateway's sessions lead to the same probes and cuts, to the token."""
    sessions = run_through_gateway(vllm, policy, [body(p.prompt) for p in PROBLEMS[:4]])
    expected = [decisions(session) for session in sessions]
    assert expected == replay_decisions(policy, sessions[0].dialect, [s.events for s in sessions])
    assert any(session.stopped for session in sessions)


def test_a_recording_predicts_the_gateways_cuts(vllm: str, recording: ReplayDataset) -> None:
    """Greedy traces recorded earlier, for at least eight of ten problems: on a busy machine a probe
    may be so late that the gateway stops one cue later."""
    policy = "deer(threshold=0.9)"
    predicted = {
        t.prompt_id: o
        for t, o in zip(recording.traces, replay_all(parse(policy), recording), strict=True)
    }
    agreed = 0
    with start_gateway(vllm, free_port(), "--policy", policy, "--hold-out", "0") as url:
        for problem in PROBLEMS:
            reply = httpx.post(url + CHAT, json=body(problem.prompt), timeout=120).json()
            summary = reply.get("adjourn", {"stopped": False})
            outcome = predicted[problem.key]
            agreed += (outcome.stopped, outcome.kept_tokens if outcome.stopped else None) == (
                summary["stopped"],
                summary.get("position"),
            )
    assert agreed >= len(PROBLEMS) - 2


def test_a_recording_holds_what_each_policy_needs(recording: ReplayDataset) -> None:
    """Scored ends and log-probabilities: no probe is missing in the replay."""
    for policy in ("margin(threshold=1.5)", "cusum", "any_of(deer, first-try)"):
        outcomes = replay_all(parse(policy), recording)
        assert sum(outcome.missing_probes for outcome in outcomes) == 0
        assert any(outcome.stopped for outcome in outcomes)


def test_a_recording_is_complete(recording: ReplayDataset) -> None:
    """The ledger equals the engine's count, trial answers are present, and some cuts were
    executed."""
    assert len(recording.traces) + recording.truncated_count == len(PROBLEMS)
    for trace in recording.traces:
        assert trace.trial_answers[0].position == 0
        assert trace.ledger.net == sum(len(chunk.token_ids) for chunk in trace.chunks)
        assert (
            trace.settled_position() is None or trace.settled_position() <= trace.ledger.reasoning
        )
        per_chunk = [chunk.logprobs for chunk in trace.chunks if chunk.text]
        # While a probe has an end scored, this engine may return fewer top log-probabilities than
        # were requested, so only check that there are some.
        assert all(ranked for logprobs in per_chunk for ranked in logprobs)
        assert all(per_chunk)
    cuts = [cut for trace in recording.traces for cut in trace.executed_cuts]
    assert cuts
    assert all("\\boxed{" in cut.answer for cut in cuts if cut.finish_reason == "stop")
