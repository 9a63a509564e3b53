"""``redundancy``: stop when a step says again what earlier steps said, and the answer holds.

Rule: at the end of a step (paragraphs merged to 200 to 1000 characters), from the ``min_steps``-th
on, compare it to earlier ones; where the most similar one is at least ``similarity`` alike, draw a
trial answer. Stop when its confidence is at least ``confidence``, or when it is the same as the
trial answer before and at most ``drop`` less confident.
Units: similarity is a cosine of an embedder's vectors with ``by="embedding"``, and with
``by="words"`` the share of the step's runs of three words that one earlier step had too;
confidence and drop in [0, 1].
Source: PUMA, arXiv 2605.17672. Its 0.35 is a cosine of an embedder that was trained for this; one
that was not calls all steps of a trace more alike than that, so it takes a higher one.
Cost: a trial answer of at most ``max_tokens`` at a step that repeats; with an embedder, its work on
every step. A step that it failed at is not compared, and later ones are not compared to it.
It needs an answer that can be drawn: a box, a choice, a short text or code (``task``).
"""

from __future__ import annotations

from dataclasses import dataclass
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
from adjourn.policies.policy import Needs

__all__ = ["Redundancy"]

Measure = Literal["words", "embedding"]


@dataclass(frozen=True, slots=True)
class Redundancy:
    """Options of ``redundancy``: ``min_steps`` in steps, ``max_tokens`` and ``task`` of a trial
    answer; the others as in the rule."""

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

    def start(self) -> RedundancyStopper:
        return RedundancyStopper(
            self, CosineSimilarity() if self.by == "embedding" else ShingleSimilarity()
        )


class RedundancyStopper:
    __slots__ = ("_policy", "_previous_answer", "_similarity", "_step_count")

    def __init__(self, policy: Redundancy, similarity: Similarity) -> None:
        self._policy = policy
        self._similarity = similarity
        self._step_count = 0
        self._previous_answer: tuple[str, float] | None = (
            None  # the last trial answer, how sure it was
        )

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

    def _probe_if_similar(self, alike: float) -> Command | None:
        """How alike a step is to earlier ones."""
        if alike < self._policy.similarity or self._step_count < self._policy.min_steps:
            return None
        return Probe(INDUCERS_BY_KIND[self._policy.task], max_tokens=self._policy.max_tokens)

    def _evaluate(self, result: ProbeResult) -> Command | None:
        answer, before = extract_trial_answer(result.text, self._policy.task), self._previous_answer
        certainty = answer_confidence(result.tokens, result.logprobs, self._policy.task)
        self._previous_answer = (
            (answer, certainty) if answer and not is_hesitant(result.text) else None
        )
        if self._previous_answer is None:
            return None
        if certainty >= self._policy.confidence:
            return Stop("redundant", result.position, certainty)
        if (
            before
            and canonically_equal(before[0], answer)
            and before[1] - certainty <= self._policy.drop
        ):
            return Stop("redundant-stable", result.position, certainty)
        return None
