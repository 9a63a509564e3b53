"""``learned``: stop at a cue if a classifier expects that the trial answer is the final one.

Rule: at a cue, close the trace in a probe and generate the answer greedily; stop if
p >= ``threshold``, with p = 1 / (1 + e⁻ˢ) and s = ``bias`` + Σ weight · feature over the
``ProbeFeatures``. ``adjourn learn`` fits the weights to recorded traces and prints these options.
The default weights make p the confidence of ``deer``.
Units: ``threshold`` is a probability, ``bias`` and the weighted features are log-odds.
Source: ours; LYNX's idea (arXiv 2512.05325) with features that need no hidden states.
Cost: a trial answer of at most ``max_tokens`` tokens at a cue; if the entropy has a weight, each
probe also requests the most probable tokens at each step.
Needs an answer in a box.
Patience: 1 - ``threshold`` is divided, as in ``deer``.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, fields, replace
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
from adjourn.policies.patience import scale_confidence
from adjourn.policies.policy import Needs

__all__ = ["FEATURE_NAMES", "Learned", "LearnedStopper", "ProbeFeatures"]

_MAX_LOG_ODDS = 8.0
_MAX_COUNT = 5


@dataclass(frozen=True, slots=True)
class ProbeFeatures:
    """The features of one trial answer.

    confidence  of the answer, as log-odds within ±8
    first       probability of its first token, as log-odds within ±8
    agreement   equal trial answers in a row before this one, at most 5
    changes     how often the trial answer has changed, at most 5
    position    tokens of the trace n, as log₂(1 + n)
    cues        cues so far n, as log₂(1 + n)
    hesitant    1 if the trial answer itself has a word of doubt, else 0
    entropy     mean entropy of the answer's tokens in nats; 0 if it was not requested
    """

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
    """Options of ``learned``: ``threshold`` in (0, 1], for p; ``bias``, and a weight for each
    feature; ``max_tokens``: longest trial answer; ``gap``, ``backoff`` and ``max_gap`` as in
    ``deer``."""

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
        """In the order of ``FEATURE_NAMES``."""
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
        """p, the probability that the trace would end with this answer."""
        pairs = zip(self.weights, astuple(features), strict=True)
        return _logistic(self.bias + sum(weight * value for weight, value in pairs))

    def with_patience(self, factor: float) -> Learned:
        return replace(self, threshold=scale_confidence(self.threshold, factor))

    def start(self) -> LearnedStopper:
        return LearnedStopper(self)


class LearnedStopper:
    """One trace. State, changed by ``observe`` only:

    last_features          of the last trial answer; None before it and if it was empty. ``adjourn
                           learn`` reads them
    _cues                  cues so far
    _agreement, _changes   as in ``ProbeFeatures``, without their limit
    _answer                the last trial answer that was not empty
    _backoff               the pause after probes without a stop
    """

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
            case ProbeFailed() if event.reason != "price":  # "price": not sent
                self._backoff.begin(event.position)
        return None

    def _evaluate(self, result: ProbeResult) -> Command | None:
        self.last_features = self._extract_features(result)
        if self.last_features is not None:
            probability = self._policy.probability(self.last_features)
            if probability >= self._policy.threshold:
                return Stop("learned", result.position, probability)
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
    answer_logprobs = result.top_logprobs[: count_answer_tokens(result.tokens)]
    return fmean(map(token_entropy, answer_logprobs)) if answer_logprobs else 0.0


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
