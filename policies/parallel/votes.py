"""Answers as votes, and traces that are opened window by window."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from adjourn.policies.sampling import (
    ChooseTrace,
    OpenTraces,
    RequestStarted,
    SamplingCommand,
    SamplingEvent,
    TraceAnswered,
    TraceFailed,
)

__all__ = ["Votes", "WindowSampler"]


class Votes:
    """Weights of the answers by what they mean. Of equals the one that was there first leads."""

    def __init__(self) -> None:
        self.weights: dict[int, float] = {}
        self.voters: dict[int, list[tuple[float, int]]] = {}

    def add(self, label: int, trace: int, weight: float = 1.0) -> None:
        self.weights[label] = self.weights.get(label, 0.0) + weight
        self.voters.setdefault(label, []).append((-weight, trace))

    @property
    def leader(self) -> int | None:
        """Ties go to the class whose earliest trace is the earliest, in whatever order its answers
        came."""
        first = {label: min(trace for _, trace in told) for label, told in self.voters.items()}
        return min(first, key=lambda label: (-self.weights[label], first[label]), default=None)

    @property
    def ranked_weights(self) -> list[float]:
        """The weights, heaviest first."""
        return sorted(self.weights.values(), reverse=True)

    @property
    def leader_share(self) -> float:
        """The leader's part of all, in [0, 1]."""
        ranked = self.ranked_weights
        total = sum(ranked)
        return ranked[0] / total if total else 0.0

    def choose(self, reason: str, confidence: float | None = None) -> ChooseTrace:
        """The leading class's heaviest trace, of equals the first. There must be an answer."""
        assert self.leader is not None
        told = self.voters[self.leader]
        return ChooseTrace(min(told)[1], reason, confidence, len(told))


class WindowSampler:
    """Opens traces window by window, and decides when a window is whole.

    Subclasses say in ``decide`` whether its answers are enough. Until then the leader is chosen as
    soon as nothing that may still come could overtake it, at the latest after ``most`` traces.
    Which class is chosen does not depend on the order in which a window's answers come. A window
    that brought no answer at all is the last.
    """

    max_vote_weight = 1.0  # what one vote can weigh

    def __init__(self, window_size: int, max_traces: int) -> None:
        self.window_size = window_size
        self.max_traces = max_traces
        self.votes = Votes()
        self.opened_count = 0
        self.window_labels: list[int | None] = []
        self._running_count = 0

    def observe(self, event: SamplingEvent) -> Sequence[SamplingCommand]:
        match event:
            case RequestStarted():
                return self._open_traces(self.window_size)
            case TraceAnswered():
                self._running_count -= 1
                self.window_labels.append(event.label)
                if event.label is not None:
                    self.votes.add(event.label, event.trace, self.weigh(event))
                return self._decide_next()
            case TraceFailed():
                self._running_count -= 1
                self.window_labels.append(None)
                return self._decide_next()
        return ()

    def weigh(self, event: TraceAnswered) -> float:
        return 1.0

    @abstractmethod
    def decide(self) -> ChooseTrace | None:
        """The choice, where the whole window that has come is enough for it."""

    def _decide_next(self) -> Sequence[SamplingCommand]:
        if self._running_count:
            return (
                (self.votes.choose("settled", self.votes.leader_share),) if self._is_decided else ()
            )
        if any(label is not None for label in self.window_labels):
            if (choice := self.decide()) is not None:
                return (choice,)
            self.window_labels = []
            if self._is_decided:
                return (self.votes.choose("settled", self.votes.leader_share),)
            if self.opened_count < self.max_traces:
                return self._open_traces(min(self.window_size, self.max_traces - self.opened_count))
        if self.votes.leader is None:
            return ()
        return (self.votes.choose("majority", self.votes.leader_share),)

    def _open_traces(self, count: int) -> Sequence[SamplingCommand]:
        self.opened_count += count
        self._running_count += count
        return (OpenTraces(count),)

    @property
    def _is_decided(self) -> bool:
        """Whether the leader has more than all others could still come to."""
        first, second, *_ = [*self.votes.ranked_weights, 0.0, 0.0]
        left = self.max_traces - self.opened_count + self._running_count
        return first - second > left * self.max_vote_weight
