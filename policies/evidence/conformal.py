"""Split conformal prediction: from scores on data that nothing was learned from, a bound that a new
score stays under with a chosen probability.

Source: Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World (2005).
"""

from __future__ import annotations

import math

__all__ = ["conformal_rank"]

_EPSILON = 1e-9  # (n + 1) · (1 - δ) in floating point may be a hair over a whole number


def conformal_rank(count: int, delta: float) -> int:
    """⌈(n + 1)(1 - ``delta``)⌉: of n = ``count`` exchangeable scores, ascending, the one of this
    rank, from 1 on, is not exceeded by a further one with a probability of at least 1 - ``delta``.
    Beyond n where they are too few to say, which is below 1 / ``delta`` - 1 of them."""
    return math.ceil((count + 1) * (1 - delta) - _EPSILON)
