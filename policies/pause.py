"""Growing pauses between probes that say no."""

from __future__ import annotations

__all__ = ["Pause"]


class Pause:
    """After the n-th no, min(``gap`` · ``backoff``ⁿ⁻¹, ``longest``) tokens are passed over."""

    __slots__ = ("_backoff", "_gap", "_longest", "_until")

    def __init__(self, gap: int, backoff: float, longest: int) -> None:
        self._gap = float(min(gap, longest))
        self._backoff = backoff
        self._longest = longest
        self._until = 0

    def over(self, position: int) -> bool:
        return position >= self._until

    def begin(self, position: int) -> None:
        """A probe at ``position`` said no."""
        self._until = position + round(self._gap)
        self._gap = min(self._gap * self._backoff, self._longest)
