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

from adjourn.policies.events import (
    Checkpoint,
    Command,
    Event,
    Probe,
    ProbeFailed,
    ProbeResult,
    Stop,
)
from adjourn.policies.evidence.answers import (
    answer_confidence,
    canonically_equal,
    count_answer_tokens,
    extract_trial_answer,
    is_hesitant,
)
from adjourn.policies.evidence.backoff import ProbeBackoff
from adjourn.policies.evidence.uncertainty import ENTROPY_TOP_LOGPROBS, token_entropy
from adjourn.policies.policy import Needs

__all__ = ["FEATURE_NAMES", "Learned", "LearnedStopper", "ProbeFeatures"]

_MAX_LOG_ODDS = 8.0
_MAX_COUNT = 5


@dataclass(frozen=True, slots=True)
class ProbeFeatures:
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


FEATURE_NAMES = tuple(field.name for field in fields(ProbeFeatures))


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
        self.new_backoff()

    @property
    def weights(self) -> tuple[float, ...]:
        """In the order of FEATURES."""
        return tuple(getattr(self, name) for name in FEATURE_NAMES)

    @property
    def needs(self) -> Needs:
        return Needs(cues=True, probes=True, inducers=frozenset({"answer"}))

    @property
    def probe(self) -> Probe:
        return Probe(
            max_tokens=self.max_tokens, top_logprobs=ENTROPY_TOP_LOGPROBS if self.entropy else 1
        )

    def new_backoff(self) -> ProbeBackoff:
        return ProbeBackoff(self.gap, self.backoff, self.max_gap)

    def probability(self, features: ProbeFeatures) -> float:
        """p: that the answer is the one that the trace would end with."""
        pairs = zip(self.weights, astuple(features), strict=True)
        return _logistic(self.bias + sum(weight * seen for weight, seen in pairs))

    def start(self) -> LearnedStopper:
        return LearnedStopper(self)


class LearnedStopper:
    """``look``: what the last probe showed; None before, and where it brought no answer."""

    __slots__ = (
        "_agreement",
        "_answer",
        "_backoff",
        "_changes",
        "_cues",
        "_policy",
        "last_features",
    )

    def __init__(self, policy: Learned) -> None:
        self.last_features: ProbeFeatures | None = None
        self._policy = policy
        self._backoff = policy.new_backoff()
        self._cues = self._agreement = self._changes = 0
        self._answer: str | None = None

    def observe(self, event: Event) -> Command | None:
        match event:
            case Checkpoint(kind="cue"):
                self._cues += 1
                if self._backoff.is_over(event.position):
                    return self._policy.probe
            case ProbeResult():
                return self._evaluate(event)
            case ProbeFailed() if event.reason != "price":  # then nothing was asked
                self._backoff.begin(event.position)
        return None

    def _evaluate(self, result: ProbeResult) -> Command | None:
        self.last_features = self._extract_features(result)
        if self.last_features is not None:
            certainty = self._policy.probability(self.last_features)
            if certainty >= self._policy.threshold:
                return Stop("learned", result.position, certainty)
        self._backoff.begin(result.position)
        return None

    def _extract_features(self, result: ProbeResult) -> ProbeFeatures | None:
        answer = extract_trial_answer(result.text)
        if not answer or not result.logprobs:
            return None
        if self._answer is not None:
            if canonically_equal(answer, self._answer):
                self._agreement += 1
            else:
                self._agreement, self._changes = 0, self._changes + 1
        self._answer = answer
        return ProbeFeatures(
            confidence=_log_odds(answer_confidence(result.tokens, result.logprobs)),
            first=_log_odds(math.exp(result.logprobs[0])),
            agreement=float(min(self._agreement, _MAX_COUNT)),
            changes=float(min(self._changes, _MAX_COUNT)),
            position=math.log2(1 + result.position),
            cues=math.log2(1 + self._cues),
            hesitant=float(is_hesitant(result.text)),
            entropy=_mean_answer_entropy(result) if self._policy.entropy else 0.0,
        )


def _mean_answer_entropy(result: ProbeResult) -> float:
    told = result.top_logprobs[: count_answer_tokens(result.tokens)]
    return fmean(map(token_entropy, told)) if told else 0.0


def _log_odds(probability: float) -> float:
    if probability >= 1:
        return _MAX_LOG_ODDS
    if probability <= 0:
        return -_MAX_LOG_ODDS
    return max(-_MAX_LOG_ODDS, min(_MAX_LOG_ODDS, math.log(probability / (1 - probability))))


def _logistic(score: float) -> float:
    if score >= 0:
        return 1 / (1 + math.exp(-score))
    return math.exp(score) / (1 + math.exp(score))
