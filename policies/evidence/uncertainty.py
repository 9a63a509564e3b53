"""How uncertain a model is about its next token."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["ENTROPY_TOP_LOGPROBS", "token_entropy"]

ENTROPY_TOP_LOGPROBS = 20
"""The number of most probable tokens used; engines return no more by default."""


def token_entropy(logprobs: Iterable[float]) -> float:
    """Shannon entropy in nats over the given tokens.

    ``logprobs``: natural logarithms of the most probable tokens. The others are left out, so this
    is a lower bound, and a close one unless the distribution is nearly flat.
    """
    return -sum(math.exp(p) * p for p in logprobs)
