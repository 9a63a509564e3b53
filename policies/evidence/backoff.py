"""Growing gaps between probes that did not stop the trace."""

from __future__ import annotations

__all__ = ["ProbeBackoff"]


class ProbeBackoff:
    """After the n-th probe without a stop, skip min(``gap`` · ``backoff``ⁿ⁻¹, ``max_gap``) tokens.

    Raises ValueError, which names the option, for values out of range. State: the next gap and the
    position until which no probe is sent; only ``begin`` changes them.
    """

    __slots__ = ("_factor", "_gap", "_max_gap", "_until")

    def __init__(self, gap: int, backoff: float, max_gap: int) -> None:
        if gap < 0 or max_gap < 0:
            raise ValueError("gap and max_gap must be at least 0")
        if not 1 <= backoff <= 1000:
            raise ValueError("backoff must lie in [1, 1000]")
        self._gap = float(min(gap, max_gap))
        self._factor = backoff
        self._max_gap = max_gap
        self._until = 0

    def is_over(self, position: int) -> bool:
        """Whether a probe may be sent at ``position``."""
        return position >= self._until

    def begin(self, position: int) -> None:
        """A probe at ``position`` did not stop the trace."""
        self._until = position + round(self._gap)
        self._gap = min(self._gap * self._factor, self._max_gap)
