"""Recorded requests: the calls of a session, and the exact outcome that they must have.

``inputs`` of a recording are the calls of a session in order; ``outcome`` is what ``replay``
returns for them. ``python -m tests.golden NAME`` prints a replay: read it before you record it.
A policy that needs a classifier gets one named ``small``; ``hidden_states`` of a probe result are
the arguments that make its inputs. A step is (order, state after it, chunks released so far).
Recordings in ``races`` are of policies over several traces: events, and the commands for each.
"""

from __future__ import annotations

import json
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from adjourn.policies import sampling
from adjourn.policies.events import EmbeddingFailed, EmbeddingResult
from adjourn.policies.registry import parse
from adjourn.policies.sampling import SamplingPolicy
from adjourn.policies.session.orders import Cut, Order, Reopen, RequestEmbedding, SendProbe
from adjourn.policies.session.session import Session
from tests.policies.readiness_fixtures import make_classifier, make_hidden_states
from tests.policies.session_helpers import DIALECT, AlwaysProbe, probe_result

__all__ = ["races", "recordings", "replay", "replay_race"]


def recordings() -> dict[str, dict[str, Any]]:
    """Every recording by its name."""
    return _load(Path(__file__).parent)


def races() -> dict[str, dict[str, Any]]:
    return _load(Path(__file__).parent / "races")


def replay_race(recording: dict[str, Any]) -> list[Any]:
    """The sampler's commands for each event of a race."""
    policy = parse(recording["policy"])
    assert isinstance(policy, SamplingPolicy)
    sampler = policy.start_sampler()
    replies = [
        sampler.observe(getattr(sampling, name)(*args)) for name, *args in recording["events"]
    ]
    written = [[[type(c).__name__, *astuple(c)] for c in commands] for commands in replies]
    return list(json.loads(json.dumps(written)))


def _load(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(folder.glob("*.json"))
    return {file.stem: json.loads(file.read_text("utf-8")) for file in files}


def replay(recording: dict[str, Any]) -> dict[str, Any]:
    """The order, state and released chunks after each input; ledger and trigger at the end."""
    policy = parse(recording["policy"], readiness_probes={"small": make_classifier()})
    session = Session(policy, DIALECT, AlwaysProbe(), **recording["options"])
    orders: list[SendProbe | RequestEmbedding] = []
    steps = []
    for name, *values in recording["inputs"]:
        order = _call_session(session, name, values, orders)
        if isinstance(order, SendProbe | RequestEmbedding):
            orders.append(order)
        steps.append([_encode_order(order), session.state.value, session.released_chunks])
    trigger = asdict(session.trigger) if session.trigger else None
    if trigger and not trigger["stop"]["text_name"]:
        del trigger["stop"]["text_name"]
    ledger = {kind: count for kind, count in asdict(session.ledger).items() if count}
    outcome = {"steps": steps, "ledger": ledger, "trigger": trigger, "muted": session.mute_reason}
    return json.loads(json.dumps(outcome))


def _call_session(
    session: Session, name: str, values: list[Any], orders: list[Any]
) -> Order | None:
    match name:
        case "feed":
            text, ids, at, *rest = values
            return session.feed(text, ids, at, **(rest[0] if rest else {}))
        case "on_probe_result":
            answer, probability, finished, at, *more = values
            order, fields = orders[-1], dict(more[0]) if more else {}
            if "hidden_states" in fields:
                fields["hidden_states"] = make_hidden_states(*fields["hidden_states"])
            result = probe_result(
                order.position, answer, probability, order.probe, finished=finished, at=at, **fields
            )
            return session.on_probe_result(result)
        case "on_probe_failed":
            reason, at = values
            return session.on_probe_failed(reason, orders[-1], at)
        case "on_embedding":
            vector, at = values
            order = orders[-1]
            embedded = EmbeddingResult(order.embed, tuple(vector), order.position, 0.1, at)
            return session.on_embedding(embedded)
        case "on_embedding_failed":
            reason, at = values
            order = orders[-1]
            return session.on_embedding(EmbeddingFailed(order.embed, order.position, reason, at))
    returned: None = getattr(session, name)(*values)
    return returned


def _encode_order(order: Order | None) -> Any:
    match order:
        case SendProbe(probe, kept, position, closing):
            other = [probe.inducer] if probe.inducer != "answer" else []
            return ["send_probe", probe.max_tokens, kept, position, list(closing), *other]
        case RequestEmbedding(embed, kept, position):
            return ["request_embedding", embed.text, kept, position]
        case Cut(kept, position, closing, inserted):
            return [
                "cut",
                kept,
                position,
                list(closing),
                *([list(inserted.ids)] if inserted.ids else []),
            ]
        case Reopen(kept, position, chunks, inserted):
            return ["reopen", kept, position, chunks, list(inserted.ids)]
    return None
