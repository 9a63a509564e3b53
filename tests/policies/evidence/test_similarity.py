"""Similarity of steps, by words and by vectors, with bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.evidence.similarity import CosineSimilarity, ShingleSimilarity


@given(st.lists(st.text("ab ", max_size=30), max_size=12))
def test_similarity_is_a_share_of_an_earlier_step(steps: list[str]) -> None:
    """The largest share of a step's three-word shingles found in one earlier step."""
    shingles = ShingleSimilarity()
    for at, step in enumerate(steps):
        runs = _runs(step)
        earlier = [len(runs & _runs(other)) / len(runs) for other in steps[:at] if runs]
        assert shingles.compare_and_add(step) == max(earlier, default=0.0)


def _runs(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def test_similarity_ignores_case_and_space() -> None:
    """The same words are the same step."""
    shingles = ShingleSimilarity()
    shingles.compare_and_add("So the result is 165.")
    assert shingles.compare_and_add("so  THE result\nis 165 .") == 1.0


numbers = st.floats(-1e300, 1e300, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-300)
vectors = st.lists(st.tuples(numbers, numbers, numbers), max_size=40)


@given(vectors)
def test_a_cosine_is_the_largest_over_the_latest_sixteen(states: list[tuple[float, ...]]) -> None:
    """Compared with a computation from all vectors; a zero vector does not count."""
    cosines, seen = CosineSimilarity(), list[tuple[float, ...]]()
    for vector in states:
        expected = max((_cosine(vector, one) for one in seen[-16:]), default=0.0)
        assert cosines.compare_and_add(vector) == pytest.approx(
            expected if any(vector) else 0.0, abs=1e-9
        )
        if any(vector):
            seen.append(vector)


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    if not any(one):
        return 0.0
    ones, others = (math.hypot(*(x / max(map(abs, v)) for x in v)) for v in (one, other))
    scaled = zip(one, other, strict=True)
    product = sum(x / max(map(abs, one)) * (y / max(map(abs, other))) for x, y in scaled)
    return product / ones / others


@given(st.tuples(numbers, numbers).filter(any), st.floats(1e-3, 1e3))
def test_the_length_of_a_vector_does_not_matter(vector: tuple[float, float], scale: float) -> None:
    """The same direction gives 1, the opposite one -1."""
    cosines = CosineSimilarity()
    cosines.compare_and_add(vector)
    assert cosines.compare_and_add([x / 1e3 * scale for x in vector]) == pytest.approx(1.0)
    other = CosineSimilarity()
    other.compare_and_add(vector)
    assert other.compare_and_add([-x for x in vector]) == pytest.approx(-1.0)


@pytest.mark.parametrize("vector", [(), (0.0, 0.0), (math.nan, 1.0), (math.inf, 1.0)])
def test_a_zero_vector_is_not_remembered(vector: tuple[float, ...]) -> None:
    """It is similar to nothing, and nothing is similar to it."""
    cosines = CosineSimilarity()
    assert cosines.compare_and_add(vector) == 0.0
    assert cosines.compare_and_add((1.0, 0.0)) == 0.0
    assert cosines.compare_and_add((1.0, 0.0)) == 1.0


def test_vectors_of_different_lengths_are_an_error() -> None:
    """The embedder has changed within a trace: the policy errs and is muted."""
    cosines = CosineSimilarity()
    cosines.compare_and_add((1.0, 0.0))
    with pytest.raises(ValueError, match="length"):
        cosines.compare_and_add((1.0, 0.0, 0.0))
