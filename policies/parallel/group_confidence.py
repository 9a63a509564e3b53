"""``group-confidence``: traces that lose confidence on the way are given up, the others vote.

Rule: ``warmup`` traces run to their ends; each has a lowest mean confidence over ``window`` tokens
in a row, and the ``percentile``-th of these is the bar. Traces opened then are given up at the
engine as soon as they fall below it. Answers vote with that lowest confidence, those below the bar
not at all; stop when the leader has at least ``consensus`` of the weight.
A token's confidence is the negative mean log-probability of the twenty most probable tokens.
Source: Deep Think with Confidence (DeepConf), arXiv 2508.15260, online; the 10th percentile is its
careful setting, the 90th its fast one.
Cost: ``warmup`` traces at least, ``max`` at most, and log-probabilities on every stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.parallel.confidence_meter import CONFIDENCE_TOP_LOGPROBS
from adjourn.policies.parallel.votes import Votes
from adjourn.policies.policy import Needs
from adjourn.policies.sampling import (
    AbortTraces,
    ConfidenceReport,
    OpenTraces,
    RequestStarted,
    SamplingCommand,
    SamplingEvent,
    SamplingPolicy,
    TraceAnswered,
    TraceFailed,
)

__all__ = ["GroupConfidence"]


@dataclass(frozen=True, slots=True)
class GroupConfidence(SamplingPolicy):
    """Options of ``group-confidence``. ``window`` in tokens; ``percentile`` in [0, 100];
    ``consensus`` in (0, 1]; ``batch``: traces at once behind the warm-up."""

    name: ClassVar[str] = "group-confidence"
    warmup: int = 16
    window: int = 2048
    percentile: float = 10.0
    consensus: float = 0.95
    batch: int = 8
    max: int = 64

    def __post_init__(self) -> None:
        SamplingPolicy.__post_init__(self)
        if not 1 <= self.warmup <= self.max <= 128 or self.window < 1 or self.batch < 1:
            raise ValueError("warmup must lie in [1, max], max be at most 128, the rest positive")
        if not 0 <= self.percentile <= 100 or not 0 < self.consensus <= 1:
            raise ValueError("percentile must lie in [0, 100], consensus in (0, 1]")

    @property
    def confidence_window(self) -> int:
        return self.window

    @property
    def needs(self) -> Needs:
        return self.trace_policy.needs | Needs(
            reasoning_chunks=True, logprobs=CONFIDENCE_TOP_LOGPROBS
        )

    def start_sampler(self) -> GroupConfidenceSampler:
        return GroupConfidenceSampler(self)


class GroupConfidenceSampler:
    def __init__(self, policy: GroupConfidence) -> None:
        self._policy = policy
        self._opened_count = 0
        self._running: set[int] = set()
        self._lowest: dict[int, float] = {}
        self._labels: dict[int, int] = {}
        self._threshold: float | None = None

    def observe(self, event: SamplingEvent) -> Sequence[SamplingCommand]:
        match event:
            case RequestStarted():
                return self._open_traces(self._policy.warmup)
            case ConfidenceReport(trace, confidence):
                self._lowest[trace] = confidence
                if (
                    self._threshold is None
                    or confidence >= self._threshold
                    or trace not in self._running
                ):
                    return ()
                self._running.discard(trace)
                return (AbortTraces((trace,)), *self._decide_next())
            case TraceAnswered(trace, label=label):
                self._running.discard(trace)
                if label is not None:
                    self._labels[trace] = label
                return self._decide_next()
            case TraceFailed(trace):
                self._running.discard(trace)
                return self._decide_next()
        return ()

    def _decide_next(self) -> Sequence[SamplingCommand]:
        if self._threshold is None:
            if self._running or not self._labels:
                return ()
            known = sorted(self._lowest.values())
            place = int(len(known) * self._policy.percentile / 100)
            self._threshold = known[min(place, len(known) - 1)] if known else 0.0
        votes = self._count_votes(self._threshold)
        if votes.leader_share >= self._policy.consensus:
            return (votes.choose("consensus", votes.leader_share),)
        if self._running:
            return ()
        if self._opened_count < self._policy.max:
            return self._open_traces(min(self._policy.batch, self._policy.max - self._opened_count))
        return (votes.choose("majority", votes.leader_share),)

    def _count_votes(self, bar: float) -> Votes:
        """Those at or above the bar; all of them where none is."""
        votes, low = Votes(), Votes()
        for trace, label in sorted(self._labels.items()):
            lowest = self._lowest.get(trace, bar)
            (votes if lowest >= bar else low).add(label, trace, lowest)
        return votes if votes.weights else low

    def _open_traces(self, count: int) -> Sequence[SamplingCommand]:
        self._running |= set(range(self._opened_count, self._opened_count + count))
        self._opened_count += count
        return (OpenTraces(count),)
