"""Scale the options of a policy by a client's patience, for ``with_patience``."""

from __future__ import annotations

import math

__all__ = ["scale_confidence", "scale_count"]

_BELOW_ONE = math.nextafter(1.0, 0.0)


def scale_confidence(threshold: float, factor: float) -> float:
    """A threshold on a probability at ``factor`` times the patience: the doubt 1 - ``threshold`` is
    divided by ``factor``. The result is at least half of ``threshold``, and 1 only if that is."""
    doubt = (1 - threshold) / factor
    return min(max(1 - doubt, threshold / 2), max(threshold, _BELOW_ONE))


def scale_count(count: int, factor: float, minimum: int = 1) -> int:
    """A count of tokens, checkpoints or answers at ``factor`` times the patience."""
    return max(round(count * factor), minimum)
