"""The looks of one trace: what they cost, and whether the next is worth it.

Some policies cannot stop before they have looked many times: each look by itself would seem
worthless. Such a series is weighed once, as a whole, where it begins; one that was begun is
finished. Each look behind it is weighed by itself.
"""

from __future__ import annotations

from policies.appraisal import Appraiser

__all__ = ["Looks"]


class Looks:
    """``series``: looks that it takes before the policy can stop. A *look* is all that is asked at
    one checkpoint."""

    __slots__ = ("_appraiser", "_count", "_seconds", "_series")

    def __init__(self, appraiser: Appraiser, series: int) -> None:
        self._appraiser = appraiser
        self._series = series
        self._count = 0
        self._seconds = 0.0

    @property
    def _ordinal(self) -> int:
        """Whose chance it is: that of the series, or of a look behind it."""
        return max(0, self._count - self._series + 1)

    def worth(self, position: int) -> bool:
        """Whether to look after ``position`` tokens."""
        looks = 1 if self._count else self._series
        begun = 0 < self._count < self._series
        worth = begun or self._appraiser.worth(position, self._ordinal, looks)
        if worth:
            self._seconds = 0.0
        return worth

    def asked(self, seconds: float) -> None:
        """A probe of this look took so long."""
        self._seconds += seconds

    def answered(self, *, told: bool, stopped: bool) -> None:
        """The look is over. ``told``: its last probe brought something."""
        if not told and not self._seconds:
            return
        alone = self._series == 1 or self._count >= self._series
        self._appraiser.probed(self._seconds, self._ordinal, stopped if alone else None)
        self._count += 1
        if stopped:
            self._settle(stopped=True)

    def ended(self) -> None:
        """There are no more, and they have not stopped the trace."""
        self._settle(stopped=False)

    def _settle(self, *, stopped: bool) -> None:
        """What a series was worth is known once there can be no look behind it either."""
        if self._series > 1 and self._count:
            self._appraiser.tried(0, stopped=stopped)
            self._count = 0
