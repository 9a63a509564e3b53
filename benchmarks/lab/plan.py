"""What to record: where to look, and what to ask there.

What a policy looks at is in its ``needs``; what it asks, it shows when it is rehearsed. Both can
be written by hand as well, in the words of the core's own dataclasses.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, get_args, get_type_hints

from policies.events import Checkpoint, CheckpointKind, Embed, Embedded, Probe, ProbeResult
from policies.policy import Needs, Policy, Stopper
from policies.registry import BadPolicy

__all__ = [
    "LED_ELSEWHERE",
    "BadPlan",
    "Plan",
    "asked_by",
    "foretold",
    "kind",
    "needs_of",
    "probe_of",
    "unlike",
]

LED_ELSEWHERE = "it makes the model think on, or otherwise: no recording tells what it would think"
_PLACES = ("start", "cues", "sentences", "paragraphs", "steps", "interval")
_SAID_AGAIN = "So it is what it was before."
_ROUNDS = 64
_MOST = 64
_FAR = 1_000_000


class BadPlan(ValueError):
    """A place or probe that cannot be read; the message says what would be."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to look, what to ask there, and the fields of the requests.

    ``serve``: the share of places at which a cut is carried out for real, beside the trace.
    """

    needs: tuple[Needs, ...]
    probes: tuple[Probe, ...]
    body: dict[str, Any]
    serve: float = 0.0

    @classmethod
    def of(
        cls,
        policies: Iterable[Policy],
        needs: Iterable[Needs],
        probes: Iterable[Probe],
        body: dict[str, Any],
        serve: float = 0.0,
    ) -> Plan:
        """All that these policies need, and these places and probes as well; where nothing is
        asked for, every cue. A trial answer is always asked for: it is what a cut there would have
        answered. Raises BadPolicy."""
        policies = list(policies)
        for policy in policies:
            foretold(policy)
        places = [policy.needs for policy in policies] + list(needs)
        asked = [probe for policy in policies for probe in asked_by(policy)] + list(probes)
        return cls(
            tuple(dict.fromkeys(map(_looks, places or [Needs(cues=True)]))),
            tuple(unlike([*asked, Probe()])),
            body,
            serve,
        )


def _looks(needs: Needs) -> Needs:
    """Less what makes no difference to where is looked, and what is told there."""
    return replace(
        needs,
        thoughts=False,
        probes=False,
        ending=False,
        hidden_states=frozenset(),
        models=frozenset(),
        inducers=frozenset(),
    )


def needs_of(text: str) -> Needs:
    """A place to look, e.g. ``cues`` or ``interval=32``: a field of ``Needs``."""
    name, _, value = text.partition("=")
    hints = get_type_hints(Needs)
    if name not in _PLACES:
        raise BadPlan(f"no place {name!r}: choose one of {', '.join(_PLACES)}")
    with contextlib.suppress(SyntaxError, ValueError):
        read: Any = ast.literal_eval(value) if value else True
        if type(read) is hints[name]:
            return Needs(**{name: read})
    raise BadPlan(f"{text!r} is not a place: write e.g. 'cues' or 'interval=32'")


def probe_of(text: str) -> Probe:
    """A probe, written as a call: ``probe(inducer='answer', max_tokens=20)``."""
    try:
        match ast.parse(text, mode="eval").body:
            case ast.Call(func=ast.Name(id="probe"), args=[], keywords=words):
                return Probe(**{str(word.arg): ast.literal_eval(word.value) for word in words})
    except (SyntaxError, ValueError, TypeError):
        pass
    raise BadPlan(f"{text!r} is not a probe: write e.g. 'probe(max_tokens=20)'")


def asked_by(policy: Policy) -> list[Probe]:
    """What ``policy`` asks at a checkpoint: it is shown one of each kind, far into a trace, and
    each of its probes is answered with certainty, until it asks no more."""
    asked: list[Probe] = []
    for kind in get_args(CheckpointKind):
        # What a policy makes of an answer that no engine gave is no matter.
        with contextlib.suppress(Exception):
            asked += islice(_rehearsed(policy.start(), kind), _MOST)
    return list(dict.fromkeys(asked))


def _rehearsed(stopper: Stopper, kind: CheckpointKind) -> Iterator[Probe]:
    for position in range(_FAR, _FAR * (_ROUNDS + 1), _FAR):
        command = stopper.observe(Checkpoint(kind, position, 0.0, "Wait", _SAID_AGAIN))
        while isinstance(command, Probe | Embed):
            if isinstance(command, Probe):
                yield command
                command = stopper.observe(_certain(command, position))
            else:
                command = stopper.observe(Embedded(command, (1.0,), position, 0.0, 0.0))
        if command is not None:
            return


def _certain(probe: Probe, position: int) -> ProbeResult:
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


def foretold(policy: Policy) -> None:
    """Raises BadPolicy where no recording can tell what the model would do under this policy."""
    if policy.needs.extends or policy.needs.bias:
        raise BadPolicy(f"{policy.name}: {LED_ELSEWHERE}")


def kind(probe: Probe) -> Probe:
    """A probe less its length: of those of one kind, a longer one answers a shorter as well, since
    both are greedy. Where a single token is told by its id, or with what the model held before it,
    it is of a kind of its own."""
    alone = probe.ending or probe.hidden_states or (probe.top > 1 and probe.max_tokens == 1)
    return probe if alone else replace(probe, max_tokens=0)


def unlike(probes: Iterable[Probe]) -> list[Probe]:
    """These probes, less those that a longer one answers as well."""
    longest: dict[Probe, Probe] = {}
    for probe in probes:
        one = kind(probe)
        longest[one] = max(probe, longest.get(one, probe), key=lambda p: p.max_tokens)
    return list(longest.values())
