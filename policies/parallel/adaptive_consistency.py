"""``adaptive-consistency``: sample until the leading answer will most likely keep its lead.

Rule: after each window of traces, stop if the leader has the largest share of the model's answers
with a probability of at least ``threshold``; the leader is the response. ``beta`` compares it with
the runner-up only: 1 - I(0.5; v1 + 1, v2 + 1) with v1 and v2 votes. ``dirichlet`` compares it with
every answer, under a uniform prior.
Units: traces; ``threshold`` is a probability.
Source: Adaptive Self-Consistency (ASC), arXiv 2305.11860.
Deviations: samples in windows; the paper samples one by one, which takes as many times as long.
Cost: the first window to ``max`` traces.
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
    """Options of ``adaptive-consistency``. ``threshold`` in (0, 1); ``window``: concurrent traces;
    ``max``: traces at most."""

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
    """One request. ``window_size``: traces of each window after the first one; a subclass may
    change it through ``_next_window_size``."""

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
        probability = self._lead_probability([round(w) for w in self.votes.ranked_weights])
        if probability < self._threshold:
            return None
        return self.votes.choose("ahead", probability)


def beta_lead_probability(votes: Sequence[int]) -> float:
    """P(the leader's share is larger than the runner-up's). ``votes``: in descending order.

    It is the chance that of v1 + v2 + 1 fair coins at most v1 show heads, computed exactly.
    """
    first, second, *_ = [*votes, 0, 0]
    tosses = first + second + 1
    return sum(math.comb(tosses, k) for k in range(first + 1)) / (1 << tosses)


def dirichlet_lead_probability(votes: Sequence[int]) -> float:
    """P(the leader's share is larger than every other's, an unseen answer's included). ``votes``:
    in descending order.

    Shares are gamma variables divided by their sum, so this is an integral over the leader's
    variable, by Simpson's rule.
    """
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
    """P(a gamma variable of this integer shape is below ``x``)."""
    term = tail = math.exp(-x)
    for k in range(1, shape):
        term *= x / k
        tail += term
    return max(1.0 - tail, 0.0)


_LEAD_PROBABILITIES = {"beta": beta_lead_probability, "dirichlet": dirichlet_lead_probability}
