"""``lynx``: stop at a cue if the hidden states show that the answer is ready.

Rule: at a cue, a classifier reads from the model's hidden states the probability p that the trial
answer at this place is the final one. Split conformal prediction turns p into a set of labels that
holds the true one for all but a share ``delta`` of the cues of each kind. Stop if the set is
exactly {"ready"}.
Source: LYNX, arXiv 2512.05325.
Deviations: in the paper a place is ready if its trial answer is right; here if the trace ends with
that answer, so that no gold answers are needed. In the paper the states are those of the cue's own
token; here of the token before the cue, the last one that a cut keeps, since a cue may be several
tokens or a part of one.
Cost: a one-token probe at a cue; the engine must return hidden states.
Patience: none to scale. ``delta`` is an error rate that the operator promises; a smaller one needs
more calibration cues, and a larger one does not always stop earlier.

The guarantee is per cue, for cues like those of the calibration. A trace has several cues and stops
at the first one that looks ready, so ``delta`` does not bound the share of changed answers.
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

    ``probe``: the classifier; users write its name in the driver's settings. ``delta`` in (0, 1):
    the share of the cues that are not ready and may be taken for ready.
    """

    name: ClassVar[str] = "lynx"
    probe: ReadinessClassifier
    delta: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ValueError("delta must lie between 0 and 1")

    @property
    def needs(self) -> Needs:
        models = frozenset({self.probe.model}) if self.is_trained else frozenset()
        return Needs(
            cues=True, probes=True, hidden_states=self.probe.required_layers, models=models
        )

    @property
    def is_trained(self) -> bool:
        """False for the placeholder with which hidden states are recorded; it never stops."""
        return self.probe != UNTRAINED

    def start(self) -> LynxStopper:
        return LynxStopper(self)


class LynxStopper:
    """One trace. It has no state."""

    __slots__ = ("_policy",)

    def __init__(self, policy: Lynx) -> None:
        self._policy = policy

    def observe(self, event: Event) -> Command | None:
        match event:
            case Checkpoint(kind="cue"):
                return _PROBE
            case ProbeResult(hidden_states=HiddenStates() as states) if self._policy.is_trained:
                probability = self._policy.probe.probability(states)
                if self._policy.probe.prediction_set(probability, self._policy.delta) == {READY}:
                    return Stop("ready", event.position, probability)
        return None
