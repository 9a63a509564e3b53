"""``deer``: stop when a trial answer at a cue is confident.

Rule: at a cue, close the trace beside the stream and draw the answer greedily; C is the geometric
mean over the answer's tokens of the highest token probability; stop when C > threshold.
Source: Dynamic Early Exit in Reasoning Models (DEER), arXiv 2504.15895.
Cost: a one-token probe at a cue, and a trial answer of at most ``max_tokens`` where that one
token leaves the rule a chance. The paper probes at every cue; here cues that follow too soon on a
probe that said no are passed over.
It needs an answer that can be drawn: a box, a choice, a short text or code (``task``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
    INDUCERS_BY_KIND,
    AnswerKind,
    answer_confidence,
    extract_trial_answer,
)
from adjourn.policies.evidence.backoff import ProbeBackoff
from adjourn.policies.policy import Needs

__all__ = ["Deer"]


@dataclass(frozen=True, slots=True)
class Deer:
    """Options of ``deer``.

    ``threshold`` λ in (0, 1): robust from 0.90 to 0.97, and a property of the model, not of this
    rule (some models are over-confident at probes).
    ``max_tokens``: longest trial answer, in tokens. ``task``: what kind of answer is drawn.
    ``gate`` in [0, 1]: the first token's probability that earns a whole trial answer. None takes
    λ to the power of ``max_tokens``: under it no trial answer could pass, so nothing is lost.
    ``gap``, ``backoff``, ``max_gap``: after the n-th probe in a row that said no, the next
    min(``gap`` · ``backoff``ⁿ⁻¹, ``max_gap``) tokens are not probed.
    """

    name: ClassVar[str] = "deer"
    threshold: float = 0.95
    max_tokens: int = 20
    task: AnswerKind = "boxed"
    gate: float | None = None
    gap: int = 24
    backoff: float = 1.25
    max_gap: int = 512

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError("threshold must lie between 0 and 1")
        if self.gate is not None and not 0 <= self.gate <= 1:
            raise ValueError("gate must lie in [0, 1]")
        if self.max_tokens < 1:
            raise ValueError("max_tokens must be at least 1")
        self.new_backoff()

    @property
    def needs(self) -> Needs:
        return Needs(cues=True, probes=True, inducers=frozenset({INDUCERS_BY_KIND[self.task]}))

    def new_backoff(self) -> ProbeBackoff:
        return ProbeBackoff(self.gap, self.backoff, self.max_gap)

    def start(self) -> DeerStopper:
        return DeerStopper(self)


class DeerStopper:
    __slots__ = ("_backoff", "_gate", "_policy")

    def __init__(self, policy: Deer) -> None:
        self._policy = policy
        gate = policy.threshold**policy.max_tokens if policy.gate is None else policy.gate
        self._gate = gate if policy.max_tokens > 1 else 0.0
        self._backoff = policy.new_backoff()

    def observe(self, event: Event) -> Command | None:
        match event:
            case Checkpoint(kind="cue") if self._backoff.is_over(event.position):
                return Probe(
                    INDUCERS_BY_KIND[self._policy.task],
                    max_tokens=1 if self._gate else self._policy.max_tokens,
                )
            case ProbeResult():
                return self._evaluate(event)
            case ProbeFailed() if event.reason != "price":  # then nothing was asked
                self._backoff.begin(event.position)
        return None

    def _probe(self, tokens: int) -> Probe:
        return Probe(INDUCERS_BY_KIND[self._policy.task], tokens)

    def _evaluate(self, result: ProbeResult) -> Command | None:
        task = self._policy.task
        if self._gate and result.probe.max_tokens == 1:
            if result.logprobs and math.exp(result.logprobs[0]) > self._gate:
                return self._probe(self._policy.max_tokens)
        else:
            # The text tells whether there is an answer: an end token is in the list as well.
            certainty = answer_confidence(result.tokens, result.logprobs, task)
            if certainty > self._policy.threshold and extract_trial_answer(result.text, task):
                return Stop("confident", result.position, certainty)
        self._backoff.begin(result.position)
        return None
