"""Split conformal prediction: from scores on data not used for training, a bound that a new score
does not exceed with a chosen probability.

Source: Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World (2005).
"""

from __future__ import annotations

import math

__all__ = ["conformal_rank"]

_EPSILON = 1e-9  # (n + 1) · (1 - δ) may exceed a whole number by a rounding error


def conformal_rank(count: int, delta: float) -> int:
    """⌈(n + 1)(1 - ``delta``)⌉, the rank (from 1) of the bound among n = ``count`` sorted scores.

    If the scores are exchangeable, a further one exceeds the score of this rank with a probability
    of at most ``delta``. The rank is greater than n if there are too few scores for any bound:
    fewer than 1 / ``delta`` - 1.
    """
    return math.ceil((count + 1) * (1 - delta) - _EPSILON)
