"""The probes of one trace: what they cost, and whether the next one is worth its cost.

Some policies cannot stop before they have probed several checkpoints, so each probe alone would
seem worthless. Such a series is weighed once, as a whole, at its first checkpoint; a series that
was started is finished. Each checkpoint after it is weighed alone.
"""

from __future__ import annotations

from adjourn.policies.session.probe_cost import ProbeCostModel

__all__ = ["ProbeSeries"]


class ProbeSeries:
    """Decides checkpoint by checkpoint. ``min_checkpoints``: those that the policy must probe
    before it can stop.

    state            content                                            changed by
    ---------------  -------------------------------------------------  -----------------------
    _probed_count    checkpoints probed so far; 0 again once the        finish_checkpoint,
                     outcome of the series is recorded                  finish
    _probe_seconds   duration of the probes at the current checkpoint   should_probe,
                                                                        add_probe_time
    """

    __slots__ = ("_cost_model", "_min_checkpoints", "_probe_seconds", "_probed_count")

    def __init__(self, cost_model: ProbeCostModel, min_checkpoints: int) -> None:
        self._cost_model = cost_model
        self._min_checkpoints = min_checkpoints
        self._probed_count = 0
        self._probe_seconds = 0.0

    @property
    def _ordinal(self) -> int:
        """Which stop rate applies: 0 for the series, then one per checkpoint after it."""
        return max(0, self._probed_count - self._min_checkpoints + 1)

    def should_probe(self, position: int) -> bool:
        """Whether to probe the checkpoint after ``position`` tokens."""
        checkpoints = 1 if self._probed_count else self._min_checkpoints
        in_series = 0 < self._probed_count < self._min_checkpoints
        worth = in_series or self._cost_model.should_probe(position, self._ordinal, checkpoints)
        if worth:
            self._probe_seconds = 0.0
        return worth

    def add_probe_time(self, seconds: float) -> None:
        """A probe at the current checkpoint took so long."""
        self._probe_seconds += seconds

    def finish_checkpoint(self, *, has_result: bool, stopped: bool) -> None:
        """All probes of a checkpoint are done. ``has_result``: the last one did not fail."""
        if not has_result and not self._probe_seconds:
            return
        could_stop = self._min_checkpoints == 1 or self._probed_count >= self._min_checkpoints
        self._cost_model.record_probe(
            self._probe_seconds, self._ordinal, stopped if could_stop else None
        )
        self._probed_count += 1
        if stopped:
            self._record_series(stopped=True)

    def finish(self) -> None:
        """The trace is over, and no probe has stopped it."""
        self._record_series(stopped=False)

    def _record_series(self, *, stopped: bool) -> None:
        """Record the outcome of a series only at the end of the probing: a checkpoint after the
        series can be what stops the trace."""
        if self._min_checkpoints > 1 and self._probed_count:
            self._cost_model.record_outcome(0, stopped=stopped)
            self._probed_count = 0
