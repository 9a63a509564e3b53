"""``deer-pro``: stop at a cue if several trial answers are all confident.

Rule: at a cue, request a greedy trial answer with each of ``inducers`` inducers; with C the
confidence of each (see ``deer``), stop if mean C - ``alpha`` · mean absolute deviation of C
> ``threshold``. An empty answer has C = 0.
Units: probabilities.
Source: Dynamic Early Exit in Reasoning Models (DEER), arXiv 2504.15895, third version.
Deviations, to save probes: the trial answers of a cue end as soon as the mean cannot reach the
threshold any more, which loses no stop; and cues too soon after an unsuccessful probe are skipped,
as in ``deer``.
Cost: up to ``inducers`` trial answers at a cue, one after the other; a doubtful cue costs one.
Needs an answer in a box.
Patience: as ``deer``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from adjourn.policies.evidence.answers import answer_confidence, extract_trial_answer
from adjourn.policies.evidence.backoff import ProbeBackoff
from adjourn.policies.patience import scale_confidence
from adjourn.policies.policy import Needs

__all__ = ["INDUCERS", "DeerPro"]

INDUCERS = ("answer", "answer-2", "answer-3", "answer-4")
"""Names of the dialect's texts, in the order in which they are used."""


@dataclass(frozen=True, slots=True)
class DeerPro:
    """Options of ``deer-pro``: those of ``deer`` without ``gate`` and ``task``, and two more.

    ``inducers``: how many inducers are used, 1 to 4. ``alpha``: weight of the deviation.
    """

    name: ClassVar[str] = "deer-pro"
    threshold: float = 0.95
    inducers: int = 4
    alpha: float = 1.0
    max_tokens: int = 20
    gap: int = 24
    backoff: float = 1.25
    max_gap: int = 512

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError("threshold must lie between 0 and 1")
        if not 1 <= self.inducers <= len(INDUCERS):
            raise ValueError(f"inducers must lie in [1, {len(INDUCERS)}]")
        if not self.alpha >= 0:
            raise ValueError("alpha must be at least 0")
        if self.max_tokens < 1:
            raise ValueError("max_tokens must be at least 1")
        self.new_backoff()

    @property
    def needs(self) -> Needs:
        return Needs(cues=True, probes=True, inducers=frozenset(INDUCERS[: self.inducers]))

    def new_backoff(self) -> ProbeBackoff:
        return ProbeBackoff(self.gap, self.backoff, self.max_gap)

    def with_patience(self, factor: float) -> DeerPro:
        return replace(self, threshold=scale_confidence(self.threshold, factor))

    def start(self) -> DeerProStopper:
        return DeerProStopper(self)


class DeerProStopper:
    """One trace. State, changed by ``observe`` only: the confidences at the current cue, and the
    pause after cues without a stop."""

    __slots__ = ("_backoff", "_confidences", "_policy")

    def __init__(self, policy: DeerPro) -> None:
        self._policy = policy
        self._confidences: list[float] = []
        self._backoff = policy.new_backoff()

    def observe(self, event: Event) -> Command | None:
        match event:
            case Checkpoint(kind="cue") if self._backoff.is_over(event.position):
                self._confidences = []
                return self._next_probe()
            case ProbeResult():
                return self._evaluate(event)
            case ProbeFailed() if event.reason != "price":  # "price": not sent
                self._backoff.begin(event.position)
        return None

    def _evaluate(self, result: ProbeResult) -> Command | None:
        policy, confidences = self._policy, self._confidences
        has_answer = extract_trial_answer(result.text)
        confidences.append(answer_confidence(result.tokens, result.logprobs) if has_answer else 0.0)
        left = policy.inducers - len(confidences)
        if sum(confidences) + left > policy.threshold * policy.inducers:
            if left:
                return self._next_probe()
            if (score := _score(confidences, policy.alpha)) > policy.threshold:
                return Stop("confident", result.position, score)
        self._backoff.begin(result.position)
        return None

    def _next_probe(self) -> Probe:
        return Probe(INDUCERS[len(self._confidences)], self._policy.max_tokens)


def _score(confidences: list[float], alpha: float) -> float:
    mean = fmean(confidences)
    return mean - alpha * fmean(abs(c - mean) for c in confidences)
