"""The laboratory against a real vLLM with the pocket model."""

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
    with start_engine(free_port()) as url:
        yield url


@pytest.fixture(scope="module")
def tapes(vllm: str, tmp_path_factory: pytest.TempPathFactory) -> ReplayDataset:
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
    """What the gateway's sessions were told leads to the same probes and cuts, to the token."""
    sessions = run_through_gateway(vllm, policy, [body(p.prompt) for p in PROBLEMS[:4]])
    expected = [decisions(session) for session in sessions]
    assert expected == replay_decisions(policy, sessions[0].dialect, [s.events for s in sessions])
    assert any(session.stopped for session in sessions)


def test_a_recording_foretells_the_gateway(vllm: str, tapes: ReplayDataset) -> None:
    """Greedy traces recorded earlier tell where the gateway will stop them. Its probes may come so
    late, on a machine that is busy, that one of them stops a cue later."""
    policy = "deer(threshold=0.9)"
    foretold = {
        t.prompt_id: o for t, o in zip(tapes.traces, replay_all(parse(policy), tapes), strict=True)
    }
    agreed = 0
    with start_gateway(vllm, free_port(), "--policy", policy, "--hold-out", "0") as url:
        for problem in PROBLEMS:
            reply = httpx.post(url + CHAT, json=body(problem.prompt), timeout=120).json()
            note = reply.get("adjourn", {"stopped": False})
            outcome = foretold[problem.key]
            agreed += (outcome.stopped, outcome.kept_tokens if outcome.stopped else None) == (
                note["stopped"],
                note.get("position"),
            )
    assert agreed >= len(PROBLEMS) - 2


def test_what_a_recording_holds_is_replayed(tapes: ReplayDataset) -> None:
    """What each policy asks for is there: ends are scored, and tokens told."""
    for policy in ("margin(threshold=1.5)", "cusum", "any_of(deer, first-try)"):
        outcomes = replay_all(parse(policy), tapes)
        assert sum(outcome.missing_probes for outcome in outcomes) == 0
        assert any(outcome.stopped for outcome in outcomes)


def test_a_recording_is_complete(tapes: ReplayDataset) -> None:
    """The ledger is the engine's count, trial answers are there, and cuts were tried for real."""
    assert len(tapes.traces) + tapes.truncated_count == len(PROBLEMS)
    for tape in tapes.traces:
        assert tape.trial_answers[0].position == 0
        assert tape.ledger.net == sum(len(piece.token_ids) for piece in tape.chunks)
        assert tape.settled_position() is None or tape.settled_position() <= tape.ledger.reasoning
        told = [piece.logprobs for piece in tape.chunks if piece.text]
        # Beside a probe that has an end scored, this engine tells no more than that asks for.
        assert all(ranked for logprobs in told for ranked in logprobs)
        assert all(told)
    tried = [served for tape in tapes.traces for served in tape.executed_cuts]
    assert tried
    assert all("\\boxed{" in served.answer for served in tried if served.finish_reason == "stop")
