"""How unsure a model is of its next token."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["ENTROPY_TOP_LOGPROBS", "token_entropy"]

ENTROPY_TOP_LOGPROBS = 20
"""So many of the most probable tokens are looked at; engines tell no more by default."""


def token_entropy(logprobs: Iterable[float]) -> float:
    """Shannon entropy in nats over the tokens whose log-probabilities are given.

    What an engine does not tell is left out and nothing is made up for it, so this is a lower
    bound, and a close one wherever the model is not lost altogether.
    """
    return -sum(math.exp(p) * p for p in logprobs)
