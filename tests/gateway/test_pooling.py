"""Auxiliary models: an embedder for steps, and a reward model for partial traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from benchmarks.services import free_port, start_gateway
from tests.gateway_client import chat, engine_requests, metric_value, stream

REDUNDANT = {"policy": "redundancy(by='embedding', similarity=0.5, min_steps=2)"}
LONG = {"tokens": 1500, "trial_logprob": -0.001, "rate": 3000}
PARTIAL = {"policy": "partial-reward(traces=4, tokens=40)"}


@pytest.fixture(scope="module")
def pooling_gateway(standin: str) -> Iterator[str]:
    """A gateway that uses the stand-in as embedder and as reward model, each with its own API
    key."""
    env = {"ADJOURN_PROBE_TIMEOUT": "0.3"}
    for kind in ("EMBEDDINGS", "REWARD"):
        env |= {f"ADJOURN_{kind}_URL": standin, f"ADJOURN_{kind}_MODEL": "standin"}
        env[f"ADJOURN_{kind}_API_KEY"] = kind.lower()
    with start_gateway(
        standin, free_port(), "--policy", "never", "--hold-out", "0", env=env
    ) as url:
        yield url


@contextmanager
def failing(standin: str, **fault: Any) -> Iterator[None]:
    """Make both auxiliary models fail with ``fault``, within the block."""
    normal = {"pooling_status": None, "pooling_delay": 0.0}
    httpx.put(f"{standin}/standin/scenario", json=fault)
    try:
        yield
    finally:
        httpx.put(f"{standin}/standin/scenario", json=normal)


def race(*cues: list[int], **fields: Any) -> dict[str, Any]:
    """Four traces; ``cues`` holds the cue positions of each. The reward of a trace falls with their
    number."""
    one = {"tokens": 200, "rate": 400}
    by_seed = [[7 + i, {**one, "cues": positions}] for i, positions in enumerate(cues)]
    return {"seed": 7, "standin": {**one, "by_seed": by_seed}, **fields}


WITH_CUES = race([5, 10, 20], [5, 30], [], [12])


def test_a_repeated_step_is_detected_by_its_embedding(pooling_gateway: str, standin: str) -> None:
    """Each step is sent to the embedder with its API key; the second is similar to the first."""
    before = metric_value(pooling_gateway, "adjourn_pooling_tokens_total", kind="embedding")
    chunks = stream(pooling_gateway, standin=LONG, adjourn=REDUNDANT)
    summary = next(c["adjourn"] for c in reversed(chunks) if c != "[DONE]" and "adjourn" in c)
    assert (summary["stopped"], summary["reason"]) == (True, "redundant")
    embedded = [r for r in engine_requests(standin) if r["path"] == "/v1/embeddings"]
    assert embedded[-1]["headers"]["authorization"] == "Bearer embeddings"
    assert (
        metric_value(
            pooling_gateway, "adjourn_pooling_requests_total", kind="embedding", outcome="ok"
        )
        >= 2
    )
    assert metric_value(pooling_gateway, "adjourn_pooling_tokens_total", kind="embedding") > before
    assert summary["tokens"]["probe"] < 10  # the trial answer's tokens only


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [({"pooling_status": 500}, "bad-reply"), ({"pooling_delay": 2.0}, "timeout")],
)
def test_a_failing_embedder_does_not_change_the_stream(
    pooling_gateway: str, standin: str, fault: dict[str, Any], outcome: str
) -> None:
    """It is the engine's own, and each failure is counted."""
    name = "adjourn_fail_open_total"
    before = metric_value(pooling_gateway, name, reason=f"embedding-{outcome}")
    with failing(standin, **fault):
        ours = stream(pooling_gateway, standin=LONG, adjourn=REDUNDANT)
    assert joined_text(ours) == joined_text(stream(standin, standin=LONG))
    assert metric_value(pooling_gateway, name, reason=f"embedding-{outcome}") > before


def joined_text(chunks: list[Any]) -> str:
    deltas = [c["choices"][0]["delta"] for c in chunks if c != "[DONE]" and c["choices"]]
    return "".join((d.get("reasoning") or "") + (d.get("content") or "") for d in deltas)


