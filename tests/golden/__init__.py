"""Recorded requests: what a session was given, and what it must make of it, to the token.

``inputs`` of a recording are a session's calls in order; ``outcome`` is what ``replay`` makes of
them. ``python -m tests.golden NAME`` prints a replay, to be read before it is kept.
Where the policy has a probe it is ``small``, and ``hidden_states`` of a result are what that reads.
A step is (command, state after it, pieces released so far). Recordings in ``races`` are those of
policies over several traces: events, and the commands that answer each.
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
    """The commands that answer each event of a race."""
    policy = parse(recording["policy"])
    assert isinstance(policy, SamplingPolicy)
    sampler = policy.start_sampler()
    told = [sampler.observe(getattr(sampling, name)(*args)) for name, *args in recording["events"]]
    written = [[[type(c).__name__, *astuple(c)] for c in commands] for commands in told]
    return list(json.loads(json.dumps(written)))


def _load(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(folder.glob("*.json"))
    return {file.stem: json.loads(file.read_text("utf-8")) for file in files}


def replay(recording: dict[str, Any]) -> dict[str, Any]:
    """Each input's command, state and released pieces, and the ledger and trigger at the end."""
    policy = parse(recording["policy"], readiness_probes={"small": make_classifier()})
    session = Session(policy, DIALECT, AlwaysProbe(), **recording["options"])
    asked: list[SendProbe | RequestEmbedding] = []
    steps = []
    for name, *values in recording["inputs"]:
        command = _call_session(session, name, values, asked)
        if isinstance(command, SendProbe | RequestEmbedding):
            asked.append(command)
        steps.append([_encode_order(command), session.state.value, session.released_chunks])
    trigger = asdict(session.trigger) if session.trigger else None
    if trigger and not trigger["stop"]["text_name"]:
        del trigger["stop"]["text_name"]
    ledger = {kind: count for kind, count in asdict(session.ledger).items() if count}
    outcome = {"steps": steps, "ledger": ledger, "trigger": trigger, "muted": session.mute_reason}
    return json.loads(json.dumps(outcome))


def _call_session(session: Session, name: str, values: list[Any], asked: list[Any]) -> Order | None:
    match name:
        case "feed":
            text, ids, at, *rest = values
            return session.feed(text, ids, at, **(rest[0] if rest else {}))
        case "on_probe_result":
            answer, certainty, closed, at, *more = values
            ask, told = asked[-1], dict(more[0]) if more else {}
            if "hidden_states" in told:
                told["hidden_states"] = make_hidden_states(*told["hidden_states"])
            drawn = probe_result(
                ask.position, answer, certainty, ask.probe, finished=closed, at=at, **told
            )
            return session.on_probe_result(drawn)
        case "on_probe_failed":
            reason, at = values
            return session.on_probe_failed(reason, asked[-1], at)
        case "on_embedding":
            vector, at = values
            ask = asked[-1]
            told = EmbeddingResult(ask.embed, tuple(vector), ask.position, 0.1, at)
            return session.on_embedding(told)
        case "on_embedding_failed":
            reason, at = values
            ask = asked[-1]
            return session.on_embedding(EmbeddingFailed(ask.embed, ask.position, reason, at))
    returned: None = getattr(session, name)(*values)
    return returned


def _encode_order(command: Order | None) -> Any:
    match command:
        case SendProbe(probe, kept, position, closing):
            other = [probe.inducer] if probe.inducer != "answer" else []
            return ["send_probe", probe.max_tokens, kept, position, list(closing), *other]
        case RequestEmbedding(embed, kept, position):
            return ["request_embedding", embed.text, kept, position]
        case Cut(kept, position, closing, said):
            return ["cut", kept, position, list(closing), *([list(said.ids)] if said.ids else [])]
        case Reopen(kept, position, pieces, said):
            return ["reopen", kept, position, pieces, list(said.ids)]
    return None
