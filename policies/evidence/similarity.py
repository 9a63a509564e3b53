"""How alike a step of a trace is to those before it: by its words, or by an embedder's vectors.

What a step costs does not grow with the trace: so many of the latest are remembered.
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
"""A vector of a thousand numbers is compared with these in half a millisecond."""


class Similarity(Protocol):
    """A memory of steps, as texts or as vectors."""

    def compare_and_add(self, step: Any) -> float:
        """How alike the most similar earlier step is; 0.0 for the first. Remembers this one."""


class ShingleSimilarity:
    """By the runs of three words that two steps share."""

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps: deque[frozenset[tuple[str, ...]]] = deque(maxlen=_MAX_STEPS)

    def compare_and_add(self, step: str) -> float:
        """The share of this step's runs that one earlier step had, in [0, 1]."""
        words = [word.casefold() for word in _WORD.findall(step)]
        runs = frozenset(zip(*(words[i:] for i in range(_SHINGLE_WORDS)), strict=False))
        shared = max((len(runs & earlier) for earlier in self._steps), default=0)
        self._steps.append(runs)
        return shared / len(runs) if runs else 0.0


class CosineSimilarity:
    """By the angle between two steps' vectors."""

    __slots__ = ("_vectors",)

    def __init__(self) -> None:
        self._vectors: deque[tuple[float, ...]] = deque(maxlen=_MAX_VECTORS)

    def compare_and_add(self, vector: Sequence[float]) -> float:
        """A cosine, in [-1, 1]; one that points nowhere is not remembered. Raises ValueError where
        a vector has another length than those before."""
        longest = max(map(abs, vector), default=0.0)
        if not 0.0 < longest < math.inf:
            return 0.0
        scaled = [x / longest for x in vector]  # or squares could overflow
        norm = math.sqrt(math.fsum(map(mul, scaled, scaled)))
        unit = tuple(x / norm for x in scaled)
        if any(len(earlier) != len(unit) for earlier in self._vectors):
            raise ValueError(f"a vector of {len(unit)} numbers behind others of another length")
        cosine = max((sum(map(mul, unit, earlier)) for earlier in self._vectors), default=0.0)
        self._vectors.append(unit)
        return max(-1.0, min(1.0, cosine))
