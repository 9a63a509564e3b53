"""How similar a step of a trace is to earlier steps, by words or by an embedder's vectors.

Only the latest steps are remembered, so the cost of a step does not grow with the trace.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Sequence
from operator import mul
from typing import Any, Protocol

__all__ = ["CosineSimilarity", "ShingleSimilarity", "Similarity"]

_WORD = re.compile(r"\w+|[^\w\s]")
_SHINGLE_WORDS = 3
_MAX_STEPS = 64
_MAX_VECTORS = 16
"""Comparing a vector of 1,000 numbers with so many takes half a millisecond."""


class Similarity(Protocol):
    """Remembers the latest steps, as texts or as vectors."""

    def compare_and_add(self, step: Any) -> float:
        """The similarity to the most similar earlier step: at most 1.0, and 0.0 for the first.

        Remembers this step.
        """


class ShingleSimilarity:
    """Similarity by shared shingles: runs of three words."""

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps: deque[frozenset[tuple[str, ...]]] = deque(maxlen=_MAX_STEPS)

    def compare_and_add(self, step: str) -> float:
        """The largest share of this step's shingles found in one earlier step, in [0, 1]."""
        words = [word.casefold() for word in _WORD.findall(step)]
        shingles = frozenset(zip(*(words[i:] for i in range(_SHINGLE_WORDS)), strict=False))
        shared = max((len(shingles & earlier) for earlier in self._steps), default=0)
        self._steps.append(shingles)
        return shared / len(shingles) if shingles else 0.0


class CosineSimilarity:
    """Similarity by the cosine of the angle between two steps' vectors."""

    __slots__ = ("_vectors",)

    def __init__(self) -> None:
        self._vectors: deque[tuple[float, ...]] = deque(maxlen=_MAX_VECTORS)

    def compare_and_add(self, vector: Sequence[float]) -> float:
        """The largest cosine, in [-1, 1]. A zero or non-finite vector gives 0.0 and is not
        remembered. Raises ValueError if the vector's length differs from the earlier ones'."""
        longest = max(map(abs, vector), default=0.0)
        if not 0.0 < longest < math.inf:
            return 0.0
        scaled = [x / longest for x in vector]  # so that no square overflows
        norm = math.sqrt(math.fsum(map(mul, scaled, scaled)))
        unit = tuple(x / norm for x in scaled)
        if any(len(earlier) != len(unit) for earlier in self._vectors):
            raise ValueError(f"a vector of {len(unit)} numbers after vectors of another length")
        cosine = max((sum(map(mul, unit, earlier)) for earlier in self._vectors), default=0.0)
        self._vectors.append(unit)
        return max(-1.0, min(1.0, cosine))
