"""A new score does not exceed the bound as often as promised, whatever the distribution."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.evidence.conformal import conformal_rank


@given(st.integers(0, 2000), st.floats(0.001, 0.999))
def test_the_rank_is_the_smallest_valid_one(count: int, delta: float) -> None:
    """Each of n + 1 exchangeable scores is equally likely to be the largest: rank k covers
    k / (n + 1), and rank k - 1 too little."""
    k = conformal_rank(count, delta)
    assert 1 <= k <= count + 1
    assert k / (count + 1) >= 1 - delta - 1e-6
    assert (k - 1) / (count + 1) < 1 - delta + 1e-6


@pytest.mark.parametrize(
    ("count", "delta", "expected"), [(19, 0.05, 19), (18, 0.05, 19), (99, 0.01, 99), (9, 0.5, 5)]
)
def test_some_ranks(count: int, delta: float, expected: int) -> None:
    """19 scores are the fewest for 5 %: with 18 there is no bound."""
    assert conformal_rank(count, delta) == expected


@pytest.mark.parametrize("delta", [0.05, 0.2])
@pytest.mark.parametrize("count", [30, 200])
def test_coverage_of_exchangeable_scores(count: int, delta: float) -> None:
    """With new samples each time, a further score is under the bound in at least 1 - δ of them,
    within four standard errors; and not in many more than that."""
    rng, draws, held = random.Random(f"{count} {delta}"), 4000, 0
    for _ in range(draws):
        scores = sorted(rng.gammavariate(0.5, 1) for _ in range(count))
        held += rng.gammavariate(0.5, 1) <= scores[conformal_rank(count, delta) - 1]
    error = 4 * math.sqrt(delta * (1 - delta) / draws)
    assert 1 - delta - error <= held / draws <= 1 - delta + 1 / (count + 1) + error
