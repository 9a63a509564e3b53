"""What to record: the prompts, where to look, and what to ask there.

What a policy looks at is in its ``needs``; what it asks, it shows when it is rehearsed. Both can
be written by hand as well, in the words of the core's own dataclasses.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from policies import events
from policies.events import Checkpoint, CheckpointKind, Probe, ProbeResult, Stop
from policies.policy import Needs, Policy

__all__ = ["BadPlan", "Plan", "Prompt", "asked_by", "needs_of", "probe_of", "prompts", "unlike"]

_ROUNDS = 8
_FAR = 1_000_000


class BadPlan(ValueError):
    """A prompts file, place or probe that cannot be read; the message says what would be."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One conversation to record. ``gold``: its right answer, where that is known."""

    id: str
    messages: list[dict[str, Any]]
    gold: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to look, what to ask there, and the fields of the requests.

    ``serve``: the share of places at which a cut is carried out for real, beside the trace.
    """

    needs: tuple[Needs, ...]
    probes: tuple[Any, ...]
    body: dict[str, Any]
    serve: float = 0.0

    @classmethod
    def of(
        cls,
        policies: Iterable[Policy],
        needs: Iterable[Needs],
        probes: Iterable[Any],
        body: dict[str, Any],
        serve: float = 0.0,
    ) -> Plan:
        """All that these policies need, and these places and probes as well; where nothing is
        asked for, a trial answer at every cue."""
        policies = list(policies)
        places = [policy.needs for policy in policies] + list(needs)
        asked = [probe for policy in policies for probe in asked_by(policy)] + list(probes)
        return cls(
            tuple(dict.fromkeys(places or [Needs(cues=True)])),
            tuple(unlike(asked or [Probe()])),
            body,
            serve,
        )


class _Row(msgspec.Struct):
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    answer: str | int | float | None = None
    id: str | int | None = None


def prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSONL file, in its order. Raises BadPlan, which names the line."""
    found: dict[str, Prompt] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise BadPlan(f"{path}: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt = _prompt(msgspec.json.decode(line, type=_Row))
        except (msgspec.MsgspecError, BadPlan) as error:
            raise BadPlan(f"{path}, line {number}: {error}") from None
        if prompt.id in found:
            raise BadPlan(f"{path}, line {number}: a second prompt {prompt.id!r}")
        found[prompt.id] = prompt
    return list(found.values())


def _prompt(row: _Row) -> Prompt:
    if (row.prompt is None) == (row.messages is None):
        raise BadPlan('write either "prompt" or "messages"')
    messages = row.messages or [{"role": "user", "content": row.prompt}]
    digest = hashlib.blake2b(msgspec.json.encode(messages), digest_size=6).hexdigest()
    gold = None if row.answer is None else str(row.answer)
    return Prompt(digest if row.id is None else str(row.id), messages, gold)


def needs_of(text: str) -> Needs:
    """A place to look, e.g. ``cues`` or ``interval=32``: a field of ``Needs``."""
    name, _, value = text.partition("=")
    hints = get_type_hints(Needs)
    if name not in hints:
        raise BadPlan(f"no place {name!r}: choose one of {', '.join(hints)}")
    try:
        return Needs(**{name: ast.literal_eval(value) if value else True})
    except (SyntaxError, ValueError):
        raise BadPlan(f"{text!r} is not a place: write e.g. 'cues' or 'interval=32'") from None


def probe_of(text: str) -> Any:
    """A probe, written as a call of its class: ``probe(inducer='answer', max_tokens=20)``."""
    kinds = {
        name.lower(): kind
        for name, kind in vars(events).items()
        if isinstance(kind, type) and kind in get_args(events.Command) and kind is not Stop
    }
    try:
        match ast.parse(text, mode="eval").body:
            case ast.Call(func=ast.Name(id=name), args=[], keywords=words) if name in kinds:
                written = {str(word.arg): ast.literal_eval(word.value) for word in words}
                return kinds[name](**written)
    except (SyntaxError, ValueError, TypeError):
        pass
    raise BadPlan(f"{text!r} is not a probe: write e.g. 'probe(max_tokens=20)'")


def asked_by(policy: Policy) -> list[Any]:
    """What ``policy`` asks at a checkpoint: it is shown one of each kind, far into a trace, and
    each of its probes is answered with certainty, until it asks no more."""
    asked: list[Any] = []
    for kind in get_args(CheckpointKind):
        stopper = policy.start()
        for round_ in range(_ROUNDS):
            position = _FAR + round_ * _FAR
            command = stopper.observe(Checkpoint(kind, position, 0.0, "Wait"))
            while command is not None and not isinstance(command, Stop) and len(asked) < 64:
                asked.append(command)
                command = stopper.observe(_certain(command, position))
            if isinstance(command, Stop):
                break
    return list(dict.fromkeys(asked))


def _certain(probe: Any, position: int) -> ProbeResult:
    return ProbeResult(
        probe=probe,
        position=position,
        text="1}",
        tokens=("1", "}"),
        logprobs=(-1e-6, -1e-6),
        finished=True,
        seconds=0.0,
        at=0.0,
    )


def unlike(probes: Iterable[Any]) -> list[Any]:
    """These probes, less those that a longer one answers as well: both are greedy, so the shorter
    is the longer one's beginning."""
    longest: dict[Any, Any] = {}
    for probe in probes:
        kind = replace(probe, max_tokens=0) if _has_length(probe) else probe
        other = longest.get(kind)
        if other is None or (_has_length(probe) and probe.max_tokens > other.max_tokens):
            longest[kind] = probe
    return list(longest.values())


def _has_length(probe: Any) -> bool:
    return any(field.name == "max_tokens" for field in fields(probe))
