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

from adjourn.policies.events import (
    Checkpoint,
    CheckpointKind,
    Embed,
    EmbeddingResult,
    Probe,
    ProbeResult,
)
from adjourn.policies.policy import Needs, Policy, Stopper
from adjourn.policies.registry import BadPolicy

__all__ = [
    "NOT_REPLAYABLE",
    "BadPlan",
    "RecordingPlan",
    "drop_covered_probes",
    "parse_needs",
    "parse_probe",
    "probe_kind",
    "probes_of",
    "require_replayable",
]

NOT_REPLAYABLE = "it makes the model think on, or otherwise: no recording tells what it would think"
_CHECKPOINT_FIELDS = ("start", "cues", "sentences", "paragraphs", "steps", "interval")
_REPEATED_STEP = "So it is what it was before."
_MAX_CHECKPOINTS = 64
_MAX_PROBES = 64
_POSITION_STEP = 1_000_000


class BadPlan(ValueError):
    """A place or probe that cannot be read; the message says what would be."""


@dataclass(frozen=True, slots=True)
class RecordingPlan:
    """Where to look, what to ask there, and the fields of the requests.

    ``serve``: the share of places at which a cut is carried out for real, beside the trace.
    """

    needs: tuple[Needs, ...]
    probes: tuple[Probe, ...]
    body: dict[str, Any]
    cut_share: float = 0.0

    @classmethod
    def build(
        cls,
        policies: Iterable[Policy],
        needs: Iterable[Needs],
        probes: Iterable[Probe],
        body: dict[str, Any],
        cut_share: float = 0.0,
    ) -> RecordingPlan:
        """All that these policies need, and these places and probes as well; where nothing is
        asked for, every cue. A trial answer is always asked for: it is what a cut there would have
        answered. Raises BadPolicy."""
        policies = list(policies)
        for policy in policies:
            require_replayable(policy)
        places = [policy.needs for policy in policies] + list(needs)
        asked = [probe for policy in policies for probe in probes_of(policy)] + list(probes)
        return cls(
            tuple(dict.fromkeys(map(_checkpoint_needs, places or [Needs(cues=True)]))),
            tuple(drop_covered_probes([*asked, Probe()])),
            body,
            cut_share,
        )


def _checkpoint_needs(needs: Needs) -> Needs:
    """Less what makes no difference to where is looked, and what is told there."""
    return replace(
        needs,
        reasoning_chunks=False,
        probes=False,
        end_logprob=False,
        hidden_states=frozenset(),
        models=frozenset(),
        inducers=frozenset(),
    )


def parse_needs(text: str) -> Needs:
    """A place to look, e.g. ``cues`` or ``interval=32``: a field of ``Needs``."""
    name, _, value = text.partition("=")
    hints = get_type_hints(Needs)
    if name not in _CHECKPOINT_FIELDS:
        raise BadPlan(f"no place {name!r}: choose one of {', '.join(_CHECKPOINT_FIELDS)}")
    with contextlib.suppress(SyntaxError, ValueError):
        read: Any = ast.literal_eval(value) if value else True
        if type(read) is hints[name]:
            return Needs(**{name: read})
    raise BadPlan(f"{text!r} is not a place: write e.g. 'cues' or 'interval=32'")


def parse_probe(text: str) -> Probe:
    """A probe, written as a call: ``probe(inducer='answer', max_tokens=20)``."""
    try:
        match ast.parse(text, mode="eval").body:
            case ast.Call(func=ast.Name(id="probe"), args=[], keywords=words):
                return Probe(**{str(word.arg): ast.literal_eval(word.value) for word in words})
    except (SyntaxError, ValueError, TypeError):
        pass
    raise BadPlan(f"{text!r} is not a probe: write e.g. 'probe(max_tokens=20)'")


def probes_of(policy: Policy) -> list[Probe]:
    """What ``policy`` asks at a checkpoint: it is shown one of each kind, far into a trace, and
    each of its probes is answered with certainty, until it asks no more."""
    asked: list[Probe] = []
    for kind in get_args(CheckpointKind):
        # What a policy makes of an answer that no engine gave is no matter.
        with contextlib.suppress(Exception):
            asked += islice(_simulate_probes(policy.start(), kind), _MAX_PROBES)
    return list(dict.fromkeys(asked))


def _simulate_probes(stopper: Stopper, kind: CheckpointKind) -> Iterator[Probe]:
    for position in range(_POSITION_STEP, _POSITION_STEP * (_MAX_CHECKPOINTS + 1), _POSITION_STEP):
        command = stopper.observe(Checkpoint(kind, position, 0.0, "Wait", _REPEATED_STEP))
        while isinstance(command, Probe | Embed):
            if isinstance(command, Probe):
                yield command
                command = stopper.observe(_certain_result(command, position))
            else:
                command = stopper.observe(EmbeddingResult(command, (1.0,), position, 0.0, 0.0))
        if command is not None:
            return


def _certain_result(probe: Probe, position: int) -> ProbeResult:
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


def require_replayable(policy: Policy) -> None:
    """Raises BadPolicy where no recording can tell what the model would do under this policy."""
    if policy.needs.trace_endings or policy.needs.end_bias:
        raise BadPolicy(f"{policy.name}: {NOT_REPLAYABLE}")


def probe_kind(probe: Probe) -> Probe:
    """A probe less its length: of those of one kind, a longer one answers a shorter as well, since
    both are greedy. Where a single token is told by its id, or with what the model held before it,
    it is of a kind of its own."""
    alone = (
        probe.score_end or probe.hidden_states or (probe.top_logprobs > 1 and probe.max_tokens == 1)
    )
    return probe if alone else replace(probe, max_tokens=0)


def drop_covered_probes(probes: Iterable[Probe]) -> list[Probe]:
    """These probes, less those that a longer one answers as well."""
    longest: dict[Probe, Probe] = {}
    for probe in probes:
        one = probe_kind(probe)
        longest[one] = max(probe, longest.get(one, probe), key=lambda p: p.max_tokens)
    return list(longest.values())
