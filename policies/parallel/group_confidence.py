"""``group-confidence``: abort traces that lose confidence, and let the others vote.

Rule: ``warmup`` traces run to their end; each has a lowest mean confidence over ``window``
consecutive tokens, and the ``percentile``-th of these is the bar. Later traces are aborted as soon
as they fall below it. Answers vote with their lowest confidence, those below the bar not at all,
unless all are. Stop if the leader has at least ``consensus`` of the weight.
Units: nats; a token's confidence is the negative mean log-probability of its twenty most probable
tokens. Traces and tokens for the other options.
Source: Deep Think with Confidence (DeepConf), arXiv 2508.15260, online variant; the 10th percentile
is its careful setting, the 90th its fast one.
Cost: ``warmup`` to ``max`` traces, with log-probabilities on all of them.
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
    ``consensus`` in (0, 1]; ``batch``: concurrent traces after the warm-up; ``max``: traces at
    most."""

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
    """One request. State, changed by ``observe`` only:

    _opened_count  traces opened so far
    _running       traces that are open
    _lowest        the lowest confidence of each trace, in nats
    _labels        the answer's class of each trace that has one
    _threshold     the bar; None until the warm-up is over
    """

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
            ranked = sorted(self._lowest.values())
            rank = int(len(ranked) * self._policy.percentile / 100)
            self._threshold = ranked[min(rank, len(ranked) - 1)] if ranked else 0.0
        votes = self._count_votes(self._threshold)
        if votes.leader_share >= self._policy.consensus:
            return (votes.choose("consensus", votes.leader_share),)
        if self._running:
            return ()
        if self._opened_count < self._policy.max:
            return self._open_traces(min(self._policy.batch, self._policy.max - self._opened_count))
        return (votes.choose("majority", votes.leader_share),)

    def _count_votes(self, threshold: float) -> Votes:
        """The votes at or above the threshold; if there are none, all votes."""
        votes, low_votes = Votes(), Votes()
        for trace, label in sorted(self._labels.items()):
            lowest = self._lowest.get(trace, threshold)
            (votes if lowest >= threshold else low_votes).add(label, trace, lowest)
        return votes if votes.weights else low_votes

    def _open_traces(self, count: int) -> Sequence[SamplingCommand]:
        self._running |= set(range(self._opened_count, self._opened_count + count))
        self._opened_count += count
        return (OpenTraces(count),)