@pytest.mark.parametrize("composition", ["any_of({}, deer)", "all_of({}, budget(max=10, grace=0))"])
def test_redundancy_composes_with_other_policies(pooling_gateway: str, composition: str) -> None:
    """With one that sends probes, and with one that must agree."""
    policy = composition.format(REDUNDANT["policy"])
    summary = chat(pooling_gateway, standin=LONG, adjourn={"policy": policy}).json()["adjourn"]
    assert summary["stopped"] is True
    assert "redundant" in summary["reason"]


def test_the_client_gets_the_trace_with_the_best_reward(pooling_gateway: str, standin: str) -> None:
    """The other three are aborted at the engine after 40 tokens of reasoning."""
    reply = chat(pooling_gateway, {"x-request-id": "rewarded"}, **WITH_CUES, adjourn=PARTIAL).json()
    summary = reply["adjourn"]
    assert (summary["chosen"], summary["reason"]) == (2, "last")
    assert [trace["reward"] for trace in summary["traces"]] == [
        0.25,
        pytest.approx(1 / 3),
        1.0,
        0.5,
    ]
    lost = [t["tokens"]["reasoning"] for t in summary["traces"] if t["outcome"] == "given-up"]
    assert len(lost) == 3
    assert all(40 <= tokens < 120 for tokens in lost)
    reward_requests = [r for r in engine_requests(standin) if r["path"] == "/pooling"]
    assert len(reward_requests) >= 4
    assert reward_requests[-1]["headers"]["authorization"] == "Bearer reward"
    assert '"role":"user"' in reward_requests[-1]["body"].replace(" ", "")


def test_the_chosen_trace_is_streamed_unchanged(pooling_gateway: str, standin: str) -> None:
    """As if it were the only trace."""
    ours = stream(pooling_gateway, **WITH_CUES, adjourn=PARTIAL)
    alone = {**WITH_CUES, "seed": 9}
    assert joined_text(ours) == joined_text(stream(standin, **alone))


def test_the_first_trace_is_chosen_when_the_reward_model_fails(
    pooling_gateway: str, standin: str
) -> None:
    """The race ends, the response continues, and each failure is counted."""
    name = "adjourn_fail_open_total"
    before = metric_value(pooling_gateway, name, reason="reward-bad-reply")
    with failing(standin, pooling_status=503):
        summary = chat(pooling_gateway, **WITH_CUES, adjourn=PARTIAL).json()["adjourn"]
    assert (summary["chosen"], summary["reason"]) == (0, "unrewarded")
    assert metric_value(pooling_gateway, name, reason="reward-bad-reply") == before + 4


def test_partial_reward_over_several_rounds(pooling_gateway: str) -> None:
    """Each round keeps half of the traces, and the rewards of all rounds count."""
    policy = {"policy": "partial-reward(traces=4, tokens=40, keep=0.5)"}
    fields = race([5, 10, 20], [50, 60], [70], [12, 13])
    summary = chat(pooling_gateway, **fields, adjourn=policy).json()["adjourn"]
    assert summary["chosen"] in (1, 2)
    assert [trace["outcome"] for trace in summary["traces"]].count("given-up") == 3


@pytest.mark.parametrize(
    ("policy", "reason"), [(REDUNDANT, "no-embedder"), (PARTIAL, "no-reward-model")]
)
def test_requests_pass_through_without_the_auxiliary_model(
    adjourn: str, policy: dict[str, str], reason: str
) -> None:
    """With the reason in a header and in a metric."""
    reply = chat(adjourn, standin={"tokens": 20}, adjourn=policy)
    assert reply.headers["x-adjourn-passed-through"] == reason
    assert metric_value(adjourn, "adjourn_passed_through_total", reason=reason) > 0


def test_partial_reward_does_not_apply_to_raw_completions(pooling_gateway: str) -> None:
    """They have no messages for the reward model, so the request passes through."""
    request = {"model": "standin", "prompt": "hi", "max_tokens": 9, "adjourn": PARTIAL}
    reply = httpx.post(f"{pooling_gateway}/v1/completions", json=request)
    assert reply.headers["x-adjourn-passed-through"] == "no-messages"
