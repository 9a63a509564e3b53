"""``lynx``: stop when the hidden states at a cue say for sure that the answer is there.

Rule: at a cue, a classifier reads from the model's hidden states the probability p that the
answer drawn here is the final one; split conformal prediction makes a set of p that holds the
truth in all but a share ``delta`` of the cues of each kind; stop when the set is exactly
{"ready"}.
Source: LYNX, arXiv 2512.05325. There a place is ready where the answer forced out of it is right,
and the states are the cue's own token's. Here it is ready where that answer is the one that the
trace ends with, so that no gold answer is needed, and the states are those of the token before
the cue, the last one that a cut keeps: a cue may be several tokens, or a part of one.
Cost: a one-token probe at a cue; the engine must tell hidden states.

The guarantee is per cue, and for cues like those of the calibration: a trace has several, and one
that stops at the first that looks ready has more than one chance to be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.events import Checkpoint, Command, Event, Probe, ProbeResult, Stop
from adjourn.policies.evidence.hidden_states import HiddenStates
from adjourn.policies.evidence.readiness import READY, UNTRAINED, ReadinessClassifier
from adjourn.policies.policy import Needs

__all__ = ["Lynx"]

_PROBE = Probe(inducer="", max_tokens=1, close_trace=False, hidden_states=True)


@dataclass(frozen=True, slots=True)
class Lynx:
    """Options of ``lynx``.

    ``probe``: the classifier, by the name under which the driver knows it. ``delta`` δ in (0, 1):
    the share of cues that are not ready and may be taken for ready.
    """

    name: ClassVar[str] = "lynx"
    probe: ReadinessClassifier
    delta: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ValueError("delta must lie between 0 and 1")

    @property
    def needs(self) -> Needs:
        learned_from = frozenset({self.probe.model}) if self.is_trained else frozenset()
        return Needs(
            cues=True, probes=True, hidden_states=self.probe.required_layers, models=learned_from
        )

    @property
    def is_trained(self) -> bool:
        return self.probe != UNTRAINED

    def start(self) -> LynxStopper:
        return LynxStopper(self)


class LynxStopper:
    __slots__ = ("_policy",)

    def __init__(self, policy: Lynx) -> None:
        self._policy = policy

    def observe(self, event: Event) -> Command | None:
        match event:
            case Checkpoint(kind="cue"):
                return _PROBE
            case ProbeResult(hidden_states=HiddenStates() as states) if self._policy.is_trained:
                certainty = self._policy.probe.probability(states)
                if self._policy.probe.prediction_set(certainty, self._policy.delta) == {READY}:
                    return Stop("ready", event.position, certainty)
        return None
