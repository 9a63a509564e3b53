"""``deer``: stop at a cue if a trial answer is confident.

Rule: at a cue, close the trace in a probe and generate the answer greedily; with C the geometric
mean, over the tokens of the answer, of the highest token probability, stop if C > ``threshold``.
Units: probabilities; ``gap`` and ``max_gap`` in tokens of the trace.
Source: Dynamic Early Exit in Reasoning Models (DEER), arXiv 2504.15895.
Deviations, to save probes: the paper probes at every cue, here cues that come too soon after an
unsuccessful probe are skipped; and a one-token probe decides whether the whole trial answer is
requested, which with the default ``gate`` loses no stop.
Cost: a one-token probe at a cue, and a trial answer of at most ``max_tokens`` tokens if that token
is probable enough.
Needs an answer that can be requested: a box, a choice, a short text or code (``task``).
Patience: 1 - ``threshold`` is divided; ``threshold`` never falls below half of its value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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
from adjourn.policies.patience import scale_confidence
from adjourn.policies.policy import Needs

__all__ = ["Deer"]


@dataclass(frozen=True, slots=True)
class Deer:
    """Options of ``deer``.

    ``threshold`` in (0, 1): the paper's λ, robust from 0.90 to 0.97 there. It depends on the model:
    some are over-confident at probes.
    ``max_tokens``: longest trial answer, in tokens. ``task``: the kind of trial answer.
    ``gate`` in [0, 1]: request the whole trial answer only if the probability of its first token is
    higher. None means ``threshold`` to the power of ``max_tokens``: no answer whose first token is
    less probable could reach the threshold.
    ``gap``, ``backoff``, ``max_gap``: after the n-th probe in a row without a stop, skip the cues
    in the next min(``gap`` · ``backoff``ⁿ⁻¹, ``max_gap``) tokens.
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

    def with_patience(self, factor: float) -> Deer:
        return replace(self, threshold=scale_confidence(self.threshold, factor))

    def start(self) -> DeerStopper:
        return DeerStopper(self)


class DeerStopper:
    """One trace. State: the pause after probes without a stop, changed by ``observe`` only."""

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
            case ProbeFailed() if event.reason != "price":  # "price": not sent
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
            # Check the text for an answer: the tokens may be an end-of-turn token alone.
            certainty = answer_confidence(result.tokens, result.logprobs, task)
            if certainty > self._policy.threshold and extract_trial_answer(result.text, task):
                return Stop("confident", result.position, certainty)
        self._backoff.begin(result.position)
        return None
