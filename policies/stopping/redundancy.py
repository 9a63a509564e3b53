"""``redundancy``: stop at a step that repeats an earlier one, if the trial answer is confident.

Rule: at the end of a step (paragraphs merged to 200 to 1000 characters), from step ``min_steps``
on, compare the step with earlier ones. If the most similar one reaches ``similarity``, request a
trial answer. Stop if its confidence is at least ``confidence``, or if it equals the trial answer
before it and is at most ``drop`` less confident.
Units: steps. ``similarity`` is a cosine of embedding vectors with ``by="embedding"``; with
``by="words"`` it is the share of the step's three-word runs that one earlier step has too.
``confidence`` and ``drop`` are probabilities.
Source: PUMA, arXiv 2605.17672.
Deviations: PUMA compares a step with the one before it and stops only if two flagged steps in a row
have equal answers, the first with a confidence of at least 0.98 and the second at most 0.03 below;
it cuts before the repetition. Here a step is compared with all of the latest ones, either condition
suffices, and the cut is at the end of the repeating step. PUMA's loop breaker is left out: ``loop``
ends exact repetition. Similarity by words is ours, for gateways without an embedder. The default of
0.35 is a cosine of PUMA's own embedder, which was trained for it; others call all steps of a trace
more similar and need a higher value.
Cost: a trial answer of at most ``max_tokens`` tokens at a step that repeats; with an embedder, its
work on every step. A step for which the embedder failed is compared with no other.
Needs an answer that can be requested: a box, a choice, a short text or code (``task``).
Patience: ``min_steps`` is multiplied and 1 - ``confidence`` divided, as in ``deer``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from adjourn.policies.events import (
    Checkpoint,
    Command,
    Embed,
    EmbeddingResult,
    Event,
    Probe,
    ProbeResult,
    Stop,
)
from adjourn.policies.evidence.answers import (
    INDUCERS_BY_KIND,
    AnswerKind,
    answer_confidence,
    canonically_equal,
    extract_trial_answer,
    is_hesitant,
)
from adjourn.policies.evidence.similarity import CosineSimilarity, ShingleSimilarity, Similarity
from adjourn.policies.patience import scale_confidence, scale_count
from adjourn.policies.policy import Needs

__all__ = ["Redundancy"]

Measure = Literal["words", "embedding"]


@dataclass(frozen=True, slots=True)
class Redundancy:
    """Options of ``redundancy``: those of the rule; ``max_tokens``: longest trial answer;
    ``task``: its kind."""

    name: ClassVar[str] = "redundancy"
    by: Measure = "words"
    similarity: float = 0.35
    confidence: float = 0.98
    drop: float = 0.03
    min_steps: int = 10
    max_tokens: int = 20
    task: AnswerKind = "boxed"

    def __post_init__(self) -> None:
        if not 0 < self.similarity <= 1 or not 0 < self.confidence <= 1 or not 0 <= self.drop <= 1:
            raise ValueError("similarity, confidence and drop must lie between 0 and 1")
        if self.min_steps < 1 or self.max_tokens < 1:
            raise ValueError("min_steps and max_tokens must be at least 1")

    @property
    def needs(self) -> Needs:
        inducers = frozenset({INDUCERS_BY_KIND[self.task]})
        return Needs(steps=True, probes=True, embeddings=self.by == "embedding", inducers=inducers)

    def with_patience(self, factor: float) -> Redundancy:
        return replace(
            self,
            confidence=scale_confidence(self.confidence, factor),
            min_steps=scale_count(self.min_steps, factor),
        )

    def start(self) -> RedundancyStopper:
        return RedundancyStopper(
            self, CosineSimilarity() if self.by == "embedding" else ShingleSimilarity()
        )


class RedundancyStopper:
    """One trace. State, changed by ``observe`` only:

    _similarity       remembers the latest steps
    _step_count       steps so far
    _previous_answer  the last trial answer and its confidence; None if it was empty or hesitant
    """

    __slots__ = ("_policy", "_previous_answer", "_similarity", "_step_count")

    def __init__(self, policy: Redundancy, similarity: Similarity) -> None:
        self._policy = policy
        self._similarity = similarity
        self._step_count = 0
        self._previous_answer: tuple[str, float] | None = None

    def observe(self, event: Event) -> Command | None:
        match event:
            case Checkpoint(kind="step"):
                self._step_count += 1
                if self._policy.by == "embedding":
                    return Embed(event.text)
                return self._probe_if_similar(self._similarity.compare_and_add(event.text))
            case EmbeddingResult():
                return self._probe_if_similar(self._similarity.compare_and_add(event.vector))
            case ProbeResult():
                return self._evaluate(event)
        return None

    def _probe_if_similar(self, similarity: float) -> Command | None:
        """Request a trial answer if a step of this similarity repeats an earlier one."""
        if similarity < self._policy.similarity or self._step_count < self._policy.min_steps:
            return None
        return Probe(INDUCERS_BY_KIND[self._policy.task], max_tokens=self._policy.max_tokens)

    def _evaluate(self, result: ProbeResult) -> Command | None:
        answer = extract_trial_answer(result.text, self._policy.task)
        previous = self._previous_answer
        confidence = answer_confidence(result.tokens, result.logprobs, self._policy.task)
        self._previous_answer = (
            (answer, confidence) if answer and not is_hesitant(result.text) else None
        )
        if self._previous_answer is None:
            return None
        if confidence >= self._policy.confidence:
            return Stop("redundant", result.position, confidence)
        if (
            previous
            and canonically_equal(previous[0], answer)
            and previous[1] - confidence <= self._policy.drop
        ):
            return Stop("redundant-stable", result.position, confidence)
        return None
