"""``difficulty-adaptive``: open more traces for harder questions, and more while they disagree.

Rule: the first window has ``easy`` traces at difficulty 0, ``hard`` traces at difficulty 1, and in
proportion between; after it the posterior decides, as in ``adaptive-consistency``. If
``difficulty`` is not set, the first trace runs alone and its length decides: ``tokens`` tokens or
more are difficulty 1.
Units: traces; tokens of the first trace, its answer included.
Source: Difficulty-Adaptive Self-Consistency (DSC), arXiv 2408.13457.
Deviations: the paper's prior is the model's own ranking of a whole batch of questions; a gateway
sees one request at a time.
Cost: ``easy`` to ``max`` traces; a first trace that runs alone takes its own time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.parallel.adaptive_consistency import AdaptiveConsistencySampler
from adjourn.policies.sampling import SamplingCommand, SamplingEvent, SamplingPolicy, TraceAnswered

__all__ = ["DifficultyAdaptive"]


@dataclass(frozen=True, slots=True)
class DifficultyAdaptive(SamplingPolicy):
    """Options of ``difficulty-adaptive``: those of the rule. ``difficulty`` in [0, 1], or None;
    ``window``, ``max`` and ``threshold`` as in ``adaptive-consistency``."""

    name: ClassVar[str] = "difficulty-adaptive"
    difficulty: float | None = None
    tokens: int = 4096
    easy: int = 2
    hard: int = 8
    window: int = 4
    max: int = 40
    threshold: float = 0.95

    def __post_init__(self) -> None:
        SamplingPolicy.__post_init__(self)
        if self.difficulty is not None and not 0 <= self.difficulty <= 1:
            raise ValueError("difficulty must lie in [0, 1]")
        if not 0 < self.threshold < 1 or self.tokens < 1:
            raise ValueError("threshold must lie between 0 and 1, tokens be at least 1")
        if not 1 <= self.easy <= self.hard <= self.max <= 128 or not 1 <= self.window <= self.max:
            raise ValueError("easy, hard and max must not fall, window lie in [1, max], max <= 128")

    def first_window_size(self, difficulty: float) -> int:
        """Traces of the first window at this difficulty in [0, 1]."""
        return round(self.easy + (self.hard - self.easy) * difficulty)

    def start_sampler(self) -> DifficultyAdaptiveSampler:
        return DifficultyAdaptiveSampler(self)


class DifficultyAdaptiveSampler(AdaptiveConsistencySampler):
    """One request. ``_awaiting_difficulty``: the first trace runs alone and has not answered."""

    def __init__(self, policy: DifficultyAdaptive) -> None:
        difficulty = policy.difficulty
        first = 1 if difficulty is None else policy.first_window_size(difficulty)
        super().__init__(first, policy.window, policy.max, policy.threshold, "beta")
        self._policy = policy
        self._awaiting_difficulty = difficulty is None

    def observe(self, event: SamplingEvent) -> Sequence[SamplingCommand]:
        if self._awaiting_difficulty and isinstance(event, TraceAnswered):
            self._awaiting_difficulty = False
            difficulty = min(event.tokens / self._policy.tokens, 1.0)
            self._next_window_size = max(self._policy.first_window_size(difficulty) - 1, 1)
            commands = super().observe(event)
            self._next_window_size = self._policy.window
            return commands
        return super().observe(event)
