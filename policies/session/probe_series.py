"""The looks of one trace: what they cost, and whether the next is worth it.

Some policies cannot stop before they have looked many times: each look by itself would seem
worthless. Such a series is weighed once, as a whole, where it begins; one that was begun is
finished. Each look behind it is weighed by itself.
"""

from __future__ import annotations

from adjourn.policies.session.probe_cost import ProbeCostModel

__all__ = ["ProbeSeries"]


class ProbeSeries:
    """``series``: looks that it takes before the policy can stop. A *look* is all that is asked at
    one checkpoint."""

    __slots__ = ("_cost_model", "_min_checkpoints", "_probe_seconds", "_probed_count")

    def __init__(self, cost_model: ProbeCostModel, min_checkpoints: int) -> None:
        self._cost_model = cost_model
        self._min_checkpoints = min_checkpoints
        self._probed_count = 0
        self._probe_seconds = 0.0

    @property
    def _ordinal(self) -> int:
        """Whose chance it is: that of the series, or of a look behind it."""
        return max(0, self._probed_count - self._min_checkpoints + 1)

    def should_probe(self, position: int) -> bool:
        """Whether to look after ``position`` tokens."""
        looks = 1 if self._probed_count else self._min_checkpoints
        begun = 0 < self._probed_count < self._min_checkpoints
        worth = begun or self._cost_model.should_probe(position, self._ordinal, looks)
        if worth:
            self._probe_seconds = 0.0
        return worth

    def add_probe_time(self, seconds: float) -> None:
        """A probe of this look took so long."""
        self._probe_seconds += seconds

    def finish_checkpoint(self, *, has_result: bool, stopped: bool) -> None:
        """The look is over. ``told``: its last probe brought something."""
        if not has_result and not self._probe_seconds:
            return
        alone = self._min_checkpoints == 1 or self._probed_count >= self._min_checkpoints
        self._cost_model.record_probe(
            self._probe_seconds, self._ordinal, stopped if alone else None
        )
        self._probed_count += 1
        if stopped:
            self._record_series(stopped=True)

    def finish(self) -> None:
        """There are no more, and they have not stopped the trace."""
        self._record_series(stopped=False)

    def _record_series(self, *, stopped: bool) -> None:
        """What a series was worth is known once there can be no look behind it either."""
        if self._min_checkpoints > 1 and self._probed_count:
            self._cost_model.record_outcome(0, stopped=stopped)
            self._probed_count = 0
