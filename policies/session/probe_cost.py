"""Decide whether a probe is worth its cost.

A probe occupies a slot in the engine's batch while it runs, and its prefill delays the decoding of
all requests. Its cost in tokens is therefore the probe's duration divided by a token's, both as
measured under the current load. Its expected gain is the probability that it stops the trace, times
the tokens that would follow. A probe that costs more than its expected gain is not sent; a few are
sent in spite of it, so that the estimate can recover.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ProbeCostModel"]

_DECAY = 0.98
_ORDINALS = 8
_EXPLORE_EVERY = 16


@dataclass(slots=True)
class _Rate:
    """A probability, estimated from decayed counts with a prior of one in two."""

    hits: float = 1.0
    tries: float = 2.0

    def add(self, hit: bool) -> None:
        self.hits = self.hits * _DECAY + hit
        self.tries = self.tries * _DECAY + 1.0

    @property
    def value(self) -> float:
        return self.hits / self.tries


class ProbeCostModel:
    """What was measured for one model under one policy, over all requests.

    The probability of a stop depends on how often the trace was probed before. The tokens left are
    estimated as the mean length of traces that ended by themselves, less the current position, and
    for a single checkpoint at least the current position: traces that are long already tend to go
    on. That minimum does not apply to a series of checkpoints, which has to start early to finish
    before the trace ends.

    state               content                                               changed by
    ------------------  ----------------------------------------------------  -------------------
    _stop_rates         the probability of a stop, by number of earlier       record_outcome,
                        probes (the last entry covers all higher numbers)     record_probe
    _probe_seconds      duration of a checkpoint's probes (moving average)    record_probe
    _token_seconds      time per decoded token (moving average)               record_decoding
    _mean_length        tokens of a trace that ended by itself (moving avg.)  record_trace_length
    _refused_count      probes not sent, to choose the ones sent to explore   should_probe
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
        """The cost of one checkpoint's probes in tokens. 0.0 before anything was measured."""
        if not self._token_seconds or self._probe_seconds is None:
            return 0.0
        return self._probe_seconds / self._token_seconds

    def should_probe(self, position: int, earlier_probes: int, checkpoints: int = 1) -> bool:
        """Whether to probe after ``position`` tokens of a trace that had ``earlier_probes``.
        ``checkpoints``: how many must be probed in a row before there can be a stop."""
        stop_rate = self._stop_rates[min(earlier_probes, _ORDINALS - 1)].value
        left = max(
            float(position if checkpoints == 1 else 0), (self._mean_length or 0.0) - position
        )
        if stop_rate * left >= checkpoints * self.cost:
            return True
        self._refused_count += 1
        return self._refused_count % (_EXPLORE_EVERY * checkpoints) == 0

    def record_probe(self, seconds: float, earlier_probes: int, stopped: bool | None) -> None:
        """The probes of one checkpoint (gate and trial answer) took ``seconds`` together.
        ``stopped``: None if the policy could not have stopped there."""
        if stopped is not None:
            self.record_outcome(earlier_probes, stopped=stopped)
        self._probe_seconds = _smoothed(self._probe_seconds, seconds)

    def record_outcome(self, earlier_probes: int, *, stopped: bool) -> None:
        """Whether a probe or a series, after ``earlier_probes`` others, stopped the trace."""
        self._stop_rates[min(earlier_probes, _ORDINALS - 1)].add(stopped)

    def record_decoding(self, tokens: int, seconds: float) -> None:
        """A stream decoded ``tokens`` in ``seconds``."""
        if tokens > 0:
            self._token_seconds = _smoothed(self._token_seconds, seconds / tokens)

    def record_trace_length(self, position: int) -> None:
        """A trace ended by itself after ``position`` tokens."""
        self._mean_length = _smoothed(self._mean_length, float(position))


def _smoothed(old: float | None, new: float) -> float:
    return new if old is None else old + (new - old) * 0.1
