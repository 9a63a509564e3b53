"""The prober: what a probe asks, and what the session gets for each kind of reply and failure."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from adjourn.policies.events import (
    Checkpoint,
    Embed,
    EmbeddingFailed,
    EmbeddingResult,
    Event,
    Probe,
    ProbeFailed,
    ProbeResult,
)
from adjourn.policies.policy import Needs
from adjourn.policies.session.orders import Order, RequestEmbedding, SendProbe
from adjourn.policies.session.session import Session
from adjourn.server.config import Settings
from adjourn.server.engines.vllm import VLLM
from adjourn.server.metrics import Metrics
from adjourn.server.relay.prober import Prober
from adjourn.server.upstream.client import EngineClient
from tests.policies.session_helpers import CLOSING, DIALECT, PROMPT, AlwaysProbe, ScriptedPolicy

CHOICE = {
    "text": "42}",
    "finish_reason": "stop",
    "logprobs": {"tokens": ["42", "}"], "token_logprobs": [-0.1, -0.2]},
}


class Engine(httpx.AsyncBaseTransport):
    """Answers each request with ``reply``: JSON, a status, an exception, or never (None)."""

    def __init__(self, reply: Any) -> None:
        self.reply = reply
        self.bodies: list[dict[str, Any]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(json.loads(await request.aread()))
        if self.reply is None:
            await asyncio.Event().wait()
        if isinstance(self.reply, Exception):
            raise self.reply
        if isinstance(self.reply, int):
            return httpx.Response(self.reply, json={})
        return httpx.Response(200, json=self.reply)


class FakeEmbedder:
    """Returns what it was given: a vector, or the reason of a failure."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    async def embed(self, text: str, labels: tuple[str, str]) -> Any:
        return self.outcome


def run_query(query: Probe | Embed, reply: Any, embedder: Any = None) -> tuple[Event, Engine]:
    """The event that the policy gets for its query at a cue, and the engine."""
    seen: list[Event] = []

    def script(event: Event) -> Any:
        if isinstance(event, Checkpoint):
            return query
        seen.append(event)
        return None

    needs = Needs(cues=True, probes=True, embeddings=True)
    session = Session(ScriptedPolicy(script, needs), DIALECT, AlwaysProbe())
    session.on_prompt(PROMPT)
    session.feed("One.", (100,), 0.0)
    session.feed(" Wait", (101,), 0.1)
    order: Order | None = session.feed(", no", (102,), 0.2)
    assert isinstance(order, SendProbe | RequestEmbedding)
    engine, metrics = Engine(reply), Metrics()

    async def run() -> None:
        adapter = VLLM(EngineClient(Settings(probe_timeout=0.05), engine))
        shared = {"cache_salt": "s"}
        prober = Prober(adapter, [], shared, metrics, ("m", "p"), embedder)  # type: ignore[arg-type]
        await prober.execute(session, order)

    asyncio.run(run())
    (event,) = seen
    return event, engine


def test_a_probe_continues_the_exact_ids() -> None:
    """Prompt, trace before the cue, closing sequence, inducer; with the fields that all calls
    share, and greedily."""
    event, engine = run_query(Probe(max_tokens=8), {"choices": [CHOICE]})
    (body,) = engine.bodies
    assert body["prompt"] == [*PROMPT, 100, *CLOSING, *DIALECT.inducers["answer"]]
    assert (body["max_tokens"], body["temperature"], body["cache_salt"]) == (8, 0, "s")
    assert isinstance(event, ProbeResult)
    assert (event.text, event.tokens, event.finished) == ("42}", ("42", "}"), True)
    assert event.position == 1
    assert event.seconds > 0


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (None, "timeout"),
        (500, "bad-reply"),
        (404, "bad-reply"),
        (httpx.ConnectError(""), "error"),
        ({"choices": []}, "bad-reply"),
        ({"choices": [{"text": "42"}]}, "bad-reply"),
    ],
)
def test_a_failed_probe_says_why(reply: Any, reason: str) -> None:
    """The policy gets an event, never an exception."""
    event, _ = run_query(Probe(), reply)
    assert isinstance(event, ProbeFailed)
    assert event.reason == reason


def test_an_unknown_inducer_is_not_sent() -> None:
    """The dialect has none of this name: a bad reply without a request."""
    event, engine = run_query(Probe(inducer="nothing"), {"choices": [CHOICE]})
    assert isinstance(event, ProbeFailed)
    assert (event.reason, engine.bodies) == ("bad-reply", [])


@pytest.mark.parametrize("outcome", [(1.0, 2.0), "timeout", "error"])
def test_an_embedding_or_its_failure(outcome: Any) -> None:
    """The engine is not asked, and the session's ledger counts nothing."""
    event, engine = run_query(Embed("One."), 500, FakeEmbedder(outcome))
    assert engine.bodies == []
    if isinstance(outcome, str):
        assert isinstance(event, EmbeddingFailed)
        assert event.reason == outcome
    else:
        assert isinstance(event, EmbeddingResult)
        assert event.vector == outcome
