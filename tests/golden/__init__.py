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

from policies import sampling
from policies.events import Embedded, EmbedFailed
from policies.orders import Ask, Cut, Order, Reopen, Represent
from policies.registry import parse
from policies.sampling import Sampling
from policies.session import Session
from tests.policies.lab import MARKS, Generous, result
from tests.policies.probes import read, states

__all__ = ["races", "recordings", "replay", "rerun"]


def recordings() -> dict[str, dict[str, Any]]:
    """Every recording by its name."""
    return _read(Path(__file__).parent)


def races() -> dict[str, dict[str, Any]]:
    return _read(Path(__file__).parent / "races")


def rerun(recording: dict[str, Any]) -> list[Any]:
    """The commands that answer each event of a race."""
    policy = parse(recording["policy"])
    assert isinstance(policy, Sampling)
    sampler = policy.sample()
    told = [sampler.observe(getattr(sampling, name)(*args)) for name, *args in recording["events"]]
    written = [[[type(c).__name__, *astuple(c)] for c in commands] for commands in told]
    return list(json.loads(json.dumps(written)))


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(folder.glob("*.json"))
    return {file.stem: json.loads(file.read_text("utf-8")) for file in files}


def replay(recording: dict[str, Any]) -> dict[str, Any]:
    """Each input's command, state and released pieces, and the ledger and trigger at the end."""
    policy = parse(recording["policy"], probes={"small": read()})
    session = Session(policy, MARKS, Generous(), **recording["options"])
    asked: list[Ask | Represent] = []
    steps = []
    for name, *values in recording["inputs"]:
        command = _call(session, name, values, asked)
        if isinstance(command, Ask | Represent):
            asked.append(command)
        steps.append([_written(command), session.state.value, session.released])
    trigger = asdict(session.trigger) if session.trigger else None
    if trigger and not trigger["stop"]["text"]:
        del trigger["stop"]["text"]
    ledger = {kind: count for kind, count in asdict(session.ledger).items() if count}
    outcome = {"steps": steps, "ledger": ledger, "trigger": trigger, "muted": session.muted}
    return json.loads(json.dumps(outcome))


def _call(session: Session, name: str, values: list[Any], asked: list[Any]) -> Order | None:
    match name:
        case "feed":
            text, ids, at, *rest = values
            return session.feed(text, ids, at, **(rest[0] if rest else {}))
        case "probed":
            answer, certainty, closed, at, *more = values
            ask, told = asked[-1], dict(more[0]) if more else {}
            if "hidden_states" in told:
                told["hidden_states"] = states(*told["hidden_states"])
            drawn = result(ask.position, answer, certainty, ask.probe, closed=closed, at=at, **told)
            return session.probed(drawn)
        case "probe_failed":
            reason, at = values
            return session.probe_failed(reason, asked[-1], at)
        case "embedded":
            vector, at = values
            ask = asked[-1]
            told = Embedded(ask.embed, tuple(vector), ask.position, 0.1, at)
            return session.embedded(told)
        case "embed_failed":
            reason, at = values
            ask = asked[-1]
            return session.embedded(EmbedFailed(ask.embed, ask.position, reason, at))
    returned: None = getattr(session, name)(*values)
    return returned


def _written(command: Order | None) -> Any:
    match command:
        case Ask(probe, kept, position, closing):
            other = [probe.inducer] if probe.inducer != "answer" else []
            return ["ask", probe.max_tokens, kept, position, list(closing), *other]
        case Represent(embed, kept, position):
            return ["represent", embed.text, kept, position]
        case Cut(kept, position, closing, said):
            return ["cut", kept, position, list(closing), *([list(said.ids)] if said.ids else [])]
        case Reopen(kept, position, pieces, said):
            return ["reopen", kept, position, pieces, list(said.ids)]
    return None
