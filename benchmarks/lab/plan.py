"""What to record: the checkpoints, and the probes to send there.

A policy declares its checkpoints in ``needs``; its probes are found by simulating it. Both can also
be written by hand, with the names of the dataclasses of ``adjourn.policies``.
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

NOT_REPLAYABLE = (
    "it changes the reasoning itself, and no recording shows what the model would generate then"
)
_CHECKPOINT_FIELDS = ("start", "cues", "sentences", "paragraphs", "steps", "interval")
_REPEATED_STEP = "So it is what it was before."
_MAX_CHECKPOINTS = 64
_MAX_PROBES = 64
_POSITION_STEP = 1_000_000


class BadPlan(ValueError):
    """A checkpoint or probe that cannot be parsed; the message shows a valid one."""


@dataclass(frozen=True, slots=True)
class RecordingPlan:
    """The checkpoints, the probes to send there, and the fields of the requests.

    ``cut_share``: the share of checkpoints at which a cut is also executed, in a second request.
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
        """The union of what these policies need and of these checkpoints and probes. Without any,
        every cue is a checkpoint. The plan always has a trial answer, since a replay takes it for
        the answer after a cut. Raises BadPolicy."""
        policies = list(policies)
        for policy in policies:
            require_replayable(policy)
        all_needs = [policy.needs for policy in policies] + list(needs)
        all_probes = [probe for policy in policies for probe in probes_of(policy)] + list(probes)
        return cls(
            tuple(dict.fromkeys(map(_checkpoint_needs, all_needs or [Needs(cues=True)]))),
            tuple(drop_covered_probes([*all_probes, Probe()])),
            body,
            cut_share,
        )


def _checkpoint_needs(needs: Needs) -> Needs:
    """Without the fields that change neither the checkpoints nor the events at them."""
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
    """Checkpoints, written as a field of ``Needs``: ``cues`` or ``interval=32``. Raises BadPlan."""
    name, _, value = text.partition("=")
    hints = get_type_hints(Needs)
    if name not in _CHECKPOINT_FIELDS:
        raise BadPlan(f"no checkpoints {name!r}: choose one of {', '.join(_CHECKPOINT_FIELDS)}")
    with contextlib.suppress(SyntaxError, ValueError):
        parsed: Any = ast.literal_eval(value) if value else True
        if type(parsed) is hints[name]:
            return Needs(**{name: parsed})
    raise BadPlan(f"{text!r} is not a kind of checkpoint: write e.g. 'cues' or 'interval=32'")


def parse_probe(text: str) -> Probe:
    """A probe, written as a call: ``probe(inducer='answer', max_tokens=20)``. Raises BadPlan."""
    try:
        match ast.parse(text, mode="eval").body:
            case ast.Call(func=ast.Name(id="probe"), args=[], keywords=words):
                return Probe(**{str(word.arg): ast.literal_eval(word.value) for word in words})
    except (SyntaxError, ValueError, TypeError):
        pass
    raise BadPlan(f"{text!r} is not a probe: write e.g. 'probe(max_tokens=20)'")


def probes_of(policy: Policy) -> list[Probe]:
    """The probes that ``policy`` sends. We simulate it with checkpoints of each kind, far into a
    trace, and answer its probes with full confidence until it sends no more."""
    probes: list[Probe] = []
    for kind in get_args(CheckpointKind):
        # A policy may fail on simulated results; the probes that it sent before count.
        with contextlib.suppress(Exception):
            probes += islice(_simulate_probes(policy.start(), kind), _MAX_PROBES)
    return list(dict.fromkeys(probes))


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
    """Raises BadPolicy if no recording can show what the model would do under this policy."""
    if policy.needs.trace_endings or policy.needs.end_bias:
        raise BadPolicy(f"{policy.name}: {NOT_REPLAYABLE}")


def probe_kind(probe: Probe) -> Probe:
    """The probe without its length: since probes are greedy, a longer result also answers a shorter
    probe of the same kind. Probes that return a token by its id, a score or hidden states are each
    a kind of their own."""
    is_own_kind = (
        probe.score_end or probe.hidden_states or (probe.top_logprobs > 1 and probe.max_tokens == 1)
    )
    return probe if is_own_kind else replace(probe, max_tokens=0)


def drop_covered_probes(probes: Iterable[Probe]) -> list[Probe]:
    """The probes without those that a longer one of the same kind also answers."""
    longest: dict[Probe, Probe] = {}
    for probe in probes:
        kind = probe_kind(probe)
        longest[kind] = max(probe, longest.get(kind, probe), key=lambda p: p.max_tokens)
    return list(longest.values())
