"""``deer-pro``: stop when trial answers drawn in several ways are confident alike.

Rule: at a cue, draw a greedy trial answer with each of ``inducers`` texts; with C the confidence of
each (see ``deer``), stop when mean C - ``alpha`` · mean absolute deviation of C > ``threshold``.
Source: Dynamic Early Exit in Reasoning Models (DEER), arXiv 2504.15895, third version.
Cost: up to ``inducers`` trial answers at a cue, one after the other; the rest are not drawn once
the mean can no longer reach the threshold, so a doubtful cue costs one. Cues that follow too soon
on a no are passed over, as ``deer`` does.
It needs an answer that stands in a box.
"""

from __future__ import annotations

from dataclasses import dataclass
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
from adjourn.policies.policy import Needs

__all__ = ["INDUCERS", "DeerPro"]

INDUCERS = ("answer", "answer-2", "answer-3", "answer-4")
"""Texts of the dialect, in the order in which they are tried."""


@dataclass(frozen=True, slots=True)
class DeerPro:
    """Options of ``deer-pro``: those of ``deer`` without its gate, and

    ``inducers``: how many texts draw an answer, 1 to 4. ``alpha``: weight of their disagreement.
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

    def start(self) -> DeerProStopper:
        return DeerProStopper(self)


class DeerProStopper:
    __slots__ = ("_backoff", "_confidences", "_policy")

    def __init__(self, policy: DeerPro) -> None:
        self._policy = policy
        self._confidences: list[float] = []  # confidences at the cue that is looked at
        self._backoff = policy.new_backoff()

    def observe(self, event: Event) -> Command | None:
        match event:
            case Checkpoint(kind="cue") if self._backoff.is_over(event.position):
                self._confidences = []
                return self._next_probe()
            case ProbeResult():
                return self._evaluate(event)
            case ProbeFailed() if event.reason != "price":  # then nothing was asked
                self._backoff.begin(event.position)
        return None

    def _evaluate(self, result: ProbeResult) -> Command | None:
        policy, drawn = self._policy, self._confidences
        answered = extract_trial_answer(result.text)
        drawn.append(answer_confidence(result.tokens, result.logprobs) if answered else 0.0)
        left = policy.inducers - len(drawn)
        if sum(drawn) + left > policy.threshold * policy.inducers:
            if left:
                return self._next_probe()
            if (score := _score(drawn, policy.alpha)) > policy.threshold:
                return Stop("confident", result.position, score)
        self._backoff.begin(result.position)
        return None

    def _next_probe(self) -> Probe:
        return Probe(INDUCERS[len(self._confidences)], self._policy.max_tokens)


def _score(drawn: list[float], alpha: float) -> float:
    mean = fmean(drawn)
    return mean - alpha * fmean(abs(c - mean) for c in drawn)
