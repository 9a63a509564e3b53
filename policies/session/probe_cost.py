"""Is a probe worth its price?

A probe takes a place in the engine's batch for as long as it runs, and its prefill holds up
everybody's decoding. Its price in tokens is therefore the time it takes over the time that a
stream's token takes, both as measured now, under the load of now. What it may bring is the chance
that it says stop, times the tokens that are left. A probe that costs more than it may bring is
not sent; now and then one is sent all the same, so that the estimate can change its mind.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ProbeCostModel"]

_DECAY = 0.98
_ORDINALS = 8
_EXPLORE_EVERY = 16


@dataclass(slots=True)
class _Rate:
    """A chance as a decayed count with a prior of one in two."""

    hits: float = 1.0
    tries: float = 2.0

    def add(self, hit: bool) -> None:
        self.hits = self.hits * _DECAY + hit
        self.tries = self.tries * _DECAY + 1.0

    @property
    def value(self) -> float:
        return self.hits / self.tries


class ProbeCostModel:
    """What was learned on one model under one policy, over all requests.

    The chance of a stop is kept by how often the trace was probed before. What is left of a trace
    is the mean length of those that came to their own end less what was thought, and never less
    than what was thought: long traces are the ones that go on. A row of looks has to begin early
    all the same, or the trace ends before it does.
    """

    __slots__ = (
        "_mean_length",
        "_probe_seconds",
        "_refused_count",
        "_stop_rates",
        "_token_seconds",
    )

    def __init__(self) -> None:
        self._stop_rates = [_Rate() for _ in range(_ORDINALS)]
        self._mean_length: float | None = None
        self._probe_seconds: float | None = None
        self._token_seconds: float | None = None
        self._refused_count = 0

    @property
    def cost(self) -> float:
        """Of one checkpoint's probes, in tokens. 0.0 before anything was measured."""
        if not self._token_seconds or self._probe_seconds is None:
            return 0.0
        return self._probe_seconds / self._token_seconds

    def should_probe(self, position: int, earlier_probes: int, checkpoints: int = 1) -> bool:
        """Whether to probe after ``position`` tokens of a trace that was probed ``asked`` times,
        and at so many checkpoints in a row, ``looks``, before there can be a stop."""
        chance = self._stop_rates[min(earlier_probes, _ORDINALS - 1)].value
        left = max(
            float(position if checkpoints == 1 else 0), (self._mean_length or 0.0) - position
        )
        if chance * left >= checkpoints * self.cost:
            return True
        self._refused_count += 1
        return self._refused_count % (_EXPLORE_EVERY * checkpoints) == 0

    def record_probe(self, seconds: float, earlier_probes: int, stopped: bool | None) -> None:
        """One checkpoint was probed, gate and trial answer together taking ``seconds``. None where
        it could not have said stop."""
        if stopped is not None:
            self.record_outcome(earlier_probes, stopped=stopped)
        self._probe_seconds = _smoothed(self._probe_seconds, seconds)

    def record_outcome(self, earlier_probes: int, *, stopped: bool) -> None:
        """What came of a probe, or of a row of them, after ``asked`` others."""
        self._stop_rates[min(earlier_probes, _ORDINALS - 1)].add(stopped)

    def record_decoding(self, tokens: int, seconds: float) -> None:
        """A stream brought ``tokens`` in ``seconds``."""
        if tokens > 0:
            self._token_seconds = _smoothed(self._token_seconds, seconds / tokens)

    def record_trace_length(self, position: int) -> None:
        """A trace came to its own end after ``position`` tokens."""
        self._mean_length = _smoothed(self._mean_length, float(position))


def _smoothed(old: float | None, new: float) -> float:
    return new if old is None else old + (new - old) * 0.1
