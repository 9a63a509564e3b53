"""The models beside the engine's: steps that are embedded, traces that are rewarded on the way."""

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
def beside(standin: str) -> Iterator[str]:
    """A gateway that finds both models at the stand-in, under keys of their own."""
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
    """Both models of the stand-in do so."""
    well = {"pooling_status": None, "pooling_delay": 0.0}
    httpx.put(f"{standin}/standin/scenario", json=fault)
    try:
        yield
    finally:
        httpx.put(f"{standin}/standin/scenario", json=well)


def race(*cues: list[int], **fields: Any) -> dict[str, Any]:
    """Four traces, of which the i-th doubts at these positions."""
    one = {"tokens": 200, "rate": 400}
    by_seed = [[7 + i, {**one, "cues": places}] for i, places in enumerate(cues)]
    return {"seed": 7, "standin": {**one, "by_seed": by_seed}, **fields}


DOUBTING = race([5, 10, 20], [5, 30], [], [12])


def test_a_step_that_repeats_is_found_by_embedding(beside: str, standin: str) -> None:
    """Each step goes to the embedder under its own key, and the second is much like the first."""
    before = metric_value(beside, "adjourn_pooling_tokens_total", kind="embedding")
    chunks = stream(beside, standin=LONG, adjourn=REDUNDANT)
    note = next(c["adjourn"] for c in reversed(chunks) if c != "[DONE]" and "adjourn" in c)
    assert (note["stopped"], note["reason"]) == (True, "redundant")
    embedded = [r for r in engine_requests(standin) if r["path"] == "/v1/embeddings"]
    assert embedded[-1]["headers"]["authorization"] == "Bearer embeddings"
    assert (
        metric_value(beside, "adjourn_pooling_requests_total", kind="embedding", outcome="ok") >= 2
    )
    assert metric_value(beside, "adjourn_pooling_tokens_total", kind="embedding") > before
    assert note["tokens"]["probe"] < 10  # the trial answer's alone


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [({"pooling_status": 500}, "bad-reply"), ({"pooling_delay": 2.0}, "timeout")],
)
def test_an_embedder_that_fails_stops_nothing(
    beside: str, standin: str, fault: dict[str, Any], outcome: str
) -> None:
    """The stream is the engine's own, and each failure is counted."""
    name = "adjourn_fail_open_total"
    before = metric_value(beside, name, reason=f"embedding-{outcome}")
    with failing(standin, **fault):
        told = stream(beside, standin=LONG, adjourn=REDUNDANT)
    assert said(told) == said(stream(standin, standin=LONG))
    assert metric_value(beside, name, reason=f"embedding-{outcome}") > before


def said(chunks: list[Any]) -> str:
    deltas = [c["choices"][0]["delta"] for c in chunks if c != "[DONE]" and c["choices"]]
    return "".join((d.get("reasoning") or "") + (d.get("content") or "") for d in deltas)


@pytest.mark.parametrize("composition", ["any_of({}, deer)", "all_of({}, budget(max=10, grace=0))"])
def test_it_composes(beside: str, composition: str) -> None:
    """Beside a policy that probes, and where both must agree."""
    policy = composition.format(REDUNDANT["policy"])
    note = chat(beside, standin=LONG, adjourn={"policy": policy}).json()["adjourn"]
    assert note["stopped"] is True
    assert "redundant" in note["reason"]


def test_the_best_rewarded_trace_is_told(beside: str, standin: str) -> None:
    """Three of four are ended at the engine when they have thought forty tokens."""
    reply = chat(beside, {"x-request-id": "rewarded"}, **DOUBTING, adjourn=PARTIAL).json()
    note = reply["adjourn"]
    assert (note["chosen"], note["reason"]) == (2, "last")
    assert [trace["reward"] for trace in note["traces"]] == [0.25, pytest.approx(1 / 3), 1.0, 0.5]
    lost = [t["tokens"]["reasoning"] for t in note["traces"] if t["outcome"] == "given-up"]
    assert len(lost) == 3
    assert all(40 <= tokens < 120 for tokens in lost)
    asked = [r for r in engine_requests(standin) if r["path"] == "/pooling"]
    assert len(asked) >= 4
    assert asked[-1]["headers"]["authorization"] == "Bearer reward"
    assert '"role":"user"' in asked[-1]["body"].replace(" ", "")


def test_the_chosen_trace_streams_on(beside: str, standin: str) -> None:
    """As it would have been alone."""
    told = stream(beside, **DOUBTING, adjourn=PARTIAL)
    alone = {**DOUBTING, "seed": 9}
    assert said(told) == said(stream(standin, **alone))


def test_a_reward_model_that_fails_costs_the_choice_alone(beside: str, standin: str) -> None:
    """Where it says nothing of any trace the first goes on by itself; that is counted."""
    name = "adjourn_fail_open_total"
    before = metric_value(beside, name, reason="reward-bad-reply")
    with failing(standin, pooling_status=503):
        note = chat(beside, **DOUBTING, adjourn=PARTIAL).json()["adjourn"]
    assert (note["chosen"], note["reason"]) == (0, "unrewarded")
    assert metric_value(beside, name, reason="reward-bad-reply") == before + 4


def test_traces_over_several_rounds(beside: str) -> None:
    """Half of them go on each time, and each round's reward counts."""
    policy = {"policy": "partial-reward(traces=4, tokens=40, keep=0.5)"}
    fields = race([5, 10, 20], [50, 60], [70], [12, 13])
    note = chat(beside, **fields, adjourn=policy).json()["adjourn"]
    assert note["chosen"] in (1, 2)
    assert [trace["outcome"] for trace in note["traces"]].count("given-up") == 3


@pytest.mark.parametrize(
    ("policy", "reason"), [(REDUNDANT, "no-embedder"), (PARTIAL, "no-reward-model")]
)
def test_without_one_such_requests_are_handed_through(
    adjourn: str, policy: dict[str, str], reason: str
) -> None:
    """Told in a header, and counted."""
    reply = chat(adjourn, standin={"tokens": 20}, adjourn=policy)
    assert reply.headers["x-adjourn-passed-through"] == reason
    assert metric_value(adjourn, "adjourn_passed_through_total", reason=reason) > 0


def test_a_raw_completion_has_no_conversation_to_reward(beside: str) -> None:
    """It is handed through."""
    asked = {"model": "standin", "prompt": "hi", "max_tokens": 9, "adjourn": PARTIAL}
    reply = httpx.post(f"{beside}/v1/completions", json=asked)
    assert reply.headers["x-adjourn-passed-through"] == "no-messages"
