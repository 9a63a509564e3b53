"""``learned``: stop when what the gateway sees of a trial answer makes it the final one.

Rule: at a cue, close the trace beside the stream and draw the answer greedily; p = 1 / (1 + e⁻ˢ),
s = ``bias`` + Σ weight · feature over what ``Look`` holds; stop when p ≥ threshold. The weights are
learned from recorded traces by ``adjourn learn``, which writes these options; as they come they
are those of ``deer`` with a threshold of its own. Where the entropy has a weight, the probe asks
for the most probable tokens at each step as well.
Source: ours; LYNX's idea (arXiv 2512.05325) on what can be seen without the hidden states.
Cost: a trial answer of at most ``max_tokens`` at a cue.
It needs an answer that stands in a box.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, fields
from statistics import fmean
from typing import ClassVar

from policies.answers import confidence, hesitant, own_tokens, same, trial_answer
from policies.events import Checkpoint, Command, Event, Probe, ProbeFailed, ProbeResult, Stop
from policies.pause import Pause
from policies.policy import Needs
from policies.uncertainty import TOP, entropy

__all__ = ["FEATURES", "Learned", "LearnedStopper", "Look"]

_SURE = 8.0
_MANY = 5


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen at one probe. ``confidence`` of the trial answer and ``first``, the probability
    of its first token, in log-odds within ±8; ``agreement``: trial answers before it, in a row,
    that say the same, ``changes``: how often they said another, both up to 5; ``position`` in
    tokens of the trace and ``cues`` so far, as log₂(1 + n); ``hesitant``: 1 where the model doubts
    within its trial answer; ``entropy``: the answer's tokens' mean, in nats, 0 where it was not
    asked for."""

    confidence: float
    first: float
    agreement: float
    changes: float
    position: float
    cues: float
    hesitant: float
    entropy: float


FEATURES = tuple(field.name for field in fields(Look))


@dataclass(frozen=True, slots=True)
class Learned:
    """Options of ``learned``: ``threshold`` in (0, 1] on p; ``bias`` and a weight for each feature;
    ``max_tokens`` of a trial answer; ``gap``, ``backoff`` and ``max_gap`` as ``deer`` has them."""

    name: ClassVar[str] = "learned"
    threshold: float = 0.95
    bias: float = 0.0
    confidence: float = 1.0
    first: float = 0.0
    agreement: float = 0.0
    changes: float = 0.0
    position: float = 0.0
    cues: float = 0.0
    hesitant: float = 0.0
    entropy: float = 0.0
    max_tokens: int = 20
    gap: int = 24
    backoff: float = 1.25
    max_gap: int = 512

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError("threshold must lie in (0, 1]")
        if self.max_tokens < 1:
            raise ValueError("max_tokens must be at least 1")
        if not all(map(math.isfinite, (self.bias, *self.weights))):
            raise ValueError("bias and weights must be finite")
        self.pause()

    @property
    def weights(self) -> tuple[float, ...]:
        """In the order of FEATURES."""
        return tuple(getattr(self, name) for name in FEATURES)

    @property
    def needs(self) -> Needs:
        return Needs(cues=True, probes=True, inducers=frozenset({"answer"}))

    @property
    def probe(self) -> Probe:
        return Probe(max_tokens=self.max_tokens, top=TOP if self.entropy else 1)

    def pause(self) -> Pause:
        return Pause(self.gap, self.backoff, self.max_gap)

    def probability(self, look: Look) -> float:
        """p: that the answer is the one that the trace would end with."""
        pairs = zip(self.weights, astuple(look), strict=True)
        return _logistic(self.bias + sum(weight * seen for weight, seen in pairs))

    def start(self) -> LearnedStopper:
        return LearnedStopper(self)


class LearnedStopper:
    """``look``: what the last probe showed; None before, and where it brought no answer."""

    __slots__ = ("_agreement", "_answer", "_changes", "_cues", "_pause", "_policy", "look")

    def __init__(self, policy: Learned) -> None:
        self.look: Look | None = None
        self._policy = policy
        self._pause = policy.pause()
        self._cues = self._agreement = self._changes = 0
        self._answer: str | None = None

    def observe(self, event: Event) -> Command | None:
        match event:
            case Checkpoint(kind="cue"):
                self._cues += 1
                if self._pause.over(event.position):
                    return self._policy.probe
            case ProbeResult():
                return self._judge(event)
            case ProbeFailed() if event.reason != "price":  # then nothing was asked
                self._pause.begin(event.position)
        return None

    def _judge(self, result: ProbeResult) -> Command | None:
        self.look = self._see(result)
        if self.look is not None:
            certainty = self._policy.probability(self.look)
            if certainty >= self._policy.threshold:
                return Stop("learned", result.position, certainty)
        self._pause.begin(result.position)
        return None

    def _see(self, result: ProbeResult) -> Look | None:
        answer = trial_answer(result.text)
        if not answer or not result.logprobs:
            return None
        if self._answer is not None:
            if same(answer, self._answer):
                self._agreement += 1
            else:
                self._agreement, self._changes = 0, self._changes + 1
        self._answer = answer
        return Look(
            confidence=_log_odds(confidence(result.tokens, result.logprobs)),
            first=_log_odds(math.exp(result.logprobs[0])),
            agreement=float(min(self._agreement, _MANY)),
            changes=float(min(self._changes, _MANY)),
            position=math.log2(1 + result.position),
            cues=math.log2(1 + self._cues),
            hesitant=float(hesitant(result.text)),
            entropy=_entropy(result) if self._policy.entropy else 0.0,
        )


def _entropy(result: ProbeResult) -> float:
    told = result.top[: own_tokens(result.tokens)]
    return fmean(map(entropy, told)) if told else 0.0


def _log_odds(probability: float) -> float:
    if probability >= 1:
        return _SURE
    if probability <= 0:
        return -_SURE
    return max(-_SURE, min(_SURE, math.log(probability / (1 - probability))))


def _logistic(score: float) -> float:
    if score >= 0:
        return 1 / (1 + math.exp(-score))
    return math.exp(score) / (1 + math.exp(score))
