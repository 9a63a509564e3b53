"""``adaptive-consistency``: sample until the leading answer will most likely stay in the lead.

Rule: after each window of traces, stop when the chance that the leader has the largest share of
the model's answers is at least ``threshold``; the leader is the response. With ``beta`` only the
runner-up is weighed, with v1 and v2 votes: 1 - I(0.5; v1 + 1, v2 + 1); with ``dirichlet`` every
answer is, under a uniform prior.
Source: Adaptive Self-Consistency (ASC), arXiv 2305.11860; it samples one by one, which takes as
many times as long.
Cost: the first window at least, ``max`` traces at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from adjourn.policies.parallel.votes import WindowSampler
from adjourn.policies.sampling import ChooseTrace, SamplingPolicy

__all__ = [
    "AdaptiveConsistency",
    "AdaptiveConsistencySampler",
    "beta_lead_probability",
    "dirichlet_lead_probability",
]

Prior = Literal["beta", "dirichlet"]


@dataclass(frozen=True, slots=True)
class AdaptiveConsistency(SamplingPolicy):
    """Options of ``adaptive-consistency``. ``threshold`` in (0, 1); ``window``: traces at once."""

    name: ClassVar[str] = "adaptive-consistency"
    threshold: float = 0.95
    window: int = 4
    max: int = 40
    prior: Prior = "beta"

    def __post_init__(self) -> None:
        SamplingPolicy.__post_init__(self)
        if not 0 < self.threshold < 1:
            raise ValueError("threshold must lie between 0 and 1")
        if not 1 <= self.window <= self.max <= 128:
            raise ValueError("window must be at least 1, max no less than window, and at most 128")
        if self.prior not in _LEAD_PROBABILITIES:
            raise ValueError(f"prior must be one of {', '.join(_LEAD_PROBABILITIES)}")

    def start_sampler(self) -> AdaptiveConsistencySampler:
        return AdaptiveConsistencySampler(
            self.window, self.window, self.max, self.threshold, self.prior
        )


class AdaptiveConsistencySampler(WindowSampler):
    """``first``: the first window's traces; ``size``: those of each that follows."""

    def __init__(
        self,
        first_window_size: int,
        window_size: int,
        max_traces: int,
        threshold: float,
        prior: Prior,
    ) -> None:
        super().__init__(first_window_size, max_traces)
        self._next_window_size = window_size
        self._threshold = threshold
        self._lead_probability = _LEAD_PROBABILITIES[prior]

    def decide(self) -> ChooseTrace | None:
        self.window_size = self._next_window_size
        chance = self._lead_probability([round(weight) for weight in self.votes.ranked_weights])
        return self.votes.choose("ahead", chance) if chance >= self._threshold else None


def beta_lead_probability(votes: Sequence[int]) -> float:
    """P(the first's share is larger than the second's), of the two with the most votes: of so
    many fair coins no more than v1 show heads, in whole numbers exactly."""
    first, second, *_ = [*votes, 0, 0]
    tosses = first + second + 1
    return sum(math.comb(tosses, k) for k in range(first + 1)) / (1 << tosses)


def dirichlet_lead_probability(votes: Sequence[int]) -> float:
    """P(the first's share is the largest of all, and larger than an unseen answer's): shares are
    gamma variables over their sum, so it is an integral over the first, by Simpson's rule."""
    first, *others = [*votes, 0]
    upper, steps = first + 12 * math.sqrt(first + 1) + 20, 400
    total = 0.0
    for step in range(1, steps + 1):
        x = upper * step / steps
        value = math.exp(first * math.log(x) - x - math.lgamma(first + 1))
        for other in others:
            value *= _gamma_cdf(other + 1, x)
        total += value * (1 if step == steps else 4 if step % 2 else 2)
    return min(total * upper / steps / 3, 1.0)


def _gamma_cdf(shape: int, x: float) -> float:
    """P(a gamma variable of this whole shape is below ``x``)."""
    term = tail = math.exp(-x)
    for k in range(1, shape):
        term *= x / k
        tail += term
    return max(1.0 - tail, 0.0)


_LEAD_PROBABILITIES = {"beta": beta_lead_probability, "dirichlet": dirichlet_lead_probability}
